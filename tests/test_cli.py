"""The command line, as a person types it."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pairs
import pytest
import torch
from commands import FAST, run
from matplotlib.image import imread

import ppl_vae as pv
from ppl_vae import runs

FAST_OWN = ["--epochs", "2", "--z-dim", "2", "--eval-particles", "50"]
FAST_OBJECT = ["--epochs", "2", "--eval-particles", "50"]
FILES = {
    "config.toml",
    "metrics.csv",
    ".lock",
    "best.pt",
    "last.pt",
    "evaluation_K50_seed0.json",
    "evaluation_K50_seed0.nc",
    "evaluation_K50_seed0.pt",
    "learning_curve.png",
    "outcome.json",
    "report.html",
    "samples.png",
    "reconstructions.png",
}

RESULT = "evaluation_K50_seed0.json"

OWN = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, x_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, x_dim))
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight, 0.5).to_event(1), obs=x)

class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 64))
        self.loc = nn.Linear(64, 2)
    def model(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight, 0.5).to_event(1), obs=x)
    def guide(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.loc(x), 0.5).to_event(1))

both = Both()
"""


def removed(folder):
    """Remove a run's evaluation, and return what it said."""
    said = (folder / RESULT).read_text()
    for path in folder.glob("evaluation*"):
        path.unlink()
    return said


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A finished run of the default job, only shorter."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("first"))
        assert run(monkeypatch, "fit", *FAST) == 0
        return Path("runs").resolve()


@pytest.fixture
def finished(first_run, tmp_path):
    """A copy of that run, in the place where it would have been left."""
    shutil.copytree(first_run, tmp_path / "runs")
    return tmp_path / "runs" / "vae-digits-elbo"


