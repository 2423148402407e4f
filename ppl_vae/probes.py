"""Places at which slopes of an expected log joint density are taken, and kept while they serve."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.expectations import Expectations, Runs
from ppl_vae.factors import Values
from ppl_vae.families import Natural

__all__ = ["Probe", "alike", "of_one_size"]

# How far two gradients of a linear function may differ, in parts of the larger.
LINEAR = {torch.float64: 1e-6, torch.float32: 1e-2}


@dataclass(frozen=True)
class Probe:
    """A place at which slopes of the expected log joint are taken.

    Attributes:
        expected: expectations there.
        mean: the factor's expected statistics, leaves of what the runs computed.
        runs: of the sites that read the factor.
        eta: the factor's parameters then.
        axes: how many axes its batch has.
        others: points of the other factors that these sites read.
    """

    expected: Expectations
    mean: Natural
    runs: Runs
    eta: Natural
    axes: int
    others: Mapping[str, Values]

    def serves(self, eta: Natural, points: Mapping[str, Values]) -> bool:
        """Tell whether a factor with these parameters is near enough for its rounding, and the others are as then."""
        same = all(points[name] is values for name, values in self.others.items())
        return same and all(of_one_size(*parts, self.axes) for parts in zip(self.eta, eta, strict=True))


def of_one_size(old: Tensor, new: Tensor, axes: int) -> bool:
    """Tell whether every element of a batch, of so many axes, has moved by at most half its size.

    Example:
        >>> of_one_size(torch.tensor([1.0, 10.0]), torch.tensor([3.0, 10.0]), axes=0)
        True
        >>> of_one_size(torch.tensor([1.0, 10.0]), torch.tensor([3.0, 10.0]), axes=1)
        False
    """
    moved, size = ((new - old).abs(), torch.maximum(old.abs(), new.abs()))
    if old.dim() > axes:
        moved, size = (part.flatten(axes).amax(axes) for part in (moved, size))
    return bool((moved <= size / 2).all())


def alike(a: Tensor, b: Tensor) -> bool:
    """Tell whether two gradients agree, as those of a linear function do."""
    size = torch.maximum(a.abs().max(), b.abs().max()).clamp_min(1.0)
    return bool((a - b).abs().max() <= LINEAR.get(a.dtype, 1e-2) * size)
