"""Tensors that are zero and yet have a gradient: what surrogates are made of."""

from torch import Tensor

__all__ = ["along", "zero_with_gradient"]


def zero_with_gradient(x: Tensor) -> Tensor:
    """Return a zero whose gradient is that of x.

    Example:
        >>> zero_with_gradient(torch.tensor([2.0, 3.0]))
        tensor([0., 0.])
    """
    return x - x.detach()


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
