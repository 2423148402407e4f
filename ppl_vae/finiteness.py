"""Numbers that are none: found before a state is kept, and explained."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ppl_vae.batches import Source, not_finite
from ppl_vae.checking import unmasked
from ppl_vae.steps import Step

__all__ = ["check_epoch"]


def check_epoch(row: Mapping[str, float], step: Step, train: Source, valid: Source | None) -> None:
    """Raise if an epoch's numbers, or a tensor of its state, are not finite.

    Args:
        row: of the history.
        step: after that epoch.
        train: training data.
        valid: validation data, or None.

    Raises:
        FloatingPointError: the message names the number, and rows of the data to which it may be due.
    """
    wrong = [f"the {name} became {value}" for name, value in row.items() if not math.isfinite(value)]
    if not wrong and not all(bool(t.isfinite().all()) for t in _tensors(step.state_dict()) if t.is_floating_point()):
        wrong = ["a parameter became NaN or infinite"]
    if wrong:
        repair = _rows_not_finite(step, train, valid) or (
            "Look at the data, try a smaller learning rate, or put a floor under the scales that networks give"
        )
        raise FloatingPointError(
            f"{wrong[0]} in epoch {row['epoch']}; the programs have their best parameters so far back. {repair}"
        )


def _rows_not_finite(step: Step, train: Source, valid: Source | None) -> str:
    """Say which of the data in memory are not numbers where no mask covers them."""
    model = getattr(step, "model", None)
    for name, data in (("data", train), ("valid", valid)):
        tensors = getattr(data, "tensors", ())
        if rows := not_finite(unmasked(model, tensors) if callable(model) else tensors):
            return f"{name}: {rows}"
    return ""


def _tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts and sequences."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
