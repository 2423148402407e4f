"""Figures of draws that are scored at all data: means with their errors, a chunk of draws at a time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.batches import Batch
from ppl_vae.crossing import log_others, slices
from ppl_vae.objectives.options import whole
from ppl_vae.programs import Program
from ppl_vae.progress import Bar

__all__ = ["Densities", "Figure", "Plan", "over_data"]


@dataclass(frozen=True, repr=False, eq=False)
class Figure:
    """A mean over data, in nats, with its errors.

    Attributes:
        per_datum: what each datum contributes, ``(N,)``: means over its draws.
        variance: Monte Carlo variance of each of these, ``(N,)``; NaN where there is one draw.

    Example:
        >>> figure = Figure(torch.tensor([1.0, 3.0]), torch.tensor([0.02, 0.02]))
        >>> figure.mean, round(figure.mc_se, 3), figure
        (2.0, 0.1, 2.000 ± 1.000)
    """

    per_datum: Tensor
    variance: Tensor

    @property
    def mean(self) -> float:
        """Mean over data."""
        return float(self.per_datum.mean())

    @property
    def se(self) -> float:
        """Standard error of `mean` over data, to first order also where the figure is no plain average of them."""
        return float(self.per_datum.std()) / math.sqrt(len(self.per_datum))

    @property
    def mc_se(self) -> float:
        """Monte Carlo standard error of `mean`: how much another seed would change it."""
        return float(self.variance.sum().sqrt()) / len(self.per_datum)

    def to_dict(self) -> dict[str, float | None]:
        """Return mean and errors as plain values; None where one is not known."""
        numbers = {"mean": self.mean, "se": self.se, "mc_se": self.mc_se}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}

    def __float__(self) -> float:
        return self.mean

    def __repr__(self) -> str:
        return f"{self.mean:.3f} ± {self.se:.3f}"


class Plan(NamedTuple):
    """What is drawn, and how much of it at a time.

    Attributes:
        draws: latents per datum.
        batch_size: data at a time against which draws are scored.
        chunk: draws at a time that are.
    """

    draws: int
    batch_size: int
    chunk: int

    def checked(self) -> "Plan":
        """Return itself, if it can be followed."""
        for name, value in self._asdict().items():
            whole(name, value)
        return self

    @property
    def pieces(self) -> list[int]:
        """How many draws per datum to make at a time."""
        at_once = min(self.draws, self.chunk)
        rest = self.draws % at_once
        return [at_once] * (self.draws // at_once) + [rest] * bool(rest)

    @property
    def rows(self) -> int:
        """For how many data to draw at a time."""
        return self.chunk // self.pieces[0]

    def passes(self, n: int) -> int:
        """How often the guide scores draws at a batch."""
        return -(-n // self.rows) * len(self.pieces) * -(-n // self.batch_size)


Densities = Mapping[str, Tensor]
# From a batch and a number of draws K: these, by site, and log densities (K, B) by name, "log_q" among them.
Score = Callable[[Batch, int], tuple[Mapping[str, Tensor], Densities]]


@torch.no_grad()
def over_data(
    guide: Program, data: Batch, score: Score, figures: Callable[[Densities], Densities], plan: Plan, bar: Bar
) -> dict[str, Figure]:
    """Draw latents for all data, score them at all data, and average figures.

    Args:
        guide: Pyro program.
        data: N rows.
        score: draws for a batch, and log densities of these.
        figures: from densities ``(K, B)``, among them `aggregates`, to figures of the same shape.
        plan: how much at a time.
        bar: moves on with each batch at which a chunk of draws is scored.
    """
    blocks = []
    for start, batch in slices(data, plan.rows):
        pieces = [figures(_densities(guide, data, score(batch, k), start, plan, bar)) for k in plan.pieces]
        block = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        _check_numbers(block, start)
        blocks.append({name: (values.mean(0), _variance(values)) for name, values in block.items()})
    return {
        name: Figure(*(torch.cat([block[name][i] for block in blocks]).cpu() for i in range(2))) for name in blocks[0]
    }


def _densities(
    guide: Program, data: Batch, drawn: tuple[Mapping[str, Tensor], Densities], start: int, plan: Plan, bar: Bar
) -> Densities:
    values, densities = drawn
    log_sum = log_others(guide, data, values, densities["log_q"], start, plan.batch_size, bar.advance)
    return densities | aggregates(densities["log_q"], log_sum, data[0].shape[0])


def aggregates(log_q: Tensor, log_sum: Tensor, n: int) -> Densities:
    """Return log densities of draws under the mixtures of all data's posteriors, and of all but their own.

    Example:
        >>> aggregates(torch.zeros(1), torch.tensor([2.0]).log(), n=3)
        {'log_aggregate': tensor([0.]), 'log_rest': tensor([0.])}
    """
    return {"log_aggregate": torch.logaddexp(log_sum, log_q) - math.log(n), "log_rest": log_sum - math.log(n - 1)}


def _variance(values: Tensor) -> Tensor:
    return values.var(0) / len(values) if len(values) > 1 else torch.full_like(values[0], math.nan)


def _check_numbers(block: Densities, start: int) -> None:
    for name, values in block.items():
        if values.isnan().any():
            datum = start + int(values.isnan().any(0).nonzero()[0])
            raise FloatingPointError(
                f"{name}: NaN for datum {datum}; its draws have a density of zero, or none, under model or guide (look "
                "for latents outside the prior's support, and for scales that are zero)"
            )
