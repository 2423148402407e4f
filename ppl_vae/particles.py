"""The record on which everything else is computed: K weighted particles for each datum."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log

import torch
from torch import Tensor

__all__ = ["Particles"]


@dataclass(frozen=True)
class Particles:
    """What running a guide against a model gives: K latents per datum, with their densities.

    Axes are (particle, datum, event); densities are in nats. Bounds sum over particles (dim 0)
    and never over data (dim 1).

    Attributes:
        log_p: log density of each model site, ``(K, B)``: latents and data, penalties excluded.
        log_q: log density of each guide site, ``(K, B)``.
        log_q_score: the part of ``sum(log_q)`` that belongs to sites drawn without
            reparameterisation, ``(K, B)``; a zero of shape ``()`` where there are none. Its gradient
            is what a score-function estimator multiplies.
        values: the latents that the guide drew, ``(K, B, *event)``.
        penalties: training penalties (factors named ``penalty_...``), ``(K, B)`` each, added to
            what is maximised and left out of every likelihood.
        scale: the common scale of the plate "data" (N / B under subsampling). It multiplies a
            total over the data and never enters a datum's weight.

    Example:
        >>> particles = pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={})
        >>> particles.log_w.shape, particles.log_mass
        (torch.Size([3, 2]), -1.09...)
    """

    log_p: Mapping[str, Tensor]
    log_q: Mapping[str, Tensor]
    log_q_score: Tensor = field(default_factory=lambda: torch.zeros(()))
    values: Mapping[str, Tensor] = field(default_factory=dict)
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def log_w(self) -> Tensor:
        """Log importance weights ``log p(x, z) - log q(z | x)``, ``(K, B)``."""
        log_p = torch.stack(tuple(self.log_p.values())).sum(0)
        if not self.log_q:
            return log_p
        return log_p - torch.stack(tuple(self.log_q.values())).sum(0)

    @property
    def log_mass(self) -> float:
        """Log of the mass of one particle, ``-log K``."""
        return -log(len(self))

    def __len__(self) -> int:
        """The number of particles K."""
        return next(iter(self.log_p.values())).shape[0]
