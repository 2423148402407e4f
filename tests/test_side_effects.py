"""What running, capturing and evaluating programs leaves as it was, and what graphs say when they no longer fit."""

import copy
import errno
import os
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, step_on
from pyro.infer import TraceGraph_ELBO
from small import Bits, BitsGuide
from torch import nn
from torch.utils.data import DataLoader, Dataset

import ppl_vae as pv
from ppl_vae import archive, compiling, recording, runs
from ppl_vae.capture import CannotCapture, capture
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.programs import Programs
from ppl_vae.snapshots import as_it_was, snapshot

F64 = torch.float64
SIZES = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}


def data(n=8):
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(n)) > 0.5).float()


def steps(model=VAE, compile=True):  # noqa: A002 - as in the library
    """Return two steps on equal programs, one of which is captured."""
    torch.manual_seed(0)
    programs = model(**SIZES), Normal(**SIZES)
    return step_on(*copy.deepcopy(programs), data()), step_on(*programs, data(), compile=compile)


# Graphs.


class Slotted:
    __slots__ = ("last", "scale")

    def __init__(self):
        self.scale = 1.0


class Leaves(nn.Module):
    """It leaves what it met in places of many kinds."""

    def __init__(self):
        super().__init__()
        self.net, self.slotted, self.first = nn.Linear(2, 1), Slotted(), 1.0
        met = self.nothing = torch.zeros(())

        def meet(x):
            nonlocal met
            met = x
            return x

        self.meet = meet

    def forward(self, x):
        found = self.net(self.meet(x))
        self.slotted.last, self.last = found, found
        return found


class Takes(Leaves):
    """It takes away what it was given."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, x):
        delattr(self.slotted if self.place == "scale" else self, self.place)
        return self.net(x)


def test_a_capture_takes_back_what_programs_leave_where_nothing_was():
    program, x = Leaves(), torch.ones(4, 2)
    before = [*vars(program)]
    graph = capture(lambda tensors, batch: program(batch[0]).sum(), Programs(program, program), (x,))
    assert not hasattr(program, "last")
    assert not hasattr(program.slotted, "last")
    assert program.meet.__closure__[0].cell_contents is program.nothing
    assert [*vars(program)] == before
    torch.testing.assert_close(graph((x,)), program.net(x).sum())


@pytest.mark.parametrize("place", ["scale", "first"])
def test_programs_that_take_something_away_are_not_captured_and_told_what(place):
    program, x = Takes(place), torch.ones(4, 2)
    with pytest.raises(
        CannotCapture, match=rf"^'{place}' is taken away by a run, which a graph would not do; leave it"
    ):
        capture(lambda tensors, batch: program(batch[0]).sum(), Programs(program, program), (x,))
    assert program.slotted.scale == program.first == 1.0


class Scaled(VAE):
    """With a number that may be of any kind."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.number = np.float64(1.0)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z * float(np.sum(self.number))), obs=x)


def test_a_number_that_becomes_an_array_and_back_is_seen_and_said(uncompiled, monkeypatch):
    monkeypatch.setattr(compiling, "MOST_GRAPHS", 1)
    eager, captured = steps(Scaled)
    batches = [data() for _ in range(3)]
    assert_steps_agree(eager, captured, batches)
    for step in (eager, captured):
        step.model.number = np.array([0.5, 0.25, 1.0])
    with pytest.warns(UserWarning, match="the graphs hold fixed has changed: number of Scaled; a number that changes"):
        assert_steps_agree(eager, captured, batches * 8)
    for step in (eager, captured):
        step.model.number = np.float64(1.0)
    assert_steps_agree(eager, captured, batches)
    assert captured.ascent.count == 1


def test_autocast_that_comes_later_is_said(uncompiled, monkeypatch):
    monkeypatch.setattr(compiling, "MOST_GRAPHS", 1)
    eager, captured = steps()
    assert_steps_agree(eager, captured, [data()] * 2)
    with (
        pytest.warns(UserWarning, match="ran eagerly, .* has changed: shape or type of the data, or autocast$"),
        torch.autocast("cpu", torch.bfloat16),
    ):
        assert_steps_agree(eager, captured, [data()] * 20)


def test_sizes_that_come_once_are_forgotten(uncompiled):
    _, step = steps(compile="auto")
    for n in range(2, 4 + compiling.MOST_COUNTED):
        step(data(n))
    assert 0 < len(step.ascent.state_dict()["runs"]) <= compiling.MOST_COUNTED + 1


def test_a_step_with_graphs_goes_on_with_them_from_a_state(uncompiled):
    eager, captured = steps()
    assert_steps_agree(eager, captured, [data()] * 2)
    (graphs,) = captured.ascent.graphs.values()
    state = captured.ascent.state_dict()
    captured.ascent.load_state_dict({**state, "patience": None})
    assert_steps_agree(eager, captured, [data()] * 2)
    assert [*captured.ascent.graphs.values()] == [graphs]
    assert captured.ascent.state_dict()["patience"] == state["patience"]


# Pyro's store.


