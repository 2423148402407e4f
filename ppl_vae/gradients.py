"""Tensors that are zero and yet have a gradient: what surrogates are made of."""

import torch
from torch import Tensor

__all__ = ["along", "gap", "weighted", "zero_with_gradient"]


def zero_with_gradient(x: Tensor) -> Tensor:
    """Return a zero whose gradient is that of x, and none where x is the log density of something impossible.

    Example:
        >>> zero_with_gradient(torch.tensor([2.0, -torch.inf]))
        tensor([0., 0.])
    """
    possible = x.masked_fill(x.isneginf(), 0.0)
    return possible - possible.detach()


def gap(signal: Tensor, baseline: Tensor | float) -> Tensor:
    """Return a learning signal less its baseline, without gradient, and zero where either is infinite.

    An impossible draw then teaches its score nothing, and says so in the bound alone.

    Example:
        >>> gap(torch.tensor([3.0, -torch.inf]), 1.0)
        tensor([2., 0.])
    """
    signal, baseline = signal.detach(), torch.as_tensor(baseline).detach()
    return (signal - baseline).masked_fill(signal.isinf() | baseline.isinf(), 0.0)


def weighted(weight: Tensor | float, f: Tensor) -> Tensor:
    """Return a term times its weight, which is nothing for a weight of zero, infinite or not.

    Example:
        >>> weighted(0.0, torch.tensor([1.0, -torch.inf]))
        tensor([0., 0.])
    """
    return weight * f.masked_fill(torch.as_tensor(weight == 0, device=f.device), 0.0)


def along(draw: Tensor, slope: Tensor, axes: int = 2) -> Tensor:
    """Return a zero for each particle and datum, whose gradient at its draw is the slope.

    Args:
        draw: ``(K, B, *event)``.
        slope: likewise.
        axes: how many axes come before the event.

    Example:
        >>> along(torch.ones(3, 2, 5), torch.ones(3, 2, 5)).shape
        torch.Size([3, 2])
    """
    product = zero_with_gradient(draw) * slope.detach()
    return product.flatten(axes).sum(-1) if product.dim() > axes else product