def test_fit_leaves_a_whole_run_folder(finished, capsys):
    assert {path.name for path in finished.iterdir()} - {"previous.pt"} == FILES
    assert runs.read_config(finished)["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    result = json.loads((finished / RESULT).read_text())
    assert result["n"] == 360
    assert result["particles"] == 50
    assert result["elbo"] < result["log_px"]
    assert len(runs.read_metrics(finished)["epoch"]) == 3
    for picture in FILES:
        if picture.endswith(".png"):
            assert imread(finished / picture).std() > 0.05, f"{picture} is blank"


def test_fit_prints_what_it_did_and_where(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "fit", *FAST)
    printed = capsys.readouterr().out
    for part in ("test log-likelihood", "±", "K = 50, N = 360", "not to be trusted", "runs/vae-digits-elbo", "Next:"):
        assert part in printed


def test_progress_goes_to_standard_error_in_two_lines(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "fit", *FAST, "--out", "run")
    told = capsys.readouterr()
    assert "1,257 training, 180 validation, 360 test data" in told.err
    first, last = told.err.splitlines()
    assert first.startswith("Training vae and normal on digits (dynamic), elbo with K = 1; 1,257 training")
    assert first.endswith("; run")
    assert last.startswith("Finished in ")
    assert last.endswith(" s: run")
    assert "Training vae" not in told.out


def test_a_second_run_takes_a_folder_of_its_own(monkeypatch, finished):
    assert run(monkeypatch, "fit", *FAST) == 0
    assert finished.with_name("vae-digits-elbo-2").is_dir()


def test_one_seed_repeats_a_run(monkeypatch, finished, tmp_path):
    assert run(monkeypatch, "fit", *FAST, "--out", "again") == 0
    first, again = (runs.read_metrics(folder)["valid_bound"] for folder in (finished, tmp_path / "again"))
    assert first == again
    assert (finished / RESULT).read_text() == (tmp_path / "again" / RESULT).read_text()


def test_evaluate_repeats_the_number_of_the_run(monkeypatch, finished, capsys):
    before = removed(finished)
    assert run(monkeypatch, "evaluate", str(finished), "--particles", "50") == 0
    assert "Log-likelihood of VAE (guide Normal) on digits" in capsys.readouterr().out.replace("\n", " ")
    assert (finished / RESULT).read_text() == before


def test_a_finished_evaluation_is_not_drawn_again(monkeypatch, finished):
    monkeypatch.setattr("ppl_vae.importance.Weights.__call__", Mock(side_effect=AssertionError("drawn again")))
    assert run(monkeypatch, "evaluate", str(finished), "--particles", "50") == 0


def test_an_interrupted_evaluation_says_how_to_go_on(monkeypatch, finished, capsys):
    from ppl_vae.importance import Weights

    weigh, batches = Weights.__call__, []

    def interrupted(self, batch, *rest):
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(batch)
        return weigh(self, batch, *rest)

    monkeypatch.setattr(Weights, "__call__", interrupted)
    assert run(monkeypatch, "evaluate", str(finished), "--particles", "60") == 130
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(Weights, "__call__", weigh)
    with pytest.raises(ValueError, match="an unfinished evaluation, of 200 data so far"):
        pv.Evaluation.load(finished / "evaluation_K60_seed0.pt")
    assert run(monkeypatch, "evaluate", str(finished), "--particles", "60") == 0
    assert len(pv.Evaluation.load(finished / "evaluation_K60_seed0.pt")) == 360


def test_runs_are_compared(monkeypatch, finished, tmp_path, capsys):
    assert run(monkeypatch, "fit", *FAST, "--binarize", "dynamic", "--seed", "1", "--out", "other") == 0
    assert run(monkeypatch, "fit", *FAST, "--out", "longer", "--epochs", "6") == 0
    capsys.readouterr()
    assert run(monkeypatch, "compare", str(finished), "longer") == 0
    assert "best" in capsys.readouterr().out
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["longer", str(finished)]
    assert "| longer |" in (tmp_path / "comparison" / "comparison.md").read_text()
    assert run(monkeypatch, "compare", str(finished), "other") == 1  # binarized with another seed
    assert "are of different data" in capsys.readouterr().err
    assert run(monkeypatch, "compare", str(finished), "longer", "--particles", "70") == 1
    assert "it has no evaluation_K70_seed*.pt; run ppl-vae evaluate" in capsys.readouterr().err
    assert run(monkeypatch, "compare", "longer", "longer") == 1
    assert "named more than once" in capsys.readouterr().err
    assert not (tmp_path / "comparison-2").exists()


def test_pictures_are_drawn(monkeypatch, finished, capsys):
    assert run(monkeypatch, "draw", str(finished)) == 0
    from ppl_vae.pictures import PICTURES

    for name in PICTURES:
        assert imread(finished / f"{name}.png").ndim == 3, name
    assert run(monkeypatch, "draw", str(finished), "etching") == 1
    assert "pictures: unknown name 'etching'; there are reconstructions, samples" in capsys.readouterr().err


def test_pictures_that_do_not_fit_are_told(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "fit", *FAST[:-4], "--z-dim", "3", "--eval-particles", "10", "--out", "run") == 0
    assert run(monkeypatch, "draw", "run") == 0
    assert "manifold: no picture, since site 'z': a manifold has two dimensions" in capsys.readouterr().out
    assert not (tmp_path / "run" / "manifold.png").exists()
    assert run(monkeypatch, "draw", "run", "manifold") == 1
    assert "manifold: site 'z'" in capsys.readouterr().err


def test_a_run_is_looked_at_from_all_sides(monkeypatch, finished, capsys):
    small = ["--rows", "30"]
    assert run(monkeypatch, "ais", str(finished), *small, "--distributions", "5", "--chains", "2") == 0
    assert run(monkeypatch, "surgery", str(finished), *small) == 0
    assert run(monkeypatch, "quality", str(finished), *small, "--no-features") == 0
    said = capsys.readouterr().out
    for words in ("annealed importance sampling", "the gap is", "mutual information", "Active units", "precision"):
        assert words in said
    found = json.loads((finished / "ais_T5_K2_L10_prior_N30_seed0.json").read_text())
    assert found["ais"]["n"] == found["bdmc"]["n"] == 30
    assert json.loads((finished / "surgery_N30_K2_seed0.json").read_text())["surgery"]["n"] == 30
    assert set(json.loads((finished / "quality_numbers_N30_seed0.json").read_text())) == {"samples", "training data"}


def test_a_run_of_another_model_is_refused_and_kept(monkeypatch, finished, capsys):
    config = finished / "config.toml"
    config.write_text(config.read_text().replace('model = "vae"', 'model = "linear_gaussian"'))
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert run(monkeypatch, "evaluate", str(finished), "--particles", "50") == 1
    assert "state: does not fit model and guide" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


def test_one_particle_leaves_its_error_unknown(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "fit", *FAST, "--eval-particles", "1", "--out", "run") == 0
    assert "Monte Carlo error unknown" in capsys.readouterr().out

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    result = json.loads((tmp_path / "run" / "evaluation_K1_seed0.json").read_text(), parse_constant=refuse)
    assert result["mc_se"] is None
    assert result["khat_above_0.7"] is None


def test_sample_draws_from_a_finished_run(monkeypatch, finished):
    assert run(monkeypatch, "sample", str(finished), "--n", "5", "--seed", "3") == 0
    with np.load(finished / "samples_n5_seed3.npz") as draws:
        assert draws["x"].shape == (5, 64)
        assert draws["z"].shape == (5, 2)
    assert (finished / "samples_n5_seed3.png").exists()


def test_a_stopped_run_can_be_evaluated(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runs, "append_metrics", Mock(side_effect=[None, KeyboardInterrupt]))
    assert run(monkeypatch, "fit", *FAST, "--out", "run") == 130
    assert "Stopped. What is finished of the run is in run; go on with:  ppl-vae resume run" in capsys.readouterr().out
    assert run(monkeypatch, "evaluate", "run", "--particles", "20") == 0


def test_stopping_the_evaluation_says_where_the_run_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("ppl_vae.jobs.Job.evaluate", Mock(side_effect=KeyboardInterrupt))
    assert run(monkeypatch, "fit", *FAST, "--out", "here") == 130
    assert "is in here; go on with:  ppl-vae resume here" in capsys.readouterr().out
    monkeypatch.undo()
    assert run(monkeypatch, "evaluate", str(tmp_path / "here"), "--particles", "20") == 0


def test_the_next_commands_work_as_printed(monkeypatch, tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    run(monkeypatch, "fit", "--model", "own.py:Model", *FAST_OWN, "--out", "with space")
    lines = [line for line in capsys.readouterr().out.splitlines() if "ppl-vae " in line]
    assert len(lines) == 2
    for line in lines:
        command = shlex.split(line.removeprefix("Next:"))
        assert run(monkeypatch, *(a.replace("5000", "20") for a in command[1:])) == 0


def test_data_may_have_any_site_name(monkeypatch, tmp_path):
    (tmp_path / "own.py").write_text(OWN.replace('"x"', '"obs"'))
    assert run(monkeypatch, "fit", "--model", "own.py:Model", *FAST_OWN, "--out", "run") == 0
    assert (tmp_path / "run" / "samples.png").exists()


def test_a_bernoulli_likelihood_of_ones_own_gets_binary_data(monkeypatch, tmp_path):
    own = OWN.replace("dist.Normal(z @ self.weight, 0.5)", "dist.Bernoulli(logits=z @ self.weight)")
    (tmp_path / "own.py").write_text(own)
    assert run(monkeypatch, "fit", "--model", "own.py:Model", *FAST_OWN, "--out", "run") == 0
    config = runs.read_config(tmp_path / "run")
    assert config["binarize"] == "dynamic"
    assert "likelihood" not in config


def test_options_that_no_program_takes_are_refused(monkeypatch, tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    methods = ["--model", "own.py:both.model", "--guide", "own.py:both.guide"]
    assert run(monkeypatch, "fit", *methods, "--hidden", "9") == 1
    assert "hidden: neither program's constructor takes it" in capsys.readouterr().err


@pytest.mark.parametrize("programs", [("discrete_vae", "categorical"), ("vq_vae", "nearest_code")], ids="-".join)
def test_models_of_codes_keep_their_own_parts(monkeypatch, tmp_path, capsys, programs):
    chosen = ["--model", programs[0], "--guide", programs[1], "--epochs", "1", "--eval-particles", "20"]
    for option, value in (("likelihood", "bernoulli"), ("prior", "standard_normal")):
        assert run(monkeypatch, "fit", *chosen, f"--{option}", value) == 1
        assert f"{option}: neither program's constructor takes it" in capsys.readouterr().err
    assert run(monkeypatch, "fit", *chosen, "--out", "run") == 0
    assert f"{programs[0]} and {programs[1]} on digits" in capsys.readouterr().out
    assert run(monkeypatch, "evaluate", "run", "--particles", "20") == 0


def test_pairs_prints_a_table_alone(monkeypatch, capsys, recwarn):
    assert run(monkeypatch, "pairs", "--model", "token_transformer") == 0
    assert "| `token_transformer` | `empty` |" in capsys.readouterr().out
    assert not recwarn.list


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("ppl-vae ")


def test_list_shows_what_there_is(monkeypatch, capsys):
    assert run(monkeypatch, "list") == 0
    printed = capsys.readouterr().out
    for name in ("linear_gaussian", "vae", "exact", "normal", "elbo", "iwae", "NVIL", "digits", "omniglot"):
        assert name in printed
    assert "[log w]" in printed  # not taken for markup


def test_fit_takes_estimators_by_name(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    programs = ["--model", "sigmoid_belief_network", "--guide", "bernoulli"]
    quick = ["--epochs", "1", "--eval-particles", "20", "--out", "run"]
    assert run(monkeypatch, "fit", "--objective", "NVIL", *programs, *quick) == 0
    assert "NVIL with K = 1" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize(
    "programs",
    [["--model", "own.py:Model"], ["--model", "own.py:both.model", "--guide", "own.py:both.guide"]],
    ids=["class", "methods"],
)
def test_peoples_own_programs(monkeypatch, tmp_path, capsys, programs):
    (tmp_path / "own.py").write_text(OWN)
    sizes = FAST_OBJECT if "--guide" in programs else FAST_OWN
    assert run(monkeypatch, "fit", *programs, *sizes, "--out", "run") == 0
    recorded = run(monkeypatch, "evaluate", "run", "--particles", "20")
    assert recorded == 1  # a path in a run folder is never executed
    assert "this run used 'own.py:" in capsys.readouterr().err
    before = removed(tmp_path / "run")
    assert run(monkeypatch, "evaluate", "run", "--particles", "50", *programs) == 0
    assert (tmp_path / "run" / RESULT).read_text() == before
    assert run(monkeypatch, "sample", "run", *programs) == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "linear_gaussian", "--guide", "exact", *FAST_OWN],
        ["--model", "linear_gaussian", *FAST],
        ["--likelihood", "gaussian", *FAST],
        ["--objective", "iwae", "--particles", "5", "--binarize", "static", *FAST],
    ],
    ids=["exact", "linear", "gaussian", "iwae"],
)
def test_other_programs_and_bounds(monkeypatch, options, tmp_path):
    assert run(monkeypatch, "fit", *options, "--out", "run") == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} - {"previous.pt"} == FILES
    assert run(monkeypatch, "evaluate", "run", "--particles", "50") == 0


