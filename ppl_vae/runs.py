"""Run folders: what a training run leaves behind, and how it is read again.

``config.toml`` the settings, ``metrics.csv`` a row per epoch, ``best.pt`` the best state, ``last.pt`` and
``previous.pt`` what a run goes on from, ``evaluation_K1000_seed0`` the test log-likelihood (``.json`` in short, ``.pt``
datum by datum, ``.nc`` for ArviZ), and pictures. Reading one never executes anything.
"""

import csv
import io
import json
import os
import shutil
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ppl_vae import archive
from ppl_vae.archive import UnreadableFile, sync_folder, write_atomically
from ppl_vae.parallel import Workers

__all__ = [
    "append_metrics",
    "new_folder",
    "read_best",
    "read_config",
    "read_last",
    "read_metrics",
    "read_programs",
    "taken",
    "write_best",
    "write_last",
]

CONFIG, METRICS, BEST = "config.toml", "metrics.csv", "best.pt"
LAST, PREVIOUS, NEXT = "last.pt", "previous.pt", "next.pt"
LOCK = ".lock"
# Files on their way, of the names that `ppl_vae.archive.write_atomically` gives.
PARTS = f".*.{'[0-9a-f]' * 8}.part"
FORMAT = 1
# What is made of parameters, and is of earlier ones once training has gone on.
DERIVED = ("evaluation_*", "ais_*", "surgery_*", "quality_*", "samples_n*", "*.png", "report.html")
# What runs consist of: a folder with anything else in it, such as somebody's notes, is not overwritten.
FILES = (CONFIG, METRICS, BEST, LAST, PREVIOUS, NEXT, "outcome.json", *DERIVED)
FOLDERS = {"tensorboard"}
# Bytes of files that are parsed as text, which takes minutes for a hundred megabytes.
LARGEST = {CONFIG: 10**6, METRICS: 10**8}


def folder_of(out: str | Path) -> Path:
    """Return the path of a folder from the root on, which stays where somebody changes the working directory.

    Example:
        >>> folder_of("runs/vae").is_absolute(), folder_of("~/runs") == Path.home() / "runs"
        (True, True)
    """
    return Path(out).expanduser().absolute()


def evaluation_name(particles: int | str, seed: int | str) -> str:
    """Return the name of an evaluation's files, without the suffix.

    Example:
        >>> evaluation_name(5000, 0)
        'evaluation_K5000_seed0'
    """
    return f"evaluation_K{particles}_seed{seed}"


def new_folder(out: str | Path) -> Path:
    """Make a folder for a run.

    Raises:
        FileExistsError: it holds something already.

    Example:
        >>> new_folder(tmp_path / "runs" / "vae").is_dir()
        True
    """
    folder = folder_of(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"out: {folder} exists and is not an empty folder; choose another name or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def taken(
    out: str | Path | None, together: Workers | None, resume: bool = False, overwrite: bool = False
) -> Iterator[Path | None]:
    """Have a folder to oneself for a run; of several processes the leading one has it, the others get None.

    Args:
        out: the folder, which is made; without one there is none.
        together: processes of one run.
        resume: whether it may hold a run, which goes on.
        overwrite: whether it may hold a run, which is removed.

    Raises:
        FileExistsError: it holds a run, and neither was said, or it holds something else.
        BlockingIOError: another run is at work there.

    Example:
        >>> with taken(tmp_path / "run", together=None) as folder, taken(tmp_path / "run", together=None, resume=True):
        ...     pass
        Traceback (most recent call last):
        ...
        BlockingIOError: out: another run is at work in ...run; wait for its end, or choose another name
    """
    problem, folder, lock = None, None, None
    if out is not None and (together is None or together.leads):
        try:
            folder = folder_of(out)
            _check_free(folder, resume, overwrite)  # before a lock is left in a folder of something else
            lock = _locked(folder)
            _check_free(folder, resume, overwrite)
            _clear(folder, all_of_it=not resume)
        except OSError as error:
            problem = error
    try:
        if out is not None and together is not None:
            together.agree(problem and str(problem))
        if problem:
            raise problem
        yield folder
    finally:
        if lock is not None:
            lock.release()


def _locked(folder: Path) -> Any:
    """Lock a folder; the system lets go of the lock however the process ends."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    if (folder / LOCK).is_symlink():  # what it leads to would be emptied
        raise FileExistsError(f"out: {folder / LOCK}: a link, where runs have their lock; remove it")
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"out: another run is at work in {folder}; wait for its end, or choose another name"
        ) from None
    return lock


def _check_free(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raise if a folder holds what may not be touched."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out: {folder} is a file; choose another name")
    held = _held(folder)
    if not held or (resume and (folder / CONFIG).exists()):
        return
    if not (folder / CONFIG).exists():
        raise FileExistsError(f"out: {folder} exists and is not an empty folder; choose another name or remove it")
    if not overwrite:
        raise FileExistsError(
            f"out: {folder} holds a run already; go on with it (resume), replace it (overwrite), or choose another name"
        )
    if strangers := [path.name for path in held if not _of_run(path)]:
        raise FileExistsError(
            f"out: {folder} holds what no run writes ({', '.join(strangers[:3])}), and is not overwritten; remove "
            "that, or choose another name"
        )


def _clear(folder: Path, all_of_it: bool) -> None:
    """Remove a run, or only what was being written when it was killed."""
    for path in [*folder.glob(PARTS), *(_held(folder) if all_of_it else ())]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _held(folder: Path) -> list[Path]:
    """Return what is in a folder, but for what a run leaves that was killed before its first file was whole."""
    left = {LOCK, *(path.name for path in folder.glob(PARTS))}
    return [path for path in folder.iterdir() if path.name not in left] if folder.exists() else []


def _of_run(path: Path) -> bool:
    return path.name in FOLDERS if path.is_dir() else any(path.match(name) for name in FILES)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Record the settings of a run; what is None is left out, since TOML has no such value."""
    import tomli_w

    settings = {key: value for key, value in config.items() if value is not None}
    write_text(folder / CONFIG, tomli_w.dumps(settings))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of a run.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its settings are damaged, or far too large to be any.
    """
    path = _existing(folder, CONFIG)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the settings of a run ({error}); restore it from a copy") from error


def write_metrics(folder: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Write ``metrics.csv`` anew, a row per epoch of a history; an empty one leaves no file."""
    if not history:
        (folder / METRICS).unlink(missing_ok=True)
        return
    rows = [",".join(map(str, row)) for row in zip(*history.values(), strict=True)]
    write_text(folder / METRICS, "\r\n".join([",".join(history), *rows, ""]))


def append_metrics(folder: Path, row: Mapping[str, float]) -> None:
    """Add an epoch's row to ``metrics.csv``, with a header before the first; all of it or nothing."""
    path = folder / METRICS
    if path.is_symlink():  # appending follows it, out of a folder that somebody else may have made
        raise ValueError(f"{path}: a link, to which nothing is appended; replace it by the file itself")
    size = path.stat().st_size if path.exists() else 0
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(row))
    if size == 0:
        writer.writeheader()
    writer.writerow(row)
    try:
        with path.open("ab") as file:
            file.write(text.getvalue().encode())
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


def read_metrics(folder: Path) -> dict[str, list[float]]:
    """Return ``metrics.csv`` as columns.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: a cell is no number, or the file something else.
    """
    path = _existing(folder, METRICS)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
    except (ValueError, TypeError, csv.Error) as error:  # of cells that are words, that lack or are too many
        raise ValueError(f"{path}: not the numbers of a run ({error}); restore it from a copy, or remove it") from error


def write_best(folder: Path, state: Mapping[str, Any], best: Mapping[str, float]) -> None:
    """Save the best state of a step."""
    archive.write(folder / BEST, "best_state", FORMAT, {"best": dict(best), "state": state})


def remove_best(folder: Path) -> None:
    """Remove the best state, which is of epochs that are not over here."""
    (folder / BEST).unlink(missing_ok=True)


def read_best(folder: Path) -> dict[str, Any]:
    """Return what `write_best` saved: ``"best"`` and ``"state"``.

    Raises:
        FileNotFoundError: the folder holds no run of which an epoch has ended.
        UnreadableFile: it is not what was written.
    """
    path = _existing(Path(folder), BEST)
    found = archive.read(path, "best_state", FORMAT)
    try:
        numbers, tensors = found["best"].values(), found["state"].get("programs", {}).values()
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise UnreadableFile(path, "not made by this library: it has no best state in it; remove it") from error
    if not all(isinstance(n, int | float) for n in numbers) or not all(isinstance(t, Tensor) for t in tensors):
        raise UnreadableFile(path, "not made by this library: its best state holds no tensors; remove it")
    return found


def read_programs(folder: Path) -> dict[str, Any]:
    """Return the best parameters and buffers of a run's programs, without what its objective has of its own."""
    if (state := read_best(folder)["state"].get("programs")) is None:
        raise UnreadableFile(Path(folder) / BEST, "the step of this run showed no programs; take up its state yourself")
    return {name: tensor for name, tensor in state.items() if not name.startswith("objective.")}


def write_last(folder: Path, content: Mapping[str, Any]) -> None:
    """Save where a run is, and keep what was saved before it."""
    part = folder / NEXT
    archive.write(part, "run", FORMAT, content)
    if (folder / LAST).exists():
        (folder / LAST).replace(folder / PREVIOUS)
    part.replace(folder / LAST)
    sync_folder(folder)


def read_last(folder: Path) -> dict[str, Any] | None:
    """Return what `write_last` saved last and is whole, or None where nothing was saved.

    Raises:
        UnreadableFile: something was saved, and nothing of it is whole.
    """
    problem = None
    for name in (LAST, PREVIOUS):
        try:
            found = archive.read(folder / name, "run", FORMAT)
        except FileNotFoundError:
            continue
        except UnreadableFile as error:
            problem = problem or error
            continue
        if problem:
            warnings.warn(f"{problem}. The run goes on from {folder / name}, saved before it", stacklevel=2)
        return found
    if problem:
        raise problem
    return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _existing(folder: Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"{folder}: not a finished run (it has no {name})")
    if not path.is_file():  # a pipe might never end
        raise ValueError(f"{path}: a folder or a device, where a file is expected; restore the run from a copy")
    if (size := path.stat().st_size) > LARGEST.get(name, size):
        raise ValueError(f"{path}: its {size} bytes are more than a run leaves; restore it from a copy")
    return path
