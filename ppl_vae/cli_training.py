"""``ppl-vae fit`` and ``ppl-vae list``."""

import shlex
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ppl_vae.cli_shared import Device, Program, Root, checked_seed, console, free_folder, leads, say, stoppable, table

__all__ = ["fit", "list_", "pairs"]


def fit(
    context: typer.Context,
    model: Program = "vae",
    guide: Program = "normal",
    data: Annotated[str, typer.Option(help="Data set; see [bold]ppl-vae list[/].")] = "digits",
    objective: Annotated[str, typer.Option(help="Bound to train on; see [bold]ppl-vae list[/].")] = "elbo",
    particles: Annotated[int, typer.Option(min=1, help="K: draws of the guide per datum in training.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Data per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Adam's step size.")] = 1e-3,
    z_dim: Annotated[int, typer.Option(min=1, help="Latent dimensions.")] = 20,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the hidden layer of decoder and encoder.")] = 200,
    likelihood: Annotated[
        str | None, typer.Option(help="Of pixels; see [bold]ppl-vae list[/]; the model's own if left out.")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="Of latent vectors; see [bold]ppl-vae list[/]; the model's own if left out.")
    ] = None,
    binarize: Annotated[
        str | None,
        typer.Option(help="threshold, static or dynamic; dynamic if left out and the likelihood needs zeros and ones."),
    ] = None,
    eval_particles: Annotated[int, typer.Option(min=1, help="K: draws per datum for the test log-likelihood.")] = 1000,
    seed: Annotated[
        int, typer.Option(callback=checked_seed, help="Seeds initial parameters, order, draws and binarization.")
    ] = 0,
    compile: Annotated[  # noqa: A002 - the public name
        str, typer.Option(help="true, false, or auto: compile steps and evaluation where that saves time.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16 for matrix products in mixed precision.")
    ] = "float32",
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of the gradient; none if left out.")] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches for one update.")] = 1,
    device: Device = "auto",
    root: Root = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for the run; a free one under runs/ if left out.")
    ] = None,
) -> None:
    """Train a model with a guide, evaluate it on the test data, and leave a run folder."""
    settings = {k: v for k, v in locals().items() if k not in ("context", "device", "root", "out")}
    from ppl_vae import jobs

    job = jobs.Job(jobs.Settings(**settings), root, device)
    given = {name for name in settings if context.get_parameter_source(name).name == "COMMANDLINE"}
    if ignored := given & job.ignored():
        raise ValueError(f"{', '.join(sorted(ignored))}: neither program's constructor takes it; leave it out")
    folder = out or free_folder(Path("runs"), f"{Path(model).name.replace(':', '-')}-{data}-{objective}")
    with stoppable(f"Stopped. The best parameters so far, if an epoch ended, are in {folder}"):
        trained = job.train(folder)
        evaluation = job.evaluate(folder, eval_particles, seed)
    if not leads():
        return
    job.write_evaluation(folder, evaluation)
    job.draw_learning_curve(trained.history, folder)
    job.draw(("reconstructions", "samples"), folder, seed)
    job.report(folder, evaluation)
    report(job.title(), trained, evaluation, folder)
    own = [f"--{role}={spec}" for role, spec in (("model", model), ("guide", guide)) if ":" in spec]
    options = own + ([f"--root={root}"] if root else [])
    say("\nNext:  " + shlex.join(["ppl-vae", "evaluate", str(folder), "--particles", "5000", *options]))
    say("       " + shlex.join(["ppl-vae", "draw", str(folder), *options]))


def report(title: str, trained: Any, evaluation: Any, folder: Path) -> None:
    """Print the short table at the end of a run."""
    from ppl_vae.evaluation import stated

    epochs, seconds = len(trained.history["epoch"]), trained.history["seconds"][-1]
    rows = table(title)
    how = ", compiled" if trained.graphs else ""
    rows.add_row("training", f"{epochs} epoch{'s' * (epochs != 1)} in {seconds:.1f} s{how}")
    kept = trained.best
    rows.add_row("kept", f"epoch {kept['epoch']}, bound {kept['bound']:.2f} nats per datum on the validation data")
    rows.add_row("test ELBO", f"{float(evaluation.elbo.mean()):.2f} nats per datum")
    rows.add_row("test log-likelihood", f"{evaluation.mean:.2f} ± {stated(evaluation.se, 2)} nats per datum")
    rows.add_row(
        "", f"K = {evaluation.particles:,}, N = {len(evaluation):,}, Monte Carlo error {stated(evaluation.mc_se, 3)}"
    )
    rows.add_row("not to be trusted", evaluation.verdict)
    rows.add_row("run folder", str(folder))
    rows.add_row("", ", ".join(sorted(path.name for path in folder.iterdir())))
    console().print(rows)


def list_() -> None:
    """List models, guides, bounds and data sets."""
    from ppl_vae import data, jobs, objectives, zoo

    for kind in zoo.KINDS:
        listing(kind, {name: zoo.summary(program) for name, program in zoo.discover(kind).items()})
    listed = objectives.every() | objectives.estimators()
    listing("objectives", {n: f"{b.facts.formula}  ({b.facts.reference})" for n, b in listed.items()})
    for part, choices in (("likelihoods", jobs.LIKELIHOODS), ("priors", jobs.PRIORS)):
        listing(part, {name: summary_of(made) for name, made in choices.items()})
    listing("data sets", {name: data.describe(name) for name in data.names()})


def summary_of(made: Any) -> str:
    """Return the first line of what documents a part of a program."""
    return (made.__doc__ or "").splitlines()[0]


def pairs(
    model: Annotated[str | None, typer.Option(help="Name of one model; all if left out.")] = None,
) -> None:
    """Show which guides fit which models, and which objectives train them, as a Markdown table."""
    from ppl_vae import applicability, pairing, zoo
    from ppl_vae.progress import progress_bar

    if model is not None:
        zoo.find("models", model)
    names = [found for found in pairing.names() if model in (None, found[0])]
    if not names:
        raise ValueError(f"model: {model} has latents that all data share, which no guide draws; use pv.cavi or pv.em")
    rows = {}
    with progress_bar("Pairs", len(names), None) as bar:
        for found in names:
            with warnings.catch_warnings(action="ignore"):  # about numbers, of which the table has none
                rows[found] = applicability.reasons(pairing.make(*found))
            bar.advance()
    say(applicability.table(rows))


def listing(title: str, rows: dict[str, str]) -> None:
    """Print names and what they are."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    for name, text in rows.items():
        table.add_row(name, Text(text))  # plain: brackets are no markup here
    console().print(table)
    console().print()
