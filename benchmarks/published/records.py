"""What an experiment is, and its results: a file a run, made once."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn

import ppl_vae as pv

Figures = Mapping[str, float]
# From a seed, and a folder in which to go on where an earlier try was stopped.
Run = Callable[[int, Path], Figures]

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs") / "published"


@dataclass(frozen=True)
class Published:
    """A number that somebody has printed.

    Attributes:
        value: as printed, with its error where there is one.
        source: who, and where to read it.
    """

    value: str
    source: str


@dataclass(frozen=True)
class Difference:
    """One setting's figure minus another's, seed by seed.

    Attributes:
        of: the setting.
        minus: the other one.
        figure: which.
        published: what the source prints, or nothing.
    """

    of: str
    minus: str
    figure: str
    published: Published | None = None


@dataclass(frozen=True)
class Experiment:
    """An experiment of a paper or a repository.

    Attributes:
        title: what it is.
        recipe: architecture, data, optimizer, evaluation, as in the source.
        deviation: what is otherwise here, and what was cut.
        settings: name to run.
        published: (setting, figure) to what the source has.
        differences: figures that are compared seed by seed, since settings share data and seeds.
        seeds: how many.
        formats: figure to how it is printed, where two decimals are not enough or too many.
    """

    title: str
    recipe: str
    deviation: str
    settings: Mapping[str, Run]
    published: Mapping[tuple[str, str], Published]
    differences: Sequence[Difference] = ()
    seeds: int = 3
    formats: Mapping[str, str] = field(default_factory=dict)


class Clock:
    """Processor time of a run, over all tries, in a file of its folder.

    On one thread it is what the run takes on an idle core, whatever else the machine does meanwhile. Epochs that an
    interruption has made anew count twice.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.file, self.since = folder / "seconds.txt", time.process_time()

    def __call__(self, row: Mapping[str, float]) -> None:
        """Take note of the time, after an epoch; what `ppl_vae.fit` calls back."""
        self.seconds()

    def seconds(self) -> float:
        """Return seconds until now."""
        before = float(self.file.read_text()) if self.file.exists() else 0.0
        now = time.process_time()
        total, self.since = before + now - self.since, now
        self.file.write_text(f"{total}\n")
        return total


def fitted(
    model: nn.Module, guide: nn.Module, data: Any, seed: int, folder: Path, batch_size: int, **options: Any
) -> tuple[pv.Fit, Figures]:
    """Train in a folder, or go on there; return what training did, and its cost."""
    clock, rows = Clock(folder), len(getattr(data, "train", data))
    given = {"seed": seed, "batch_size": batch_size, **options}
    fit = pv.fit(model, guide, data, out=folder / "run", resume=True, callbacks=[clock], progress=False, **given)
    return fit, {"steps": -(-rows // batch_size) * len(fit.history["epoch"]), "seconds": clock.seconds()}


def slug(words: str) -> str:
    """Return a name that a file can have.

    Example:
        >>> slug("IWAE, K = 5")
        'iwae-k-5'
    """
    kept = "".join(letter if letter.isalnum() else " " for letter in words.lower())
    return "-".join(kept.split())


def place(name: str, setting: str, seed: int) -> str:
    """Return what a run's files are called."""
    return f"{name}/{slug(setting)}-{seed}"


def result_file(name: str, setting: str, seed: int) -> Path:
    """Return where a run's result is kept."""
    return RESULTS / f"{place(name, setting, seed)}.json"


def make(name: str, experiment: Experiment, setting: str, seed: int) -> Figures:
    """Run one setting with one seed, or go on with it, or read what came of it."""
    file = result_file(name, setting, seed)
    if file.exists():
        return json.loads(file.read_text())["figures"]
    folder = RUNS / place(name, setting, seed)
    folder.mkdir(parents=True, exist_ok=True)
    pyro.clear_param_store()
    figures = experiment.settings[setting](seed, folder)
    record = {"setting": setting, "seed": seed, "figures": dict(figures), "on": here()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    return figures


def here() -> dict[str, Any]:
    """Return what the numbers were made with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Return the processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read(name: str, experiment: Experiment, setting: str) -> dict[int, Figures]:
    """Return the figures of the seeds that have run."""
    files = {seed: result_file(name, setting, seed) for seed in range(experiment.seeds)}
    return {seed: json.loads(file.read_text())["figures"] for seed, file in files.items() if file.exists()}
