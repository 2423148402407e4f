"""Finished parts of a long evaluation, kept in a file from which an interrupted one goes on."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae import archive
from ppl_vae.parallel import Workers

__all__ = ["Record", "read_record"]

# Often enough that little is lost, seldom enough that writing costs nothing.
SECONDS_BETWEEN_WRITES = 5.0
KIND, VERSION = "evaluation", 1
# What settings that nobody chose are about.
WORDS = {
    "first": "other data",
    "programs": "other parameters of the programs",
    "probe": "another model or guide, though their parameters are equal",
}


class Record:
    """Columns that grow by batches of data.

    Args:
        path: file that keeps them, or None. One that exists is read, and gone on with.
        settings: numbers and words on which the columns depend.
        together: processes that share the work, of which the leading one reads and writes.

    Attributes:
        met: data met so far, finished before or not.
        times: how often each key was met.
        facts: words and numbers about the whole.
        complete: whether all data are finished.

    Raises:
        ValueError: the file is not a record, or one of other settings; it stays as it is.

    Example:
        >>> record = Record(tmp_path / "some.pt", {"seed": 0})
        >>> with record.kept():
        ...     record.meet(torch.tensor([5, 6]))
        ...     record.add(torch.tensor([5, 6]), {"log_px": torch.zeros(2)})
        0
        >>> Record(tmp_path / "some.pt", {"seed": 0}).done
        2
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any], together: Workers | None = None):
        self.path = None if path is None else Path(path)
        self.settings, self.facts, self.complete = dict(settings), {}, False
        self.met, self.times = 0, Counter()
        self._writes = self.path is not None and (together is None or together.leads)
        self._parts: list[Mapping[str, Tensor]] = []
        self._written, self._changed = time.monotonic(), False
        problem = None
        if self._writes:
            try:
                self._take(self.path)
            except ValueError as error:
                problem = str(error)
        if together is not None:
            together.agree(problem)
            self._parts, self.complete = together.told((self._parts, self.complete))
        if problem:
            raise ValueError(problem)

    def _take(self, path: Path) -> None:
        """Go on from a file, if it is there."""
        if not path.parent.is_dir():
            raise ValueError(f"out: there is no folder {path.parent}; make it first")
        if not path.exists():
            _check_writable(path)
            return
        found = read_record(path)
        for name, value in self.settings.items():
            other = found["settings"].get(name)
            if not _same(value, other):
                words = WORDS.get(name, f"{name} = {other!r}, not {value!r}")
                raise ValueError(f"out: {path} is of an evaluation with {words}; give another file, or remove that one")
        self._parts, self.complete = [found["columns"]], found["complete"]

    @property
    def done(self) -> int:
        """How many data are finished."""
        return sum(len(part["keys"]) for part in self._parts)

    def meet(self, keys: Tensor) -> int:
        """Return how many of the next data, given by their keys, are finished.

        Raises:
            ValueError: the finished ones are of other data.
        """
        start, self.met = self.met, self.met + len(keys)
        done = min(max(self.done - start, 0), len(keys))
        if done and not torch.equal(self.columns()["keys"][start : start + done], keys[:done].cpu()):
            raise ValueError(
                f"out: {self.path} is of other data than those from row {start} on, or of the same in another order; "
                "give another file, or remove that one"
            )
        return done

    def add(self, keys: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Take in the columns of the next data, and write all now and then."""
        self._changed, self.complete = True, False
        self._parts.append({name: column.cpu() for name, column in {"keys": keys, **columns}.items()})
        if self._writes and time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def columns(self) -> Mapping[str, Tensor]:
        """Return all columns."""
        if len(self._parts) > 1:
            self._parts = [{name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}]
        return self._parts[0]

    def note(self) -> str:
        """Return the mean so far, in words."""
        return f"{float(self.columns()['log_px'].mean()):.2f} nats per datum" if self._parts else ""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write what is finished at the end, whatever ends it."""
        try:
            yield
            if self.met < self.done:
                raise ValueError(
                    f"out: {self.path} is of {self.done} data, and there are {self.met}; give another file"
                )
            self._changed |= not self.complete
            self.complete = True
        finally:
            if self._writes and self._changed:
                self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        content = {
            "settings": self.settings,
            "facts": self.facts,
            "complete": self.complete,
            "columns": dict(self.columns()),
        }
        archive.write(self.path, KIND, VERSION, content)
        self._written = time.monotonic()


def _same(value: Any, other: Any) -> bool:
    """Tell whether two settings are equal, numbers that were computed up to rounding."""
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-4, abs_tol=1e-4)
    return value == other


def _check_writable(path: Path) -> None:
    """Raise before any work is done if its result could not be kept."""
    try:
        archive.write_atomically(path, lambda file: None)
        path.unlink()
    except OSError as error:
        raise ValueError(f"out: {path} cannot be written ({error.strerror}); give another file") from error


def read_record(path: str | Path) -> dict[str, Any]:
    """Return what a `Record` wrote; nothing but tensors and plain values is ever unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, something else, or of another version.

    Example:
        >>> read_record(tmp_path / "none.pt")
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...none.pt: no such file
    """
    found = archive.read(path, KIND, VERSION)
    forms = {"settings": dict, "facts": dict, "complete": bool, "columns": dict}
    if not isinstance(found, dict) or {name: type(part) for name, part in found.items()} != forms:
        raise archive.UnreadableFile(path, f"not made by this library: expected {', '.join(forms)} in it; remove it")
    columns = found["columns"].values()
    if not all(isinstance(x, Tensor) and x.ndim and len(x) == len(found["columns"].get("keys", ())) for x in columns):
        raise archive.UnreadableFile(path, "not made by this library: its columns are not of one length; remove it")
    return found
