"""``ppl-vae evaluate``, ``report`` and ``compare``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ppl_vae.cli_shared import Device, OwnProgram, Root, Run, checked_seed, console, free_folder, leads, say, stoppable

__all__ = ["compare", "evaluate", "report"]


def evaluate(
    run: Run,
    particles: Annotated[int, typer.Option(min=1, help="K: draws of the guide per datum.")] = 5000,
    seed: Annotated[int, typer.Option(callback=checked_seed, help="Seeds the draws.")] = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
) -> None:
    """Estimate the test log-likelihood of a finished run by importance sampling.

    What is finished is kept in the run folder: the same command goes on after an interruption.
    """
    from ppl_vae import jobs

    job = jobs.Job.from_run(run, root, model, guide, device)
    with stoppable(f"Stopped. What is finished is in {run}; the same command goes on from there"):
        evaluation = job.evaluate(run, particles, seed)
    if leads():
        written = [*job.write_evaluation(run, evaluation), job.report(run, evaluation)]
        say(str(evaluation))
        say(f"Written to {', '.join(map(str, written))}")


def report(
    run: Run,
    particles: Annotated[
        int | None, typer.Option(min=1, help="Which evaluation to report; that with most draws if left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(callback=checked_seed, help="Likewise; any if left out.")] = None,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
) -> None:
    """Write a page about a finished, evaluated run: numbers with errors, pictures, how to make it all again."""
    from ppl_vae import jobs

    job = jobs.Job.from_run(run, root, model, guide, device)
    say(f"Written to {job.report(run, jobs.latest(run, particles, seed))}")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished, evaluated runs.", show_default=False)],
    particles: Annotated[
        int | None, typer.Option(min=1, help="Which evaluation of a run to take; that with most draws if left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(callback=checked_seed, help="Likewise; any if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for table, numbers and picture.")] = None,
) -> None:
    """Compare runs by their test log-likelihoods: paired differences, since the data are shared."""
    from ppl_vae import jobs

    comparison = jobs.compared(runs, particles, seed)
    folder = out or free_folder(Path("."), "comparison")
    written = jobs.write_comparison(comparison, folder)
    header, *rows = comparison.cells()
    shown = Table(*header, title=f"Nats per datum over N = {comparison.n:,} shared data", title_justify="left")
    for row in rows:
        shown.add_row(*row)
    console().print(shown)
    for warning in comparison.warnings:
        say(f"Warning: {warning}.")
    say(f"Written to {', '.join(map(str, written))}")
