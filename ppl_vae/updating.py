"""From the gradients of batches to an update of parameters: accumulation and clipping."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from ppl_vae.optimizers import laid_out

__all__ = ["NOTHING_GATHERED", "Update"]

NOTHING_GATHERED: Mapping[str, Any] = {"batches": 0, "rows": 0, "gradients": {}}


class Update:
    """One step of an optimizer on the gradients of one or several batches.

    Args:
        optimizer: a torch optimizer.
        accumulate: batches for one step, whose gradients are averaged over their data: so many batches
            move parameters as one batch of all their data would.
        clip_norm: the largest norm of all gradients together; longer ones are shortened to it.

    Raises:
        ValueError: an option is out of range.

    Reference: R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, https://arxiv.org/abs/1211.5063, for clipping.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> update = Update(torch.optim.SGD([weight], lr=1.0), clip_norm=1.0)
        >>> update([weight], [torch.tensor([3.0, 4.0])], rows=10)
        True
        >>> weight
        Parameter containing:
        tensor([-0.6000, -0.8000], requires_grad=True)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, accumulate: int = 1, clip_norm: float | None = None):
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise ValueError(f"accumulate: expected a whole number of at least 1, found {accumulate!r}")
        if clip_norm is not None and not (isinstance(clip_norm, int | float) and 0 < clip_norm < inf):
            raise ValueError(f"clip_norm: expected a positive number or None, found {clip_norm!r}")
        self.optimizer, self.accumulate, self.clip_norm = optimizer, accumulate, clip_norm
        self.batches = self.rows = 0

    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], rows: int) -> bool:
        """Take in the gradients of a batch; return whether parameters have moved."""
        gradients = _apart(parameters, gradients)
        if self.accumulate == 1:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        elif not self._gathered(parameters, gradients, rows):
            return False
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
        return True

    def clear(self) -> None:
        """Let go of gradients that have been used, so that new ones take their memory, which caches hold.

        Those of parameters that have been frozen since are let go of too: they would still be followed.
        """
        for parameter in self._held():
            if self.batches == 0 or not parameter.requires_grad:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what has been gathered for the next step, by the place of a parameter in the optimizer."""
        gradients = {i: p.grad for i, p in enumerate(self._held()) if p.grad is not None} if self.batches else {}
        return {"batches": self.batches, "rows": self.rows, "gradients": gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.batches, self.rows = state["batches"], state["rows"]
        for i, parameter in enumerate(self._held()):
            gradient = state["gradients"].get(i)
            parameter.grad = None if gradient is None else gradient.clone()

    def _gathered(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], rows: int) -> bool:
        """Add gradients to those of earlier batches, by their data; tell whether there are enough."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = (
                    gradient * rows if parameter.grad is None else parameter.grad.add_(gradient, alpha=rows)
                )
        self.batches, self.rows = self.batches + 1, self.rows + rows
        if self.batches < self.accumulate:
            return False
        torch._foreach_div_([p.grad for p in parameters if p.grad is not None], self.rows)
        self.batches = self.rows = 0
        return True

    def _held(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def _apart(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Give each parameter a gradient of its own, laid out as it is.

    Autograd gives parameters that are only added up one and the same tensor, which may not be changed twice.
    """
    seen: set[int] = set()
    found: list[Tensor | None] = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            gradient = laid_out(gradient, parameter)
            if not gradient.is_sparse:
                gradient = gradient.clone() if gradient.data_ptr() in seen else gradient
                seen.add(gradient.data_ptr())
        found.append(gradient)
    return found
