"""What a captured graph takes from Python once and for all, watched so that no change is overlooked."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from itertools import chain
from operator import itemgetter
from types import FunctionType, MethodType, NoneType
from typing import Any

import numpy as np
import torch
from torch import nn

from ppl_vae.programs import Program, globals_of, reached

__all__ = ["Watch"]

# Values that are what they are: compared as such.
PLAIN = (bool, int, float, complex, str, bytes, NoneType, np.generic, Enum, torch.dtype, torch.device)
HELD = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
DEPTH = 4
LIBRARIES = {"torch", "pyro", "numpy", "builtins", "functools", "types", "typing", "ppl_vae"}


class Watch:
    """What programs read of Python, as it is now.

    Parameters, buffers and other tensors enter a graph by reference, and what is in them may change.
    Frozen in it are numbers in attributes, closures, globals, classes, containers and settings objects,
    modes and hooks, and which object stands where: when one of these changes, another graph is needed.

    Args:
        modules: whose attributes to watch, with those of all that is in them.
        programs: functions, methods and objects, whose closures, globals and owners to watch.

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
        things = [thing for program in programs for thing in reached(program)]
        things += [t.__self__ for t in things if isinstance(t, MethodType)]
        objects = [t for t in things if not isinstance(t, FunctionType | nn.Module) and _is_persons_own(type(t))]
        kinds = {kind for thing in (*every, *objects) for kind in type(thing).__mro__ if _is_persons_own(kind)}
        functions = _with_helpers(
            [*_functions(things), *chain.from_iterable(_functions(vars(k).values()) for k in kinds)]
        )
        # Looked at in every step, so by as few calls as can be.
        self._read: list[tuple[Callable[[Any], tuple[Any, ...]], Mapping[str, Any]]] = []
        self._names: list[str] = []
        self._deep: list[tuple[str, Mapping[str, Any], str]] = []
        for thing in (*every, *objects):
            own = [key for key in getattr(thing, "__dict__", {}) if not _is_torchs(thing, key)]
            self._add(getattr(thing, "__dict__", {}), own, f"{{}} of {type(thing).__name__}")
        for kind in kinds:
            self._add(vars(kind), [k for k, v in vars(kind).items() if _is_data(v, k)], f"{{}} of {kind.__name__}")
        for function in functions:
            found = [name for name in globals_of(function) if _is_data(function.__globals__[name], name)]
            self._add(function.__globals__, found, "global {}")
        self._cells = [
            (f"{name} of {f.__qualname__}", cell)
            for f in functions
            for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
        ]
        self._options = [t for t in (*functions, *things) if isinstance(t, FunctionType | partial)]
        self._held = [vars(m)[kind] for m in every for kind in HELD]
        self._spaces = [vars(m) for m in every]
        self._tensors = [t for held in self._held for t in held.values() if isinstance(t, torch.Tensor)]
        # What is known by its identity must not be freed, as its identity might be given anew.
        self.kept = [every, objects, [space.get(key) for _, space, key in self._deep]]

    def now(self) -> tuple[Any, ...]:
        """Return what there is now, to be compared; some ten microseconds.

        Raises:
            KeyError: something that was watched is no longer there.
        """
        return (
            tuple([values(space) for values, space in self._read]),
            tuple([_seen(space[key]) for _, space, key in self._deep]),
            tuple([_seen(_content(cell)) for _, cell in self._cells]),
            tuple([_options(thing) for thing in self._options]),
            tuple(map(id, chain.from_iterable([held.values() for held in self._held]))),
            tuple(map(len, self._spaces)),
            tuple([(t.requires_grad, t.dtype, t.device, t.stride()) for t in self._tensors]),
        )

    def changed(self, before: tuple[Any, ...]) -> list[str]:
        """Say what differs from an earlier state."""
        now = self.now()
        found = list(_differences(self._names, [*chain(*before[0])], [*chain(*now[0])]))
        found += _differences([name for name, _, _ in self._deep], before[1], now[1])
        found += _differences([name for name, _ in self._cells], before[2], now[2])
        found += ["an option bound to a function"] * (before[3] != now[3])
        found += ["a module, tensor or hook that took another's place"] * (before[4:6] != now[4:6])
        found += ["requires_grad, type, device or strides of a tensor"] * (before[6] != now[6])
        return [*dict.fromkeys(found)]

    def _add(self, space: Mapping[str, Any], keys: list[str], name: str) -> None:
        plain = [key for key in keys if isinstance(space[key], PLAIN)]
        if plain:
            # Of one key, itemgetter gives no tuple.
            self._read.append((itemgetter(*plain, plain[0]), space))
            self._names += [name.format(key) for key in (*plain, plain[0])]
        self._deep += [(name.format(key), space, key) for key in keys if key not in plain]


