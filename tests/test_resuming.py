"""Runs that were stopped and gone on with, held bit for bit to runs that were not."""

import signal
import warnings
from unittest.mock import Mock

import pytest
from interrupted import RUNS, differences, run, state

from ppl_vae import compiling
from ppl_vae.svi import SVIStep


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_often_ends_as_one_that_was_not(name, tmp_path):
    assert run(RUNS[name], tmp_path / "whole")
    stops = [2, 4, 6, 5, 7]  # batches of each part but one, which is for a first look
    for seed, after in enumerate(stops):
        assert not run(RUNS[name], tmp_path / "parts", stop_after=after, seed=seed, resume=True)
    assert run(RUNS[name], tmp_path / "parts", seed=9, resume=True)
    assert differences(state(tmp_path / "parts"), state(tmp_path / "whole")) == []


@pytest.mark.parametrize("name", ["averaged", "scheduled", "alternating"])
def test_a_run_may_be_stopped_while_it_is_validated(name, tmp_path, monkeypatch):
    assert run(RUNS[name], tmp_path / "whole")
    bound, calls = SVIStep.bound, []

    def stopping(step, x):
        calls.append(1)
        if len(calls) in (1, 4, 6):  # the first batch of an epoch's, and the second of another's
            signal.raise_signal(signal.SIGINT)
        return bound(step, x)

    monkeypatch.setattr(SVIStep, "bound", stopping)
    monkeypatch.setattr(warnings, "warn", Mock(side_effect=AssertionError))  # say, of schedulers that step first
    for seed in range(3):
        assert not run(RUNS[name], tmp_path / "parts", seed=seed, resume=True)
    assert run(RUNS[name], tmp_path / "parts", seed=9, resume=True)
    assert differences(state(tmp_path / "parts"), state(tmp_path / "whole")) == []


def test_a_run_goes_on_with_the_graphs_that_it_had(tmp_path, monkeypatch, uncompiled):
    """An eager step, and a graph made for another number of rows, differ in rounding."""
    monkeypatch.setattr(compiling, "SECONDS_TO_COMPILE", 1e-3)
    made, add = [], compiling.Compiled._add
    monkeypatch.setattr(compiling.Compiled, "_add", lambda self, batch: made.append(len(batch[0])) or add(self, batch))
    eager, counted = [], compiling.Compiled._counted
    monkeypatch.setattr(
        compiling.Compiled, "_counted", lambda self, batch: eager.append(len(batch[0])) or counted(self, batch)
    )
    options = {"compile": "auto", "resume": True}
    assert not run(RUNS["plain"], tmp_path / "run", stop_after=4, **options)  # three batches of four rows are done
    assert (eager, made) == ([4], [4])
    assert run(RUNS["plain"], tmp_path / "run", **options)  # the next has two rows; validation is new
    # Graphs made for several rows do not serve for one, which is what is left of the validation data.
    assert (eager, made) == ([4, 4], [4, 4, 1, 4])
