"""What a graph has frozen of the Python that programs read, whether it is still so, and what they wrote."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.keeping import Generators, Kept, Written
from ppl_vae.programs import Program
from ppl_vae.surveying import CONTAINERS, HELD, MANY, PLAIN, Survey, content

__all__ = ["Watch"]

# Containers in containers; deeper ones are known by their identity.
DEPTH = 8


class State(NamedTuple):
    """What a `Watch` saw: plain values, identities, containers, closures, options, parts of modules, sizes, tensors."""

    plain: tuple[Any, ...]
    same: tuple[Any, ...]
    deep: tuple[Any, ...]
    cells: tuple[Any, ...]
    options: tuple[Any, ...]
    held: tuple[int, ...]
    sizes: tuple[int, ...]
    tensors: tuple[Any, ...]


class Watch:
    """What programs read of Python, as it is now.

    Parameters, buffers and other tensors enter a graph by reference, and what is in them may change.
    Frozen in it are numbers in attributes, closures, globals, classes, modules of code, containers,
    small arrays and settings objects, modes and hooks, and which object stands where: when one of
    these changes, another graph is needed. Out of sight are numbers that libraries keep, and those in arrays and
    containers of more than a thousand.

    Args:
        modules: whose attributes to watch, with those of all that is in them.
        programs: functions, methods and objects, and all that they refer to.

    Example:
        >>> net = nn.Dropout(0.5)
        >>> watch = Watch([net])
        >>> before = watch.now()
        >>> net.p = 0.25
        >>> watch.now() == before, watch.changed(before)
        (False, ['p of Dropout'])
    """

    def __init__(self, modules: list[nn.Module], *programs: Program):
        survey = Survey([*programs, *modules])
        # What is known by its identity must not be freed, as its identity might be given anew.
        self._met = survey.met
        # Looked at in every step, so by as few calls as can be: plain values, identities, and containers.
        self._read: list[_Names] = []
        self._same: list[_Names] = []
        self._deep: list[tuple[str, Mapping[str, Any], str]] = []
        seen: set[tuple[int, str]] = set()
        for space, names, title in survey.spaces:
            new = [name for name in names if (id(space), name) not in seen]
            seen |= {(id(space), name) for name in new}
            self._add(space, new, title)
        self._cells = [
            (f"{name} of {f.__qualname__}", cell)
            for f in survey.functions
            for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
        ]
        self._options = [t for t in survey.met.values() if isinstance(t, partial)] + survey.functions
        self._held = [vars(m)[kind] for m in survey.modules for kind in HELD]
        self._spaces = [space for space, _, title in survey.spaces if title != "global"]
        self._globals = [(space, names) for space, names, title in survey.spaces if title == "global"]
        self._tensors = [t for held in self._held for t in held.values() if isinstance(t, Tensor)]

    def now(self) -> State:
        """Return what there is now, to be compared; some microseconds for a module.

        Raises:
            KeyError: something that was watched is no longer there.
        """
        return State(
            tuple([names.values() for names in self._read]),
            tuple([tuple(map(id, names.values())) for names in self._same]),
            tuple([_seen(space[name]) for _, space, name in self._deep]),
            tuple([_seen(content(cell)) for _, cell in self._cells]),
            tuple([_options(thing) for thing in self._options]),
            tuple(map(id, chain.from_iterable([held.values() for held in self._held]))),
            tuple(map(len, self._spaces)),
            tuple([(t.requires_grad, t.dtype, t.device, t.stride(), bool(t._backward_hooks)) for t in self._tensors]),
        )

    def changed(self, before: State) -> list[str]:
        """Say what differs from an earlier state."""
        now = self.now()
        found = [*_differences(_titles(self._read), chain(*before.plain), chain(*now.plain))]
        found += _differences(_titles(self._same), chain(*before.same), chain(*now.same))
        found += _differences([title for title, *_ in self._deep], before.deep, now.deep)
        found += _differences([title for title, _ in self._cells], before.cells, now.cells)
        found += ["an option bound to a function"] * (before.options != now.options)
        found += ["a module, tensor or hook that took another's place"] * (before.held != now.held)
        found += ["an attribute that came or went"] * (before.sizes != now.sizes)
        found += ["requires_grad, type, device, strides or gradient hooks of a tensor"] * (
            before.tensors != now.tensors
        )
        return [*dict.fromkeys(found)]

    @contextmanager
    def unmoved(self) -> Iterator[list[Any]]:
        """Leave all as it was found, and from now on overlook what the programs write, as they did inside.

        Yields:
            a list, which at the end holds what had been in the places that they wrote to.

        Raises:
            Written: they wrote a number, so that the next run would find another one, or drew one in Python.
        """
        before, kept, replaced = self.now(), Kept(self._met.values(), self._globals, self._cells), []
        generators = Generators(self._met.values())
        try:
            yield replaced
            generators.refuse_draws()
            after = self._afterwards()
            self._refuse_numbers(before, after)
            replaced += [self._met[known] for known in _replaced(before, after) if known in self._met]
            self._overlook(before, after)
        finally:
            kept.restore()
            generators.restore()

    def _afterwards(self) -> State:
        try:
            return self.now()
        except KeyError as error:
            raise Written(
                f"{error.args[0]!r} is taken away by a run, which a graph would not do; leave it where it is, or "
                "set it to None"
            ) from error

    def _refuse_numbers(self, before: State, after: State) -> None:
        # A number of rows that stays open is no number: to compare it would settle it.
        now = [
            old if _is_open(new) else new for old, new in zip(chain(*before.plain), chain(*after.plain), strict=True)
        ]
        found = [*_differences(_titles(self._read), chain(*before.plain), now)]
        for titled, old, new in ((self._deep, before.deep, after.deep), (self._cells, before.cells, after.cells)):
            found += _differences([title for title, *_ in titled], map(_plain_parts, old), map(_plain_parts, new))
        if found:
            raise Written(
                f"{', '.join(found[:3])} changes in every run, which a graph would not do; keep such a number in a "
                "buffer, a tensor without axes"
            )

    def _overlook(self, before: State, after: State) -> None:
        for names, new in zip(self._read, after.plain, strict=True):
            names.keep([not _is_open(value) for value in new])
        for names, old, new in zip(self._same, before.same, after.same, strict=True):
            names.keep([o == n for o, n in zip(old, new, strict=True)])
        self._deep = _unchanged(self._deep, before.deep, after.deep)
        self._cells = _unchanged(self._cells, before.cells, after.cells)
        self._spaces = _unchanged(self._spaces, before.sizes, after.sizes)

    def _add(self, space: Mapping[str, Any], names: list[str], title: str) -> None:
        title = "global {}" if title == "global" else f"{{}} of {title}"
        plain = [name for name in names if isinstance(space[name], PLAIN)]
        deep = [name for name in names if isinstance(space[name], (*CONTAINERS, np.ndarray))]
        rest = [name for name in names if not isinstance(space[name], (*PLAIN, *CONTAINERS, np.ndarray, ModuleType))]
        self._read += [_Names(space, plain, title)] * bool(plain)
        self._same += [_Names(space, rest, title)] * bool(rest)
        self._deep += [(title.format(name), space, name) for name in deep]


class _Names:
    """Some names of a mapping, read in one go."""

    def __init__(self, space: Mapping[str, Any], names: list[str], title: str):
        self.space, self.title = space, title
        self._take(names)

    def _take(self, names: list[str]) -> None:
        # Of one name, itemgetter gives no tuple.
        self.names = names[:] + names[:1] * (len(names) == 1)
        self._get = itemgetter(*self.names) if names else None

    def values(self) -> tuple[Any, ...]:
        return self._get(self.space) if self._get else ()

    def keep(self, wanted: list[bool]) -> None:
        """Drop the other names."""
        if not all(wanted):
            self._take([*dict.fromkeys(name for name, w in zip(self.names, wanted, strict=True) if w)])


def _seen(value: Any, depth: int = DEPTH) -> Any:
    """Return a value that can be compared: numbers as they are, containers by what is in them, the rest by identity."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, CONTAINERS) and depth and len(value) <= MANY:
        if isinstance(value, dict):
            return "dict", tuple([(str(key), _seen(part, depth - 1)) for key, part in value.items()])
        return type(value).__name__, tuple([_seen(part, depth - 1) for part in value])
    if isinstance(value, np.ndarray) and value.size <= MANY and value.dtype != object:
        return value.shape, value.dtype.str, value.tobytes()
    return (id(value),)


