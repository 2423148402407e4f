"""Ascent of a function without noise: L-BFGS that keeps the best place it came to."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["STEPS", "ascend", "gradients_of"]

Function = Callable[[], tuple[Tensor, Sequence[Tensor]]]

# Few: what a step of expectation maximisation gains beyond them, the next one gains as well.
STEPS = 5
# Halvings of a plain gradient step before a place is taken for a maximum.
HALVINGS = 40
# Changes that are rounding for a function in nats per datum.
ROUNDING = 1e-15


def ascend(function: Function, tensors: Sequence[Tensor], steps: int = STEPS) -> bool:
    """Move tensors to where a function of them is larger; where no such place is found, leave them as they are.

    L-BFGS with a line search to the strong Wolfe conditions. Where it finds nothing, a step along the gradient, halved
    until the function rises. Places where the function is no finite number are walls.

    Args:
        function: returns its value ``()`` and its gradient in each tensor.
        tensors: leaves, changed in place.
        steps: of L-BFGS.

    Returns:
        Whether the function rose.

    Reference: J. Nocedal, S. Wright, "Numerical Optimization", Springer 2006, chapters 3 and 7.

    Example:
        >>> x = torch.zeros(2, requires_grad=True)
        >>> def function():
        ...     value = -(x - 1).square().sum()
        ...     return value, gradients_of(value, [x])
        >>> ascend(function, [x]), x.detach()
        (True, tensor([1., 1.]))
    """
    search = _Search(function, tensors)
    if search.lost or not search.slope.any():
        return False
    optimizer = torch.optim.LBFGS(
        [search.flat],
        max_iter=steps,
        tolerance_grad=0.0,
        tolerance_change=ROUNDING,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(search)
    if not search.rose:
        search.halve()
    search.place(search.best_at)
    return search.rose


class _Search:
    """Minus the function as an optimizer sees it, with a memory of the best place."""

    def __init__(self, function: Function, tensors: Sequence[Tensor]):
        self.function, self.tensors = function, tensors
        self.flat = torch.nn.Parameter(_flat(tensors))
        self.best_at = self.start = self.flat.detach().clone()
        self.best = self.first = self.wall = torch.tensor(torch.inf)
        self.first = self()
        self.lost = not self.first.isfinite()
        self.wall = self.first + 10 * (1 + self.first.abs())
        self.best, self.slope = self.first, self.flat.grad.clone()

    @property
    def rose(self) -> bool:
        """Whether any place is better than the start."""
        return bool(self.best < self.first)

    def __call__(self) -> Tensor:
        """Return minus the function at ``flat``, and leave the gradient there."""
        self.place(self.flat.detach())
        value, gradient = self._evaluated()
        if not (value.isfinite() and gradient.isfinite().all()):
            value, gradient = self.wall, torch.zeros_like(self.flat)
        self.flat.grad = gradient
        if value < self.best:
            self.best, self.best_at = value, self.flat.detach().clone()
        return value

    def _evaluated(self) -> tuple[Tensor, Tensor]:
        try:
            value, gradients = self.function()
        except torch.linalg.LinAlgError:  # a matrix without the factor that the program asks for
            return torch.tensor(torch.nan), torch.zeros_like(self.flat)
        return -value.detach(), -_flat(gradients).to(self.flat.dtype)

    def halve(self) -> None:
        """Step down the slope at the start, less and less far, until there is a better place."""
        step = self.slope / self.slope.norm().clamp_min(1.0)
        for i in range(HALVINGS):
            with torch.no_grad():
                self.flat.copy_(self.start - step * 0.5**i)
            self()
            if self.rose:
                return

    def place(self, flat: Tensor) -> None:
        """Put the numbers of one vector into the tensors."""
        sizes = [tensor.numel() for tensor in self.tensors]
        with torch.no_grad():
            for tensor, piece in zip(self.tensors, flat.split(sizes), strict=True):
                tensor.copy_(piece.view_as(tensor))


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


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
