"""What the command line says in passing: other versions, pictures that there are not, programs that it cannot take."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import FAST, run

import ppl_vae as pv
from ppl_vae import cli_shared, jobs, latent_plots, pictures, runs
from ppl_vae.guides.normal import Normal
from ppl_vae.interrupting import Interrupts
from ppl_vae.jobs import versions
from ppl_vae.models.vae import VAE


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, which nobody changes but by adding to it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("draw", "draw_learning_curve", "report"):
            monkeypatch.setattr(jobs.Job, name, lambda *given: None)
        monkeypatch.setattr(jobs, "write_netcdf", lambda *given: None)
        folder = tmp_path_factory.mktemp("finished") / "run"
        assert run(monkeypatch, "fit", *FAST[2:], "--epochs", "1", "--out", folder) == 0
    return folder


def test_a_run_that_goes_on_tells_that_versions_were_others(monkeypatch, finished, capsys):
    config = (finished / "config.toml").read_text()
    here = versions()["torch"]
    assert f'torch = "{here}"' in config
    (finished / "config.toml").write_text(config.replace(f'torch = "{here}"', 'torch = "2.0"'))
    try:
        assert run(monkeypatch, "resume", finished) == 0
    finally:
        (finished / "config.toml").write_text(config)
    printed = capsys.readouterr()
    assert f"{finished}: recorded with torch 2.0, here is {here}: numbers may differ" in printed.err
    assert "this run is finished" in printed.out
    assert run(monkeypatch, "resume", finished) == 0
    assert "recorded with" not in capsys.readouterr().err


def test_draws_without_a_picture_are_written_and_told(monkeypatch, finished, capsys):
    def no_picture(subject, n):
        return pictures.image_means({"y": torch.ones(n, 3)}, subject.data.test[:n])

    monkeypatch.setattr(pictures, "samples", no_picture)
    assert run(monkeypatch, "sample", finished, "--n", "3") == 0
    told = capsys.readouterr().out
    assert "No picture: model: no observed site has a mean in the form of the images, (64,)" in told
    assert f"Written to {finished / 'samples_n3_seed0.npz'}" in told
    assert "png" not in told
    assert not (finished / "samples_n3_seed0.png").exists()
    assert np.load(finished / "samples_n3_seed0.npz")["x"].shape == (3, 64)


def test_an_embedding_needs_labels():
    digits = pv.data.load("digits", binarize="dynamic")
    unlabelled = digits._replace(info=replace(digits.info, labels={}))
    sizes = {"x_dim": 64, "z_dim": 2, "hidden": (8,)}
    subject = pictures.Subject(VAE(**sizes), Normal(**sizes), unlabelled, 0)
    with pytest.raises(ValueError, match="embedding: 'digits' has no labels to colour its images by"):
        pictures.embedding(subject)


def test_a_model_that_no_guide_fits_has_no_pairs(monkeypatch, capsys):
    assert run(monkeypatch, "pairs", "--model", "bayesian_gaussian_mixture") == 1
    printed = capsys.readouterr()
    assert "model: bayesian_gaussian_mixture has latents that all data share, which no guide draws; use" in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(("name", "words"), [("notes.txt", "not a Python file"), ("gone.py", "no such file")])
def test_what_is_no_file_of_python_is_told(monkeypatch, tmp_path, capsys, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Model = 1\n")
    assert run(monkeypatch, "fit", "--model", f"{name}:Model") == 1
    printed = capsys.readouterr().err
    assert f"{tmp_path / name}: {words}" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists()


def test_an_end_that_is_no_signal_keeps_its_status(capsys):
    with pytest.raises(SystemExit) as stopped, cli_shared.stoppable("Stopped."):
        raise SystemExit(3)
    assert stopped.value.code == 3
    assert capsys.readouterr().out == ""


def test_a_folder_of_something_else_is_no_new_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(
            FileExistsError, match="exists and is not an empty folder; choose another name or remove it"
        ):
            runs.new_folder(path)
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_second_signal_is_obeyed_at_once(number, error):
    heard = Interrupts()
    heard.hear(signal.SIGINT, None)
    assert heard.came == signal.SIGINT
    with pytest.raises(error):
        heard.hear(number, None)


def test_a_way_of_an_even_number_of_steps_has_no_middle():
    given = torch.rand(2, 64), torch.rand(2, 4, 64), torch.rand(2, 64)
    figure = latent_plots.interpolation(*given, (8, 8))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["data", "0", "", "", "1", "data"]


def test_a_figure_is_a_number_where_one_is_wanted():
    sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
    surgery = pv.elbo_surgery(VAE(**sizes), Normal(**sizes), torch.ones(20, 6))
    assert float(surgery.reconstruction) == surgery.reconstruction.mean
