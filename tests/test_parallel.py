"""Two processes train and evaluate as one does, to rounding."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pairs
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import ppl_vae as pv
from ppl_vae import cli, runs
from ppl_vae.parallel import SharedNoise, Workers

ROOT = Path(__file__).parents[1]
PROGRAM = "--data=digits --epochs=2 --batch-size=64 --hidden=16 --z-dim=2 --eval-particles=50"
K, ROWS, SIZE = 3, 4, 2


def torchrun(*command):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0")
    launcher += ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    known = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp")}
    passed = ("PPL_VAE_DATA", "PYTHONPATH", "TMPDIR", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    known |= {name: os.environ[name] for name in passed if name in os.environ}
    return subprocess.run([*launcher, *command], capture_output=True, text=True, cwd=ROOT, env=known, timeout=300)


def checkpoint(folder):
    return runs.read_best(folder)["state"]


def test_the_command_line_trains_in_two_processes_as_in_one(tmp_path, monkeypatch):
    options = [*PROGRAM.split(), "--objective=iwae", "--particles=3", "--compile=false"]
    two = torchrun("-m", "ppl_vae", "fit", *options, f"--out={tmp_path / 'two'}")
    assert two.returncode == 0, two.stderr
    monkeypatch.setattr(sys, "argv", ["ppl-vae", "fit", *options, f"--out={tmp_path / 'one'}"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}
    for name, tensor in checkpoint(tmp_path / "one")["programs"].items():
        torch.testing.assert_close(checkpoint(tmp_path / "two")["programs"][name], tensor, rtol=1e-5, atol=1e-6)
    found = [json.loads(next((tmp_path / which).glob("evaluation*.json")).read_text()) for which in ("one", "two")]
    assert found[1]["log_px"] == pytest.approx(found[0]["log_px"], abs=1e-5)
    assert two.stdout.count("test log-likelihood") == 1  # one of them reports


LOSES_ONE = """
import os, sys, torch
import ppl_vae as pv
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.parallel import launched

class Fails(VAE):
    calls = 0
    def forward(self, x):
        Fails.calls += 1
        if Fails.calls > 60 and os.environ["RANK"] == "1":
            os._exit(7)
        super().forward(x)

with launched():
    torch.manual_seed(0)
    sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
    pv.fit(Fails(**sizes), Normal(**sizes), torch.ones(40, 6), epochs=50, batch_size=10, out=sys.argv[1])
"""


def test_a_lost_process_ends_the_run_with_a_word_and_a_good_checkpoint(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LOSES_ONE)
    done = torchrun(str(script), str(tmp_path / "run"))
    assert done.returncode != 0
    assert "LostWorker" in done.stderr
    assert "Training stopped in epoch" in done.stderr
    assert f"are in {tmp_path / 'run'}" in done.stderr
    assert all(t.isfinite().all() for t in checkpoint(tmp_path / "run")["programs"].values())


ALTERNATES = """
import sys, torch
import ppl_vae as pv
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.parallel import launched

with launched():
    torch.manual_seed(0)
    sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
    model, guide, x = VAE(**sizes), Normal(**sizes), torch.rand(40, 6).bernoulli()
    options = {"epochs": 2, "batch_size": 10, "log_prior": pv.normal_prior(model), "compile": False}
    warm_up = pv.objectives.Scheduled(pv.objectives.beta_elbo, beta=pv.objectives.linear(0.0, 1.0, steps=100))
    pv.fit(model, guide, x, warm_up, clip_norm=1.0, out=sys.argv[1] + ", annealed", **options)
    pv.variational_em(model, guide, x, e_steps=2, out=sys.argv[1], **options)
"""


def test_a_prior_and_variational_em_are_the_same_in_two_processes(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(ALTERNATES)
    two = torchrun(str(script), str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "one")])
    runpy.run_path(str(script))
    for name, tensor in checkpoint(tmp_path / "one")["programs"].items():
        torch.testing.assert_close(checkpoint(tmp_path / "two")["programs"][name], tensor, rtol=1e-5, atol=1e-6)
    one, two = (
        np.genfromtxt(tmp_path / f"{n}, annealed/metrics.csv", delimiter=",", names=True) for n in ("one", "two")
    )
    for column in ("train_bound", "annealed_bound", "log_prior"):
        np.testing.assert_allclose(two[column], one[column], rtol=1e-5)
    assert (one["annealed_bound"] > one["train_bound"]).all()


REFUSES_AND_ENDS = """
import os, sys
from pathlib import Path
import torch
from torch import nn
import ppl_vae as pv
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.parallel import launched

def threads():
    tasks = Path("/proc/self/task")
    return sum("gloo" in (task / "comm").read_text() for task in tasks.iterdir()) if tasks.exists() else 0

torch.manual_seed(0)
with launched():
    sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
    x = torch.rand(40, 6).bernoulli()
    torch.manual_seed(int(os.environ["RANK"]))
    try:
        pv.evaluate(VAE(**sizes), Normal(**sizes), x, particles=10)
    except RuntimeError as error:
        print("refused:", error)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4), pv.nets.ToNormal())
    for guide, options in ((Normal(**sizes, encoder=encoder), {}), (Normal(**sizes), {"batch_size": 9})):
        try:
            pv.fit(VAE(**sizes), guide, x, **{"epochs": 1, "batch_size": 10} | options)
        except (RuntimeError, ValueError) as error:
            print("refused:", error)
    pv.fit(VAE(**sizes), Normal(**sizes), x, epochs=1, batch_size=10)
    inside = threads()
