"""Where a training run is, and what of it is saved."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import nan
from typing import Any

__all__ = ["Place"]


@dataclass
class Place:
    """Where a run is.

    Attributes:
        epoch: the one under way, from 1.
        batches: how many of it are done.
        rows: how many data these had, but for those that were refused.
        totals: sums over these data, by what the history calls them.
        faults: batches of it that were refused.
        in_a_row: batches refused since the last that was not.
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
    totals: dict[str, float] = field(default_factory=dict)
    faults: int = 0
    in_a_row: int = 0
    start: dict[str, Any] | None = None
    done: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    seconds: float = 0.0
    ended: str = ""

    def turn(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batches, self.rows, self.totals, self.faults = self.epoch + 1, 0, 0, {}, 0

    def note(self, row: Mapping[str, float]) -> None:
        """Add an epoch to the history; NaN stands where there is no number, as of faults before they were counted."""
        epochs = len(self.history.get("epoch", ()))
        for name in {**self.history, **row}:
            self.history.setdefault(name, [nan] * epochs).append(row.get(name, nan))

    def words(self, epochs: int) -> str:
        """Say where it is, of so many epochs."""
        if not self.rows:
            return f"epoch {self.epoch}/{epochs}"
        return f"epoch {self.epoch}/{epochs}, bound {self.totals['train_bound'] / self.rows:.2f} nats per datum"

    def state_dict(self) -> dict[str, Any]:
        """Return all of it; tensors are not copied."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
