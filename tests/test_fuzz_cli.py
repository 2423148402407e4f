"""The command line, given bad arguments and bad files: a usage error or one line, and nothing changed."""

import subprocess
import sys
from unittest.mock import Mock

import fuzzing_cli as fuzz
import pytest
from hypothesis import given, settings

from ppl_vae import jobs

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=60)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    fuzz.prepare(folder)
    return folder


@QUICK
@given(arguments=fuzz.bad_fits())
def test_bad_options_are_refused(made, arguments):
    fuzz.assert_refused(fuzz.attempt(arguments, made))


@QUICK
@given(spoilt=fuzz.spoilt_runs())
def test_spoilt_runs_are_refused(made, tmp_path_factory, spoilt):
    _, spoil, command = spoilt
    folder = fuzz.copied(made, tmp_path_factory.getbasetemp() / "spoilt")
    spoil(folder / "run")
    fuzz.assert_refused(fuzz.attempt(command, folder))


@pytest.mark.parametrize("seed", ["9223372036854775808", "-18446744073709551616"])
@pytest.mark.parametrize(
    "command", [fuzz.MAKE, ["sample", "run"], ["draw", "run"], ["compare", "run"]], ids=lambda c: c[0]
)
def test_seeds_that_torch_cannot_take_are_refused_before_any_work(made, command, seed):
    found = fuzz.attempt([*command, "--seed", seed], made)
    fuzz.assert_refused(found)
    assert found.code == 2
    assert "64" in found.err


def test_too_little_memory_is_a_line(made, monkeypatch):
    words = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
    monkeypatch.setattr(jobs.Job, "__init__", Mock(side_effect=RuntimeError(words)))  # as torch says it
    found = fuzz.attempt([*fuzz.MAKE, "--z-dim", "1", "--hidden", "1000000000"], made)
    fuzz.assert_refused(found)
    assert "there is not enough memory" in found.err


def test_a_file_that_is_no_python_keeps_its_traceback(made, tmp_path):
    """It is the person's own program that fails."""
    (tmp_path / "broken.py").write_text("def model(x:\n    pass\n")
    found = fuzz.attempt([*fuzz.MAKE, "--model", "broken.py:model"], tmp_path)
    assert "SyntaxError" in found.traceback
    assert "broken.py" in found.traceback


def test_the_command_itself_says_so_in_a_line(made, tmp_path):
    """Not only `main` in this process."""
    folder = fuzz.copied(made, tmp_path / "copy")
    (folder / "run" / "config.toml").write_bytes(b"\xff\xfe rubbish")
    done = subprocess.run(
        [sys.executable, "-m", "ppl_vae", "evaluate", "run"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: run/config.toml: not the settings of a run")
