"""torch's learning-rate schedulers, on the optimizers of a step."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
        updates: how many there will be, where that is known.

    Raises:
        TypeError: it makes something else.
        ValueError: the step shows no optimizers, or none of a name; a cycle ends before the last update.

    Example:
        >>> from functools import partial
        >>> from types import SimpleNamespace
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        >>> step = SimpleNamespace(optimizers=lambda: {"optimizer": sgd})
        >>> rates = LearningRates(step, partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5))
        >>> sgd.step(), rates.after_epoch(loss=0.0), sgd.param_groups[0]["lr"]
        (None, None, 0.5)
    """

    def __init__(self, step: Any, make: Scheduler | Mapping[str, Scheduler] | None, updates: int | None = None):
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
            total = getattr(scheduler, "total_steps", None)  # of OneCycleLR, which fails beyond it
            if updates is not None and total is not None and total < updates:
                raise ValueError(
                    f"scheduler: {type(scheduler).__name__} has total_steps={total}, and there are {updates} updates; "
                    f"give it total_steps={updates}"
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

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Have changes of learning rates inside last: what schedules compute later ones from changes by as much."""
        before = {name: _rates(scheduler) for name, scheduler in self.schedulers.items()}
        yield
        for name, scheduler in self.schedulers.items():
            ratios = [now / then if then else 1.0 for now, then in zip(_rates(scheduler), before[name], strict=True)]
            for part in _and_inner(scheduler):
                _scale(part, ratios)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each."""
        return {name: _plain(scheduler.state_dict()) for name, scheduler in self.schedulers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; what an optimizer's rate is comes with the optimizer's.

        Raises:
            ValueError: it is of other schedulers, or of some that were made with other options.
        """
        if state.keys() != self.schedulers.keys():
            raise ValueError(
                f"scheduler: the run has one for {', '.join(state) or 'no optimizer'}, found one for "
                f"{', '.join(self.schedulers) or 'none'}; go on with the same"
            )
        for name, scheduler in self.schedulers.items():
            _check_same(scheduler, state[name])
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(state[name])
            # It stepped before the run was stopped; torch warns of schedulers that step first, if the next is theirs.
            scheduler.optimizer._opt_called = True
            for part in _and_inner(scheduler):
                if isinstance(getattr(part, "milestones", None), dict):
                    part.milestones = Counter(part.milestones)


def _rates(scheduler: LRScheduler) -> list[float]:
    return [float(group["lr"]) for group in scheduler.optimizer.param_groups]


def _and_inner(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    """Yield a scheduler, and those that it takes turns with (``SequentialLR``) or chains."""
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _and_inner(inner)


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with dicts for the counters in it (milestones), which files of tensors do not hold."""
    found = {name: dict(part) if isinstance(part, Counter) else part for name, part in state.items()}
    inner = {"_schedulers": [_plain(part) for part in state["_schedulers"]]} if "_schedulers" in state else {}
    return found | inner


def _scale(scheduler: LRScheduler, ratios: list[float]) -> None:
    for rates in ("base_lrs", "max_lrs"):
        if hasattr(scheduler, rates):
            scaled = [rate * ratio for rate, ratio in zip(getattr(scheduler, rates), ratios, strict=True)]
            setattr(scheduler, rates, scaled)


def _check_same(scheduler: LRScheduler, saved: Mapping[str, Any]) -> None:
    """Raise if a saved state is of a scheduler made with other options, which would take the place of these."""
    kind, now = type(scheduler).__name__, _plain(scheduler.state_dict())
    if now.keys() != saved.keys():
        raise ValueError(f"scheduler: the run has another than {kind}; go on with the same")
    for option in inspect.signature(type(scheduler)).parameters.keys() & now.keys() - {"last_epoch"}:
        if now[option] != saved[option]:
            raise ValueError(
                f"scheduler: the run has {kind} with {option}={saved[option]!r}, found {now[option]!r}; go on with the "
                "same"
            )
