"""Progress bars, shown where somebody looks: a terminal or a notebook."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "progress_bar"]

# Often enough for an eye, seldom enough that waiting for a device costs nothing.
SECONDS_BETWEEN_NOTES = 0.5


class Bar:
    """A progress bar with a note at its end."""

    def __init__(self, progress: "Progress", title: str, total: int | None):
        self._progress = progress
        self._task = progress.add_task(title, total=total, note="")
        self._noted = 0.0

    def advance(self, note: Callable[[], str] | None = None, by: int = 1) -> None:
        """Move on. The note is asked for now and then, as it may wait for a device."""
        self._progress.advance(self._task, by)
        now = time.monotonic()
        due = now - self._noted > SECONDS_BETWEEN_NOTES or self._progress.finished
        if note and not self._progress.disable and due:
            self._noted = now
            self._progress.update(self._task, note=note())


@contextmanager
def progress_bar(title: str, total: int | None, show: bool | None) -> Iterator[Bar]:
    """Open a bar.

    Args:
        title: text before the bar.
        total: number of advances, or None where it is not known.
        show: whether to show it; when None, in a terminal, and in a notebook that has ipywidgets.
    """
    # Imported here: rich takes time to load, and draws from Python's random numbers as it does, which are a person's.
    state = random.getstate()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    random.setstate(state)
    console = Console(stderr=True)
    somebody_looks = find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
    visible = somebody_looks if show is None else show
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not visible) as progress:
        try:
            yield Bar(progress, title, total)
        finally:
            if console.is_jupyter:  # where rich leaves the bar as it was at its last tick
                progress.refresh()