def listed(kind):
    return ", ".join(sorted(pairs.files(kind)))


WRONG = {
    "an unknown model": (
        ["fit", "--model", "boltzmann"],
        f"model: unknown name 'boltzmann'; there are {listed('models')}, or",
    ),
    "an unknown guide": (["fit", "--guide", "auto"], f"guide: unknown name 'auto'; there are {listed('guides')}, or"),
    "an unknown bound": (["fit", "--objective", "elbow"], "objective: unknown name 'elbow'; there are "),
    "an estimator that needs more": (["fit", "--objective", "EUBO"], "EUBO: its constructor needs posterior"),
    "an unknown device": (["fit", "--device", "gpu"], "device: 'gpu' cannot be used here (Expected one of cpu, cuda"),
    "an unknown likelihood": (["fit", "--likelihood", "poisson"], "likelihood: unknown name 'poisson'"),
    "unknown data": (["fit", "--data", "cifar"], "data set: unknown name 'cifar'"),
    "an unknown binarization": (["fit", "--binarize", "no"], "binarize: expected threshold, static, dynamic"),
    "a negative step": (["fit", "--learning-rate", "-1"], "learning_rate: expected a positive number, found -1.0"),
    "a step that is no number": (
        ["fit", "--learning-rate", "nan"],
        "learning_rate: expected a positive number, found nan",
    ),
    "a file without a name": (
        ["fit", "--model", "own.py"],
        f"there are {listed('models')}, or own.py:Name",
    ),
    "a missing file": (["fit", "--model", "nowhere.py:Model"], "nowhere.py: no such file"),
    "no run": (["evaluate", "nowhere"], "nowhere: not a finished run (it has no config.toml)"),
    "a guide that does not fit": (["fit", "--guide", "exact"], "VAE has no method posterior"),
    "no epochs": (["fit", "--epochs", "0"], "greater than or equal to 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_are_a_line_not_a_traceback(monkeypatch, capsys, tmp_path, case):
    arguments, message = WRONG[case]
    assert run(monkeypatch, *arguments) != 0
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists()


def test_a_failure_inside_a_persons_program_keeps_its_traceback(monkeypatch, tmp_path):
    (tmp_path / "own.py").write_text(OWN.replace("z @ self.weight", "z @ self.weight.mT"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(monkeypatch, "fit", "--model", "own.py:Model", *FAST_OWN)


def test_an_existing_run_is_not_overwritten(monkeypatch, finished, capsys):
    before = (finished / "best.pt").read_bytes()
    assert run(monkeypatch, "fit", *FAST, "--out", str(finished)) == 1
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert (finished / "best.pt").read_bytes() == before


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "ppl_vae", "--help"], capture_output=True, text=True, check=True)
    commands = (
        "fit",
        "resume",
        "evaluate",
        "compare",
        "report",
        "sample",
        "draw",
        "ais",
        "surgery",
        "quality",
        "pairs",
        "list",
    )
    places = [done.stdout.index(f"│ {command} ") for command in commands]
    assert places == sorted(places)
