"""The record on which everything else is computed: K weighted particles for each datum."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import reduce
from math import log
from numbers import Integral
from operator import add
from typing import Any

import torch
from torch import Tensor

__all__ = ["Particles", "Path"]

# A value that a guide gives no mass at all: far enough for exp to be zero, near enough to cancel exactly.
NO_MASS = -1e3


class Path(Enum):
    """How gradients reach a guide's parameters through its draws.

    Attributes:
        TOTAL: through the draws and through ``log q``: the total derivative.
        STOPPED: through the draws alone; ``log q`` holds the guide's parameters stopped.
        NONE: not through the draws, which are taken as given. Every site then has a score.
    """

    TOTAL = "total"
    STOPPED = "stopped"
    NONE = "none"


@dataclass(frozen=True)
class Particles:
    """What running a guide against a model gives: K latents per datum, with their densities.

    Axes are (particle, datum, event); densities are in nats. Bounds sum over particles and never
    over data (the last axis of a density). Values that a guide enumerates keep axes of their own,
    left of the particles, and have the mass q(y | x); `mean` and `log_mean` take all of it together.

    Attributes:
        log_p: log density of each model site, ``(K, B)``: latents and data, penalties excluded.
            Sites of the model that were summed out share one entry, whose name lists them.
        log_q: log density of each guide site, ``(K, B)``.
        score: log density of each site drawn without reparameterisation, with one value for each
            draw. Its gradient is what a score-function estimator multiplies.
        values: the latents that the guide drew, ``(K, B, *event)``.
        penalties: training penalties (factors named ``penalty_...``), ``(K, B)`` each, added to
            what is maximised and left out of every likelihood.
        scale: the common scale of the plate "data" (N / B under subsampling). It multiplies a
            total over the data and never enters a datum's weight.
        enumerated: names of the guide's enumerated sites.
        summed: names of the model's latents that were summed out.
        kl: KL(q || p) of each latent site that has it in closed form, ``(K, B)``; filled when a
            bound asks for it.
        path: how gradients reach the guide through the draws.

    Example:
        >>> particles = pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={})
        >>> particles
        Particles(log_p={'x': (3, 2)}, log_q={})
        >>> particles.log_w.shape, particles.log_mass
        (torch.Size([3, 2]), -1.09...)
    """

    log_p: Mapping[str, Tensor]
    log_q: Mapping[str, Tensor]
    score: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    enumerated: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    kl: Mapping[str, Tensor] = field(default_factory=dict)
    path: Path = Path.TOTAL

    def __repr__(self) -> str:
        """Tell what there is, and the shapes of tensors in place of their numbers."""
        found = {"log_p": self.log_p, "log_q": self.log_q}
        found |= {f.name: value for f in fields(self) if (value := getattr(self, f.name)) and value != f.default}
        return f"Particles({', '.join(f'{name}={_shapes(value)}' for name, value in found.items())})"

    @property
    def log_w(self) -> Tensor:
        """Log importance weights ``log p(x, z) - log q(z | x)``, ``(K, B)``."""
        return total(self.log_p) - total(self.log_q) if self.log_q else total(self.log_p)

    @property
    def log_mass(self) -> float | Tensor:
        """Log of the mass of one particle: ``-log K``, plus ``log q(y | x)`` of an enumerated value."""
        if not self.enumerated:
            return -log(len(self))
        return total({name: self.log_q[name] for name in self.enumerated}) - log(len(self))

    def mean(self, f: Tensor) -> Tensor:
        """Return ``sum_k m f_k``, ``(B,)``, from values ``(K, B)``.

        Example:
            >>> pv.Particles(log_p={"x": torch.zeros(2, 1)}, log_q={}).mean(torch.tensor([[1.0], [3.0]]))
            tensor([2.])
        """
        return self.per_draw(f).mean(0)

    def log_mean(self, log_f: Tensor) -> Tensor:
        """Return ``log sum_k m f_k``, ``(B,)``, from ``log f``, ``(K, B)``.

        Example:
            >>> pv.Particles(log_p={"x": torch.zeros(2, 1)}, log_q={}).log_mean(torch.zeros(2, 1))
            tensor([0.])
        """
        return log_sum((log_f + self.log_mass).flatten(0, -2))

    def per_draw(self, f: Tensor) -> Tensor:
        """Average values over what the guide enumerated; one is left for each draw, ``(K, B)``.

        Example:
            >>> pv.Particles(log_p={"x": torch.zeros(2, 1)}, log_q={}).per_draw(torch.ones(2, 1)).shape
            torch.Size([2, 1])
        """
        if not self.enumerated:
            return f
        mass = (self.log_mass + log(len(self))).exp()
        # A value without mass has no part, even where f is infinite.
        return (mass * f.masked_fill(mass == 0, 0.0)).flatten(0, -3).sum(0)

    def log_per_draw(self, log_f: Tensor) -> Tensor:
        """Average ``f`` over what the guide enumerated, in logarithms, ``(K, B)``.

        Example:
            >>> pv.Particles(log_p={"x": torch.zeros(2, 1)}, log_q={}).log_per_draw(torch.ones(2, 1)).shape
            torch.Size([2, 1])
        """
        if not self.enumerated:
            return log_f
        return log_sum((log_f + self.log_mass + log(len(self))).flatten(0, -3))

    def split(self, groups: int) -> list["Particles"]:
        """Return the particles in groups of equal size.

        Example:
            >>> [len(group) for group in pv.Particles(log_p={"x": torch.zeros(6, 1)}, log_q={}).split(3)]
            [2, 2, 2]
        """
        if isinstance(groups, bool) or not isinstance(groups, Integral) or groups < 1 or len(self) % groups:
            raise ValueError(f"groups: {len(self)} particles cannot be split evenly into {groups!r} groups")
        size = len(self) // groups

        def part(tensors: Mapping[str, Tensor], start: int, axis: int = -2) -> dict[str, Tensor]:
            # An axis of size one stands for all particles (an enumerated site has it).
            return {n: t if t.shape[axis] == 1 else t.narrow(axis, start, size) for n, t in tensors.items()}

        return [
            replace(
                self,
                values={},
                **{name: part(getattr(self, name), start) for name in ("log_p", "log_q", "score", "penalties", "kl")},
            )
            for start in range(0, len(self), size)
        ]

    def __len__(self) -> int:
        """The number of particles K."""
        return next(iter(self.log_p.values())).shape[-2]


def total(densities: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of named tensors; axes of enumerated values broadcast.

    Example:
        >>> total({"z": torch.zeros(3, 2), "x": torch.ones(3, 2)}).shape
        torch.Size([3, 2])
    """
    return reduce(add, densities.values())


