"""Ascent of a function without noise: L-BFGS that is undone where it did not rise."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["ascend", "gradients_of"]

# Halvings of a plain gradient step before a point is taken for a maximum.
HALVINGS = 40


def ascend(function: Callable[[], tuple[Tensor, Sequence[Tensor]]], tensors: Sequence[Tensor], steps: int = 20) -> bool:
    """Move tensors to where a function of them is larger; if no such place is found, leave them as they are.

    L-BFGS with a line search to the strong Wolfe conditions; where that ends below its start or outside the
    function's domain, one step along the gradient, halved until it rises.

    Args:
        function: returns its value ``()`` and the gradient in each tensor.
        tensors: leaves, which are changed in place.
        steps: of L-BFGS.

    Returns:
        Whether the function rose.

    Reference: J. Nocedal, S. Wright, "Numerical Optimization", Springer 2006, chapters 3 and 7.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> ascend(lambda: ((f := -(x - 1).square().sum()), torch.autograd.grad(f, [x])), [x]), x.detach()
        (True, tensor([1., 1.]))
    """
    flat = torch.nn.Parameter(_flat(tensors))
    start = flat.detach().clone()

    def loss() -> Tensor:
        _place(flat.detach(), tensors)
        value, gradients = function()
        flat.grad = -_flat(gradients).to(flat.dtype)
        return -value.detach()

    before = loss()
    slope = flat.grad.clone()
    optimizer = torch.optim.LBFGS(
        [flat],
        max_iter=steps,
        # A relative tolerance would end steps short of what the iterations around may still gain.
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    if not slope.any() or not slope.isfinite().all():
        return False
    optimizer.step(loss)
    if _rises(loss, before):
        return True
    for i in range(HALVINGS):
        with torch.no_grad():
            flat.copy_(start - slope * 0.5**i / slope.norm().clamp_min(1.0))
        if _rises(loss, before):
            return True
    _place(start, tensors)
    return False


def gradients_of(value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient in each tensor, zero where there is none.

    Example:
        >>> x, y = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> gradients_of(3 * x.sum(), [x, y])
        [tensor([3.]), tensor([0.])]
    """
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    return [*torch.autograd.grad(value, [*tensors], allow_unused=True, materialize_grads=True)]


def _rises(loss: Callable[[], Tensor], before: Tensor) -> bool:
    return bool(loss() < before)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _place(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    sizes = [tensor.numel() for tensor in tensors]
    with torch.no_grad():
        for tensor, piece in zip(tensors, flat.split(sizes), strict=True):
            tensor.copy_(piece.view_as(tensor))
