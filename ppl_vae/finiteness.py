"""Numbers that are none: found before a state is kept, and explained."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.batches import Batch, Source, not_finite
from ppl_vae.checking import unmasked
from ppl_vae.contract import ContractError
from ppl_vae.guarding import all_finite
from ppl_vae.parallel import LostWorker
from ppl_vae.programs import forked_random_state
from ppl_vae.steps import Info, Step
from ppl_vae.streams import put_back

__all__ = ["BEST_ARE_BACK", "Taken", "check_epoch", "explained"]

BEST_ARE_BACK = "the programs have their best parameters so far back"


class Taken(NamedTuple):
    """A step that was taken.

    Attributes:
        info: what it reported, if it came to its end.
        batch: on which.
        rows: of the data in the batch, where they are known.
        random: state of torch's generators before it.
    """

    info: Info | None
    batch: Batch
    rows: Sequence[int] | None
    random: Mapping[str, Tensor]


def explained(step: Step, taken: Taken) -> str:
    """Say where a number that is none came from, on a batch that was refused, by taking it again with the same noise.

    Args:
        step: as it is now; parameters may have moved since, where the device was not waited for.
        taken: the step that was refused.
    """
    if not hasattr(step, "explain"):
        return f"a batch was refused, since a number in it became NaN or infinite; {BEST_ARE_BACK}"
    with forked_random_state():
        put_back(taken.random)
        found = step.explain(taken.batch, None if taken.rows is None else torch.tensor(taken.rows))
    return f"{found}. The batch moved nothing; {BEST_ARE_BACK}"


def note_cause(error: Exception, step: Step, taken: Taken) -> None:
    """Add to the error of a step where in the programs it came from."""
    elsewhere = isinstance(error, LostWorker | ContractError | torch.OutOfMemoryError)
    if hasattr(step, "explain") and not elsewhere:
        error.add_note(explained(step, taken))


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
    if not wrong and not all_finite(_tensors(step.state_dict())):
        wrong = ["a parameter became NaN or infinite"]
    if wrong:
        repair = _rows_not_finite(step, train, valid) or (
            "Look at the data, try a smaller learning rate, or put a floor under the scales that networks give"
        )
        raise FloatingPointError(f"{wrong[0]} in epoch {row['epoch']}; {BEST_ARE_BACK}. {repair}")


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