sys.stdout.write(f"{inside > 0} inside, {threads()} after\\n")  # in one piece, since two processes write
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What two processes said that were asked for what parts them, and then trained to the end."""
    script = tmp_path_factory.mktemp("two") / "script.py"
    script.write_text(REFUSES_AND_ENDS)
    done = torchrun(str(script))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_different_programs_are_not_evaluated_as_one(told):
    assert told.count("is not the same in all processes; evaluate one state") == 2, told


def test_what_would_part_processes_is_refused(told):
    assert told.count("running_mean follows the rows that each process sees") == 2, told
    assert told.count("batch_size: 9 rows cannot be shared out evenly to 2 processes") == 2, told


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's threads from /proc")
def test_no_thread_outlives_the_group(told):
    assert told.count("True inside, 0 after") == 2, told


def drawn(loc, p, x):
    """Everything that can be drawn alike."""
    return (
        dist.Normal(loc, 1.0).to_event(1).rsample(),
        dist.LogNormal(loc, 1.0).rsample(),
        dist.Laplace(loc, 1.0).rsample(),
        dist.Bernoulli(p).to_event(1).sample(),
        dist.Categorical(p).sample(),
        dist.OneHotCategorical(p).sample(),
        dist.RelaxedOneHotCategorical(torch.tensor(0.5), p).rsample(),
        torch.empty_like(loc).exponential_(),
        nn.functional.dropout(x, 0.4),
    )


@pytest.mark.parametrize("rank", range(SIZE))
def test_noise_is_that_of_one_process(rank):
    generator = torch.Generator().manual_seed(0)
    loc, p = (torch.rand(K, SIZE * ROWS, 5, generator=generator) for _ in range(2))
    x, mine = torch.rand(SIZE * ROWS, 7, generator=generator), slice(rank * ROWS, (rank + 1) * ROWS)
    torch.manual_seed(1)
    whole, after = drawn(loc, p, x), torch.get_rng_state()
    torch.manual_seed(1)
    with SharedNoise(Workers(rank, SIZE), K, ROWS):
        part = drawn(loc[:, mine], p[:, mine], x[mine])
    assert torch.equal(torch.get_rng_state(), after)
    for all_rows, own in zip(whole, part, strict=True):
        assert torch.equal(own, all_rows[:, mine] if all_rows.shape[0] == K else all_rows[mine])


def test_draws_by_rejection_are_refused():
    with SharedNoise(Workers(0, SIZE), K, ROWS), pytest.raises(NotImplementedError, match="_standard_gamma draws by"):
        dist.Gamma(torch.ones(K, ROWS), 1.0).rsample()


def test_noise_goes_by_the_name_of_the_rows_in_a_graph():
    """There the data may be on any axis, and other sizes may be the same number."""

    def noise(x, time_first):
        return nn.functional.dropout(x, 0.4), nn.functional.dropout(time_first, 0.4), torch.rand(ROWS, K)

    def shared(x, time_first):
        with SharedNoise(Workers(1, SIZE), K, x.shape[0]):
            return noise(x, time_first)

    x, time_first = torch.rand(2 * ROWS, 3), torch.rand(5, 2 * ROWS, 3)
    torch.manual_seed(1)
    whole = noise(x, time_first)
    graph = make_fx(shared, tracing_mode="symbolic")(x[:7], time_first[:, :7])
    torch.manual_seed(1)
    own = graph(x[ROWS:], time_first[:, ROWS:])
    for found, expected in zip(own, (whole[0][ROWS:], whole[1][:, ROWS:], whole[2]), strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(NotImplementedError, match=r"noise of shape \(5\*s\d+, s\d+\) has the data merged"):
        make_fx(lambda x: shared(x, x.repeat(5, 1)), tracing_mode="symbolic")(x)


@pytest.mark.parametrize("shape", [(5, ROWS, 3), (ROWS * 5, 3), (ROWS, ROWS)], ids=str)
def test_noise_is_not_shared_out_by_sizes_that_may_be_others(shape):
    with SharedNoise(Workers(0, SIZE), K, ROWS), pytest.raises(ValueError, match="leaves open where the 4 data"):
        torch.rand(shape)


@pytest.mark.parametrize("shape", [(K, 1, 5), (7, 5), (), (K, 5)], ids=str)
def test_noise_of_no_datum_is_everybodys(shape):
    torch.manual_seed(0)
    whole = torch.rand(shape)
    torch.manual_seed(0)
    with SharedNoise(Workers(1, SIZE), K, ROWS):
        assert torch.equal(torch.rand(shape), whole)


def test_processes_that_have_not_joined_are_told_how(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for work in (pv.fit, pv.evaluate):
        with pytest.raises(RuntimeError, match=r"2 processes were launched .*ppl_vae.parallel.launched\(\)"):
            work(*pairs.digits_vae(), torch.ones(10, 64))
