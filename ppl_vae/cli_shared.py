"""What the commands have in common: the application, options that several take, and how they speak."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["app", "checked_seed", "console", "free_folder", "leads", "say", "stoppable", "table"]

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


def checked_seed(seed: int | None) -> int | None:
    """Return a seed if torch can take it."""
    from ppl_vae.arguments import whole_seed

    try:
        return seed if seed is None else whole_seed(seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


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


@contextmanager
def stoppable(words: str) -> Iterator[None]:
    """Say what is left when a person stops a command, and end with the status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        if leads():
            say(words)
        raise typer.Exit(130) from None


def table(title: str) -> Table:
    """Return a table of names and what they are."""
    made = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    made.add_column(style="cyan", no_wrap=True)
    made.add_column(overflow="fold")
    return made
