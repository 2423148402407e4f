"""Several seeds of one job: a folder each, and how much results vary."""

import json
import statistics
from unittest.mock import Mock

import pytest
from commands import run

import ppl_vae as pv
from ppl_vae import jobs, repeating, runs

FAST = ["--epochs", "2", "--hidden", "8", "--z-dim", "2", "--eval-particles", "10", "--compile", "false"]


@pytest.fixture
def plain(monkeypatch):
    """Leave out pictures and reports, which take most of the time of so short a run."""
    for name in ("draw", "draw_learning_curve", "report"):
        monkeypatch.setattr(jobs.Job, name, Mock())
    monkeypatch.setattr(jobs, "write_netcdf", Mock())


def test_seeds_are_runs_of_their_own_and_a_table(monkeypatch, plain, tmp_path, capsys):
    assert run(monkeypatch, "fit", *FAST, "--seeds", "3", "--seed", "4", "--out", "all") == 0
    told = capsys.readouterr()
    out = tmp_path / "all"
    assert sorted(path.name for path in out.iterdir()) == [
        *("config.toml", "seed-4", "seed-5", "seed-6", "seeds.json", "seeds.md")
    ]
    assert (runs.read_config(out)["seeds"], runs.read_config(out)["seed"]) == (3, 4)
    found = json.loads((out / "seeds.json").read_text())
    for row, seed in zip(found["seeds"], (4, 5, 6), strict=True):
        folder = out / f"seed-{seed}"
        assert runs.read_config(folder)["seed"] == seed
        assert "seeds" not in runs.read_config(folder)
        evaluation = pv.Evaluation.load(folder / f"evaluation_K10_seed{seed}.pt")
        bounds = runs.read_metrics(folder)["valid_bound"]
        assert row == {
            "seed": seed,
            "best_epoch": bounds.index(max(bounds)) + 1,
            "valid_bound": max(bounds),
            "elbo": float(evaluation.elbo.mean()),
            "log_px": float(evaluation.mean),
        }
    for name in ("valid_bound", "elbo", "log_px"):
        values = [row[name] for row in found["seeds"]]
        assert len(set(values)) == 3, "seeds differ"
        assert found["mean"][name] == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert found["sd"][name] == pytest.approx(statistics.stdev(values), rel=1e-9)
        assert found["se"][name] == pytest.approx(statistics.stdev(values) / 3**0.5, rel=1e-9)
    assert run(monkeypatch, "fit", *FAST, "--seed", "5", "--out", "one") == 0
    assert runs.read_config(tmp_path / "one") == runs.read_config(out / "seed-5")
    assert repeating.read_outcome(tmp_path / "one") == found["seeds"][1]
    page = (out / "seeds.md").read_text()
    for words in ("| seed | best epoch | validation bound | test ELBO |", "| standard error of the mean |"):
        assert words in page
    for words in (f"{found['mean']['log_px']:.3f}", f"{found['sd']['log_px']:.3f}", "standard error"):
        assert words in told.out


def test_finished_seeds_are_kept(monkeypatch, plain, tmp_path, capsys):
    train, trained = jobs.Job.train, []

    def stopped(self, out, **options):
        trained.append(out.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(self, out, **options)

    monkeypatch.setattr(jobs.Job, "train", stopped)
    assert run(monkeypatch, "fit", *FAST, "--seeds", "3", "--out", "all") == 130
    assert "go on with:  ppl-vae resume all" in capsys.readouterr().out
    assert not (tmp_path / "all" / "seeds.json").exists()
    assert run(monkeypatch, "resume", "all") == 0
    assert trained == ["seed-0", "seed-1", "seed-1", "seed-2"]
    assert "Kept all/seed-0, finished already" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "all" / "seeds.json").read_text())["seeds"]) == 3
    assert run(monkeypatch, "resume", "all") == 0
    assert "all: this run is finished" in capsys.readouterr().out
    assert len(trained) == 4


def test_seeds_replace_seeds_only_where_it_is_said(monkeypatch, plain, tmp_path, capsys):
    monkeypatch.setattr(jobs.Job, "train", Mock(side_effect=RuntimeError("not trained")))
    (tmp_path / "all" / "seed-7").mkdir(parents=True)
    for folder in (tmp_path / "all", tmp_path / "all" / "seed-7"):
        runs.write_config(folder, {"seeds": 2, "data": "digits"})
    (tmp_path / "all" / "seeds.json").write_text("{}")
    (tmp_path / "all" / "notes.txt").write_text("mine")
    assert run(monkeypatch, "fit", *FAST, "--seeds", "2", "--out", "all") == 1
    assert "replace it (--overwrite)" in capsys.readouterr().err
    assert (tmp_path / "all" / "seeds.json").exists()
    with pytest.raises(RuntimeError, match="not trained"):
        run(monkeypatch, "fit", *FAST, "--seeds", "2", "--out", "all", "--overwrite")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["config.toml", "notes.txt"]


def test_a_single_run_is_not_replaced_by_seeds(monkeypatch, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    runs.write_config(tmp_path / "one", {"data": "digits", "seed": 0})
    assert run(monkeypatch, "fit", *FAST, "--seeds", "2", "--out", "one", "--overwrite") == 1
    assert "one holds a run of a single seed" in capsys.readouterr().err
    assert runs.read_config(tmp_path / "one") == {"data": "digits", "seed": 0}


def test_numbers_that_are_not_finite_are_unknown():
    row = {"seed": 0, "best_epoch": 2, "valid_bound": -1.0, "elbo": -3.0, "log_px": -2.0}
    found = repeating.summary([row, row | {"seed": 1, "elbo": None}])
    assert (found["mean"]["elbo"], found["sd"]["elbo"], found["se"]["elbo"]) == (None, None, None)
    assert repeating.cells(found)[2] == ["1", "2", "-1.000", "unknown", "-2.000"]
