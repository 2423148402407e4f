"""Rows of a data set as an argument, for guides that hold something of their own for each datum.

A program whose signature names ``index``, after the tensors of a batch, is called with the rows that the batch has
in its data set, ``(B,)`` whole numbers; one that does not is called without them.
"""

import inspect
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from ppl_vae.batches import Batch, as_batch
from ppl_vae.contract import ContractError
from ppl_vae.programs import Program, Programs, forked_random_state, own_parameters, program_name, undisturbed

__all__ = ["alike", "check_reach", "check_rows", "refuse_dreams", "refuse_rows", "signature_of", "with_index"]

INDEX = "index"
# Of data that are read one by one, as many as are looked at.
LOOKED_AT = 128


def alike(model: Program, guide: Program) -> tuple[Program, Program]:
    """Return both programs with the same arguments: one that does not name ``index`` is called without it.

    A program that takes any number of arguments (``*batch``), or does not show which it takes, gets all of them.

    Raises:
        ContractError: ``index`` does not come after the same tensors in both.

    Example:
        >>> model, guide = alike(lambda x: x, lambda x, index: x[index])
        >>> model(torch.zeros(2), torch.tensor([1, 0])), guide(torch.zeros(2), torch.tensor([1, 0]))
        (tensor([0., 0.]), tensor([0., 0.]))
    """
    place = _common_place((model, guide))
    if place is None:
        return model, guide
    if not (_fits(model, place) and _fits(guide, place)):
        raise ContractError(
            f"model, guide: they take ({', '.join(_parameters(model))}) and ({', '.join(_parameters(guide))}), but "
            f"{INDEX} is the last argument, by position, after the same tensors of a batch in both; move it there, and "
            "give both programs the same arguments before it"
        )
    return tuple(program if _place(program) is not None else _without(program, place) for program in (model, guide))


def _fits(program: Program | None, place: int) -> bool:
    """Tell whether a program can be called with as many tensors and, if it names them, rows behind these."""
    names = _parameters(program)
    if INDEX in names and ([*names].index(INDEX) != place or names[INDEX].kind is inspect.Parameter.KEYWORD_ONLY):
        return False
    if not names or any(p.kind is p.VAR_POSITIONAL for p in names.values()):
        return True
    taken = [p for p in names.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in taken if p.default is p.empty and p.name != INDEX]
    return len(needed) <= place <= len(taken)


def with_index(data: Any, valid: Any, *programs: Program | None) -> Any:
    """Return training data with the rows 0, 1, ... as a last tensor, if a program names them and they are not there.

    Args:
        data: a tensor, a tuple of tensors or a map-style Dataset.
        valid: data that are not among them, or None.
        programs: model and guide, each of which may name ``index``.

    Raises:
        ContractError: what the data have in the place of ``index`` is no row of each datum; or as for `alike`.
        TypeError: a DataLoader does not tell which rows a batch has.
        ValueError: there are other data, for which such a program has nothing.

    Example:
        >>> with_index(torch.zeros(3, 2), None, lambda x: None, lambda x, index: None)[1]
        tensor([0, 1, 2])
    """
    place = _common_place(alike(*programs))
    if place is None or isinstance(data, IterableDataset):
        return data
    tensors = data.tensors if type(data) is TensorDataset else data
    with forked_random_state():  # a Dataset may draw what it gives
        given = _first(tensors)
        if len(given) > place:
            _check_given(tensors, given, place)
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
        return as_batch(next(iter(data)))
    return _item(data, 0) if isinstance(data, Dataset) else as_batch(data)


def _check_given(data: Any, given: tuple[Any, ...], place: int) -> None:
    """Raise if labels stand where rows should: those of a datum are its own, but where a sampler repeats data."""
    rows = given[place]
    if isinstance(data, Dataset):
        rows = default_collate([_item(data, row)[place] for row in range(min(len(data), LOOKED_AT))])
    _check_kind(rows, place)
    values, times = rows.unique(return_counts=True)
    repeated = values[times > 1].tolist()
    if repeated and not (isinstance(data, DataLoader) and _repeats(data)):
        listed = ", ".join(map(str, repeated[:5])) + (f" and {len(repeated) - 5} others" if len(repeated) > 5 else "")
        raise _no_rows(place, f"{listed} more than once")


def _repeats(loader: DataLoader) -> bool:
    """Tell whether the sampler of a loader draws with replacement."""
    return getattr(getattr(loader.batch_sampler, "sampler", loader.sampler), "replacement", False)


def _check_kind(rows: Any, place: int) -> None:
    if not isinstance(rows, Tensor):
        raise _no_rows(place, f"{type(rows).__name__}")
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise _no_rows(place, f"{rows.dtype} of shape {tuple(rows.shape)}")
    if rows.min() < 0:
        raise _no_rows(place, str(int(rows.min())))


