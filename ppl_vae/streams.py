"""The random numbers of a run: their state, saved and put back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["Streams", "current", "put_back"]


def current() -> dict[str, Tensor]:
    """Return the state of torch's generators, by device.

    Example:
        >>> before = current()
        >>> drawn = torch.rand(3)
        >>> put_back(before)
        >>> torch.equal(torch.rand(3), drawn)
        True
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def put_back(states: Mapping[str, Tensor]) -> None:
    """Set torch's generators; those of devices that are not here, where there were more, are left out."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif torch.device(device).index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


class Streams:
    """torch's generators, and others on which a run depends.

    Args:
        generators: those of orders and samplers.

    Example:
        >>> order = torch.Generator().manual_seed(1)
        >>> streams = Streams([order])
        >>> state = streams.state()
        >>> first = torch.randperm(5, generator=order)
        >>> streams.set(state)
        >>> torch.equal(torch.randperm(5, generator=order), first)
        True
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = list({id(generator): generator for generator in generators}.values())

    def state(self) -> dict[str, Any]:
        """Return the state of all of them."""
        return {"torch": current(), "others": [generator.get_state() for generator in self.generators]}

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Have the generators that are not torch's own begin anew inside, and be as they were afterwards."""
        before = [generator.get_state() for generator in self.generators]
        try:
            for generator in self.generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(self.generators, before, strict=True):
                generator.set_state(state)

    def set(self, state: Mapping[str, Any]) -> None:
        """Set all of them.

        Raises:
            ValueError: there were more or fewer.
        """
        if len(state["others"]) != len(self.generators):
            raise ValueError(
                f"data: their loader has {len(self.generators) - 1} generators of its own, and had "
                f"{len(state['others']) - 1}; make it as it was"
            )
        put_back(state["torch"])
        for generator, saved in zip(self.generators, state["others"], strict=True):
            generator.set_state(saved)
