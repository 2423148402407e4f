"""Tables that the repository keeps, read back from its Markdown: which objectives train which pairs, what was measured."""

import re
from functools import cache

from docs.generating.writing import ROOT

Names = tuple[str, str]
Reasons = dict[str, list[str]]


@cache
def applicability() -> dict[Names, Reasons]:
    """Return, by pair, the reasons why some objectives do not train it, each with these objectives.

    `ppl-vae pairs` takes a minute to find this, so it is read from the table of it in ``models/README.md``.

    Example:
        >>> applicability()["sigmoid_belief_network", "bernoulli"]
        {'a site is drawn without reparameterisation, which dreg needs': ['dreg']}
    """
    text = (ROOT / "models" / "README.md").read_text()
    letters = dict(re.findall(r"^\((\w)\) (.+)$", text, re.MULTILINE))
    heading, _, *rows = re.search(r"^\| model \| guide \|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)[0].splitlines()
    columns = [re.findall(r"`(\w+)`", cell) for cell in cells(heading)[2:]]
    found: dict[Names, Reasons] = {}
    for row in rows:
        model, guide, *marks = (cell.strip("`") for cell in cells(row))
        of_pair = found.setdefault((model, guide), {})
        for names, mark in zip(columns, marks, strict=True):
            if mark != "x":
                of_pair.setdefault(letters[mark], []).extend(names)
    return found


def cells(row: str) -> list[str]:
    """Return the cells of a row of a Markdown table."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def link(name: str) -> str:
    """Return a link from anywhere to the page of an objective."""
    return f"[`{name}`](/_generated/objectives/{name}.md)"


def program(kind: str, name: str) -> str:
    """Return a link from anywhere to the page of a program."""
    return f"[`{name}`](/_generated/zoo/{kind}/{name}.md)"