def _no_rows(place: int, found: str) -> ContractError:
    return ContractError(
        f"data: part {place} stands in the place of {INDEX}, the row of each datum: expected different whole numbers "
        f"(int64) from 0 on, found {found}; name labels as an argument before {INDEX}, or pass torch.arange(len(x))"
    )


def check_rows(program: Program, batch: Batch) -> None:
    """Raise if a program names ``index`` and a batch comes without it, or with no rows in its place.

    Example:
        >>> check_rows(lambda x, index: None, (torch.zeros(3, 2),))
        Traceback (most recent call last):
        ...
        ppl_vae.contract.ContractError: data: a program names index, ... pass (x, torch.arange(len(x)))
    """
    place = _place(program)
    if place is not None and len(batch) == place and _parameters(program)[INDEX].default is inspect.Parameter.empty:
        names = [*_parameters(program)][:place]
        raise ContractError(
            f"data: a program names {INDEX}, the row of each datum, but the batch has {place} "
            f"tensor{'s' * (place > 1)} and no rows; pass ({', '.join(names)}, torch.arange(len({names[0]})))"
        )
    if place is not None and len(batch) > place:
        _check_kind(batch[place], place)


def check_reach(data: Any, model: Program | None, guide: Program | None) -> None:
    """Raise if a program has nothing for the datum of the largest row, which may be in none of the first batches.

    Args:
        data: as `with_index` returns them. Of those that are read one by one, rows that a person gave are not known.
        model: Pyro program, or None.
        guide: likewise.

    Raises:
        ContractError: how many rows the program would need.

    Example:
        >>> check_reach((torch.zeros(3), torch.arange(3)), lambda x: None, lambda x, index: torch.zeros(2)[index])
        Traceback (most recent call last):
        ...
        ppl_vae.contract.ContractError: guide: it has nothing for row 2 of the data (index 2 is out of bounds ...
    """
    place = _common_place((model, guide))
    if place is None:
        return
    programs = Programs(model, guide)
    with undisturbed(programs, training=False), own_parameters(), torch.no_grad():
        if (datum := _furthest(data, place)) is None:
            return
        batch = programs.on_device(datum)
        for role, program in (("model", model), ("guide", guide)):
            if _names_rows(program):
                try:
                    program(*batch)
                except IndexError as error:
                    refuse_rows(program, role, batch, error)
                    raise


def refuse_dreams(guide: Program) -> None:
    """Raise if a guide names ``index``: what a model dreams has no row in the data set.

    Example:
        >>> refuse_dreams(lambda x, index: None)
        Traceback (most recent call last):
        ...
        ppl_vae.contract.ContractError: guide: it names index, as it has parameters for the rows of the data...
    """
    if _names_rows(guide):
        raise ContractError(
            f"guide: it names {INDEX}, as it has parameters for the rows of the data, and data that the model draws "
            "have no row, so that dreams teach it nothing; leave out the sleep phase (WakeSleep(sleep=0), or rws), or "
            "take a guide that reads its latents off x"
        )


def refuse_rows(program: Program, role: str, batch: Batch, error: Exception) -> None:
    """Raise if an error came of the rows of a batch, for which a program has nothing; otherwise return."""
    if not _names_rows(program) or not isinstance(error, IndexError):
        return
    place = _place(program)
    try:
        with own_parameters(), torch.no_grad():
            program(*batch[:place], torch.zeros_like(batch[place]), *batch[place + 1 :])
    except Exception:  # which another row does not heal
        return
    row = int(batch[place].max())
    raise ContractError(
        f"{role}: it has nothing for row {row} of the data ({str(error).splitlines()[0]}); give it at least "
        f"{row + 1} rows, one for each datum"
    ) from error


def _furthest(data: Any, place: int) -> Batch | None:
    """Return the datum of the largest row, as a batch, where that can be known."""
    if isinstance(data, _WithRows):
        return tuple(default_collate([data[len(data) - 1]]))
    if isinstance(data, Dataset | DataLoader) and type(data) is not TensorDataset:
        return None
    tensors = data.tensors if type(data) is TensorDataset else as_batch(data)
    row = int(tensors[place].argmax())
    return tuple(part[row : row + 1] for part in tensors)


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


def _names_rows(program: Program | None) -> bool:
    """Tell whether a program itself names ``index``, and not for the sake of the other."""
    return _place(program) is not None and not hasattr(program, "without_rows")


def _common_place(programs: Iterable[Program | None]) -> int | None:
    return next((place for place in map(_place, programs) if place is not None), None)


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
    run.without_rows = True
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
