"""Compute what depends on the data alone once, however often a program runs on them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Name", "Remembered"]


class Remembered(TorchDispatchMode):
    """Operations on tensors that stay as they are, done once.

    Inside, an operation all of whose tensors are settled gives a settled one. It is named by the operation and
    the names of what went in, so that it is known again, in this run or in another: one that is given is not
    computed. A guide's encoder, run on one batch for every chunk of particles, so works once, and what
    follows its draws every time.

    A settled tensor that is changed in place ends it: all is computed from then on.

    Args:
        settled: tensors that stay as they are, by name: data, parameters, buffers.
        given: results by name, found before.

    Attributes:
        found: results by name, those of views apart, which cost nothing to make anew.

    Example:
        >>> x = torch.ones(2)
        >>> with Remembered({"x": x}) as first:
        ...     y = x + 1
        >>> with Remembered({"x": x}, given=first.found):
        ...     again = x + 1
        >>> again is y
        True
    """

    def __init__(self, settled: Mapping[str, Tensor], given: Mapping["Name", Tensor] | None = None):
        super().__init__()
        self._names = WeakTensorKeyDictionary()
        for name, tensor in settled.items():
            self._names[tensor] = Name(name, frozenset([name]))
        self._given = given or {}
        self.found: dict[Name, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self._notice_change(args, kwargs)
            return func(*args, **kwargs)
        try:
            name = self._name(func, args, kwargs)
        except _Unsettled:
            return func(*args, **kwargs)
        result = self._given[name] if name in self._given else func(*args, **kwargs)
        self._settle(result, name, func.is_view)
        return result

    def _name(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> "Name":
        seen: list[Tensor] = []
        frozen = self._frozen((args, sorted(kwargs.items())), seen)
        if not seen or torch.Tag.nondeterministic_seeded in func.tags:
            raise _Unsettled
        return Name((func, frozen), frozenset().union(*(self._names[tensor].roots for tensor in seen)))

    def _frozen(self, value: Any, seen: list[Tensor]) -> Any:
        """Return arguments as something to look up by; tensors among them are added to a list."""
        if isinstance(value, Tensor):
            if value not in self._names:
                raise _Unsettled
            seen.append(value)
            return self._names[value]
        if isinstance(value, (list, tuple)):
            return tuple([self._frozen(part, seen) for part in value])
        if isinstance(value, SymInt):  # of a graph for any number of rows
            raise _Unsettled
        # 1, 1.0 and True are equal, and not the same argument.
        return (type(value), value) if isinstance(value, (int, float, bool)) else _hashed(value)

    def _settle(self, result: Any, name: "Name", view: bool) -> None:
        if isinstance(result, Tensor):
            self._names[result] = name
            if not view:
                self.found[name] = result
        elif isinstance(result, (list, tuple)):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._names[part] = Name((name, i), name.roots)

    def _notice_change(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        arguments = [*args, *kwargs.values()]
        lists = [part for arg in arguments if isinstance(arg, (list, tuple)) for part in arg]
        changed = [part for part in (*arguments, *lists) if isinstance(part, Tensor)]
        if any(tensor in self._names for tensor in changed):
            self._names.clear()
            self.found.clear()


class Name:
    """How a tensor came about. Its hash is made once, however long the story is.

    Args:
        story: an operation and what went in, or the name of a settled tensor.
        roots: names of the settled tensors in it.
    """

    def __init__(self, story: Any, roots: frozenset[str]):
        self.story, self.roots, self._hash = story, roots, hash(story)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        return self is other or (isinstance(other, Name) and self._hash == other._hash and self.story == other.story)


class _Unsettled(Exception):
    """An operation that may give another result next time."""


def _hashed(value: Any) -> Any:
    try:
        hash(value)
    except TypeError as error:
        raise _Unsettled from error
    return value