def _shapes(value: Any) -> str:
    """Return what a record holds in one field, tensors as their shapes."""
    if not isinstance(value, Mapping):
        return str(value)
    return str({name: tuple(tensor.shape) for name, tensor in value.items()})


def log_sum(log_f: Tensor) -> Tensor:
    """Return the logarithm of a sum along the first axis; an infinite one has no gradient, rather than nan.

    Example:
        >>> log_sum(torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]]))
        tensor([0.6931,   -inf])
    """
    largest = log_f.detach().amax(0)
    infinite = largest.isinf()
    return torch.where(infinite, largest, log_f.masked_fill(infinite, 0.0).logsumexp(0))


def shares(log_w: Tensor, axis: int) -> Tensor:
    """Return weights over their sum, without gradient; where all are zero, or some infinite, these are equal.

    Example:
        >>> shares(torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]]), 0)
        tensor([[1.0000, 0.5000],
                [0.0000, 0.5000]])
    """
    log_w = log_w.detach()
    largest = log_w.amax(axis, keepdim=True)
    among_infinite = torch.where(log_w == largest, 0.0, -torch.inf)
    return torch.where(largest.isinf(), among_infinite, log_w).softmax(axis)


def finite_mass(log_q: Tensor) -> Tensor:
    """Return log masses with a floor under those of zero, so that they cancel in products with weights.

    Example:
        >>> finite_mass(torch.tensor([-torch.inf, -1.0]))
        tensor([-1000.,    -1.])
    """
    return log_q.clamp_min(NO_MASS)
