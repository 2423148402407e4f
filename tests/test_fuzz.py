"""Generated programs: right ones agree with loops, wrong ones raise the right error and change nothing.

More of the same: ``python -m benchmarks.fuzz``.
"""

import fuzz_laws as laws
import fuzz_refusals as refusals
import fuzzing
import pytest
import spoiling
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ppl_vae as pv


def quick(examples):
    return settings(derandomize=True, deadline=None, database=None, max_examples=examples)


@pytest.mark.parametrize("law", laws.LAWS)
def test_right_programs(law):
    @quick(laws.EXAMPLES[law])
    @given(fuzzing.descriptions(**laws.OPTIONS.get(law, {})))
    def holds(description):
        laws.LAWS[law](description)

    holds()


@pytest.mark.parametrize("way", spoiling.WAYS)
def test_wrong_programs(way, tmp_path):
    """Generated ones, and one to which every way applies, so that none goes quietly unused."""
    for which, verb in enumerate(refusals.VERBS):
        simple = map(spoiling.simple, ("Normal", "Gamma"))  # any number is a datum of the first
        assert any(refusals.refused(way, description, which, verb, tmp_path) for description in simple)

    @quick(4)
    @given(fuzzing.descriptions(scaled=False), st.integers(0, 60), st.sampled_from(sorted(refusals.VERBS)))
    def refused(description, which, verb):
        refusals.refused(way, description, which, verb, tmp_path)

    refused()


@quick(15)
@given(fuzzing.descriptions(scaled=False), st.sampled_from([torch.int64, torch.bool, torch.uint8, torch.complex64]))
def test_data_of_whole_numbers_are_computed_with_or_refused(description, kind):
    refusals.whole_numbers(description, kind)


CALLS = [
    *(("particles", verb) for verb in (pv.weigh, pv.fit, pv.evaluate)),
    *(("batch_size", verb) for verb in (pv.fit, pv.evaluate)),
    ("epochs", pv.fit),
    ("chunk", pv.evaluate),
]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None, float("nan")], ids=repr)
@pytest.mark.parametrize(("name", "verb"), CALLS, ids=lambda part: getattr(part, "__name__", part))
def test_numbers_of_things_are_whole(name, verb, value):
    description = spoiling.simple()
    model, guide = fuzzing.pair(description)
    with refusals.unmoved(model, guide), pytest.raises(ValueError, match=f"^{name}: expected a whole number"):
        verb(model, guide, fuzzing.data_of(description), **{name: value})


@pytest.mark.parametrize("seed", [1.5, True, "3", None, 2**63, -(2**64)], ids=repr)
@pytest.mark.parametrize("verb", [pv.fit, pv.evaluate], ids=["fit", "evaluate"])
def test_seeds_have_64_bits(verb, seed):
    description = spoiling.simple()
    model, guide = fuzzing.pair(description)
    with refusals.unmoved(model, guide), pytest.raises(ValueError, match=r"^seed: expected a whole number of 64 bits"):
        verb(model, guide, fuzzing.data_of(description), seed=seed)