class BaselineGuide(BitsGuide):
    """With a running average of costs, as TraceGraph_ELBO offers it; it may refuse data."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            q = dist.Bernoulli(logits=self.logits + x.unsqueeze(-1)).to_event(1)
            z = pyro.sample("z", q, infer={"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}})
        if (x > 1).any() and z.shape[-1] == 2:
            raise ValueError("the person's own")


def test_the_running_averages_of_another_model_are_left_in_the_store():
    coins = torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    theirs, ours = [(pv.registered(Bits()), pv.registered(BaselineGuide())) for _ in range(2)]
    TraceGraph_ELBO().loss_and_grads(*theirs, coins)
    (name,) = [name for name in pyro.get_param_store() if name.startswith("__baseline")]
    average = pyro.param(name).detach().clone()
    assert average.any()
    step = pv.svi_step(*ours, TraceGraph_ELBO(), optimizer=torch.optim.SGD(ours[1].parameters(), lr=0.0))
    step(coins)
    assert torch.equal(pyro.param(name), average)
    kept = copy.deepcopy(step.state_dict()["averages"])
    with pytest.raises(ValueError, match="the person's own"):
        step(2 * coins)
    assert torch.equal(pyro.param(name), average)
    torch.testing.assert_close(step.state_dict()["averages"], kept, rtol=0, atol=0)
    step(coins)
    assert torch.equal(pyro.param(name), average)


class ByName(nn.Module):
    """Its parameters are in Pyro's store, the second of them only where somebody wants it."""

    def __init__(self):
        super().__init__()
        self.shifted = False

    def forward(self, x):
        loc = pyro.param("loc", torch.zeros(()))
        if self.shifted:
            loc = loc + pyro.param("shift", torch.ones(()))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_a_parameter_that_has_come_since_a_snapshot_is_read_as_it_is():
    model, x = ByName(), torch.zeros(3)
    kept = snapshot(model, (x,))
    model.shifted = True
    model(x)
    with torch.no_grad():
        pyro.param("loc").fill_(5.0)
        pyro.param("shift").fill_(2.0)
    with as_it_was(model, kept):
        seen = pyro.poutine.trace(model).get_trace(x).nodes["x"]["fn"].loc
    assert (seen == 2.0).all()
    assert (pyro.param("loc"), pyro.param("shift")) == (5.0, 2.0)


# Files.


def test_a_disk_that_fails_after_a_file_was_renamed_is_told(tmp_path, monkeypatch):
    fsync = os.fsync

    def failing(descriptor):
        if os.path.isdir(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match=r"written, but not sure to outlast a power cut \(Input/output error\)") as raised:
        archive.write(tmp_path / "f", "example", 1, {"epoch": 3})
    assert (raised.value.errno, raised.value.filename) == (errno.EIO, str(tmp_path))
    assert archive.read(tmp_path / "f", "example", 1) == {"epoch": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_metrics_that_cannot_be_written_leave_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        runs.append_metrics(tmp_path / "gone", {"epoch": 1})
    assert not (tmp_path / "gone").exists()


class Watched(Dataset):
    """It notes, at each datum, how many are in the file already."""

    def __init__(self, path):
        self.path, self.seen = path, []

    def __len__(self):
        return 12

    def __getitem__(self, row):
        there = self.path.exists()
        self.seen.append(len(recording.read_record(self.path)["columns"]["keys"]) if there else 0)
        return data(12)[row]


@pytest.mark.parametrize(("seconds", "written"), [(0.0, [0, 4, 8]), (60.0, [0, 0, 0])])
def test_an_evaluation_is_written_now_and_then(tmp_path, monkeypatch, seconds, written):
    monkeypatch.setattr(recording, "SECONDS_BETWEEN_WRITES", seconds)
    torch.manual_seed(0)
    seen = Watched(tmp_path / "e.pt")
    evaluation = pv.evaluate(VAE(**SIZES), Normal(**SIZES), DataLoader(seen, batch_size=4), particles=5, out=seen.path)
    assert len(evaluation) == 12
    assert seen.seen[-12::4] == written


def test_more_rows_than_there_are_are_all_of_them():
    torch.manual_seed(0)
    evaluation = pv.evaluate(VAE(**SIZES), Normal(**SIZES), data(12), particles=5, batch_size=4)
    observed = evaluation.to_arviz(rows=1000)["observed_data"]["x"]
    np.testing.assert_array_equal(observed, data(12))


class Shaken(VAE):
    """It draws from a generator of its own that torch does not know."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.own = random.Random(0)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z * (1 + 0.1 * self.own.random())), obs=x)


def test_a_persons_own_generator_draws_on_as_if_no_capture_had_been_tried():
    eager, captured = steps(Shaken)
    with pytest.warns(UserWarning, match="a random number of Python or NumPy is drawn in every run"):
        assert_steps_agree(eager, captured, [data()] * 3)
    assert captured.ascent.count == 0
    assert captured.model.own.getstate() == eager.model.own.getstate()


def test_compiling_pyros_objectives_is_said_to_do_nothing():
    model, guide = Bits(), BitsGuide()
    optimizer = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0)
    with pytest.warns(UserWarning, match="compile: steps on TraceGraph_ELBO run eagerly, since Pyro reads its loss"):
        pv.svi_step(model, guide, TraceGraph_ELBO(), optimizer=optimizer, compile=True)
