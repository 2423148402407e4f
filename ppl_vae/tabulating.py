"""What tables and pictures of an evaluation show, as plain numbers."""

import math
from typing import NamedTuple

from torch import Tensor

from ppl_vae.evaluation import ESS_LIMIT, KHAT_LIMIT, Evaluation, share, standard_error

__all__ = ["Gap", "Number", "Spread", "gaps", "khat_shares", "lowest", "numbers", "spreads"]

# Up to here the variance of a datum's weights is finite.
KHAT_GOOD = 0.5


class Gap(NamedTuple):
    """What K particles give, beside what the largest number gives.

    Attributes:
        particles: K.
        bound: mean of L_K over data.
        difference: mean of L_K less the bound on the largest number, of the same data and draws.
        se: standard error of `difference` over data; NaN of a single datum, or where the bound is infinite.
    """

    particles: int
    bound: float
    difference: float
    se: float


def gaps(evaluation: Evaluation) -> list[Gap]:
    """Return the mean of L_K for each K of a curve, with its paired difference to the largest K.

    With ``d_n = L_K(x_n) - L_max(x_n)``, the difference is the mean of d and its error ``std(d) / sqrt(N)``. Each
    datum has draws of its own, so the d_n are independent: the error is that of other data and other draws.

    Raises:
        ValueError: the evaluation has no curve.

    Reference: R. A. Fisher, "The Design of Experiments", 1935, chapter 3, for pairing.

    Example:
        >>> zeros, facts = torch.zeros(2), {"particles": 2, "seed": 0}
        >>> curve = {1: torch.tensor([-3.0, -2.0]), 2: torch.tensor([-2.0, -2.0])}
        >>> gaps(pv.Evaluation(zeros, zeros, zeros, zeros, zeros, **facts, curve=curve))[0]
        Gap(particles=1, bound=-2.5, difference=-0.5, se=0.5)
    """
    if not evaluation.curve:
        raise ValueError("evaluation: it has no curve; make it with pv.evaluate(..., curve=True)")
    last = evaluation.curve[max(evaluation.curve)]
    return [
        Gap(k, float(bound.mean()), float((bound - last).mean()), standard_error(bound - last))
        for k, bound in sorted(evaluation.curve.items())
    ]


def khat_shares(evaluation: Evaluation) -> tuple[float, float, float]:
    """Return the shares of the data with k-hat up to 0.5, from there to 0.7, and above (or no number).

    Example:
        >>> zeros, khat = torch.zeros(4), torch.tensor([-math.inf, 0.6, 0.8, math.nan])
        >>> khat_shares(pv.Evaluation(zeros, zeros, zeros, khat, zeros, particles=1, seed=0))
        (0.25, 0.25, 0.5)
    """
    good = evaluation.khat <= KHAT_GOOD
    return share(good), share((evaluation.khat <= KHAT_LIMIT) & ~good), evaluation.untrusted


def lowest(evaluation: Evaluation, n: int = 10) -> list[int]:
    """Return the rows of the n data of lowest log p(x), the lowest first.

    Example:
        >>> zeros = torch.zeros(3)
        >>> lowest(pv.Evaluation(torch.tensor([-1.0, -3.0, -2.0]), zeros, zeros, zeros, zeros, 1, 0), n=2)
        [1, 2]
    """
    return evaluation.log_px.argsort(stable=True)[:n].tolist()


class Number(NamedTuple):
    """A number of an evaluation.

    Attributes:
        name: what it is, in nats per datum unless it says otherwise.
        mean: over data.
        se: standard error of the mean over data: NaN for a single datum.
        mc_se: its Monte Carlo standard error; NaN where it is not known.
        digits: decimals with which to tell it.
    """

    name: str
    mean: float
    se: float
    mc_se: float
    digits: int


def numbers(evaluation: Evaluation) -> list[Number]:
    """Return what is reported of an evaluation, as means over data with their errors; without what it does not have.

    Example:
        >>> zeros = torch.zeros(3)
        >>> [number.name for number in numbers(pv.Evaluation(zeros, zeros, zeros, zeros, zeros, 5, 0))]
        ['log p(x), the bound on K = 5', 'ELBO']
    """
    mean, se, mc_se = evaluation.mean, evaluation.se, evaluation.mc_se
    digits = decimals(se, mc_se)
    rows = [Number(f"log p(x), the bound on K = {evaluation.particles:,}", mean, se, mc_se, digits)]
    rows += [_over_data("log p(x), debiased by the jackknife", evaluation.debiased, digits)]
    rows += [_over_data(name, getattr(evaluation, name.lower()), digits) for name in ("ELBO", "rate", "distortion")]
    rows += [_over_data("added by the last doubling of K", evaluation.rise)]
    if evaluation.dims is not None and evaluation.mass:
        bits = 1 / (evaluation.dims * math.log(2))
        errors = se * bits, mc_se * bits
        rows += [Number("bits per dimension", evaluation.bits_per_dim(), *errors, decimals(*errors))]
    return [row for row in rows if not math.isnan(row.mean)]


def _over_data(name: str, values: Tensor, digits: int | None = None) -> Number:
    se = standard_error(values)
    return Number(name, float(values.mean()), se, math.nan, decimals(se) if digits is None else digits)


def decimals(*errors: float) -> int:
    """Return the decimals with which the smallest error has two figures; from two to five.

    Example:
        >>> decimals(0.17, 0.0026), decimals(math.nan)
        (4, 2)
    """
    known = [error for error in errors if 0 < error < math.inf]
    return max(2, min(5, 1 - math.floor(math.log10(min(known))))) if known else 2


class Spread(NamedTuple):
    """How a column of an evaluation differs over data."""

    name: str
    low: float
    median: float
    high: float
    note: str = ""


def spreads(evaluation: Evaluation) -> list[Spread]:
    """Return lowest, median and highest value of a datum, of what is reported per datum.

    Example:
        >>> zeros = torch.zeros(3)
        >>> evaluation = pv.Evaluation(torch.tensor([-1.0, -3.0, -2.0]), zeros, zeros, zeros, zeros, 1, 0)
        >>> spreads(evaluation)[0]
        Spread(name='log p(x)', low=-3.0, median=-2.0, high=-1.0, note='')
    """
    few = f"{share(~(evaluation.ess >= ESS_LIMIT)):.1%} below {ESS_LIMIT}"
    heavy = f"{evaluation.untrusted:.1%} above {KHAT_LIMIT}"
    columns = {
        "log p(x)": (evaluation.log_px, ""),
        "Monte Carlo error of log p(x)": (evaluation.log_px_error, ""),
        f"effective sample size, of {evaluation.particles:,}": (evaluation.ess, few),
        "Pareto k-hat": (evaluation.khat, heavy),
    }
    return [
        Spread(name, float(column.min()), float(column.median()), float(column.max()), note)
        for name, (column, note) in columns.items()
        if not column.isnan().all()
    ]
