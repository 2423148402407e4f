"""torch's learning-rate schedulers, on the optimizers of a step."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

__all__ = ["LearningRates", "Scheduler"]

Scheduler = Callable[[Optimizer], LRScheduler]

# Their cycles are counted in updates, as torch has it; those of others in epochs.
BY_UPDATE = (CyclicLR, OneCycleLR)


class LearningRates:
    """Schedulers of learning rates, one for each optimizer of a step.

    Those whose cycles torch counts in updates (``OneCycleLR``, ``CyclicLR``) move after each update, others after each
    epoch; ``ReduceLROnPlateau`` is given minus the bound by which epochs are compared.

    Args:
        step: see `ppl_vae.steps.Step`, with ``optimizers()``.
        make: from an optimizer to a scheduler, or such functions by the optimizer's name; None for none.

    Raises:
        TypeError: it makes something else.
        ValueError: the step shows no optimizers, or none of a name.

    Example:
        >>> from functools import partial
        >>> from types import SimpleNamespace
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        >>> step = SimpleNamespace(optimizers=lambda: {"optimizer": sgd})
        >>> rates = LearningRates(step, partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5))
        >>> sgd.step(), rates.after_epoch(loss=0.0), sgd.param_groups[0]["lr"]
        (None, None, 0.5)
    """

    def __init__(self, step: Any, make: Scheduler | Mapping[str, Scheduler] | None):
        self.schedulers: dict[str, LRScheduler] = {}
        if make is None:
            return
        if not hasattr(step, "optimizers"):
            raise ValueError("scheduler: the step shows no optimizers (step.optimizers()); leave scheduler out")
        optimizers = step.optimizers()
        by_name = make if isinstance(make, Mapping) else dict.fromkeys(optimizers, make)
        if unknown := by_name.keys() - optimizers.keys():
            raise ValueError(f"scheduler: no optimizer is called {unknown.pop()!r}; there are {', '.join(optimizers)}")
        for name, function in by_name.items():
            scheduler = function(optimizers[name]) if callable(function) else function
            if not isinstance(scheduler, LRScheduler) or scheduler.optimizer is not optimizers[name]:
                raise TypeError(
                    "scheduler: expected a function from an optimizer to one of torch's schedulers of it, such as "
                    f"partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=100), found {function!r}"
                )
            self.schedulers[name] = scheduler

    def after_update(self) -> None:
        """Move those that count updates."""
        for scheduler in self.schedulers.values():
            if isinstance(scheduler, BY_UPDATE):
                scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Move those that count epochs."""
        for scheduler in self.schedulers.values():
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(loss)
            elif not isinstance(scheduler, BY_UPDATE):
                scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each."""
        return {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; what an optimizer's rate is comes with the optimizer's."""
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(state[name])
