"""Hamiltonian Monte Carlo: many chains for many data at once."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

__all__ = ["leapfrog", "transition"]

# What is known at a position: a named tuple of tensors (chain, datum, ...), the position first.
Point = TypeVar("Point", bound=tuple)
Evaluate = Callable[[Tensor], Point]
# From a point to the log density there, (K, B), and its gradient, (K, B, D).
Density = Callable[[Point], tuple[Tensor, Tensor]]

JITTER = 0.2


def leapfrog(
    point: Point, momentum: Tensor, evaluate: Evaluate, density: Density, step: Tensor, steps: int
) -> tuple[Point, Tensor]:
    """Follow Hamilton's equations for a log density.

    With a unit mass::

        du/dt = r,    dr/dt = grad log f(u)

    The map keeps volume, and leads back with the momentum turned; its error in the energy
    ``|r|^2 / 2 - log f(u)`` falls with the square of the step.

    Args:
        point: where to begin.
        momentum: r, ``(K, B, D)``.
        evaluate: from a position ``(K, B, D)`` to what is known there.
        density: from that to the log density ``(K, B)`` and its gradient.
        step: step sizes, broadcast to ``(K, B)``.
        steps: how many, at least one.

    Returns:
        The point and the momentum at the end.

    Reference: R. M. Neal, "MCMC Using Hamiltonian Dynamics", Handbook of Markov Chain Monte Carlo,
    2011, section 2, https://arxiv.org/abs/1206.1901.

    Example:
        >>> normal = lambda point: (-0.5 * point[0].square().sum(-1), -point[0])
        >>> start, momentum = (torch.ones(1, 1, 1),), torch.zeros(1, 1, 1)
        >>> point, momentum = leapfrog(start, momentum, lambda u: (u,), normal, torch.tensor(0.01), 157)
        >>> abs(float(point[0])) < 1e-2, abs(float(momentum) + 1) < 1e-4    # a quarter of a circle
        (True, True)
    """
    step = step.unsqueeze(-1)
    momentum = momentum + 0.5 * step * density(point)[1]
    for i in range(steps):
        point = evaluate(point[0] + step * momentum)
        momentum = momentum + (step if i < steps - 1 else 0.5 * step) * density(point)[1]
    return point, momentum


def transition(point: Point, evaluate: Evaluate, density: Density, step: Tensor, steps: int) -> tuple[Point, Tensor]:
    """Move chains by one step of Hamiltonian Monte Carlo, which leaves the density invariant.

    Momenta are drawn anew; the end of the path is taken with probability ``min(1, exp(-dH))``, where
    dH is its error in the energy. Each path has a step size drawn within a fifth of the one given, as
    paths of one length may return to where they began. A path that leaves the numbers is rejected.

    Args:
        point: where the chains are.
        evaluate: as for `leapfrog`.
        density: likewise.
        step: likewise.
        steps: likewise.

    Returns:
        Where the chains are now, and their probabilities of acceptance ``(K, B)``.

    Reference: S. Duane et al., "Hybrid Monte Carlo", Physics Letters B 1987,
    https://doi.org/10.1016/0370-2693(87)91197-X; random step sizes as in R. M. Neal, "MCMC Using
    Hamiltonian Dynamics", 2011, section 4.2, https://arxiv.org/abs/1206.1901.

    Example:
        >>> normal = lambda point: (-0.5 * point[0].square().sum(-1), -point[0])
        >>> point, acceptance = transition((torch.randn(3, 2, 1),), lambda u: (u,), normal, torch.tensor(0.1), 5)
        >>> point[0].shape, bool((acceptance > 0.9).all())
        (torch.Size([3, 2, 1]), True)
    """
    before, _ = density(point)
    momentum = torch.randn_like(point[0])
    path_step = step * (1 - JITTER + 2 * JITTER * torch.rand_like(before))
    proposal, last = leapfrog(point, momentum, evaluate, density, path_step, steps)
    after, _ = density(proposal)
    gain = (after - _kinetic(last)) - (before - _kinetic(momentum))
    # An infinite density is as much of an overflow as one that is no number.
    acceptance = torch.where(after.isfinite() & ~gain.isnan(), gain.clamp_max(0.0).exp(), 0.0)
    accepted = torch.rand_like(acceptance) < acceptance
    return _chosen(accepted, proposal, point), acceptance


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().sum(-1)


def _chosen(accepted: Tensor, new: Point, old: Point) -> Point:
    """Return a point with each chain's part of one or the other."""

    def part(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accepted.reshape(*accepted.shape, *(1,) * (new.dim() - 2)), new, old)

    return tree_map(part, new, old)
