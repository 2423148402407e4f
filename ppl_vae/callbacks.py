"""Functions that `fit` calls with each row of its history, after the epoch."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["tensorboard"]


def tensorboard(folder: str | Path) -> Callable[[Mapping[str, float]], None]:
    """Return a callback that writes the numbers of each epoch for TensorBoard.

    A run that goes on after an interruption writes into the same folder; what was written there of the epoch that it
    goes on with, and of later ones, is no longer shown.

    Args:
        folder: for event files, made at the first row; ``tensorboard --logdir FOLDER`` shows it.

    Raises:
        ValueError: TensorBoard is not installed.

    Example:
        >>> note = tensorboard(tmp_path / "events")
        >>> note({"epoch": 1, "train_bound": -20.5, "seconds": 0.1})
        >>> len(list((tmp_path / "events").glob("events.out.tfevents.*")))
        1
    """
    if find_spec("tensorboard") is None:
        raise ValueError("tensorboard: it is not installed; pip install 'ppl-vae[tensorboard]'")
    writers: list[Any] = []

    def note(row: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        epoch = int(row["epoch"])
        if not writers:  # not before: the folder of a run is made by training, and is empty until then
            writers.append(SummaryWriter(str(folder), purge_step=epoch))
        for name, value in row.items():
            if name != "epoch":
                writers[0].add_scalar(name, value, epoch)
        writers[0].flush()

    return note
