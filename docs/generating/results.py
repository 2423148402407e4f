"""Which objectives train which pairs, read back from the table that the repository keeps."""

import re
from functools import cache

from docs.generating.writing import ROOT, table
from ppl_vae import objectives

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


PAIRS = """# Which pairs, which objectives

A guide fits a model when it draws what the model leaves latent: the same names, shapes and supports. Any of these pairs
can be weighed, evaluated and trained. `ppl-vae pairs` finds them by running all of them, and prints this table: a check
mark where an objective trains a pair, a letter where mathematics has a reason against it.

Models whose latents are shared by all data ([`bayesian_gaussian_mixture`](zoo/models/bayesian_gaussian_mixture.md) and
others) are for `pv.cavi` and `pv.em`; the guide [`implicit`](zoo/guides/implicit.md), which has no density, is trained
by `pv.adversarial_step`."""


def pairs() -> str:
    """Return the page of pairs and objectives; those objectives that stand alike with all pairs share a column."""
    found = applicability()
    marks = {
        reason: chr(ord("a") + i) for i, reason in enumerate(dict.fromkeys(r for row in found.values() for r in row))
    }
    columns: dict[tuple[str, ...], list[str]] = {}
    for name in (*objectives.every(), *objectives.estimators()):
        column = tuple(next((marks[why] for why, names in row.items() if name in names), "x") for row in found.values())
        columns.setdefault(column, []).append(name)
    legend = [f"{i}. {', '.join(link(name) for name in names)}" for i, names in enumerate(columns.values(), start=1)]
    rows = [
        (program("models", model), program("guides", guide), *(column[row].replace("x", "✓") for column in columns))
        for row, (model, guide) in enumerate(found)
    ]
    headings = ("model", "guide", *(str(i) for i in range(1, len(columns) + 1)))
    reasons = [f"({mark}) {reason}" for reason, mark in marks.items()]
    said = "Each column groups objectives that train the same pairs (`EUBO` once it is given draws of the posterior):"
    return "\n\n".join([PAIRS, said, "\n".join(legend), table(headings, rows), "Reasons:", "\\\n".join(reasons)])


def cells(row: str) -> list[str]:
    """Return the cells of a row of a Markdown table."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def link(name: str) -> str:
    """Return a link from anywhere to the page of an objective."""
    return f"[`{name}`](/_generated/objectives/{name}.md)"


def program(kind: str, name: str) -> str:
    """Return a link from anywhere to the page of a program."""
    return f"[`{name}`](/_generated/zoo/{kind}/{name}.md)"
