"""Compute what depends on the data alone once, however often a program runs on them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Remembered"]


class Remembered(TorchDispatchMode):
    """Operations on tensors that stay as they are, done once.

    Inside, an operation all of whose tensors are settled gives a settled one, which is kept; met again with
    the very same arguments, it is not done again. A guide's encoder, run on one batch for every chunk
    of particles, so works once, and what follows its draws every time.

    A settled tensor that is changed in place ends it: all is done anew from then on.

    Args:
        settled: tensors that stay as they are: data, parameters, buffers.

    Example:
        >>> x, seen = torch.ones(2), []
        >>> remembered = Remembered([x])
        >>> for _ in range(3):
        ...     with remembered:
        ...         seen.append(x + 1)
        >>> seen[0] is seen[2]
        True
    """

    def __init__(self, settled: Iterable[Tensor]):
        super().__init__()
        # What a tensor is stands for how it came about; views are made anew each time, and are the same again.
        self._what = WeakTensorKeyDictionary()
        self._held = list(settled)
        self._done: dict[Any, Any] = {}
        self._numbers: dict[Any, int] = {}
        for tensor in self._held:
            self._what[tensor] = self._number(id(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self._notice_change(args, kwargs)
            return func(*args, **kwargs)
        try:
            key = self._key(func, args, kwargs)
        except _Unsettled:
            return func(*args, **kwargs)
        if key in self._done:
            return self._done[key]
        result = func(*args, **kwargs)
        self._settle(result, key)
        if not func.is_view:
            self._done[key] = result
        return result

    def _key(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        tensors: list[Tensor] = []
        frozen = self._frozen((args, sorted(kwargs.items())), tensors)
        if not tensors or torch.Tag.nondeterministic_seeded in func.tags:
            raise _Unsettled
        return func, frozen

    def _frozen(self, value: Any, tensors: list[Tensor]) -> Any:
        """Return arguments as something to look up by; tensors among them are added to a list."""
        if isinstance(value, Tensor):
            if value not in self._what:
                raise _Unsettled
            tensors.append(value)
            return ("tensor", self._what[value])
        if isinstance(value, (list, tuple)):
            return tuple([self._frozen(part, tensors) for part in value])
        # 1, 1.0 and True are equal, and not the same argument.
        return (type(value), value) if isinstance(value, (int, float, bool)) else _hashed(value)

    def _settle(self, result: Any, key: Any) -> None:
        for i, part in enumerate(result if isinstance(result, (list, tuple)) else (result,)):
            if isinstance(part, Tensor):
                self._what[part] = self._number((key, i))

    def _number(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _notice_change(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        changed = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        if any(tensor in self._what for tensor in changed):
            self._what.clear()
            self._done.clear()


class _Unsettled(Exception):
    """An operation that may give another result next time."""


def _hashed(value: Any) -> Any:
    try:
        hash(value)
    except TypeError as error:
        raise _Unsettled from error
    return value