def _seen(value: Any, depth: int = DEPTH) -> Any:
    """Return a value that can be compared: numbers as they are, containers by what is in them, the rest by identity."""
    if isinstance(value, PLAIN):
        return value
    if depth and isinstance(value, list | tuple | set | frozenset):
        return type(value).__name__, tuple([_seen(part, depth - 1) for part in value])
    if depth and isinstance(value, dict):
        return tuple([(str(key), _seen(part, depth - 1)) for key, part in value.items()])
    if depth and _is_settings(value):
        return id(value), _seen(vars(value), depth - 1)
    return id(value)


def _is_settings(value: Any) -> bool:
    """Tell an object that holds a person's numbers (a namespace, a dataclass) from modules, tensors and functions."""
    home = (type(value).__module__ or "").split(".")[0]
    ours = home not in ("torch", "pyro", "numpy", "builtins") and not isinstance(value, nn.Module | torch.Tensor | type)
    return ours and hasattr(value, "__dict__")


def _is_torchs(thing: Any, key: str) -> bool:
    """Tell an attribute that torch keeps in a module from a person's."""
    return isinstance(thing, nn.Module) and (key in HELD or key in vars(_BARE))


_BARE = nn.Module()
del _BARE.__dict__["training"]  # a mode is the person's


def _is_data(value: Any, name: str) -> bool:
    """Tell a number, a tensor or a holder of numbers from functions, classes and modules of code."""
    code = isinstance(value, FunctionType | type | property | classmethod | staticmethod) or callable(value)
    return not (name.startswith("__") or code or type(value).__name__ in ("module", "getset_descriptor"))


def _is_persons_own(kind: type) -> bool:
    """Tell a person's class from those of libraries, which stay as they are."""
    # Code that is executed from a string belongs to no module.
    return (kind.__module__ or "").split(".")[0] not in LIBRARIES


def _functions(things: Iterable[Any]) -> list[FunctionType]:
    found = [thing.__func__ if isinstance(thing, MethodType) else thing for thing in things]
    return [thing for thing in found if isinstance(thing, FunctionType)]


def _with_helpers(functions: list[FunctionType]) -> list[FunctionType]:
    """Add the functions that these call by a global name, and so on; those of libraries apart."""
    found: dict[int, FunctionType] = {}
    waiting = list(functions)
    while waiting:
        function = waiting.pop()
        if id(function) not in found and _is_persons_own(function):
            found[id(function)] = function
            waiting += _functions(function.__globals__[name] for name in globals_of(function))
    return list(found.values())


def _options(thing: Any) -> Any:
    if isinstance(thing, partial):
        return _seen(thing.args), _seen(thing.keywords)
    return _seen(thing.__defaults__), _seen(thing.__kwdefaults__)


def _differences(names: Sequence[str], before: Sequence[Any], now: Sequence[Any]) -> Iterator[str]:
    return (name for name, old, new in zip(names, before, now, strict=True) if _unequal(old, new))


def _unequal(old: Any, new: Any) -> bool:
    try:
        return bool(old != new)
    except (RuntimeError, ValueError):  # a tensor or an array where a number was
        return True


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
