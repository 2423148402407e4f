"""From the gradients of batches to an update of parameters: accumulation, clipping, and refusal of NaN."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.guarding import KeptBuffers, all_finite, bounded, step_if, step_or_back
from ppl_vae.objectives.vocabulary import advance
from ppl_vae.optimizers import laid_out
from ppl_vae.programs import Programs

__all__ = ["NOTHING_GATHERED", "Update"]

FINITE = torch.tensor(True)
NOTHING_GATHERED: Mapping[str, Any] = {"batches": 0, "rows": 0, "gradients": {}}


class Update:
    """One step of an optimizer on the gradients of one or several batches, if all of them are finite numbers.

    A batch whose bound or gradients are NaN or infinite is refused: parameters, the optimizer's state and gradients of
    earlier batches stay as they were, and so do buffers (see `guarded`). It counts as one of the batches to accumulate,
    with no data. Refused likewise is an update by finite gradients that would overflow. On a CPU the numbers are looked
    at; elsewhere the device itself decides (`ppl_vae.guarding.step_if`), and nobody waits for it.

    Args:
        optimizer: a torch optimizer.
        accumulate: batches for one step, whose gradients are averaged over their data: so many batches
            move parameters as one batch of all their data would.
        clip_norm: the largest norm of all gradients together; longer ones are shortened to it.

    Attributes:
        faults: how many batches and updates have been refused, ``()``.
        in_a_row: how many since the last one that was not, ``()``.
        finite: whether the latest was not refused, ``()``. On a GPU nobody has waited for these three.
        waits: whether to look at the numbers, as on a CPU, or to let the device decide; by the device if None.

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
        >>> update([weight], [torch.tensor([3.0, torch.nan])], rows=10), update.faults
        (False, tensor(1))
    """

    def __init__(self, optimizer: torch.optim.Optimizer, accumulate: int = 1, clip_norm: float | None = None):
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise ValueError(f"accumulate: expected a whole number of at least 1, found {accumulate!r}")
        if clip_norm is not None and not (isinstance(clip_norm, int | float) and 0 < clip_norm < inf):
            raise ValueError(f"clip_norm: expected a positive number or None, found {clip_norm!r}")
        self.optimizer, self.accumulate, self.clip_norm = optimizer, accumulate, clip_norm
        self.batches: int = 0
        self.rows: int | Tensor = 0
        self.faults, self.in_a_row = torch.zeros(2, dtype=torch.long).unbind()
        self.finite, self.waits = FINITE, None
        self._sound: bool | Tensor = True
        self._done: bool | Tensor | None = None
        self._any_in_a_row = False
        self._stepped: set[int] = set()
        self._buffers: KeptBuffers | None = None

    def __call__(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        rows: int,
        values: Sequence[Tensor] = (),
    ) -> bool:
        """Take in the gradients of a batch; return whether parameters have moved.

        Args:
            parameters: those of the optimizer that require a gradient.
            gradients: of what is made small, one for each.
            rows: data in the batch.
            values: bound, penalties and the like, ``()`` each, which must be finite too.

        Returns:
            True if they have. Where the device decides: if they may have.
        """
        gradients = _apart(parameters, gradients)
        waits = parameters[0].device.type == "cpu" if self.waits is None else self.waits
        # Gradients that are not added to others are looked at when the optimizer steps.
        added = [g for g in gradients if g is not None] if self.accumulate > 1 else []
        self._sound = _sound(values, added) if waits else all_finite([*values, *added]).to(parameters[0].device)
        self._done = self._moved(parameters, gradients, rows, waits)
        self._count(self._sound if self._done is None else self._sound & self._done)
        return self._done is not None and self._done is not False

    @contextmanager
    def guarded(self, programs: Programs) -> Iterator[None]:
        """Put back the buffers that programs write inside, if the batch is refused or they raise."""
        if self._buffers is None or self._buffers.programs is not programs:
            self._buffers = KeptBuffers(programs)
        self._buffers.keep()
        try:
            yield
        except BaseException:  # some operations refuse NaN themselves
            self._buffers.settle(False)
            raise
        self._buffers.settle(self._sound if self._done is None else self._sound & self._done)

    def follow(self, objective: Any) -> None:
        """Tell an objective that parameters have moved, where they have."""
        if self._done is True or not isinstance(objective, nn.Module):
            advance(objective)
            return
        buffers = KeptBuffers(Programs(objective, objective))
        buffers.keep()
        advance(objective)
        buffers.settle(self._done)

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
        return {"batches": self.batches, "rows": int(self.rows), "gradients": gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.batches, self.rows = state["batches"], state["rows"]
        for i, parameter in enumerate(self._held()):
            gradient = state["gradients"].get(i)
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)

    def _moved(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], rows: int, waits: bool
    ) -> bool | Tensor | None:
        """Take in gradients; return whether parameters have moved, or None as long as batches are to come."""
        sound = self._sound
        if self.accumulate > 1:
            sound = self._gathered(parameters, gradients, rows)
            if sound is None:
                return None
        elif sound is not False:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        if sound is False:
            return False
        norm = None if self.clip_norm is None else torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if waits:
            return self._stepped_looking(norm)
        # By an infinite norm, of finite numbers too large for it, clipping has made all of them zero.
        return step_if(self.optimizer, sound if norm is None else sound & norm.isfinite(), self._stepped)

    def _gathered(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], rows: int
    ) -> bool | Tensor | None:
        """Add gradients to those of earlier batches, by their data; return whether any had, or None before the last."""
        if self._sound is not False:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    self._add(parameter, gradient, rows)
        self.batches, self.rows = self.batches + 1, self.rows + rows * self._sound
        if self.batches < self.accumulate:
            return None
        of, self.batches, self.rows = self.rows, 0, 0
        there = [p.grad for p in parameters if p.grad is not None]
        if there:
            torch._foreach_div_(there, of.clamp_min(1) if isinstance(of, Tensor) else of)
        return of > 0

    def _add(self, parameter: Tensor, gradient: Tensor, rows: int) -> None:
        if isinstance(self._sound, Tensor):
            gradient = torch.where(self._sound, gradient, torch.zeros_like(gradient))
        parameter.grad = gradient * rows if parameter.grad is None else parameter.grad.add_(gradient, alpha=rows)

    def _stepped_looking(self, norm: Tensor | None) -> bool:
        """Step if all gradients are finite, and nothing overflows."""
        held = [p for p in self._held() if p.grad is not None]
        gradients = [p.grad for p in held]
        if bounded(gradients) if norm is None else isfinite(norm.item()):
            self.optimizer.step()
            return True
        if norm is None and all_finite(gradients) and step_or_back(self.optimizer):
            return True
        for parameter in held:
            parameter.grad = None
        return False

    def _count(self, finite: bool | Tensor) -> None:
        if finite is True:
            if self._any_in_a_row:
                self.in_a_row, self._any_in_a_row = torch.zeros_like(self.in_a_row), False
            self.finite = FINITE
            return
        self.finite, self._any_in_a_row = torch.as_tensor(finite), True
        refused = (~self.finite).long()
        self.faults = self.faults.to(refused.device) + refused
        self.in_a_row = (self.in_a_row.to(refused.device) + 1) * refused

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


def _sound(values: Sequence[Tensor], gradients: Sequence[Tensor]) -> bool:
    """Tell whether all are finite; reads them."""
    return all(isfinite(value.item()) for value in values) and (bounded(gradients) or bool(all_finite(gradients)))
