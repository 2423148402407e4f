"""``ppl-vae fit`` and ``ppl-vae resume``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ppl_vae.cli_shared import PROGRAM, OwnProgram, Root, Run, checked_seed, stoppable

__all__ = ["fit", "resume"]

programs = partial(typer.Option, rich_help_panel="Programs and data")
bound = partial(typer.Option, rich_help_panel="Objective")
optimisation = partial(typer.Option, rich_help_panel="Optimisation")
run_folder = partial(typer.Option, rich_help_panel="Run")
machine = partial(typer.Option, rich_help_panel="Machine")


def fit(
    context: typer.Context,
    model: Annotated[str, programs(help=PROGRAM)] = "vae",
    guide: Annotated[str, programs(help=PROGRAM)] = "normal",
    data: Annotated[str, programs(help="Data set; see [bold]ppl-vae list[/].")] = "digits",
    binarize: Annotated[
        str | None,
        programs(help="threshold, static or dynamic; dynamic if left out and the likelihood needs zeros and ones."),
    ] = None,
    likelihood: Annotated[
        str | None, programs(help="Of pixels; see [bold]ppl-vae list[/]; the model's own if left out.")
    ] = None,
    prior: Annotated[
        str | None, programs(help="Of latent vectors; see [bold]ppl-vae list[/]; the model's own if left out.")
    ] = None,
    z_dim: Annotated[int, programs(min=1, help="Latent dimensions.")] = 20,
    hidden: Annotated[int, programs(min=1, help="Width of the hidden layer of decoder and encoder.")] = 200,
    root: Annotated[
        str | None, programs(help="Folder of the data; PPL_VAE_DATA or ~/.cache/ppl_vae if left out.")
    ] = None,
    objective: Annotated[str, bound(help="Bound to train on; see [bold]ppl-vae list[/].")] = "elbo",
    particles: Annotated[int, bound(min=1, help="K: draws of the guide per datum in training.")] = 1,
    warm_up: Annotated[
        int | None, bound(min=1, help="Epochs in which the weight of the ELBO's KL divergence rises from 0 to 1.")
    ] = None,
    warm_up_cycles: Annotated[
        int | None,
        bound(
            min=1,
            help="Let it rise so often, in the first half of each cycle (Fu et al. 2019); over all epochs "
            "if --warm-up is left out.",
        ),
    ] = None,
    free_bits: Annotated[
        float | None, bound(min=0, help="Nats that each latent of a datum may cost for nothing, for the ELBO.")
    ] = None,
    eval_particles: Annotated[int, bound(min=1, help="K: draws per datum for the test log-likelihood.")] = 1000,
    epochs: Annotated[int, optimisation(min=1, help="Passes over the training data.")] = 200,
    batch_size: Annotated[int, optimisation(min=1, help="Data per step.")] = 64,
    learning_rate: Annotated[float, optimisation(help="Adam's step size.")] = 1e-3,
    lr_schedule: Annotated[
        str,
        optimisation(
            help="Of the step size, epoch by epoch: cosine (to zero), step (a tenth after each third), "
            "plateau (halved after 10 epochs without a better validation bound), one_cycle, or none."
        ),
    ] = "none",
    clip_norm: Annotated[float | None, optimisation(help="Largest norm of the gradient; none if left out.")] = None,
    accumulate: Annotated[int, optimisation(min=1, help="Batches for one update.")] = 1,
    ema: Annotated[
        float | None, optimisation(help="Keep averages of the parameters that decay so, such as 0.999.")
    ] = None,
    patience: Annotated[
        int | None, optimisation(min=1, help="Stop after so many epochs without a better validation bound.")
    ] = None,
    on_fault: Annotated[
        str, optimisation(help="When a bound or gradient is no number: stop, skip the batch, or back-off.")
    ] = "stop",
    config: Annotated[
        Path | None,
        run_folder(help="TOML file of these options, such as the config.toml of a run; those given here come first."),
    ] = None,
    seed: Annotated[
        int, run_folder(callback=checked_seed, help="Seeds initial parameters, order, draws and binarization.")
    ] = 0,
    seeds: Annotated[
        int | None, run_folder(min=2, help="Train with so many seeds, from --seed on, and say how results vary.")
    ] = None,
    out: Annotated[Path | None, run_folder(help="New folder for the run; a free one under runs/ if left out.")] = None,
    overwrite: Annotated[bool, run_folder("--overwrite", help="Replace the run that is in --out.")] = False,
    tensorboard: Annotated[bool, run_folder(help="Write each epoch for TensorBoard too, into the run folder.")] = False,
    device: Annotated[
        str, machine(help="Where to compute: cpu, cuda, cuda:1, ...; auto is a GPU if there is one.")
    ] = "auto",
    compile: Annotated[  # noqa: A002 - the public name
        str, machine(help="true, false, or auto: compile steps and evaluation where that saves time.")
    ] = "auto",
    precision: Annotated[str, machine(help="float32, or bfloat16 for matrix products in mixed precision.")] = "float32",
) -> None:
    """Train a model with a guide, evaluate it on the test data, and leave a run folder.

    A run that was interrupted goes on by [bold]ppl-vae resume[/].
    """
    options = {name: value for name, value in locals().items() if name not in ("context", "config", "overwrite")}
    given = {n: v for n, v in options.items() if context.get_parameter_source(n).name == "COMMANDLINE"}
    with stoppable("Stopped before the run began; nothing was written."):
        from ppl_vae import cli_running

        plan = cli_running.Plan.of(config, given, overwrite)
    cli_running.start(plan)


def resume(
    run: Run,
    model: OwnProgram = None,
    guide: OwnProgram = None,
    device: Annotated[str | None, typer.Option(help="Where to compute; where the run did, if left out.")] = None,
    root: Root = None,
) -> None:
    """Go on with an interrupted run, or with the first unfinished one of several seeds, to its end and report."""
    with stoppable(f"Stopped; {run} is as it was."):
        from ppl_vae import cli_running
    cli_running.go_on(run, model, guide, device, root)
