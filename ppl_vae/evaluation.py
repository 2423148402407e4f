"""Importance-weighted log-likelihoods with their errors, and whether to believe them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_vae.batches import Batch, as_batch, source
from ppl_vae.checking import check
from ppl_vae.compiling import Compiled, check_compile
from ppl_vae.data.splits import Splits
from ppl_vae.diagnostics import effective_sample_size, pareto_khat
from ppl_vae.objectives import elbo, iwae
from ppl_vae.parallel import SharedNoise, Workers, workers
from ppl_vae.particles import Particles
from ppl_vae.programs import Program, Programs, program_name, undisturbed
from ppl_vae.progress import Bar, progress_bar
from ppl_vae.weighing import weigh

__all__ = ["Evaluation", "evaluate"]

KHAT_LIMIT = 0.7


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation:
    """Log-likelihood estimates, per datum and over the set. All in nats.

    Attributes:
        log_px: importance-weighted estimate of log p(x) of each datum, ``(N,)``: the bound L_K.
        elbo: the ELBO of each datum from the same draws, ``(N,)``.
        ess: effective number of draws, ``(N,)``, between 1 and K.
        khat: Pareto k-hat of the weights, ``(N,)``; above 0.7 a datum's estimate is not to be
            trusted.
        log_px_error: Monte Carlo standard error of each ``log_px``, ``(N,)``; NaN for K = 1, where
            the weights show no spread.
        particles: K.
        seed: what the draws were seeded with.
        subject: which programs on which data, in words.
    """

    log_px: Tensor
    elbo: Tensor
    ess: Tensor
    khat: Tensor
    log_px_error: Tensor
    particles: int
    seed: int
    subject: str = ""

    def __len__(self) -> int:
        """The number of data N."""
        return len(self.log_px)

    @property
    def mean(self) -> float:
        """Mean of ``log_px``: the sum over data / N."""
        return float(self.log_px.mean())

    @property
    def se(self) -> float:
        """Standard error of `mean` over data: how much another test set of this size would change it."""
        return float(self.log_px.std()) / math.sqrt(len(self)) if len(self) > 1 else math.nan

    @property
    def mc_se(self) -> float:
        """Monte Carlo standard error of `mean`: how much another seed would change it."""
        return float(self.log_px_error.square().sum().sqrt()) / len(self)

    @property
    def untrusted(self) -> float:
        """Share of data whose k-hat is above 0.7."""
        return float((~(self.khat <= KHAT_LIMIT)).double().mean())  # a k-hat that is no number is no comfort

    @property
    def verdict(self) -> str:
        """Which data's estimates are not to be trusted, in words."""
        if bool(self.khat.isposinf().all()):
            return "unknown: K is too small for a Pareto k-hat"
        return f"{self.untrusted:.1%} of the data (Pareto k-hat above {KHAT_LIMIT})"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values; None where one is not known."""
        means = {"log_px": self.mean, "elbo": float(self.elbo.mean()), "ess": float(self.ess.mean())}
        return {
            "subject": self.subject,
            "n": len(self),
            "particles": self.particles,
            "seed": self.seed,
            **means,
            "se": None if math.isnan(self.se) else self.se,
            "mc_se": None if math.isnan(self.mc_se) else self.mc_se,
            "khat_above_0.7": None if bool(self.khat.isposinf().all()) else self.untrusted,
        }

    def __str__(self) -> str:
        return (
            f"Log-likelihood{self.subject and ' of ' + self.subject}: {self.mean:.2f} ± {stated(self.se, 2)} nats per "
            f"datum (mean and standard error over N = {len(self):,} data; Monte Carlo error {stated(self.mc_se, 3)}), "
            f"estimated by importance sampling with K = {self.particles:,} draw{'s' * (self.particles > 1)} per datum; "
            f"the ELBO is {float(self.elbo.mean()):.2f}. Not to be trusted: {self.verdict}."
        )

    __repr__ = __str__


def stated(error: float, digits: int) -> str:
    """Return an error in words: one datum has no spread over data, one draw none over draws."""
    return "unknown" if math.isnan(error) else f"{error:.{digits}f}"


def evaluate(
    model: Program,
    guide: Program,
    data: Any,
    particles: int = 5000,
    seed: int = 0,
    *,
    batch_size: int = 100,
    chunk: int = 50,
    subject: str | None = None,
    progress: bool | None = None,
    compile: bool | str = "auto",  # noqa: A002 - the public name
) -> Evaluation:
    """Estimate log p(x) of each datum by importance sampling from the guide.

    For each datum, with K draws z_k from q(z | x)::

        log p(x) ~ L_K = log 1/K sum_k p(x, z_k) / q(z_k | x)

    whose expectation is a lower bound on log p(x) that rises with K. The programs run in evaluation
    mode without gradients; parameters, buffers, modes and the caller's random state stay as they
    were. Neither ``batch_size`` nor ``chunk`` biases the result.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        data: `Splits` (its test set), a tensor ``(N, ...)``, a tuple of them, a Dataset or a
            DataLoader in a fixed order.
        particles: K, draws per datum.
        seed: seeds the draws; two calls with one seed agree exactly.
        batch_size: data at a time. Several processes (``torchrun``) share batches out whose size is a
            multiple of their number.
        chunk: draws per datum at a time. Memory beyond the ``(K, batch_size)`` log-weights does
            not grow with K.
        subject: what the report calls the programs and the data; made from their names if left out.
        progress: whether to show a bar; by default where a terminal or notebook shows it.
        compile: see `ppl_vae.svi_step`; ``"auto"`` goes by the work to do.

    Returns:
        `Evaluation`.

    Raises:
        ContractError: model, guide and the first batch do not fit.
        FloatingPointError: a log-weight is NaN, or all of a datum's are minus infinity; the message
            names the datum and the site.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR
    2016, https://arxiv.org/abs/1509.00519; Monte Carlo error by the delta method, A. Owen, "Monte
    Carlo theory, methods and examples", chapter 9, https://artowen.su.domains/mc/.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
        >>> evaluation = pv.evaluate(model, Exact(model), x, particles=100)
        >>> torch.allclose(evaluation.log_px.float(), model.log_px(x), atol=1e-3)
        True
    """
    for name, value in (("particles", particles), ("chunk", chunk)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, found {value!r}")
    check_compile(compile)
    subject = _subject(model, guide, data) if subject is None else subject
    if isinstance(data, DataLoader) and data.drop_last:
        raise ValueError("data: the DataLoader drops its last batch, which would leave data out; set drop_last=False")
    batches = source(data.test if isinstance(data, Splits) else data, batch_size)
    programs = Programs(model, guide)
    together = workers()
    if together and (name := together.different(programs.tensors())):
        raise RuntimeError(
            f"{name} is not the same in all processes; evaluate one state of the programs in all of them"
        )
    draw = {
        who: _drawing(model, guide, programs, particles, chunk, batches.batches, compile, who)
        for who in {None, together}
    }
    progress = progress if together is None or together.leads else False
    with undisturbed(programs, seed, training=False), progress_bar("Evaluating", batches.batches, progress) as bar:
        parts: list[Mapping[str, Tensor]] = []
        for start, batch in _numbered(batches):
            batch = programs.on_device(batch)
            if not parts:
                check(model, guide, batch)
            parts.append(_estimated(draw, batch, particles, start, together))
            _show(bar, parts)
    columns = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    return Evaluation(**columns, particles=particles, seed=seed, subject=subject)


def _subject(model: Program, guide: Program, data: Any) -> str:
    pair = f"{program_name(model)} (guide {program_name(guide)})"
    if not isinstance(data, Splits):
        return pair
    how = "no" if data.info.binarization == "grey" else data.info.binarization
    return f"{pair} on {data.info.name} (test, {how} binarization)"


def _numbered(batches: Any) -> Iterator[tuple[int, Batch]]:
    """Yield batches with the index of their first datum."""
    start = 0
    for batch in batches:
        yield start, as_batch(batch)
        start += len(batch[0])


Draws = list[tuple[int, Compiled]]
Densities = tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]]


def _drawing(
    model: Program,
    guide: Program,
    programs: Programs,
    particles: int,
    chunk: int,
    batches: int | None,
    compile: bool | str,  # noqa: A002 - the public name
    together: Workers | None,
) -> Draws:
    """Return how to draw the particles of a batch: by how many at a time, and the function that does it."""

    @torch.no_grad()
    def densities(k: int, tensors: Any, batch: Batch) -> Densities:
        with SharedNoise(together, k, batch[0].shape[0]) if together else nullcontext():
            drawn = weigh(model, guide, batch, k)
        return drawn.log_w, dict(drawn.log_p), dict(drawn.log_q)

    def compiled(k: int, times: int) -> Compiled:
        planned = batches and times * batches
        return Compiled(partial(densities, k), programs, (model, guide), compile=compile, planned=planned)

    whole, rest = divmod(particles, chunk)
    chunks = [(chunk, compiled(chunk, whole))] * whole
    return chunks + ([(rest, compiled(rest, 1))] if rest else [])


def _estimated(
    draw: Mapping[Workers | None, Draws], batch: Batch, particles: int, start: int, together: Workers | None
) -> Mapping[str, Tensor]:
    """Return the columns of an `Evaluation` for a batch, of which each worker computes its part."""
    mine = together.part(batch) if together else None
    if mine is None:
        return _estimates(_log_weights(draw[None], batch, particles, start))
    columns = _estimates(_log_weights(draw[together], mine, particles, start + together.rank * len(mine[0])))
    return {name: together.gathered(column) for name, column in columns.items()}


def _log_weights(draw: Draws, batch: Batch, particles: int, start: int) -> Tensor:
    """Return log-weights ``(K, B)`` in float64, drawn a chunk of particles at a time."""
    log_w = torch.empty(particles, len(batch[0]), dtype=torch.float64, device=batch[0].device)
    with torch.no_grad():
        for rows, (_, densities) in zip(log_w.split([k for k, _ in draw]), draw, strict=True):
            drawn, log_p, log_q = densities(batch)
            rows.copy_(drawn)
            if not rows.isfinite().all():
                _refuse_impossible(log_p, log_q, start)
    empty = log_w.isneginf().all(0)
    if empty.any():
        raise FloatingPointError(
            f"datum {start + int(empty.nonzero()[0])}: all {particles} draws of the guide have zero density under the "
            "model; look for data or latents outside its support, or draw more particles"
        )
    return log_w


def _refuse_impossible(log_p: Mapping[str, Tensor], log_q: Mapping[str, Tensor], start: int) -> None:
    """Name the first site and datum with an impossible log density.

    A latent may have no density under the model (its weight is zero), never under its own guide.
    """
    impossible = {name: ~q.isfinite() for name, q in log_q.items()}
    impossible |= {name: impossible.get(name, False) | p.isnan() | p.isposinf() for name, p in log_p.items()}
    for name, bad in impossible.items():
        if bad.any():
            datum = start + int(bad.any(0).nonzero()[0])
            raise FloatingPointError(
                f"site '{name}': log density is NaN or infinite for datum {datum}; look at the parameters of its "
                "distribution there (a scale of zero, an overflow)"
            )


def _estimates(log_w: Tensor) -> Mapping[str, Tensor]:
    """Return the columns of an `Evaluation` from log-weights ``(K, B)``, by the bounds that also train."""
    drawn = Particles(log_p={"w": log_w}, log_q={})
    ess = effective_sample_size(log_w)
    # Delta method: var(log mean w) = var(w) / (K mean(w)^2) = 1 / ESS - 1 / K.
    variance = (1 / ess - 1 / len(log_w)).clamp_min(0) if len(log_w) > 1 else torch.full_like(ess, math.nan)
    return {
        "log_px": iwae(drawn),
        "elbo": elbo(drawn),
        "ess": ess,
        "khat": pareto_khat(log_w),
        "log_px_error": variance.sqrt(),
    }


def _show(bar: Bar, parts: list[Mapping[str, Tensor]]) -> None:
    bar.advance(lambda: f"{float(torch.cat([part['log_px'] for part in parts]).mean()):.2f} nats per datum")
