"""Runs that were interrupted go on to the end that they would have come to; runs are replaced where it is said."""

import json
import os
import signal
from unittest.mock import Mock

import pytest
import torch
from commands import run

import ppl_vae as pv
from ppl_vae import callbacks, jobs, repeating, runs

FAST = ["--epochs", "4", "--hidden", "8", "--z-dim", "2", "--eval-particles", "10", "--compile", "false"]


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    """Leave out pictures, reports and files for ArviZ, which take most of the time of so short a run."""
    for name in ("draw", "draw_learning_curve", "report"):
        monkeypatch.setattr(jobs.Job, name, Mock())
    monkeypatch.setattr(jobs, "write_netcdf", Mock())


def interrupt_after(monkeypatch, epoch, number):
    """Send a signal to whoever trains with --tensorboard, after an epoch."""

    def note(row):
        if row["epoch"] == epoch:
            signal.raise_signal(number)

    monkeypatch.setattr(callbacks, "tensorboard", lambda folder: note)


def trained(folder):
    """Return all that training left which is to be the same: metrics without seconds, best parameters, outcome."""
    metrics = {name: column for name, column in runs.read_metrics(folder).items() if name != "seconds"}
    return metrics, repeating.read_outcome(folder)


def parameters(monkeypatch, folder):
    """Return the parameters with which a run ended."""
    job = jobs.Job.from_run(folder, None, None, None, "cpu")
    return {name: tensor.detach().clone() for name, tensor in job.programs().tensors().items()}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_comes_to_the_end_that_it_would_have_come_to(monkeypatch, tmp_path, capsys, number, status):
    asked = [*FAST, "--tensorboard", "--warm-up", "3", "--lr-schedule", "cosine"]
    interrupt_after(monkeypatch, 2, number)
    assert run(monkeypatch, "fit", *asked, "--out", "run") == status
    assert "is in run; go on with:  ppl-vae resume run" in capsys.readouterr().out
    assert not repeating.finished(tmp_path / "run")
    interrupt_after(monkeypatch, None, number)
    assert run(monkeypatch, "resume", "run") == 0
    assert "test log-likelihood" in capsys.readouterr().out
    assert run(monkeypatch, "fit", *asked, "--out", "whole") == 0
    assert trained(tmp_path / "run") == trained(tmp_path / "whole")
    assert len(runs.read_metrics(tmp_path / "run")["epoch"]) == 4
    one, other = (parameters(monkeypatch, tmp_path / name) for name in ("run", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_programs_are_restored_without_the_state_of_their_objective(tmp_path):
    settings = jobs.Settings(hidden=8, z_dim=2, epochs=2, warm_up=2, compile="false")
    job = jobs.Job(settings, device="cpu")
    job.train(tmp_path / "run")
    assert any(name.startswith("objective.") for name in runs.read_best(tmp_path / "run")["state"]["programs"])
    other = jobs.Job(jobs.Settings(hidden=8, z_dim=2, seed=1), device="cpu")
    pv.restore(other.model, other.guide, tmp_path / "run")
    for one, again in zip(job.programs().tensors().values(), other.programs().tensors().values(), strict=True):
        assert torch.equal(one, again)


def test_a_trained_run_is_not_trained_again(monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(jobs.Job, "evaluate", Mock(side_effect=KeyboardInterrupt))
        assert run(patched, "fit", *FAST, "--out", "run") == 130
    metrics = (tmp_path / "run" / "metrics.csv").read_text()
    assert run(monkeypatch, "resume", "run") == 0
    assert (tmp_path / "run" / "metrics.csv").read_text() == metrics
    assert repeating.finished(tmp_path / "run")


def test_what_was_made_of_earlier_parameters_goes_when_training_goes_on(monkeypatch, tmp_path, capsys):
    interrupt_after(monkeypatch, 1, signal.SIGINT)
    assert run(monkeypatch, "fit", *FAST, "--tensorboard", "--out", "run") == 130
    assert run(monkeypatch, "evaluate", "run", "--particles", "10") == 0
    assert run(monkeypatch, "evaluate", "run", "--particles", "20") == 0
    interrupt_after(monkeypatch, None, signal.SIGINT)
    assert run(monkeypatch, "resume", "run") == 0
    assert "evaluation_K20_seed0.pt" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").glob("evaluation*.pt")) == ["evaluation_K10_seed0.pt"]


def test_seeds_go_on_inside_a_seed(monkeypatch, tmp_path):
    asked = [*FAST, "--tensorboard", "--seeds", "2"]
    interrupt_after(monkeypatch, 2, signal.SIGTERM)
    assert run(monkeypatch, "fit", *asked, "--out", "all") == 143
    interrupt_after(monkeypatch, None, signal.SIGTERM)
    assert run(monkeypatch, "resume", "all") == 0
    assert run(monkeypatch, "fit", *asked, "--out", "whole") == 0
    one, other = (json.loads((tmp_path / name / "seeds.json").read_text()) for name in ("all", "whole"))
    assert one == other


def test_a_run_is_replaced_where_it_is_said(monkeypatch, tmp_path):
    assert run(monkeypatch, "fit", *FAST, "--out", "run") == 0
    assert run(monkeypatch, "evaluate", "run", "--particles", "20") == 0
    assert run(monkeypatch, "fit", *FAST, "--seed", "1", "--out", "run", "--overwrite") == 0
    assert runs.read_config(tmp_path / "run")["seed"] == 1
    assert sorted(path.name for path in (tmp_path / "run").glob("evaluation*.pt")) == ["evaluation_K10_seed1.pt"]


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9, "lr_schedule": "step"},
        {"patience": 2, "lr_schedule": "plateau", "on_fault": "back-off"},
        {"lr_schedule": "one_cycle", "on_fault": "skip"},
    ],
    ids=str,
)
def test_options_of_training_train(tmp_path, options):
    settings = jobs.Settings(hidden=8, z_dim=2, epochs=4, compile="false", **options)
    bounds = jobs.Job(settings, device="cpu").train(tmp_path / "run").history["valid_bound"]
    assert bounds[-1] > bounds[0]


def test_epochs_are_written_for_tensorboard(monkeypatch, tmp_path):
    assert run(monkeypatch, "fit", *FAST, "--tensorboard", "--out", "run") == 0
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert os.path.getsize(events) > 0
