"""What an evaluation found: estimates with their errors, in numbers and in words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_vae.recording import read_record

if TYPE_CHECKING:
    from ppl_vae.redrawing import Redraw

__all__ = ["Evaluation", "OverData"]

KHAT_LIMIT = 0.7
ESS_LIMIT = 10
# Shares of the data from which on a warning is worth a line; below, the verdict tells them.
NOTABLE = 0.01
# Nats per datum, and standard errors over data, from which on a bound that still rises matters.
NOTABLE_RISE, NOTABLE_ERRORS = 0.01, 0.1

REMEDY = "draw more particles, anneal from the guide (pv.ais), or train a richer guide"


class OverData:
    """What estimates of each datum, ``log_px`` with ``log_px_error``, say of the mean over data."""

    log_px: Tensor
    log_px_error: Tensor

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
        return standard_error(self.log_px)

    @property
    def mc_se(self) -> float:
        """Monte Carlo standard error of `mean`: how much another seed would change it."""
        return float(self.log_px_error.square().sum().sqrt()) / len(self)


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(OverData):
    """Log-likelihood estimates, per datum and over the set. All in nats but for `bits_per_dim`.

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
        debiased: log p(x) by the jackknife, ``(N,)``, whose bias falls as 1 / K^2, that of ``log_px`` as 1 / K. An
            estimate, not a bound; NaN for K = 1.
        distortion: -E_q[log p(x | z)], ``(N,)``; NaN where the model sums out a latent between data and draws.
        rise: what the last doubling of K added to the bound, ``(N,)``, never below zero: about what is missing still.
        curve: K to the bound on so many particles, ``(N,)``, from the same draws; empty unless asked for.
        dims: numbers in a datum x; None where parts of it are masked or several sites are observed.
        mass: whether the likelihood is a mass function (of discrete data), not a density.
        keys: what tells data apart, ``(N,)``: a hash of each one's content.
        resampled: numbers of particles drawn in proportion to their weights, ``(N, n)``.
        replicates: what the estimates might have been, ``(N, n)``: bootstrap replicates of each ``log_px``.
        redraw: gives those particles again, and more for `to_arviz`; None after `load`.

    Reference: rate and distortion as in A. Alemi et al., "Fixing a Broken ELBO", ICML 2018,
    https://arxiv.org/abs/1711.00464.
    """

    log_px: Tensor
    elbo: Tensor
    ess: Tensor
    khat: Tensor
    log_px_error: Tensor
    particles: int
    seed: int
    subject: str = ""
    debiased: Tensor = field(default_factory=lambda: torch.tensor([math.nan]))
    distortion: Tensor = field(default_factory=lambda: torch.tensor([math.nan]))
    rise: Tensor = field(default_factory=lambda: torch.tensor([math.nan]))
    curve: Mapping[int, Tensor] = field(default_factory=dict)
    dims: int | None = None
    mass: bool = False
    keys: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    resampled: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int32))
    replicates: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    redraw: "Redraw | None" = None

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Return what `ppl_vae.evaluate` wrote to ``out``; nothing is ever executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else, or an evaluation that did not come to its end.

        Example:
            >>> from ppl_vae.guides.exact import Exact
            >>> from ppl_vae.models.linear_gaussian import LinearGaussian
            >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
            >>> evaluation = pv.evaluate(model, Exact(model), x, particles=30, out=tmp_path / "e.pt")
            >>> pv.Evaluation.load(tmp_path / "e.pt").mean == evaluation.mean
            True
        """
        found = read_record(path)
        if not found["complete"]:
            n = len(found["columns"]["keys"])
            raise ValueError(f"{path}: an unfinished evaluation, of {n} data so far; call pv.evaluate again to go on")
        known = found["settings"].keys() | found["facts"].keys() | found["columns"].keys()
        needed = {"particles", "seed", "sizes", "log_px", "elbo", "ess", "khat", "log_px_error"}
        if missing := needed - known:
            raise ValueError(f"{path}: an evaluation without {', '.join(sorted(missing))}; call pv.evaluate again")
        return cls.of(found["settings"], found["facts"], found["columns"])

    @classmethod
    def of(
        cls,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        columns: Mapping[str, Tensor],
        redraw: "Redraw | None" = None,
    ) -> "Evaluation":
        """Return the evaluation that a record holds."""
        own = {name: column for name, column in columns.items() if name != "curve"}
        facts = dict(facts)
        curve = dict(zip(facts.pop("sizes"), columns["curve"].unbind(1) if "curve" in columns else (), strict=True))
        return cls(**own, **facts, particles=settings["particles"], seed=settings["seed"], curve=curve, redraw=redraw)

    @property
    def rate(self) -> Tensor:
        """E_q[log q(z | x) - log p(z)] of each datum, ``(N,)``; rate and distortion sum to the negative ELBO."""
        return -self.elbo - self.distortion

    @property
    def khat_unknown(self) -> bool:
        """Whether K is too small for any Pareto k-hat."""
        return bool(self.khat.isposinf().all())

    @property
    def untrusted(self) -> float:
        """Share of data whose k-hat is above 0.7."""
        return share(~(self.khat <= KHAT_LIMIT))  # a k-hat that is no number is no comfort

    @property
    def verdict(self) -> str:
        """Which data's estimates are not to be trusted, in words."""
        if self.khat_unknown:
            return "unknown: K is too small for a Pareto k-hat"
        return f"{self.untrusted:.1%} of the data (Pareto k-hat above {KHAT_LIMIT})"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the reported number, and what to try; nothing where it can be published."""
        return tuple(warning for warning in (self._tail(), self._few(), self._rising()) if warning)

    def _tail(self) -> str | None:
        if self.khat_unknown:
            return (
                f"with K = {self.particles:,} no Pareto k-hat can be computed, so that nothing tells whether the "
                "estimates and their errors can be trusted; draw 25 particles or more, some thousands to publish"
            )
        if self.untrusted < NOTABLE:
            return None
        return (
            f"{self.untrusted:.1%} of the data have a Pareto k-hat above {KHAT_LIMIT}: their estimates are not to be "
            f"trusted, and the mean may be too low by more than its error says; {REMEDY}"
        )

    def _few(self) -> str | None:
        few = share(~(self.ess >= ESS_LIMIT))
        if self.particles < ESS_LIMIT or few < NOTABLE:
            return None
        return f"{few:.1%} of the data have an effective sample size below {ESS_LIMIT}; {REMEDY}"

    def _rising(self) -> str | None:
        rise, error = float(self.rise.mean()), standard_error(self.rise)
        least = max(NOTABLE_RISE, NOTABLE_ERRORS * (0.0 if math.isnan(self.se) else self.se))
        if not rise > max(least, 0.0 if math.isnan(error) else 2 * error):
            return None
        return (
            f"the bound is still rising: its last doubling of K added {rise:.2f} ± {stated(error, 2)} nats, and log "
            f"p(x) is likely to be higher by as much or more; {REMEDY}"
        )

    def bits_per_dim(self, levels: int | None = None) -> float:
        """Return the bits that a number of x costs, ``-mean / (D log 2)``.

        Args:
            levels: for a density of grey values that were discretised to so many levels and scaled to [0, 1]:
                the density is integrated over a bin by its value times 1 / levels, as for data with uniform noise
                added. Left out for a likelihood that is a mass function.

        Raises:
            ValueError: ``levels`` is missing for a density, given for a mass function, or x has no fixed size.

        Reference: L. Theis, A. van den Oord, M. Bethge, "A Note on the Evaluation of Generative Models", ICLR
        2016, https://arxiv.org/abs/1511.01844, section 3.1.

        Example:
            >>> zeros, facts = torch.zeros(3), {"particles": 1, "seed": 0, "dims": 4, "mass": True}
            >>> pv.Evaluation(zeros - 4 * math.log(2), zeros, zeros, zeros, zeros, **facts).bits_per_dim() - 1 < 1e-6
            True
        """
        if self.dims is None:
            raise ValueError("bits_per_dim: the data have no fixed number of dimensions (masked, or several sites)")
        if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int) or levels < 2):
            raise ValueError(f"levels: expected a whole number of at least 2, found {levels!r}")
        if self.mass == (levels is not None):
            found, repair = ("a mass function", "leave levels out") if self.mass else ("a density", "give levels=256")
            raise ValueError(f"levels: the likelihood is {found}; {repair}, or the number that its data have")
        return -self.mean / (self.dims * math.log(2)) + math.log2(levels or 1)

    def to_arviz(self, rows: int = 100) -> Any:
        """Return the evaluation as ArviZ has it: an ``InferenceData`` (0.x) or a ``DataTree`` (1.x).

        Groups: ``posterior`` (latents of the first data, resampled in proportion to their weights),
        ``sample_stats`` (their log p(x, z) and log-weights), ``posterior_predictive``, ``observed_data``, ``prior`` and
        ``prior_predictive``, all by ``row``;
        ``log_likelihood`` and ``constant_data`` (the columns of this object) of all data, by ``datum``. Of a loaded
        evaluation, whose programs are not at hand, the last two.

        The log-likelihood of a datum is marginal, its latents integrated out; its draws are bootstrap replicates of
        the importance-sampling estimate, shifted so that their harmonic mean is ``log_px``. So ``az.loo`` gives the
        sum of ``log_px`` but for its own smoothing, ``p_loo`` is about the Monte Carlo error, and ``az.compare``
        compares models as `mean` does. (Given draws of the latents, it would compare how well a datum is
        reconstructed.)

        Args:
            rows: for how many of the data to draw latents and new data.

        Raises:
            RuntimeError: the programs or the data have changed since.

        Reference: E. Merkle, D. Furr, S. Rabe-Hesketh, "Bayesian Comparison of Latent Variable Models:
        Conditional Versus Marginal Likelihoods", Psychometrika 2019, https://arxiv.org/abs/1802.04452.

        Example:
            >>> from ppl_vae.guides.exact import Exact
            >>> from ppl_vae.models.linear_gaussian import LinearGaussian
            >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
            >>> inference = pv.evaluate(model, Exact(model), x, particles=50).to_arviz()
            >>> inference["posterior"]["z"].dims
            ('chain', 'draw', 'row', 'z_dim_0')
        """
        from ppl_vae.exporting import inference_data

        return inference_data(self, rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values; None where one is not known."""
        columns = ("log_px", "elbo", "debiased", "rate", "distortion", "ess", "rise")
        means = {name: known(float(getattr(self, name).mean())) for name in columns}
        discrete = self.dims is not None and self.mass
        return {
            "subject": self.subject,
            "n": len(self),
            "particles": self.particles,
            "seed": self.seed,
            **means,
            "se": known(self.se),
            "mc_se": known(self.mc_se),
            "bits_per_dim": self.bits_per_dim() if discrete else None,
            "khat_above_0.7": None if self.khat_unknown else self.untrusted,
            "ess_below_10": share(~(self.ess >= ESS_LIMIT)),
            "curve": {str(k): float(bound.mean()) for k, bound in self.curve.items()},
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        sentence = (
            f"Log-likelihood{self.subject and ' of ' + self.subject}: {self.mean:.2f} ± {stated(self.se, 2)} nats per "
            f"datum (mean and standard error over N = {len(self):,} data; Monte Carlo error {stated(self.mc_se, 3)}), "
            f"estimated by importance sampling with K = {self.particles:,} draw{'s' * (self.particles > 1)} per datum; "
            f"the ELBO is {float(self.elbo.mean()):.2f}. Not to be trusted: {self.verdict}."
        )
        return "\n".join([sentence, *(f"Warning: {warning}." for warning in self.warnings)])

    __repr__ = __str__


def stated(error: float, digits: int) -> str:
    """Return an error in words: one datum has no spread over data, one draw none over draws.

    Example:
        >>> stated(0.123, 2), stated(math.nan, 2)
        ('0.12', 'unknown')
    """
    return "unknown" if math.isnan(error) else f"{error:.{digits}f}"


def standard_error(values: Tensor) -> float:
    """Return the standard error of a mean of independent values, ``(N,)``; NaN of a single one.

    Example:
        >>> standard_error(torch.tensor([0.0, 2.0, 0.0, 2.0])) == (4 / 3 / 4) ** 0.5
        True
    """
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def share(there: Tensor) -> float:
    """Return the share of True.

    Example:
        >>> share(torch.tensor([True, False]))
        0.5
    """
    return float(there.double().mean())


def known(value: float) -> float | None:
    """Return a number, or None for NaN and infinity, which JSON does not have.

    Example:
        >>> known(math.nan) is None
        True
    """
    return value if math.isfinite(value) else None
