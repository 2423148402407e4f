"""One job with several seeds: what each came to, and how much they vary."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ppl_vae import runs
from ppl_vae.evaluation import Evaluation
from ppl_vae.fitted import Fit

__all__ = ["cells", "finished", "read_outcome", "seed_folder", "summary", "to_markdown", "write_outcome"]

COLUMNS = {
    "best_epoch": "best epoch",
    "valid_bound": "validation bound",
    "elbo": "test ELBO",
    "log_px": "test log-likelihood",
}
OUTCOME = "outcome.json"


def seed_folder(out: Path, seed: int) -> Path:
    """Return the folder of the run with a seed.

    Example:
        >>> str(seed_folder(Path("runs"), 3).name)
        'seed-3'
    """
    return out / f"seed-{seed}"


def finished(folder: Path) -> bool:
    """Tell whether a run has come to its end, report and all.

    Example:
        >>> finished(tmp_path)
        False
    """
    return (folder / OUTCOME).exists()


def write_outcome(folder: Path, seed: int, trained: Fit, evaluation: Evaluation) -> None:
    """Write what a run came to, in nats per datum; this file is the last one, and tells that the run is finished."""
    numbers = {
        "valid_bound": trained.best["bound"],
        "elbo": float(evaluation.elbo.mean()),
        "log_px": float(evaluation.mean),
    }
    known = {name: value if isfinite(value) else None for name, value in numbers.items()}
    runs.write_json(folder / OUTCOME, {"seed": seed, "best_epoch": int(trained.best["epoch"]), **known})


def read_outcome(folder: Path) -> dict[str, Any]:
    """Return what a finished run came to; None stands for numbers that are not finite."""
    return json.loads((folder / OUTCOME).read_text("utf-8"))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the outcomes with their mean, standard deviation over seeds, and the standard error of the mean.

    Args:
        rows: of two seeds at least.

    Example:
        >>> rows = [dict(seed=s, best_epoch=9, valid_bound=-21.0, elbo=-20.0 - s, log_px=-19.0) for s in (0, 2)]
        >>> found = summary(rows)
        >>> found["mean"]["elbo"], round(found["sd"]["elbo"], 3), round(found["se"]["elbo"], 3)
        (-21.0, 1.414, 1.0)
    """
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    known = {name: values for name, values in columns.items() if None not in values}
    deviations = {name: stdev(values) for name, values in known.items()}
    nothing = dict.fromkeys(COLUMNS)
    return {
        "seeds": [dict(row) for row in rows],
        "mean": nothing | {name: mean(values) for name, values in known.items()},
        "sd": nothing | deviations,
        "se": nothing | {name: sd / sqrt(len(rows)) for name, sd in deviations.items()},
    }


def cells(found: Mapping[str, Any]) -> list[list[str]]:
    """Return a summary as rows of texts, the first one the header.

    Example:
        >>> rows = [dict(seed=s, best_epoch=9, valid_bound=-21.0, elbo=-20.0 - s, log_px=-19.0) for s in (0, 2)]
        >>> cells(summary(rows))[-2]
        ['standard deviation', '0.0', '0.000', '1.414', '0.000']
    """
    shown = [[str(row["seed"]), str(row["best_epoch"]), *_numbers(row)] for row in found["seeds"]]
    names = {"mean": "mean", "sd": "standard deviation", "se": "standard error of the mean"}
    for key, name in names.items():
        epochs = found[key]["best_epoch"]
        shown.append([name, f"{epochs:.1f}", *_numbers(found[key])])
    return [["seed", *COLUMNS.values()], *shown]


def _numbers(row: Mapping[str, float | None]) -> list[str]:
    return ["unknown" if row[name] is None else f"{row[name]:.3f}" for name in list(COLUMNS)[1:]]


def to_markdown(found: Mapping[str, Any], title: str) -> str:
    """Return a summary as a Markdown table, in nats per datum."""
    header, *rows = cells(found)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{title}, in nats per datum; binarized data are drawn anew with each seed.\n\n{table}\n"
