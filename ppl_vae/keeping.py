"""Put back what running programs changes in Python, and refuse what a graph could not go on changing."""

import pickle
import random
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from ppl_vae.surveying import CONTAINERS, content, spaces_of

__all__ = ["Generators", "Kept", "Written"]


class Written(RuntimeError):
    """Programs write or read in a way that a graph would freeze."""


class Kept:
    """What objects and containers held, to be put back."""

    def __init__(self, things: Iterable[Any], named: Iterable[tuple[Any, list[str]]], cells: Iterable[Any]):
        self._containers, self._spaces = [], []
        self._named = [(space, {name: space[name] for name in names}) for space, names in named]
        self._cells = [(cell, content(cell)) for _, cell in cells]
        for thing in things:
            if isinstance(thing, list | dict | set):
                self._containers.append((thing, _parts(thing)))
            elif not isinstance(thing, (type, ModuleType, Tensor, *CONTAINERS)):
                self._spaces += [(space, dict(space)) for space in spaces_of(thing)]

    def restore(self) -> None:
        """Put all back in place."""
        for space, before in self._spaces:
            for name in [name for name in space if name not in before]:
                del space[name]
        for space, before in self._spaces + self._named:
            for name, value in before.items():
                if space.get(name, self) is not value:
                    space[name] = value
        for cell, before in self._cells:
            if content(cell) is not before:
                cell.cell_contents = before
        for container, before in self._containers:
            now = _parts(container)
            if len(now) != len(before) or any(new is not old for new, old in zip(now, before, strict=True)):
                _fill(container, before)


def _parts(container: Any) -> list[Any]:
    return [part for item in container.items() for part in item] if isinstance(container, dict) else [*container]


def _fill(container: Any, parts: list[Any]) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(parts)
    else:
        container.update(zip(parts[::2], parts[1::2], strict=True) if isinstance(container, dict) else parts)


class Generators:
    """The random numbers of Python and NumPy, which a graph would draw once and for all."""

    def __init__(self, things: Iterable[Any]):
        self._own = [t for t in things if isinstance(t, random.Random | np.random.Generator | np.random.RandomState)]
        self._before = self._states()

    def _states(self) -> list[Any]:
        own = [t.getstate() if isinstance(t, random.Random) else _bits(t).state for t in self._own]
        return [random.getstate(), np.random.get_state(legacy=False), *own]  # noqa: NPY002 - a person's draws

    def refuse_draws(self) -> None:
        """Raise if one has moved."""
        if pickle.dumps(self._states()) != pickle.dumps(self._before):
            raise Written(
                "a random number of Python or NumPy is drawn in every run, which a graph would draw once; draw it by "
                "torch or at a pyro.sample site"
            )

    def restore(self) -> None:
        """Put all back to where they were."""
        random.setstate(self._before[0])
        np.random.set_state(self._before[1])  # noqa: NPY002
        for thing, state in zip(self._own, self._before[2:], strict=True):
            if isinstance(thing, random.Random):
                thing.setstate(state)
            else:
                _bits(thing).state = state


def _bits(generator: Any) -> Any:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator
