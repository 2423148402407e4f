"""Every pair with every objective: what trains it does, and what cannot says why, as the table of the zoo has it."""

import every
import pairs
import pytest

from ppl_vae import applicability

NAMES = pairs.names()

# Fewer combinations mean that something has come to be refused.
TRAINED_AT_LEAST = 1


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_an_objective_is_refused_where_mathematics_refuses_it_and_nowhere_else(names):
    pair = pairs.make(*names)
    for name in every.NAMES:
        found, expected = applicability.reason_against(name, pair), every.refusal(name, pair)
        assert (found is None) == (expected is None), f"{name}: {found or expected}"


def test_most_combinations_train():
    made = {names: pairs.make(*names) for names in NAMES}
    trained = sum(every.refusal(name, pair) is None for pair in made.values() for name in every.NAMES)
    assert trained >= TRAINED_AT_LEAST
