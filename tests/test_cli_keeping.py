"""Nothing is overwritten unless it is said, and what stops a command is told."""

import shutil
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest
from commands import run

from ppl_vae import jobs

FAST = ["--epochs", "1", "--hidden", "8", "--z-dim", "2", "--eval-particles", "10", "--compile", "false"]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A finished run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("first"))
        assert run(monkeypatch, "fit", *FAST, "--out", "run") == 0
        return Path("run").resolve()


@pytest.fixture
def finished(first_run, tmp_path):
    shutil.copytree(first_run, tmp_path / "run")
    return tmp_path / "run"


COMMANDS = {
    "sample": (["sample", "run", "--n", "4"], ["samples_n4_seed0.npz", "samples_n4_seed0.png"]),
    "draw": (["draw", "run", "reconstructions", "traversals"], ["reconstructions.png", "traversals.png"]),
    "ais": (
        ["ais", "run", "--rows", "4", "--distributions", "3", "--chains", "2"],
        ["ais_T3_K2_L10_prior_N4_seed0.json"],
    ),
    "surgery": (["surgery", "run", "--rows", "20"], ["surgery_N20_K2_seed0.json"]),
    "quality": (["quality", "run", "--rows", "30", "--no-features"], ["quality_numbers_N30_seed0.json"]),
    "report": (["report", "run"], ["report.html"]),
    "evaluate": (["evaluate", "run", "--particles", "5"], ["evaluation_K5_seed0.json", "evaluation_K5_seed0.nc"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_there_is_kept_unless_it_is_to_be_made_anew(monkeypatch, finished, capsys, name):
    command, files = COMMANDS[name]
    for file in files:
        (finished / file).write_text("kept")
    assert run(monkeypatch, *command) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    for file in files:
        assert (finished / file).read_text() == "kept"
        assert f"Kept run/{file}, already there; --overwrite makes it anew" in told
    assert run(monkeypatch, *command, "--overwrite") == 0
    assert all((finished / file).read_bytes() != b"kept" for file in files)
    assert not [f for f in files if f"Kept run/{f}" in capsys.readouterr().out]


SLOW = {
    "sample": "ppl_vae.jobs.Job.sample",
    "draw": "ppl_vae.jobs.Job.draw",
    "ais": "ppl_vae.annealing.ais",
    "surgery": "ppl_vae.surgery.elbo_surgery",
    "quality": "ppl_vae.jobs.Job.sample",
    "report": "ppl_vae.jobs.Job.report",
}


@pytest.mark.parametrize("name", SLOW)
def test_what_is_kept_is_not_computed(monkeypatch, finished, name):
    command, files = COMMANDS[name]
    for file in files:
        (finished / file).write_text("kept")
    monkeypatch.setattr(SLOW[name], Mock(side_effect=AssertionError("computed")))
    assert run(monkeypatch, *command) == 0


def test_evaluate_keeps_the_report_and_says_how_to_write_it(monkeypatch, finished, capsys):
    before = (finished / "report.html").read_bytes()
    assert run(monkeypatch, "evaluate", "run", "--particles", "5") == 0
    told = capsys.readouterr().out
    assert "Kept run/report.html, already there; ppl-vae report run --overwrite" in told
    assert "Written to run/evaluation_K5_seed0.pt, run/evaluation_K5_seed0.json" in told
    assert (finished / "report.html").read_bytes() == before


def test_an_evaluation_made_anew_is_drawn_again(monkeypatch, finished):
    draw = Mock(wraps=jobs.evaluate)
    monkeypatch.setattr(jobs, "evaluate", draw)
    record = finished / "evaluation_K10_seed0.pt"
    there = []
    monkeypatch.setattr(
        jobs, "evaluate", lambda *args, **options: there.append(record.exists()) or draw(*args, **options)
    )
    assert run(monkeypatch, "evaluate", "run", "--particles", "10") == 0
    assert run(monkeypatch, "evaluate", "run", "--particles", "10", "--overwrite") == 0
    assert there == [True, False]
    assert record.exists()


def test_runs_are_not_compared_into_a_folder_of_something_else(monkeypatch, finished, capsys):
    monkeypatch.setattr(jobs, "compared", Mock(side_effect=AssertionError("compared")))
    assert run(monkeypatch, "compare", "run", "other", "--out", "run") == 1
    assert "out: run exists and is not an empty folder" in capsys.readouterr().err


def test_a_run_in_the_way_is_told_before_data_are_loaded(monkeypatch, finished, capsys):
    monkeypatch.setattr(jobs, "load", Mock(side_effect=AssertionError("loaded")))
    assert run(monkeypatch, "fit", *FAST, "--out", "run") == 1
    assert "go on with it (ppl-vae resume), replace it (--overwrite) or choose another" in capsys.readouterr().err


def test_what_is_to_be_replaced_is_named(monkeypatch, capsys):
    assert run(monkeypatch, "fit", *FAST, "--overwrite") == 1
    assert "overwrite: name the run that is to be replaced, with --out" in capsys.readouterr().err


def test_a_finished_run_is_not_gone_on_with(monkeypatch, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    monkeypatch.setattr(jobs, "fit", Mock(side_effect=AssertionError("trained")))
    assert run(monkeypatch, "resume", "run") == 0
    assert "run: this run is finished; there is nothing to go on with" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_runs_that_cannot_be_gone_on_with_are_told(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "resume", "nowhere") == 1
    assert "nowhere: not a finished run (it has no config.toml)" in capsys.readouterr().err
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "config.toml").write_text('objective = "elbo"\n')
    assert run(monkeypatch, "resume", "python") == 1
    assert "python: made by pv.fit, not by ppl-vae fit; go on in Python" in capsys.readouterr().err
    (tmp_path / "python" / "config.toml").write_text('data = "digits"\nmodel = "own.py:Model"\n')
    assert run(monkeypatch, "resume", "python") == 1
    assert "this run used 'own.py:Model' (in python); name it again with --model FILE:Name" in capsys.readouterr().err


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
STAGES = {"data": "ppl_vae.jobs.load", "evaluation": "ppl_vae.jobs.evaluate", "pictures": "ppl_vae.jobs.Job.draw"}


def sent(number):
    """Return a function that is stopped by a signal."""

    def stopped(*args, **options):
        signal.raise_signal(number)
        raise AssertionError("not stopped")

    return stopped


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("stage", STAGES)
def test_signals_end_a_run_in_words_at_every_stage(monkeypatch, capsys, tmp_path, number, stage):
    monkeypatch.setattr(STAGES[stage], sent(number))
    before = signal.getsignal(signal.SIGTERM)
    assert run(monkeypatch, "fit", *FAST, "--out", "run") == SIGNALS[number]
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    if stage == "data":
        assert printed.out == "Stopped before training; nothing was written.\n"
        assert not (tmp_path / "run").exists()
    else:
        words = "Stopped. What is finished of the run is in run; go on with:  ppl-vae resume run\n"
        assert printed.out == words
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("name", ["draw", "ais", "surgery"])
def test_signals_end_other_commands_in_words(monkeypatch, finished, capsys, name):
    command, _ = COMMANDS[name]
    monkeypatch.setattr(SLOW[name], sent(signal.SIGTERM))
    assert run(monkeypatch, *command, "--overwrite") == 143
    assert capsys.readouterr().out.startswith("Stopped; ")


def test_the_way_to_go_on_names_programs_and_data(monkeypatch, capsys, tmp_path):
    (tmp_path / "own.py").write_text("from ppl_vae.models.vae import VAE\n")
    monkeypatch.setattr(jobs.Job, "evaluate", sent(signal.SIGINT))
    asked = [*FAST, "--model", "own.py:VAE", "--root", "my data", "--out", "a run"]
    assert run(monkeypatch, "fit", *asked) == 130
    assert "go on with:  ppl-vae resume 'a run' --model=own.py:VAE '--root=my data'" in capsys.readouterr().out
