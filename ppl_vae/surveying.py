"""What of a person's own code and objects programs can reach, and so may read numbers from."""

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import CellType, FunctionType, MethodType, ModuleType, NoneType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from ppl_vae.programs import globals_of, names_in

__all__ = ["CONTAINERS", "MANY", "PLAIN", "Survey", "content", "spaces_of"]

# What is compared as it is.
PLAIN = (bool, int, float, complex, str, bytes, NoneType, np.generic, Enum, torch.dtype, torch.device)
CONTAINERS = (list, tuple, set, frozenset, dict)
# Larger containers are data, and known by their identity and size.
MANY = 1000
# Code that stays as it is while a program runs, and objects that are no settings; with Python's own.
LIBRARIES = {"torch", "torchvision", "pyro", "numpy", "scipy", "sklearn", "pandas", "ppl_vae", "matplotlib", "tqdm"}
LIBRARIES |= {"rich", "lightning", "pytorch_lightning", "tensorboard", "wandb"}
STDLIB = str(Path(sys.modules["argparse"].__file__).parent)
# Which torch keeps in every module.
HELD = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_BARE = nn.Module()
del _BARE.__dict__["training"]  # a mode is the person's


class Survey:
    """Follow programs to everything of a person's that they refer to.

    Functions lead to their closures, options and the globals that they load, in their own module of
    code and, by attribute, in others; methods to their owners; objects to what they hold and to their classes.
    Code of libraries is not followed.

    Args:
        roots: modules, functions, methods, partials, objects that are called.

    Attributes:
        modules: of torch, parts included.
        functions: a person's.
        spaces: mappings to read by name, with the names that matter there and a title for each.
        met: everything that was looked at, by identity.

    Example:
        >>> prior = {"scale": 2.0}
        >>> prior in Survey([SimpleNamespace(prior=prior)]).met.values()
        True
    """

    def __init__(self, roots: Iterable[Any]):
        self.modules: list[nn.Module] = []
        self.functions: list[FunctionType] = []
        self.spaces: list[tuple[Mapping[str, Any], list[str], str]] = []
        self.met: dict[int, Any] = {}
        waiting = [*roots]
        while waiting:
            thing = waiting.pop()
            if not isinstance(thing, PLAIN) and id(thing) not in self.met:
                self.met[id(thing)] = thing
                waiting += self._parts(thing)

    def _parts(self, thing: Any) -> Iterable[Any]:
        """Return what a thing leads to."""
        if isinstance(thing, MethodType):
            return (thing.__func__, thing.__self__)
        if isinstance(thing, partial):
            return (thing.func, thing.args, thing.keywords)
        if isinstance(thing, CONTAINERS):
            inside = thing.values() if isinstance(thing, dict) else thing
            return [*inside] if len(thing) <= MANY else ()
        if isinstance(thing, CellType):
            return (content(thing),)
        if isinstance(thing, nn.Module):
            return self._of_module(thing)
        if not _is_persons_own(thing if isinstance(thing, FunctionType | type) else type(thing)):
            return ()
        if isinstance(thing, FunctionType):
            return self._of_function(thing)
        return self._of_class(thing) if isinstance(thing, type) else self._of_object(thing)

    def _of_module(self, module: nn.Module) -> list[Any]:
        self.modules.append(module)
        held = [part for kind in HELD for part in vars(module)[kind].values()]
        own = [name for name in vars(module) if name not in HELD and name not in vars(_BARE)]
        return [*held, *self._read(vars(module), own, type(module).__name__), type(module)]

    def _of_object(self, thing: Any) -> list[Any]:
        found = [self._read(space, [*space], type(thing).__name__) for space in spaces_of(thing)]
        return [*(part for parts in found for part in parts), type(thing)]

    def _of_class(self, kind: type) -> list[Any]:
        # What only constructors and Python itself look at decides nothing in a run.
        names = [name for name in vars(kind) if not name.startswith("__") or name == "__call__"]
        found = self._read(vars(kind), names, kind.__name__)
        return [*map(_function_of, found), *kind.__bases__]

    def _of_function(self, function: FunctionType) -> list[Any]:
        self.functions.append(function)
        found = self._read(function.__globals__, globals_of(function), "global")
        loaded = names_in(function)
        for code in found:
            if isinstance(code, ModuleType) and not _is_library(code.__name__):
                names = [name for name in sorted(loaded) if name in vars(code)]
                found = [*found, *self._read(vars(code), names, "global")]
        options = [function.__defaults__, function.__kwdefaults__]
        return [*found, *options, *(function.__closure__ or ())]

    def _read(self, space: Mapping[str, Any], names: list[str], title: str) -> list[Any]:
        self.spaces.append((space, names, title))
        return [space[name] for name in names]


class _Slots(MutableMapping):
    """The attributes of an object that has no dictionary."""

    def __init__(self, thing: Any):
        self.thing = thing

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self.thing, name)
        except AttributeError as error:
            raise KeyError(name) from error

    def __setitem__(self, name: str, value: Any) -> None:
        object.__setattr__(self.thing, name, value)

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self.thing, name)

    def __iter__(self) -> Iterator[str]:
        kinds = type(self.thing).__mro__
        names = [name for kind in kinds for name in _listed(vars(kind).get("__slots__", ()))]
        return (name for name in names if not name.startswith("__") and hasattr(self.thing, name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _listed(slots: Any) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def spaces_of(thing: Any) -> list[Any]:
    """Return the mappings in which an object has its attributes."""
    slots = _Slots(thing)
    return ([vars(thing)] if hasattr(thing, "__dict__") else []) + ([slots] if len(slots) else [])


def content(cell: CellType) -> Any:
    """Return what is in a cell of a closure; None if nothing is yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _function_of(thing: Any) -> Any:
    """Return the function in a property, a static method or a class method."""
    return getattr(thing, "fget", None) or getattr(thing, "__func__", None) or thing


def _is_persons_own(thing: Any) -> bool:
    """Tell a person's class or function from those of libraries; a namespace is the person's."""
    # Code that is executed from a string belongs to no module.
    home = getattr(thing, "__module__", None) or ""
    return thing in (SimpleNamespace, Namespace) or not _is_library(str(home))


def _is_library(name: str) -> bool:
    """Tell code of libraries by its module's name; a person's file may be called as one of Python's is."""
    top = name.split(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    return top in LIBRARIES or (top in sys.stdlib_module_names and (file is None or file.startswith(STDLIB)))
