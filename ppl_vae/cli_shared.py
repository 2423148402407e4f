"""What the commands have in common: the application, options that several take, and how they speak."""

import os
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

__all__ = [
    "app",
    "check_free",
    "checked_seed",
    "console",
    "free_folder",
    "kept",
    "leads",
    "next_command",
    "note",
    "say",
    "stoppable",
    "table",
]

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
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make anew what is there already.")]
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


def note(text: str) -> None:
    """Print a line that is no result: to standard error, once for all processes."""
    if leads():
        Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


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


def check_free(folder: Path, repair: str = "choose another name or remove it") -> None:
    """Raise if something is in the way of a new folder, before anything is computed for it.

    Raises:
        FileExistsError: likewise.
    """
    if folder.exists() and (not folder.is_dir() or any(path.name != ".lock" for path in folder.iterdir())):
        raise FileExistsError(f"out: {folder} exists and is not an empty folder; {repair}")


def kept(path: Path, overwrite: bool, repair: str = "--overwrite makes it anew") -> bool:
    """Tell whether a file is there already and stays, and say so."""
    if overwrite or not path.exists():
        return False
    if leads():
        say(f"Kept {path}, already there; {repair}")
    return True


def next_command(command: str, run: Path, own: dict[str, str | None], *options: str) -> str:
    """Return a command on a run, as a person types it: with the programs and the place of data that it cannot know."""
    return shlex.join(
        ["ppl-vae", command, str(run), *options, *(f"--{name}={value}" for name, value in own.items() if value)]
    )


@contextmanager
def stoppable(words: str | Callable[[], str]) -> Iterator[None]:
    """Say what is left when Ctrl-C or SIGTERM stops a command, and end with the status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        status = 130
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        status = stop.code
    else:
        return
    if leads():
        say(words if isinstance(words, str) else words())
    raise typer.Exit(status)


def table(title: str) -> Table:
    """Return a table of names and what they are."""
    made = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    made.add_column(style="cyan", no_wrap=True)
    made.add_column(overflow="fold")
    return made
