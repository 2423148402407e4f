"""The command line: ``ppl-vae fit``, ``evaluate``, ``sample`` and ``list``."""

import os
import shlex
import sys
from pathlib import Path
from traceback import walk_tb
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["app", "main"]

app = typer.Typer(
    name="ppl-vae",
    help="Deep latent-variable models on Pyro: train a model with a guide, report its log-likelihood with errors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)

PROGRAM = (
    "Name from [bold]ppl-vae list[/], or path/to/file.py:Name: a class (x_dim, z_dim and hidden are filled in where "
    "its constructor has them), a function, or a dotted name such as file.py:vae.model."
)
Program = Annotated[str, typer.Option(help=PROGRAM)]
OwnProgram = Annotated[str | None, typer.Option(help="path/to/file.py:Name, if the run used a file of your own.")]
Root = Annotated[str | None, typer.Option(help="Folder of the data; PPL_VAE_DATA or ~/.cache/ppl_vae if left out.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...; auto is a GPU if there is one.")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)]


def print_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from ppl_vae import __version__

        print(f"ppl-vae {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
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
    likelihood: Annotated[str, typer.Option(help="bernoulli, or gaussian with one learned scale.")] = "bernoulli",
    binarize: Annotated[
        str | None,
        typer.Option(help="threshold, static or dynamic; dynamic if left out and the likelihood needs zeros and ones."),
    ] = None,
    eval_particles: Annotated[int, typer.Option(min=1, help="K: draws per datum for the test log-likelihood.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seeds initial parameters, order, draws and binarization.")] = 0,
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
    from ppl_vae import jobs, runs

    job = jobs.Job(jobs.Settings(**settings), root, device)
    given = {name for name in settings if context.get_parameter_source(name).name == "COMMANDLINE"}
    if ignored := given & job.ignored():
        raise ValueError(f"{', '.join(sorted(ignored))}: neither program's constructor takes it; leave it out")
    folder = out or free_folder(Path("runs"), f"{Path(model).name.replace(':', '-')}-{data}-{objective}")
    try:
        trained = job.train(folder)
        evaluation = job.evaluate(eval_particles, seed)
    except KeyboardInterrupt:
        if leads():
            say(f"Stopped. The best parameters so far, if an epoch ended, are in {folder}")
        raise typer.Exit(130) from None
    if not leads():
        return
    runs.write_json(folder / runs.EVALUATION, evaluation.to_dict())
    job.draw_learning_curve(trained.history, folder)
    job.draw_reconstructions(folder)
    job.draw_samples(folder / "samples.png", 64, seed)
    report(job.title(), trained, evaluation, folder)
    own = [f"--{role}={spec}" for role, spec in (("model", model), ("guide", guide)) if ":" in spec]
    options = own + ([f"--root={root}"] if root else [])
    say("\nNext:  " + shlex.join(["ppl-vae", "evaluate", str(folder), "--particles", "5000", *options]))
    say("       " + shlex.join(["ppl-vae", "sample", str(folder), *options]))


@app.command()
def evaluate(
    run: Run,
    particles: Annotated[int, typer.Option(min=1, help="K: draws of the guide per datum.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seeds the draws.")] = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
) -> None:
    """Estimate the test log-likelihood of a finished run by importance sampling."""
    from ppl_vae import jobs, runs

    evaluation = jobs.Job.from_run(run, root, model, guide, device).evaluate(particles, seed)
    if not leads():
        return
    path = run / f"evaluation_K{particles}_seed{seed}.json"
    runs.write_json(path, evaluation.to_dict())
    say(str(evaluation))
    say(f"Written to {path}")


@app.command()
def sample(
    run: Run,
    n: Annotated[int, typer.Option(min=1, help="Number of draws.")] = 64,
    seed: Annotated[int, typer.Option(help="Seeds the draws.")] = 0,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Device = "auto",
    root: Root = None,
) -> None:
    """Draw from the prior of a finished run: a picture, and every site as an .npz file."""
    import numpy as np

    from ppl_vae import jobs, runs

    path = run / f"samples_n{n}_seed{seed}.png"
    draws = jobs.Job.from_run(run, root, model, guide, device).draw_samples(path, n, seed)
    arrays = {name: value.cpu().numpy() for name, value in draws.items()}
    runs.write_atomically(path.with_suffix(".npz"), lambda file: np.savez(file, **arrays))
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in arrays.items())
    say(f"Drew {shapes}\nWritten to {path} and {path.with_suffix('.npz')}")


@app.command(name="list")
def list_() -> None:
    """List models, guides, bounds and data sets."""
    from ppl_vae import data, objectives, zoo

    for kind in zoo.KINDS:
        listing(kind, {name: zoo.summary(program) for name, program in zoo.discover(kind).items()})
    listed = objectives.every() | objectives.estimators()
    listing("objectives", {n: f"{b.facts.formula}  ({b.facts.reference})" for n, b in listed.items()})
    listing("data sets", {name: data.describe(name) for name in data.names()})


def listing(title: str, rows: dict[str, str]) -> None:
    """Print names and what they are."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    for name, text in rows.items():
        table.add_row(name, Text(text))  # plain: brackets are no markup here
    console().print(table)
    console().print()


def report(title: str, trained: Any, evaluation: Any, folder: Path) -> None:
    """Print the short table at the end of a run."""
    from ppl_vae.evaluation import stated

    epochs, seconds = len(trained.history["epoch"]), trained.history["seconds"][-1]
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    how = ", compiled" if trained.graphs else ""
    table.add_row("training", f"{epochs} epoch{'s' * (epochs != 1)} in {seconds:.1f} s{how}")
    kept = trained.best
    table.add_row("kept", f"epoch {kept['epoch']}, bound {kept['bound']:.2f} nats per datum on the validation data")
    table.add_row("test ELBO", f"{float(evaluation.elbo.mean()):.2f} nats per datum")
    table.add_row("test log-likelihood", f"{evaluation.mean:.2f} ± {stated(evaluation.se, 2)} nats per datum")
    table.add_row(
        "", f"K = {evaluation.particles:,}, N = {len(evaluation):,}, Monte Carlo error {stated(evaluation.mc_se, 3)}"
    )
    table.add_row("not to be trusted", evaluation.verdict)
    table.add_row("run folder", str(folder))
    table.add_row("", ", ".join(sorted(path.name for path in folder.iterdir())))
    console().print(table)


def say(text: str) -> None:
    """Print a line as it is: not wrapped, so that it can be copied, and not styled."""
    console().print(text, highlight=False, markup=False, soft_wrap=True)


def console() -> Console:
    """Return the console for results; progress goes to standard error."""
    return Console()


def leads() -> bool:
    """Tell whether this process writes and prints: of several, the first."""
    return os.environ.get("RANK", "0") == "0"


def free_folder(parent: Path, name: str) -> Path:
    """Return the first of name, name-2, name-3, ... that does not exist yet."""
    number, folder = 1, parent / name
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def main() -> None:
    """Run the command line. What a person can mend is a line; what fails in their program is a traceback."""
    try:
        run()
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        if not (isinstance(error, OSError) or raised_here(error)):
            raise
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def run() -> None:
    """Run the command, together with the other processes if torchrun has started several."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        app()
        return
    from ppl_vae.parallel import launched

    with launched():
        app()


def raised_here(error: Exception) -> bool:
    """Tell whether this library raised an error, rather than something that it ran."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("ppl_vae")
