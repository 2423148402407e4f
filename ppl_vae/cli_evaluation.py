"""``ppl-vae evaluate``, ``report`` and ``compare``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ppl_vae.cli_shared import (
    Device,
    Overwrite,
    OwnProgram,
    Root,
    Run,
    check_free,
    checked_seed,
    console,
    free_folder,
    kept,
    leads,
    say,
    stoppable,
)

__all__ = ["compare", "evaluate", "report"]


def evaluate(
    run: Run,
    particles: Annotated[int, typer.Option(min=1, help="K: draws of the guide per datum.")] = 5000,
    seed: Annotated[int, typer.Option(callback=checked_seed, help="Seeds the draws.")] = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
    overwrite: Overwrite = False,
) -> None:
    """Estimate the test log-likelihood of a finished run by importance sampling.

    What is finished is kept in the run folder: the same command goes on after an interruption.
    """
    with stoppable(f"Stopped. What is finished is in {run}; the same command goes on from there"):
        from ppl_vae import jobs

        job = jobs.Job.from_run(run, root, model, guide, device)
        files = jobs.evaluation_files(run, particles, seed)
        if overwrite and leads():
            for path in files:
                path.unlink(missing_ok=True)
        evaluation = job.evaluate(run, particles, seed)
        if leads():
            say(str(evaluation))
            _write(job, run, evaluation)


def _write(job: Any, run: Path, evaluation: Any) -> None:
    """Write what there is not yet of an evaluation's files and the report."""
    from ppl_vae import jobs, reporting

    record, *others = jobs.evaluation_files(run, evaluation.particles, evaluation.seed)
    wanted = [path for path in others if not kept(path, overwrite=False)]
    job.write_evaluation(evaluation, wanted)
    how = f"ppl-vae report {run} --overwrite writes it about the evaluation with most draws"
    if not kept(run / reporting.REPORT, overwrite=False, repair=how):
        wanted.append(job.report(run, evaluation))
    say(f"Written to {', '.join(map(str, [record, *wanted]))}")


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
    overwrite: Overwrite = False,
) -> None:
    """Write a page about a finished, evaluated run: numbers with errors, pictures, how to make it all again."""
    with stoppable("Stopped; nothing was written."):
        from ppl_vae import jobs, reporting

        if not kept(run / reporting.REPORT, overwrite):
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
    folder = out or free_folder(Path("."), "comparison")
    check_free(folder)
    with stoppable("Stopped; nothing was written."):
        from ppl_vae import jobs

        comparison = jobs.compared(runs, particles, seed)
        written = jobs.write_comparison(comparison, folder)
    header, *rows = comparison.cells()
    shown = Table(*header, title=f"Nats per datum over N = {comparison.n:,} shared data", title_justify="left")
    for row in rows:
        shown.add_row(*row)
    console().print(shown)
    for warning in comparison.warnings:
        say(f"Warning: {warning}.")
    say(f"Written to {', '.join(map(str, written))}")
