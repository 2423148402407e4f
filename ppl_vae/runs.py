"""Run folders: what a training run leaves behind, and how it is read again.

``config.toml`` the settings, ``metrics.csv`` a row per epoch, ``checkpoint.pt`` the best state (tensors
only), ``evaluation_K1000_seed0`` the test log-likelihood (``.json`` in short, ``.pt`` datum by datum, ``.nc`` for
ArviZ), and pictures. Reading one never executes anything.
"""

import csv
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ppl_vae.parallel import Workers

__all__ = [
    "append_metrics",
    "new_folder",
    "read_checkpoint",
    "read_config",
    "read_metrics",
    "read_programs",
    "shared_folder",
]

CONFIG, METRICS, CHECKPOINT = "config.toml", "metrics.csv", "checkpoint.pt"


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
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"out: {folder} exists and is not an empty folder; choose another name or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shared_folder(out: str | Path, together: Workers | None) -> Path | None:
    """Make a new folder as `new_folder` does; of several processes the leading one does so, the others get None.

    Example:
        >>> shared_folder(tmp_path / "run", together=None).is_dir()
        True
    """
    if together is None:
        return new_folder(out)
    problem, folder = None, None
    if together.leads:
        try:
            folder = new_folder(out)
        except OSError as error:
            problem = error
    together.agree(problem and str(problem))
    if problem:
        raise problem
    return folder


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file whole or not at all: into a temporary one beside it, synced, then renamed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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
        ValueError: the file is no TOML.
    """
    path = _existing(folder, CONFIG)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no TOML
        raise ValueError(f"{path}: not readable settings ({error})") from error


def append_metrics(folder: Path, row: Mapping[str, float]) -> None:
    """Add an epoch's row to ``metrics.csv``, with a header before the first."""
    path = folder / METRICS
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def read_metrics(folder: Path) -> dict[str, list[float]]:
    """Return ``metrics.csv`` as columns.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: the file is no table of numbers.
    """
    path = _existing(folder, METRICS)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of numbers ({error})") from error


def write_checkpoint(folder: Path, state: Mapping[str, Any], best: Mapping[str, float]) -> None:
    """Save a step's state."""
    payload = {"format": 1, "best": dict(best), "state": state}
    write_atomically(folder / CHECKPOINT, lambda file: torch.save(payload, file))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Return what `write_checkpoint` saved; only tensors and plain values are ever unpickled."""
    path = _existing(folder, CHECKPOINT)
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a readable checkpoint ({why})") from error
    if not isinstance(payload, dict) or payload.get("format") != 1:
        raise ValueError(f"{path}: not a checkpoint of this library")
    return payload


def read_programs(folder: Path) -> dict[str, torch.Tensor]:
    """Return the best parameters and buffers of a run, by name.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its checkpoint holds something else.
    """
    state = read_checkpoint(folder).get("state")
    programs = state.get("programs") if isinstance(state, Mapping) else None
    if not isinstance(programs, Mapping) or not all(isinstance(t, torch.Tensor) for t in programs.values()):
        raise ValueError(f"{folder / CHECKPOINT}: it holds no parameters of a model and a guide")
    return dict(programs)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _existing(folder: Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"{folder}: not a finished run (it has no {name})")
    return path
