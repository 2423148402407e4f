"""Every pair with every objective: what trains it does, and what cannot says why, as the table of the zoo has it."""

import re

import every
import pairs
import pytest

from ppl_vae import applicability

NAMES = pairs.names()
TABLE = (pairs.ROOT / "models" / "README.md").read_text().partition("\n## ")[0]

# Fewer combinations mean that something has come to be refused.
TRAINED_AT_LEAST = 1660


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_an_objective_is_refused_where_mathematics_refuses_it_and_nowhere_else(names):
    pair = pairs.make(*names)
    for name in every.NAMES:
        found, expected = applicability.reason_against(name, pair), every.refusal(name, pair)
        assert (found is None) == (expected is None), f"{name}: {found or expected}"


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def documented():
    """Return, for each pair in the table, the objectives that it says cannot train it."""
    header, _, *rows = [line for line in TABLE.splitlines() if line.startswith("|")]
    columns = [re.findall(r"`(\w+)`", cell) for cell in cells(header)[2:]]
    found = {}
    for row in rows:
        model, guide, *marks = cells(row)
        blanks = [names for names, mark in zip(columns, marks, strict=True) if mark != "x"]
        found[model.strip("`"), guide.strip("`")] = {name for names in blanks for name in names}
    return found


def test_the_table_of_the_zoo_is_true():
    refused = {n: {o for o in every.NAMES if every.refusal(o, pairs.make(*n))} for n in NAMES}
    assert documented() == refused, "make it anew: ppl-vae pairs"


def test_the_table_gives_a_reason_for_each_blank():
    marks = {mark for line in TABLE.splitlines() if line.startswith("| `") for mark in cells(line)[2:]} - {"x"}
    assert marks == set(re.findall(r"^\((\w)\) \w", TABLE, re.MULTILINE))


def test_most_combinations_train():
    assert sum(len(every.NAMES) - len(refused) for refused in documented().values()) >= TRAINED_AT_LEAST
