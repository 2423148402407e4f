"""``ppl-vae list`` and ``ppl-vae pairs``."""

import warnings
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ppl_vae.cli_shared import console, say

__all__ = ["list_", "pairs"]


def list_() -> None:
    """List models, guides, bounds and data sets."""
    from ppl_vae import choices, data, objectives, zoo

    for kind in zoo.KINDS:
        listing(kind, {name: zoo.summary(program) for name, program in zoo.discover(kind).items()})
    listed = objectives.every() | objectives.estimators()
    listing("objectives", {n: f"{b.facts.formula}  ({b.facts.reference})" for n, b in listed.items()})
    for part, parts in (("likelihoods", choices.LIKELIHOODS), ("priors", choices.PRIORS)):
        listing(part, {name: summary_of(made) for name, made in parts.items()})
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
