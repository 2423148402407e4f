"""Log-likelihoods by annealed importance sampling, and between two bounds on simulated data."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.annealing_runs import Run, Settings
from ppl_vae.batches import Batch, source
from ppl_vae.compiling import check_compile
from ppl_vae.crossing import to_evaluate
from ppl_vae.data.splits import on_data
from ppl_vae.evaluation import OverData, known, standard_error, stated
from ppl_vae.indexing import alike
from ppl_vae.programs import Program, forked_random_state, program_name
from ppl_vae.sampling import simulate
from ppl_vae.tempering import Schedule, sigmoid_schedule

__all__ = ["Annealing", "Sandwich", "ais", "bdmc"]


@dataclass(frozen=True, repr=False, eq=False)
class Annealing(OverData):
    """Log-likelihood estimates by annealed importance sampling. All in nats.

    Attributes:
        log_px: estimate of log p(x) of each datum, ``(N,)``: in expectation a lower bound.
        log_px_error: its standard error over chains, by the delta method, ``(N,)``; NaN for one chain.
        ess: effective number of chains, ``(N,)``, between 1 and K.
        acceptance: share of accepted transitions, ``(N,)``; NaN where there are none.
        step_size: leapfrog step size at the posterior, ``(N,)``; NaN likewise.
        settings: see `Settings`.
        subject: which model on which data, in words.
    """

    log_px: Tensor
    log_px_error: Tensor
    ess: Tensor
    acceptance: Tensor
    step_size: Tensor
    settings: Settings
    subject: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values; None where one is not known."""
        numbers = {"log_px": self.mean, "se": self.se, "mc_se": self.mc_se}
        numbers |= {name: float(getattr(self, name).mean()) for name in ("ess", "acceptance", "step_size")}
        return {
            "subject": self.subject,
            "n": len(self),
            **asdict(self.settings),
            **{name: known(n) for name, n in numbers.items()},
        }

    def __str__(self) -> str:
        accepted = f" ({float(self.acceptance.mean()):.0%} accepted)" if self.settings.distributions > 2 else ""
        return (
            f"Log-likelihood{self.subject and ' of ' + self.subject}: {self.mean:.2f} ± {stated(self.se, 2)} nats per "
            f"datum (mean and standard error over N = {len(self):,} data; Monte Carlo error {stated(self.mc_se, 3)}), "
            f"estimated by annealed importance sampling with {self.settings}{accepted}; the effective number of "
            f"chains is {float(self.ess.mean()):.1f}."
        )

    __repr__ = __str__


