"""Run published experiments again, and write the table.

python -m benchmarks.published list
python -m benchmarks.published run NAME [--setting SETTING] [--seed SEED]
python -m benchmarks.published table
"""

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.published.records import Experiment, make, result_file
from benchmarks.published.table import PAGE, experiments, page

app = typer.Typer(help="Published results, run again.", no_args_is_help=True, add_completion=False)
Name = Annotated[str, typer.Argument(help="An experiment; see list.")]
Setting = Annotated[str | None, typer.Option(help="One of its settings; all of them otherwise.")]
Seed = Annotated[int | None, typer.Option(help="One of its seeds; all of them otherwise.")]


def chosen(kind: str, asked: str | int | None, there: Iterable[str | int]) -> list:
    """Return what was asked for, or everything."""
    there = list(there)
    if asked is not None and asked not in there:
        raise typer.BadParameter(f"{kind}: expected one of {', '.join(map(repr, there))}, found {asked!r}")
    return there if asked is None else [asked]


@app.command("list")
def listed() -> None:
    """List experiments, their settings, and how many seeds have run."""
    for name, experiment in experiments().items():
        typer.echo(f"{name}: {experiment.title}")
        for setting in experiment.settings:
            done = sum(result_file(name, setting, seed).exists() for seed in range(experiment.seeds))
            typer.echo(f"    {setting}: {done} of {experiment.seeds} seeds")


@app.command()
def run(name: Name, setting: Setting = None, seed: Seed = None) -> None:
    """Run an experiment, or what is missing of it."""
    every = experiments()
    (name,) = chosen("NAME", name, every)
    experiment: Experiment = every[name]
    for one_seed in chosen("--seed", seed, range(experiment.seeds)):
        for one in chosen("--setting", setting, experiment.settings):
            figures = make(name, experiment, one, one_seed)
            stated = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
            typer.echo(f"{name}, {one}, seed {one_seed}: {stated}")
    table()


@app.command()
def table() -> None:
    """Write the table from the results that there are."""
    PAGE.write_text(page(experiments()))
    Console(stderr=True).print(f"Written to {PAGE}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    app()
