"""Compare models on the data that they were all evaluated on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluation import Evaluation, known, standard_error, stated

__all__ = ["Comparison", "Row", "compare"]


@dataclass(frozen=True)
class Row:
    """One of several models. All in nats per datum.

    Attributes:
        name: what it is called.
        mean: its mean ``log_px``.
        se: standard error of `mean` over data.
        difference: of `mean` from the best model's, zero or below.
        difference_se: standard error of that difference over data, which models share: differences are
            taken datum by datum. Zero for the best.
        difference_mc_se: its Monte Carlo standard error, as if both had drawn independently; evaluations with one seed
            have noise in common, and then it is too large.
        particles: K.
        untrusted: share of data whose k-hat is above 0.7; NaN where K is too small to tell.
    """

    name: str
    mean: float
    se: float
    difference: float
    difference_se: float
    difference_mc_se: float
    particles: int
    untrusted: float


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models from the best to the worst. Printing it gives a table in Markdown.

    Attributes:
        rows: the models.
        n: number of data N.
    """

    rows: tuple[Row, ...]
    n: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the comparison."""
        found = []
        sizes = sorted({row.particles for row in self.rows})
        if len(sizes) > 1:
            found.append(
                f"models were evaluated with different K ({', '.join(f'{k:,}' for k in sizes)}), and bounds rise with "
                "K; evaluate all with one"
            )
        doubtful = [str(row.name) for row in self.rows if row.untrusted > 0.01]
        if doubtful:
            found.append(
                f"more than 1% of the data have a Pareto k-hat above 0.7 for {', '.join(doubtful)}, whose means may be "
                "too low"
            )
        unknown = [str(row.name) for row in self.rows if math.isnan(row.untrusted)]
        if unknown:
            found.append(f"K is too small for a Pareto k-hat of {', '.join(unknown)}; draw some thousands of particles")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values; None where one is not known."""
        rows = [
            {name: known(value) if isinstance(value, float) else value for name, value in vars(row).items()}
            for row in self.rows
        ]
        return {"n": self.n, "rows": rows, "warnings": list(self.warnings)}

    def cells(self) -> list[list[str]]:
        """Return the table, its header first."""
        header = ["model", "log p(x)", "difference", "Monte Carlo error", "K", "k-hat above 0.7"]
        return [header, *(_cells(row) for row in self.rows)]

    def to_markdown(self) -> str:
        """Return the table in Markdown, warnings under it.

        Example:
            >>> from ppl_vae.guides.exact import Exact
            >>> from ppl_vae.models.linear_gaussian import LinearGaussian
            >>> x, models = torch.randn(10, 6), [LinearGaussian(x_dim=6, z_dim=d) for d in (1, 2)]
            >>> found = pv.compare({str(i): pv.evaluate(m, Exact(m), x, particles=30) for i, m in enumerate(models)})
            >>> found.to_markdown().splitlines()[0]
            '| model | log p(x) | difference | Monte Carlo error | K | k-hat above 0.7 |'
        """
        header, *rows = (f"| {' | '.join(cells)} |" for cells in self.cells())
        rule = "| --- | ---: | ---: | ---: | ---: | ---: |"
        about = (
            f"Nats per datum, means and standard errors over N = {self.n:,} data; differences are from the best model, "
            "datum by datum."
        )
        return "\n".join([header, rule, *rows, "", about, *(f"Warning: {warning}." for warning in self.warnings)])

    __str__ = to_markdown
    __repr__ = to_markdown


def _cells(row: Row) -> list[str]:
    best = row.difference_se == 0 == row.difference
    return [
        row.name,
        f"{row.mean:.2f} ± {stated(row.se, 2)}",
        "best" if best else f"{row.difference:.3f} ± {stated(row.difference_se, 3)}",
        "" if best else stated(row.difference_mc_se, 3),
        f"{row.particles:,}",
        "unknown" if math.isnan(row.untrusted) else f"{row.untrusted:.1%}",
    ]


def compare(evaluations: Mapping[str, Evaluation]) -> Comparison:
    """Compare models by their log-likelihoods of the same data.

    Models differ less from datum to datum than data do, so that the error of a difference is that of the
    paired differences d_n = log p_a(x_n) - log p_b(x_n)::

        se = std(d) / sqrt(N)

    Args:
        evaluations: name to evaluation, two or more. Their data are the same, in any order.

    Returns:
        `Comparison`, from the best model to the worst.

    Raises:
        ValueError: fewer than two, or evaluations of different data; the message names them.

    Reference: A. Vehtari, A. Gelman, J. Gabry, "Practical Bayesian Model Evaluation Using Leave-One-Out
    Cross-Validation and WAIC", Statistics and Computing 2017, section 5, https://arxiv.org/abs/1507.04544.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> wide, narrow = LinearGaussian(x_dim=6, z_dim=2), LinearGaussian(x_dim=6, z_dim=1)
        >>> x = pv.sample(wide, shape=(6,), n=100)["x"]
        >>> evaluations = {m.weight.shape[1]: pv.evaluate(m, Exact(m), x, particles=30) for m in (narrow, wide)}
        >>> pv.compare(evaluations).rows[0].name
        2
    """
    if not isinstance(evaluations, Mapping) or len(evaluations) < 2:
        raise ValueError("evaluations: expected a dict of two or more, from a name to what pv.evaluate returned")
    orders = {name: evaluation.keys.argsort(stable=True) for name, evaluation in evaluations.items()}
    ranked = sorted(evaluations, key=lambda name: -evaluations[name].mean)
    first = next(iter(evaluations))
    for name, evaluation in evaluations.items():
        _check_data(first, evaluations[first].keys[orders[first]], name, evaluation.keys[orders[name]])
    aligned = {name: _Aligned(evaluations[name], orders[name]) for name in ranked}
    rows = tuple(_row(name, aligned[name], aligned[ranked[0]]) for name in ranked)
    return Comparison(rows, len(evaluations[first]))


def _check_data(first: str, keys: Tensor, name: str, others: Tensor) -> None:
    if len(keys) == 0 or len(keys) != len(others):
        raise ValueError(
            f"evaluations: {first} is of {len(keys):,} data and {name} of {len(others):,}; evaluate both on one set"
        )
    if not torch.equal(keys, others):
        shared = int(torch.isin(others, keys).sum())
        raise ValueError(
            f"evaluations: {first} and {name} are of different data ({shared:,} of {len(keys):,} are the same); "
            "evaluate both on one set, with one binarization and its seed"
        )


class _Aligned:
    """An evaluation with its data in the order of their keys."""

    def __init__(self, evaluation: Evaluation, order: Tensor):
        self.evaluation = evaluation
        self.log_px, self.variance = evaluation.log_px[order], evaluation.log_px_error[order].square()


def _row(name: str, own: _Aligned, best: _Aligned) -> Row:
    differences = own.log_px - best.log_px
    is_best = own is best
    monte_carlo = float((own.variance + best.variance).sum().sqrt()) / len(differences)
    return Row(
        name=name,
        mean=own.evaluation.mean,
        se=own.evaluation.se,
        difference=float(differences.mean()),
        difference_se=0.0 if is_best else standard_error(differences),
        difference_mc_se=0.0 if is_best else monte_carlo,
        particles=own.evaluation.particles,
        untrusted=math.nan if own.evaluation.khat_unknown else own.evaluation.untrusted,
    )
