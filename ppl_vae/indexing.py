"""Rows of a data set as an argument, for guides that hold something of their own for each datum.

A program whose signature names ``index``, after the tensors of a batch, is called with the rows that the batch has
in its data set, ``(B,)`` whole numbers; one that does not is called without them.
"""

import inspect
from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ppl_vae.batches import as_batch
from ppl_vae.programs import Program, forked_random_state, program_name

__all__ = ["alike", "signature_of", "with_index"]

INDEX = "index"


def alike(model: Program, guide: Program) -> tuple[Program, Program]:
    """Return both programs with the same arguments: one that does not name ``index`` is called without it.

    A program that takes any number of arguments (``*batch``), or does not show which it takes, gets all of them.

    Example:
        >>> model, guide = alike(lambda x: x, lambda x, index: x[index])
        >>> model(torch.zeros(2), torch.tensor([1, 0])), guide(torch.zeros(2), torch.tensor([1, 0]))
        (tensor([0., 0.]), tensor([0., 0.]))
    """
    places = _place(model), _place(guide)
    if places[1] is not None and places[0] is None:
        model = _without(model, places[1])
    elif places[0] is not None and places[1] is None:
        guide = _without(guide, places[0])
    return model, guide


def with_index(data: Any, valid: Any, *programs: Program | None) -> Any:
    """Return training data with the rows 0, 1, ... as a last tensor, if a program names them and they are not there.

    Args:
        data: a tensor, a tuple of tensors or a map-style Dataset.
        valid: data that are not among them, or None.
        programs: those that may name ``index``.

    Raises:
        TypeError: a DataLoader does not tell which rows a batch has.
        ValueError: there are other data, for which such a program has nothing.

    Example:
        >>> with_index(torch.zeros(3, 2), None, lambda x, index: None)[1]
        tensor([0, 1, 2])
    """
    places = [place for place in map(_place, programs) if place is not None]
    if not places:
        return data
    tensors = data.tensors if type(data) is TensorDataset else data
    given = _first(tensors)
    if len(given) > min(places):  # the rows come with the data
        return data
    if isinstance(data, DataLoader):
        raise TypeError(
            f"data: a program names {INDEX}, and a DataLoader does not tell which rows a batch has; pass its "
            "Dataset, and batch_size"
        )
    if valid is not None:
        raise ValueError(
            f"valid: a program names {INDEX}, the rows of the training data, and has nothing for other data; leave "
            "valid out, and pass data.train where data come in three parts"
        )
    if isinstance(tensors, Dataset):
        return _WithRows(tensors)
    return (*given, torch.arange(len(given[0]), device=given[0].device))


def _first(data: Any) -> tuple[Any, ...]:
    """Return what a batch, or a datum, consists of."""
    if isinstance(data, DataLoader):
        with forked_random_state():
            return as_batch(next(iter(data)))
    return _item(data, 0) if isinstance(data, Dataset) else as_batch(data)


def signature_of(program: Program) -> inspect.Signature:
    """Return the signature with which a batch calls a program.

    Example:
        >>> [*signature_of(torch.nn.Linear(2, 1)).parameters]
        ['input']
    """
    return inspect.signature(program.forward if isinstance(program, torch.nn.Module) else program)


def _place(program: Program | None) -> int | None:
    """Return where among its arguments a program has ``index``."""
    names = [*_parameters(program)]
    return names.index(INDEX) if INDEX in names else None


def _parameters(program: Program | None) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a program; none where it does not show them (inside a handler), or is no program."""
    if not callable(program) or inspect.isclass(program):
        return {}
    try:
        return signature_of(program).parameters
    except ValueError:
        return {}


def _without(program: Program, place: int) -> Program:
    """Return a program that takes ``index`` at its place and passes it on to nobody."""
    before = [*_parameters(program).values()]
    if not before or any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in before):
        return program

    def run(*batch: Tensor) -> Any:
        return program(*batch[:place], *batch[place + 1 :])

    if 0 < place <= len(before):
        own = before[place - 1].replace(name=INDEX, annotation=inspect.Parameter.empty)
        run.__signature__ = inspect.Signature([*before[:place], own, *before[place:]])
    run.__qualname__ = program_name(program)
    return run


def _item(data: Any, row: int) -> tuple[Any, ...]:
    item = data[row]
    return tuple(item) if isinstance(item, tuple | list) else (item,)


class _WithRows(Dataset):
    """A data set that gives each datum's row behind it."""

    def __init__(self, data: Sized):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        return (*_item(self.data, row), row)