def _plain_parts(seen: Any) -> list[Any]:
    """Return the numbers in what was seen, without identities."""
    if not isinstance(seen, tuple):
        return [seen]
    return [] if len(seen) == 1 and isinstance(seen[0], int) else [*chain.from_iterable(map(_plain_parts, seen))]


def _is_open(value: Any) -> bool:
    return isinstance(value, torch.SymInt)


def _unchanged(entries: list[Any], before: Iterable[Any], after: Iterable[Any]) -> list[Any]:
    return [entry for entry, old, new in zip(entries, before, after, strict=True) if old == new]


def _replaced(before: State, after: State) -> list[int]:
    """Return the identities of what was where something else is now."""
    found = [old for old, new in zip(chain(*before.same), chain(*after.same), strict=True) if old != new]
    pairs = zip((*before.deep, *before.cells), (*after.deep, *after.cells), strict=True)
    return found + [known for old, new in pairs if old != new for known in _identities(old)]


def _identities(seen: Any) -> list[int]:
    if not isinstance(seen, tuple):
        return []
    return [seen[0]] if len(seen) == 1 and isinstance(seen[0], int) else [*chain.from_iterable(map(_identities, seen))]


def _options(thing: Any) -> Any:
    if isinstance(thing, partial):
        return _seen(thing.args), _seen(thing.keywords)
    return _seen(thing.__defaults__), _seen(thing.__kwdefaults__)


def _titles(read: list[_Names]) -> list[str]:
    return [names.title.format(name) for names in read for name in names.names]


def _differences(titles: Iterable[str], before: Iterable[Any], now: Iterable[Any]) -> Iterator[str]:
    return (title for title, old, new in zip(titles, before, now, strict=True) if _unequal(old, new))


def _unequal(old: Any, new: Any) -> bool:
    try:
        return bool(old != new)
    except (RuntimeError, ValueError):  # a tensor or an array where a number was
        return True
