"""Places at which slopes of an expected log joint density are taken, and kept while they serve."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.expectations import Expectations, Terms
from ppl_vae.factors import Values
from ppl_vae.families import Dirichlet, Family, Gaussian, Natural, Wishart
from ppl_vae.matrices import in_units

__all__ = ["Probe", "alike", "apart", "of_one_size"]

Total = Callable[[Terms], Tensor]
UNUSED = {"allow_unused": True, "materialize_grads": True}
# How far two optima may differ by rounding; see `apart`.
LINEAR = {torch.float64: 1e-6, torch.float32: 1e-2}


@dataclass(frozen=True)
class Probe:
    """A place at which slopes of the expected log joint are taken.

    Attributes:
        mean: the factor's expected statistics there, leaves of all that is computed here.
        points: the factor's values there, by site, ``(P, ...)``.
        terms: log densities of the sites that read the factor and look the same on any data, averaged over runs.
        on_all: sites that read it and do not.
        eta: the factor's parameters when this was made.
        axes: how many axes its batch has.
        others: points of the other factors that these sites read.
    """

    mean: Natural
    points: Values
    terms: Terms
    on_all: Sequence[str]
    eta: Natural
    axes: int
    others: Mapping[str, Values]

    def serves(self, eta: Natural, points: Mapping[str, Values]) -> bool:
        """Tell whether a factor with these parameters is near enough for its rounding, and the others are as then."""
        same = all(points[name] is values for name, values in self.others.items())
        return same and all(of_one_size(*parts, self.axes) for parts in zip(self.eta, eta, strict=True))

    def slopes(self, name: str, expected: Expectations, total: Total) -> Natural:
        """Return the gradient of a total in the expected statistics.

        Args:
            name: of the factor.
            expected: expectations under the posterior as it is.
            total: from terms of sites to their sum over all data.
        """
        found = [torch.zeros_like(part) for part in self.mean]
        with torch.enable_grad():
            # What a mask leaves out has no graph.
            if self.terms and (value := total(self.terms)).requires_grad:
                found = torch.autograd.grad(value, self.mean, retain_graph=True, **UNUSED)
            if self.on_all:
                found = map(torch.add, found, self._slopes_on_all(name, expected, total))
        return tuple(found)

    def _slopes_on_all(self, name: str, expected: Expectations, total: Total) -> list[Tensor]:
        """Take slopes run by run, since the graphs of all runs on all data would fill memory."""
        points = {site: [_leaf(value) for value in values] for site, values in self.points.items()}
        mean = tuple(map(_leaf, self.mean))
        here, leaves = expected.near(name, points, mean), [*mean, *itertools.chain(*points.values())]
        count = here.count(self.on_all)
        for terms in here.each(self.on_all):
            if (value := total(terms) / count).requires_grad:
                torch.autograd.backward(value, inputs=leaves)
        outer = [torch.stack([_slope(value) for value in values]) for values in points.values()]
        through = torch.autograd.grad([*self.points.values()], self.mean, outer, retain_graph=True, **UNUSED)
        return [_slope(leaf) + slope for leaf, slope in zip(mean, through, strict=True)]


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _slope(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


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


def alike(family: Family, a: Natural, b: Natural) -> bool:
    """Tell whether two optima agree, as those of a linear function do, in units of the factor."""
    return bool(apart(family, a, b) <= LINEAR.get(a[0].dtype, 1e-2))


def apart(family: Family, a: Natural, b: Natural) -> Tensor:
    """Return how far parameters lie apart: shapes in parts of themselves, places in standard deviations.

    Example:
        >>> from ppl_vae.families import Dirichlet
        >>> family = Dirichlet(torch.Size(), 2, torch.zeros(()))
        >>> apart(family, (torch.tensor([0.0, 9.0]),), (torch.tensor([0.0, 8.0]),))
        tensor(0.1000)
    """
    if isinstance(family, Dirichlet):
        return _of_shapes(a[0], b[0]).max()
    if isinstance(family, Wishart):
        return torch.maximum(_of_shapes(a[0], b[0]).max(), in_units(a[1], b[1]).max())
    if isinstance(family, Gaussian):
        unit = a[1].diagonal(dim1=-2, dim2=-1).abs().sqrt()
        return torch.maximum(in_units(a[1], b[1]).max(), _of_places(a[0], b[0], unit).max())
    unit = (a[3].diagonal(dim1=-2, dim2=-1).abs() / a[2].abs().unsqueeze(-1).clamp_min(1.0)).sqrt()
    shapes = torch.maximum(_of_shapes(a[0], b[0]).max(), _of_shapes(a[2], b[2]).max())
    return torch.maximum(torch.maximum(shapes, in_units(a[3], b[3]).max()), _of_places(a[1], b[1], unit).max())


def _of_shapes(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs() / (1 + a.abs())


def _of_places(a: Tensor, b: Tensor, unit: Tensor) -> Tensor:
    # Elements of one vector share their rounding.
    size = unit + a.abs() + 1e-3 * a.abs().amax(-1, keepdim=True)
    return (a - b).abs() / size.clamp_min(torch.finfo(a.dtype).tiny)
