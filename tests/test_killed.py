"""Runs that were killed, and gone on with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from interrupted import RUNS

HERE = Path(__file__).parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_runs_killed_at_their_most_delicate_moments_end_as_those_that_were_not(tmp_path):
    command = [sys.executable, HERE / "killed.py", tmp_path, *RUNS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: run["differences"] for name, run in found.items()} == {name: [] for name in found}
    assert all(found[name]["kills"] for name in (*RUNS, "evaluation"))  # a clock may be late on a busy machine
    assert sum(run["kills"] for run in found.values()) >= 30
