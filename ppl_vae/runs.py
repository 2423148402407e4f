"""Run folders: what a training run leaves behind, and how it is read again.

``config.toml`` the settings, ``metrics.csv`` a row per epoch, ``checkpoint.pt`` the best state (tensors
only), ``evaluation_K1000_seed0`` the test log-likelihood (``.json`` in short, ``.pt`` datum by datum, ``.nc`` for
ArviZ), and pictures. Reading one never executes anything.
"""

import csv
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ppl_vae.archive import write_atomically
from ppl_vae.parallel import Workers

__all__ = [
    *("append_metrics", "new_folder", "read_checkpoint", "read_config", "read_metrics", "shared_folder"),
    "write_atomically",
]

CONFIG, METRICS, CHECKPOINT = "config.toml", "metrics.csv", "checkpoint.pt"
# Bytes of files that are parsed as text, which takes minutes for a hundred megabytes.
LARGEST = {CONFIG: 10**6, METRICS: 10**8}


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


def append_metrics(folder: Path, row: Mapping[str, float]) -> None:
    """Add an epoch's row to ``metrics.csv``, with a header before the first."""
    path = folder / METRICS
    if path.is_symlink():  # appending follows it, out of a folder that somebody else may have made
        raise ValueError(f"{path}: a link, to which nothing is appended; replace it by the file itself")
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


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
        raise ValueError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(payload, dict) or payload.get("format") != 1:
        raise ValueError(f"{path}: not a checkpoint of this library")
    return payload


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
