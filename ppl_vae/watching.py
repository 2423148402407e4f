"""What a captured graph takes from Python once and for all, watched so that no change is overlooked."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from ppl_vae.programs import Program, globals_of, reached

__all__ = ["Watch"]

PLAIN = (bool, int, float, str)
FACTS = attrgetter("requires_grad", "dtype", "device")
HELD = ("_parameters", "_buffers", "_modules")


class Watch:
    """The numbers, flags and modules that programs read, as they are now.

    Tensors enter a graph by reference, and what is in them may change. Numbers in attributes, closures
    and globals are frozen in it, and so are modes and which tensor stands where: when one of these
    changes, another graph is needed.

    Args:
        modules: whose attributes to watch, with those of all that is in them.
        programs: functions and methods, whose closures, globals and owners to watch.

    Example:
        >>> net = nn.Dropout(0.5)
        >>> watch = Watch([net])
        >>> before = watch.now()
        >>> net.p = 0.25
        >>> watch.now() == before, watch.changed(before)
        (False, ['p of Dropout'])
    """

    def __init__(self, modules: list[nn.Module], *programs: Program):
        every = list({id(m): m for module in modules for m in module.modules()}.values())
        # Kept alive, since what is known by its identity must not be freed and its identity given anew.
        self.kept = every
        things = [thing for program in programs for thing in reached(program)]
        functions = [t for t in things if isinstance(t, FunctionType)]
        functions += [kind.forward for kind in {type(m) for m in every} if _is_persons_own(kind)]
        owners = [t.__self__ for t in things if isinstance(t, MethodType) and hasattr(t.__self__, "__dict__")]
        # Looked at in every step, so by as few calls as can be.
        self._read: list[tuple[Callable[[Any], tuple[Any, ...]], dict[str, Any]]] = []
        self._names: list[str] = []
        # Tensors that are no parameters or buffers: a graph holds these very ones.
        self._loose: list[tuple[dict[str, Any], str]] = []
        self._loose_names: list[str] = []
        for thing in (*every, *owners):
            self._add(vars(thing), [k for k, v in vars(thing).items() if _is_watched(v)], f"{{}} of {_kind(thing)}")
        for function in functions:
            found = [name for name in globals_of(function) if _is_watched(function.__globals__[name])]
            self._add(function.__globals__, found, "global {}")
        self._cells = [
            (f"{name} of {f.__qualname__}", cell)
            for f in functions
            for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
        ]
        self._held = [vars(m)[kind] for m in every for kind in HELD if vars(m)[kind]]
        self._tensors = [t for held in self._held for t in held.values() if isinstance(t, torch.Tensor)]

    def now(self) -> tuple[Any, ...]:
        """Return what there is now, to be compared; some ten microseconds.

        Raises:
            KeyError: something that was watched is no longer there.
        """
        return (
            tuple([values(space) for values, space in self._read]),
            tuple([_seen(_content(cell)) for _, cell in self._cells]),
            tuple(map(id, chain.from_iterable([held.values() for held in self._held]))),
            tuple(map(FACTS, self._tensors)),
            tuple([id(space[key]) for space, key in self._loose]),
        )

    def changed(self, before: tuple[Any, ...]) -> list[str]:
        """Say what differs from an earlier state."""
        now = self.now()
        found = list(_differences(self._names, [*chain(*before[0])], [*chain(*now[0])]))
        found += _differences([name for name, _ in self._cells], before[1], now[1])
        found += _differences(self._loose_names, before[4], now[4])
        found += ["a module or tensor that took another's place"] * (before[2] != now[2])
        found += ["requires_grad, dtype or device of a tensor"] * (before[3] != now[3])
        return [*dict.fromkeys(found)]

    def _add(self, space: dict[str, Any], keys: list[str], name: str) -> None:
        numbers = [key for key in keys if not isinstance(space[key], torch.Tensor)]
        if numbers:
            # Of one key, itemgetter gives no tuple.
            self._read.append((itemgetter(*numbers, numbers[0]), space))
            self._names += [name.format(key) for key in (*numbers, numbers[0])]
        loose = [key for key in keys if key not in numbers]
        self._loose += [(space, key) for key in loose]
        self._loose_names += [name.format(key) for key in loose]


def _is_watched(value: Any) -> bool:
    return type(value) in PLAIN or isinstance(value, nn.Module | torch.Tensor)


def _seen(value: Any) -> Any:
    """Return a number or a module, or which tensor it is; nothing else is watched."""
    if isinstance(value, torch.Tensor):
        return id(value)
    return value if _is_watched(value) else None


def _is_persons_own(kind: type) -> bool:
    """Tell a person's module from those of libraries, whose globals stay as they are."""
    library = kind.__module__.split(".")[0] in ("torch", "pyro", "ppl_vae")
    return not library and isinstance(kind.forward, FunctionType)


def _kind(thing: Any) -> str:
    return type(thing).__name__


def _differences(names: Sequence[str], before: Sequence[Any], now: Sequence[Any]) -> Iterator[str]:
    return (name for name, old, new in zip(names, before, now, strict=True) if old != new)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
