"""The table of published and repeated results, as Markdown."""

import importlib
import pkgutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import benchmarks.published as package
from benchmarks.published.records import Difference, Experiment, Figures, read

PAGE = Path(__file__).parent / "README.md"
INFRASTRUCTURE = {"__main__", "records", "table"}
COST = {"steps", "seconds"}


def experiments() -> dict[str, Experiment]:
    """Return all experiments by the name of their module."""
    found = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    names = [name for name in found if name not in INFRASTRUCTURE]
    return {name: importlib.import_module(f"{package.__name__}.{name}").EXPERIMENT for name in names}


def page(every: Mapping[str, Experiment]) -> str:
    """Return the page: how to run, and a section an experiment."""
    sections = [section(name, experiment) for name, experiment in every.items()]
    return "\n\n".join([HEAD.strip(), *sections]) + "\n"


HEAD = """
# Published results, run again

Written by `python -m benchmarks.published table` from the files in `results/`, one a run; do not edit. Each experiment
is a module here and a command, `python -m benchmarks.published run NAME`, which repeats nothing that has a file and
goes on where it was stopped (runs of some minutes begin anew). Data sets are looked for where `PPL_VAE_DATA` says.

Figures are in nats per datum unless they say otherwise; larger is better for bounds and log-likelihoods. Ours are means
and standard deviations over seeds (the number in brackets where it is not three), differences are taken seed by seed. A
published number of one run has no error: independent code for one recipe differs by half a nat to a nat and a half, so
that nothing closer than that is a match, and nothing within it a contradiction. Minutes are processor time of training
on one thread, which is what it takes on an idle core.
"""


def section(name: str, experiment: Experiment) -> str:
    """Return what was done, what differs, and the figures of one experiment."""
    found = {setting: read(name, experiment, setting) for setting in experiment.settings}
    text = [
        f"## {experiment.title}",
        f"`python -m benchmarks.published run {name}`",
        f"*As in the source.* {experiment.recipe}\n\n*Otherwise here.* {experiment.deviation}",
        "\n".join([*HEADING, *rows(experiment, found)]),
    ]
    differences = [line for each in experiment.differences if (line := difference(each, found, experiment))]
    if differences:
        text.append("\n".join([*DIFFERENCES, *differences]))
    return "\n\n".join(text)


HEADING = (
    "| setting | figure | published | ours | source | steps | minutes a run |",
    "| --- | --- | ---: | ---: | --- | ---: | ---: |",
)
DIFFERENCES = (
    "| difference | figure | published | ours | source |",
    "| --- | --- | ---: | ---: | --- |",
)


def rows(experiment: Experiment, found: Mapping[str, Mapping[int, Figures]]) -> Iterator[str]:
    """Yield a line for each figure of each setting that has run."""
    for setting, by_seed in found.items():
        if not by_seed:
            yield f"| {setting} | not run | | | | | |"
            continue
        for figure in [name for name in next(iter(by_seed.values())) if name not in COST]:
            theirs = experiment.published.get((setting, figure))
            printed, source = (theirs.value, theirs.source) if theirs else ("", "")
            ours = spread([one[figure] for one in by_seed.values()], experiment, figure)
            yield f"| {setting} | {figure} | {printed} | {ours} | {source} | {cost(by_seed)} |"


def cost(by_seed: Mapping[int, Figures]) -> str:
    """Return steps and minutes of a run, where there are any."""
    runs = list(by_seed.values())
    steps = f"{runs[0]['steps']:,.0f}" if "steps" in runs[0] else ""
    minutes = f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f}" if "seconds" in runs[0] else ""
    return f"{steps} | {minutes}"


def difference(what: Difference, found: Mapping[str, Mapping[int, Figures]], experiment: Experiment) -> str:
    """Return the line of a difference over the seeds that both settings have, or nothing."""
    left, right = found[what.of], found[what.minus]
    values = [left[seed][what.figure] - right[seed][what.figure] for seed in left if seed in right]
    if not values:
        return ""
    printed, source = (what.published.value, what.published.source) if what.published else ("", "")
    ours = spread(values, experiment, what.figure, sign="+")
    return f"| {what.of} minus {what.minus} | {what.figure} | {printed} | {ours} | {source} |"


def spread(values: list[float], experiment: Experiment, figure: str, sign: str = "") -> str:
    """Return mean and standard deviation over seeds, and how many where not all have run."""
    how = experiment.formats.get(figure, ".2f")
    text = f"{statistics.mean(values):{sign}{how}}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):{how}}"
    return text if len(values) == experiment.seeds else f"{text} ({len(values)} seed{'s' * (len(values) > 1)})"
