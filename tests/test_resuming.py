"""Runs that were stopped and gone on with, held bit for bit to runs that were not."""

import pytest
from interrupted import RUNS, differences, run, state


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_often_ends_as_one_that_was_not(name, tmp_path):
    assert run(RUNS[name], tmp_path / "whole")
    stops = [2, 4, 6, 5, 7]  # batches of each part but one, which is for a first look
    for seed, after in enumerate(stops):
        assert not run(RUNS[name], tmp_path / "parts", stop_after=after, seed=seed, resume=True)
    assert run(RUNS[name], tmp_path / "parts", seed=9, resume=True)
    assert differences(state(tmp_path / "parts"), state(tmp_path / "whole")) == []
