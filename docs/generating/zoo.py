"""A page for each program of the zoo: its process, symbols, graph, picture, partners, and its constructor."""

import inspect
import re
from functools import cache
from typing import Any

from docs.generating import graphs, results
from docs.generating.docstrings import Docstring, taken_apart
from docs.generating.formulas import display
from docs.generating.writing import DOCS, ROOT, Pages, directive, table, toctree
from ppl_vae import zoo

KINDS = {"models": "Models", "guides": "Guides"}
INTRODUCTIONS = {
    "models": (
        "A model is a Pyro program that generates data. Each page has its generative process, its sites, its graph and "
        "a picture, says which guides fit it, and which objectives train the two."
    ),
    "guides": (
        "A guide is a Pyro program that draws the latents given the data. Each page has the family of posteriors, the "
        "sites that it draws, its graph, a picture, and the models that it fits."
    ),
}


def write(pages: Pages) -> None:
    """Write the pages of all programs and the lists of both kinds."""
    for kind, heading in KINDS.items():
        programs = {name: described(zoo.discover(kind)[name]) for name in in_order(kind)}
        for name, program in zoo.discover(kind).items():
            pages.write(f"zoo/{kind}/{name}.md", page(kind, name, program))
        rows = [(f"[`{name}`]({kind}/{name}.md)", doc.summary) for name, doc in programs.items()]
        contents = toctree([f"{name} <{kind}/{name}>" for name in programs], hidden="", maxdepth="1")
        listed = f"# {heading}\n\n{INTRODUCTIONS[kind]}\n\n{table((kind[:-1], 'what it is'), rows)}\n\n{contents}"
        pages.write(f"zoo/{kind}.md", listed)


def in_order(kind: str) -> list[str]:
    """Return the names of all programs of a kind in the order of README's tables, which has like beside like.

    Raises:
        ValueError: README has another set of them.

    Example:
        >>> in_order("models")[:3]
        ['vae', 'hierarchical', 'gmvae']
    """
    rows = re.search(rf"^\| in \[`{kind}/`\].*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    names = [name for row in rows.strip().splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    if wrong := {*names} ^ {*zoo.discover(kind)}:
        raise ValueError(f"README.md: these {kind} are in one of its table and the folder: {', '.join(sorted(wrong))}")
    return names


@cache
def described(program: type) -> Docstring:
    """Return what the file of a program says of it."""
    return taken_apart(inspect.getdoc(inspect.getmodule(program)) or "")


def page(kind: str, name: str, program: type) -> str:
    """Return the page of a program.

    Raises:
        ValueError: its docstring lacks the process or the symbols, or it has no picture or no graph of today.
    """
    doc = described(program)
    missing = [part for part in ("process", "symbols", "reference", "example") if not getattr(doc, part)]
    if missing and name != "empty":  # which draws nothing
        raise ValueError(f"{kind}/{name}.py: its docstring has no {', no '.join(missing)}")
    parts = [
        f"# {doc.title}",
        f"`ppl_vae.{kind}.{name}.{program.__name__}`",
        doc.summary,
        *process(doc),
        *doc.remarks,
        *pictures(kind, name),
        *partners(kind, name),
        f"## Constructor and methods\n\n{constructor(kind, name, program)}",
        f"## Example\n\n```pycon\n{doc.example}\n```",
        f"## Reference\n\n{doc.reference}",
    ]
    return "\n\n".join(parts)


def process(doc: Docstring) -> list[str]:
    """Return the generative process as a formula, and the table of symbols."""
    if not doc.process:
        return doc.said
    heading, _, rest = doc.heading.partition(",")
    first = f"{rest.strip().capitalize()}:" if rest else ""
    parts = [f"## {heading}", first, display(doc.process), *doc.said, doc.symbols]
    return [part for part in parts if part]


def pictures(kind: str, name: str) -> list[str]:
    """Return the graph of a program and its picture.

    Raises:
        ValueError: one is missing, or the graph is that of an earlier program.
    """
    graph = graphs.checked(kind, name)
    picture = DOCS / "zoo" / "pictures" / f"{kind}-{name}.png"
    if not picture.is_file():
        raise ValueError(f"{picture.name}: no such picture; make it: python -m docs.generating.pictures {kind}/{name}")
    caption = picture.with_suffix(".txt").read_text().strip()
    drawn = directive("image", "", f"/zoo/graphs/{graph.name}", alt=f"Graphical model of {name}", class_="graph")
    shown = directive("figure", caption, f"/zoo/pictures/{picture.name}", alt=caption, class_="picture")
    note = "Shaded sites are observed; a plate repeats what is in it for each datum."
    if "~ Data" in graph.with_suffix(".dot").read_text():
        note += " `Data` are given to the program, which does not generate them."
    return [f"## Graph\n\n{drawn}\n\n{note}", f"## Picture\n\n{shown}"]


def partners(kind: str, name: str) -> list[str]:
    """Return the table of the programs that fit, with the objectives that do not train the two."""
    found = results.applicability()
    of, other = (0, 1) if kind == "models" else (1, 0)
    pairs = {names[other]: reasons for names, reasons in found.items() if names[of] == name}
    heading = "Guides that fit" if kind == "models" else "Models that it fits"
    if not pairs:
        return [f"## {heading}\n\n{ELSEWHERE[kind]}"]
    their = "guides" if kind == "models" else "models"
    rows = [(f"[`{partner}`](../{their}/{partner}.md)", objections(reasons)) for partner, reasons in pairs.items()]
    return [f"## {heading}\n\n" + table((their[:-1], "objectives that do not train the two"), rows)]


ELSEWHERE = {
    "models": (
        "None: its latents are shared by all data. `pv.cavi` and `pv.em` fit it, and the parameters of its posterior "
        "take the place of a guide."
    ),
    "guides": "It has no density, so that it is trained by `pv.adversarial_step`, with any model of its latents.",
}


def objections(reasons: dict[str, list[str]]) -> str:
    """Say which objectives do not train a pair, and why."""
    said = [f"{', '.join(results.link(name) for name in names)}: {reason}" for reason, names in reasons.items()]
    return "; ".join(said) or "none"


def constructor(kind: str, name: str, program: Any) -> str:
    """Return the entry of a program's class in the API reference."""
    lines = f".. autoclass:: ppl_vae.{kind}.{name}.{program.__name__}\n   :members:\n   :exclude-members: forward"
    return directive("eval-rst", lines)