@dataclass(frozen=True, repr=False, eq=False)
class Sandwich:
    """Bounds on log p(x) of data simulated from the model, from both sides. All in nats.

    Attributes:
        lower: in expectation below log p(x), of each datum, ``(N,)``: annealed importance sampling.
        upper: in expectation above it, ``(N,)``: chains that go back from the posterior.
        lower_error: standard error over chains of each ``lower``, ``(N,)``; NaN for one chain.
        upper_error: likewise of ``upper``, given the one exact draw that all chains of a datum share.
        data: the simulated batch.
        settings: see `Settings`.
        subject: which model, in words.
    """

    lower: Tensor
    upper: Tensor
    lower_error: Tensor
    upper_error: Tensor
    data: Batch
    settings: Settings
    subject: str = ""

    def __len__(self) -> int:
        """The number of data N."""
        return len(self.lower)

    @property
    def gap(self) -> float:
        """Mean of ``upper - lower``: in expectation, no less than the mean error of either."""
        return float((self.upper - self.lower).mean())

    @property
    def gap_se(self) -> float:
        """Standard error of `gap` over data."""
        return standard_error(self.upper - self.lower)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values; None where one is not known."""
        numbers = {"lower": float(self.lower.mean()), "upper": float(self.upper.mean())}
        numbers |= {"gap": self.gap, "gap_se": self.gap_se}
        return {
            "subject": self.subject,
            "n": len(self),
            **asdict(self.settings),
            **{name: known(n) for name, n in numbers.items()},
        }

    def __str__(self) -> str:
        return (
            f"Log-likelihood{self.subject and ' of ' + self.subject} on N = {len(self):,} data simulated from it: "
            f"between {float(self.lower.mean()):.2f} and {float(self.upper.mean()):.2f} nats per datum, by "
            f"bidirectional Monte Carlo with {self.settings}, there and back; the gap is {self.gap:.3f} ± "
            f"{stated(self.gap_se, 3)} (mean and standard error over data)"
            f"{', so that noise hides any difference' if self.gap < 0 else ''}."
        )

    __repr__ = __str__


def ais(
    model: Program,
    x: Any,
    guide: Program | None = None,
    *,
    distributions: int = 1000,
    chains: int = 16,
    leapfrog: int = 10,
    schedule: Schedule = sigmoid_schedule,
    batch_size: int = 100,
    seed: int = 0,
    subject: str | None = None,
    progress: bool | None = None,
    compile: bool | str = "auto",  # noqa: A002 - the public name
) -> Annealing:
    """Estimate log p(x) of each datum by annealed importance sampling.

    Chains start at draws of p_0(z), the prior or a guide q(z | x), and move through
    ``f_b(z) = p_0(z)^(1-b) p(x, z)^b`` from b = 0 to b = 1 by Hamiltonian Monte Carlo, one transition
    at each b. With T distributions and K chains::

        log w = sum_t (b_(t+1) - b_t) (log p(x, z_t) - log p_0(z_t)),    log p(x) ~ log 1/K sum_k w_k

    w / p(x) has mean one, however few the distributions are and however badly the chains mix. It is so
    because no number of the counted run is chosen by that run: a pilot run, with chains of its own, finds
    for each datum the step sizes at which 0.65 of the moves are accepted, all along the path, and the
    counted run takes them as given. Adapting in the counted run would bias the weights.

    Latents may have any shapes and continuous supports. Those that model or guide mark for enumeration are
    summed out exactly, and penalties do not count. Masks act as in `ppl_vae.weigh`; a masked latent, which has
    no density, may move nothing but what is masked too. No gradient reaches a parameter; parameters, buffers,
    modes and the caller's random state stay as they were.

    Args:
        model: Pyro program.
        x: `Splits` (its test set), a tensor ``(N, ...)``, a tuple of them, a Dataset or a DataLoader
            in a fixed order.
        guide: Pyro program with the same arguments to start from; the prior if left out. It may be poor,
            but must reach all of the posterior.
        distributions: T, both ends included; two are plain importance sampling.
        chains: K, for each datum.
        leapfrog: leapfrog steps of a transition. The decoder runs ``distributions * chains * leapfrog``
            times for each datum.
        schedule: from T to the temperatures b, ascending from 0 to 1.
        batch_size: data at a time. Memory grows with it and with K, not with T.
        seed: seeds the draws; two calls with one seed agree exactly.
        subject: what the report calls the model and the data; made from their names if left out.
        progress: whether to show a bar; by default where a terminal or notebook shows it.
        compile: see `ppl_vae.svi_step`; ``"auto"`` goes by the work to do.

    Returns:
        `Annealing`.

    Raises:
        ContractError: the programs and the first batch do not fit; a latent is discrete and not summed
            out; or the guide has no density.
        FloatingPointError: a chain cannot start, or all chains of a datum have zero weight; the message
            names the datum.
        TypeError, ValueError: an argument cannot be used; the message says which and why.

    Reference: R. M. Neal, "Annealed Importance Sampling", Statistics and Computing 2001,
    https://arxiv.org/abs/physics/9803008; for decoders Y. Wu, Y. Burda, R. Salakhutdinov, R. Grosse,
    "On the Quantitative Analysis of Decoder-Based Generative Models", ICLR 2017,
    https://arxiv.org/abs/1611.04273.

    Example:
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
        >>> annealing = pv.ais(model, x, distributions=10, chains=16, leapfrog=2)
        >>> bool(((annealing.log_px - model.log_px(x)).abs() < 1).all())
        True
    """
    check_compile(compile)
    settings = Settings(chains, distributions, leapfrog, _start(guide), seed)
    subject = program_name(model) + on_data(x) if subject is None else subject
    model, guide = alike(model, guide)
    columns = Run(model, guide, settings, schedule, compile).columns(to_evaluate(x, batch_size), seed, progress)
    return Annealing(**columns, settings=settings, subject=subject)


def bdmc(
    model: Program,
    like: Any = None,
    n: int = 100,
    shape: tuple[int, ...] | None = None,
    guide: Program | None = None,
    *,
    distributions: int = 1000,
    chains: int = 16,
    leapfrog: int = 10,
    schedule: Schedule = sigmoid_schedule,
    batch_size: int = 100,
    seed: int = 0,
    subject: str | None = None,
    progress: bool | None = None,
    compile: bool | str = "auto",  # noqa: A002 - the public name
) -> Sandwich:
    """Hold log p(x) of simulated data between two bounds, to know how exact `ais` is for a model.

    Data and latents are drawn together, so that the latents z of a datum x are an exact draw from
    p(z | x). Chains from the start give a bound from below, chains that go back from z one from above::

        E[log 1/K sum_k w_k] <= log p(x) <= E[-log 1/K sum_k w'_k],    E[w] = p(x),    E[w'] = 1 / p(x)

    Their gap, averaged over data, bounds the mean error of `ais` on data such as the model makes, with the
    same settings. (Real data may be harder.) All chains that go back from one datum start at one draw.

    Args:
        model: Pyro program whose likelihood does not read x.
        like: a batch whose first tensor gives the form of x, as for `ppl_vae.sample`.
        n: number of data to simulate.
        shape: event shape of x, instead of ``like``.
        guide: as for `ais`.
        distributions: likewise.
        chains: likewise.
        leapfrog: likewise.
        schedule: likewise.
        batch_size: likewise.
        seed: seeds data and chains.
        subject: what the report calls the model.
        progress: as for `ais`.
        compile: likewise.

    Returns:
        `Sandwich`.

    Raises:
        ContractError: as for `ais`; or data cannot be simulated, as for `ppl_vae.sample`, or since a factor
            counts as a density.
        FloatingPointError: as for `ais`.
        TypeError, ValueError: likewise.

    Reference: R. B. Grosse, Z. Ghahramani, R. P. Adams, "Sandwiching the Marginal Likelihood Using
    Bidirectional Monte Carlo", 2015, https://arxiv.org/abs/1511.02543.

    Example:
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> sandwich = pv.bdmc(LinearGaussian(x_dim=6, z_dim=2), shape=(6,), n=20, distributions=10, leapfrog=2)
        >>> sandwich.lower.shape, -0.5 < sandwich.gap < 2
        (torch.Size([20]), True)
    """
    check_compile(compile)
    settings = Settings(chains, distributions, leapfrog, _start(guide), seed)
    model, guide = alike(model, guide)
    with forked_random_state(seed):  # chains must not draw the numbers that the data were made of
        of_data, of_chains = torch.randint(2**31, (2,)).tolist()
    latents, data = simulate(model, like, n, shape, of_data)
    batches = source((*data, *latents.values()), batch_size)
    found = Run(model, guide, settings, schedule, compile).columns(batches, of_chains, progress, exact=[*latents])
    columns = {"lower": found["log_px"], "lower_error": found["log_px_error"]}
    columns |= {name: found[name] for name in ("upper", "upper_error")}
    subject = program_name(model) if subject is None else subject
    return Sandwich(**columns, data=tuple(part.cpu() for part in data), settings=settings, subject=subject)


def _start(guide: Program | None) -> str:
    return "the prior" if guide is None else f"the guide {program_name(guide)}"
