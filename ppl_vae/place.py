"""Where a training run is, and what of it is saved."""

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

__all__ = ["Place"]


@dataclass
class Place:
    """Where a run is.

    Attributes:
        epoch: the one under way, from 1.
        batches: how many of it are done.
        rows: how many data these had.
        totals: sums over these data, by what the history calls them.
        start: state of all random numbers at the epoch's start; None before the first.
        done: batches in all epochs.
        history: of the epochs before.
        best: the best of them, and its bound.
        stale: epochs since then that count for early stopping.
        seconds: that the run took.
        ended: why it ended, or nothing.
    """

    epoch: int = 1
    batches: int = 0
    rows: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    start: dict[str, Any] | None = None
    done: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    seconds: float = 0.0
    ended: str = ""

    def turn(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batches, self.rows, self.totals = self.epoch + 1, 0, 0, {}

    def state_dict(self) -> dict[str, Any]:
        """Return all of it; tensors are not copied."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
