"""Settings in files: what they mean, what is wrong with them, and runs repeated from them."""

import inspect
from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from commands import FAST, run

from ppl_vae import cli_running, cli_training, runs
from ppl_vae.jobs import Job, versions
from ppl_vae.settings import PLACES, Settings, merged, read


def without_seconds(folder):
    return {name: column for name, column in runs.read_metrics(folder).items() if name != "seconds"}


def test_the_file_mirrors_the_command_line():
    options = dict(inspect.signature(cli_training.fit).parameters)
    assert options.keys() - {"context", "config", "overwrite"} == {f.name for f in fields(Settings)} | PLACES.keys()
    for field in fields(Settings):
        assert options[field.name].default == field.default, field.name


def test_a_run_is_repeated_from_what_it_recorded(monkeypatch, tmp_path, capsys):
    for name in ("draw", "draw_learning_curve", "report"):
        monkeypatch.setattr(Job, name, Mock())
    asked = ["--objective", "iwae", "--particles", "2", "--learning-rate", "0.003", "--clip-norm", "50", "--seed", "4"]
    assert run(monkeypatch, "fit", *FAST, *asked, "--out", "first") == 0
    assert run(monkeypatch, "fit", "--config", "first/config.toml", "--out", "again") == 0
    first, again = tmp_path / "first", tmp_path / "again"
    assert runs.read_config(first) == runs.read_config(again)
    assert without_seconds(first) == without_seconds(again)
    assert len(without_seconds(first)["epoch"]) == 3
    name = "evaluation_K50_seed4.json"
    assert (first / name).read_text() == (again / name).read_text()
    assert same_tensors(first, again)
    assert "numbers may differ" not in capsys.readouterr().err


def same_tensors(first, again):
    """Tell whether the best parameters of two runs are the same, bit for bit."""
    one, other = map(runs.read_programs, (first, again))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def planned(monkeypatch):
    """What would be run, in place of running it."""
    plans = []
    monkeypatch.setattr(cli_running, "run", plans.append)
    return plans


def test_the_command_line_comes_before_the_file(monkeypatch, tmp_path, planned):
    (tmp_path / "vae.toml").write_text('epochs = 2\nseed = 3\nout = "from_file"\nhidden = 8\ndevice = "cuda"\n')
    assert run(monkeypatch, "fit", "--config", "vae.toml", "--epochs", "1", "--device", "cpu") == 0
    (plan,) = planned
    assert plan.settings == Settings(epochs=1, seed=3, hidden=8)
    assert (plan.device, plan.folder, plan.root) == ("cpu", Path("from_file"), None)


def test_a_default_that_is_named_comes_before_the_file_too(monkeypatch, tmp_path, planned):
    (tmp_path / "vae.toml").write_text("tensorboard = true\nseed = 3\n")
    assert run(monkeypatch, "fit", "--config", "vae.toml", "--seed", "0", "--no-tensorboard") == 0
    assert planned[0].settings == Settings()


WRONG = {
    "an unknown option": (
        "epoch = 3",
        "vae.toml: unknown option 'epoch'; there are model, guide, ",
        "Did you mean epochs?",
    ),
    "a text for a number": ('epochs = "ten"', "vae.toml: epochs: expected a whole number, found 'ten'", ""),
    "a fraction of an epoch": ("epochs = 1.5", "vae.toml: epochs: expected a whole number, found 1.5", ""),
    "a truth value for a number": ("epochs = true", "vae.toml: epochs: expected a whole number, found True", ""),
    "a number for a truth value": ("tensorboard = 1", "vae.toml: tensorboard: expected true or false, found 1", ""),
    "a list": ("seed = [1, 2]", "vae.toml: seed: expected a whole number, found [1, 2]", ""),
    "a bad value": ("learning_rate = -1", "vae.toml: learning_rate: expected a positive number, found -1", ""),
    "no number": ("learning_rate = nan", "vae.toml: learning_rate: expected a positive number, found nan", ""),
    "an unknown name": ('objective = "iwea"', "vae.toml: objective: unknown name 'iwea'", "Did you mean iwae?"),
    "a place that is no text": ("out = 3", "vae.toml: out: expected a text, found 3", ""),
    "no TOML": ("epochs: 3", "config: vae.toml: not TOML (", ""),
    "versions that are none": ('versions = "2"', "vae.toml: versions: expected a table of packages, found '2'", ""),
    "an option that no program takes": ('model = "gan"\nlikelihood = "gaussian"', "neither program's constructor", ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_told_by_name(monkeypatch, tmp_path, capsys, case):
    text, *messages = WRONG[case]
    (tmp_path / "vae.toml").write_text(text)
    assert run(monkeypatch, "fit", "--config", "vae.toml", "--out", "run") == 1
    told = capsys.readouterr().err
    assert all(message in told for message in messages), told
    assert not (tmp_path / "run").exists()


def test_files_that_are_not_there_or_yaml_are_told(monkeypatch, capsys):
    assert run(monkeypatch, "fit", "--config", "nowhere.toml") == 1
    assert "config: nowhere.toml: no such file" in capsys.readouterr().err
    assert run(monkeypatch, "fit", "--config", "vae.yaml") == 1
    assert "config: vae.yaml: YAML is not read; write it as TOML" in capsys.readouterr().err


def test_what_is_wrong_on_the_command_line_is_not_blamed_on_the_file(tmp_path):
    (tmp_path / "vae.toml").write_text("epochs = 3\n")
    found = read(tmp_path / "vae.toml")
    with pytest.raises(ValueError, match=r"^epochs: expected a positive number, found 0"):
        merged(tmp_path / "vae.toml", found, {"epochs": 0})


def test_other_versions_are_told_in_a_line(monkeypatch, tmp_path, capsys, planned):
    recorded = "".join(f'{name} = "{version}"\n' for name, version in (versions() | {"torch": "2.0"}).items())
    (tmp_path / "vae.toml").write_text(f"epochs = 1\n[versions]\n{recorded}")
    assert run(monkeypatch, "fit", "--config", "vae.toml") == 0
    told = f"vae.toml: recorded with torch 2.0, here is {versions()['torch']}: numbers may differ\n"
    assert capsys.readouterr().err == told


def test_a_program_in_a_file_is_not_executed_unless_it_is_named_again(monkeypatch, tmp_path, capsys):
    (tmp_path / "own.py").write_text("open('executed', 'w')\nfrom ppl_vae.models.vae import VAE\n")
    (tmp_path / "vae.toml").write_text('epochs = 1\nmodel = "own.py:VAE"\n')
    monkeypatch.setattr(cli_running, "run", lambda plan: plan.job())
    assert run(monkeypatch, "fit", "--config", "vae.toml") == 1
    assert "this run used 'own.py:VAE' (in vae.toml); name it again with --model FILE:Name" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    assert run(monkeypatch, "fit", "--config", "vae.toml", "--model", "own.py:VAE") == 0
    assert (tmp_path / "executed").exists()


def test_what_is_recorded_gives_the_same_settings(tmp_path):
    asked = Settings(warm_up=2, patience=3, clip_norm=2.0, tensorboard=True, binarize="static", ema=0.9)
    runs.write_config(tmp_path, Job(asked, device="cpu").record())
    assert merged(None, read(tmp_path / "config.toml"), {}) == asked
