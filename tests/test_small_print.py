"""What is promised in passing: steps of a person's own, what loops say, and what is left as it was found."""

import math
from functools import partial

import pytest
import torch
from exact_models import GaussianMixture, clusters
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from unchanged import assert_same, tensors

import ppl_vae as pv
from ppl_vae import guarding, progress
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.parallel import LostWorker
from ppl_vae.svi import Info

F64 = torch.float64
SIZES = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}


def data(n=40):
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(n)) > 0.5).float()


def pair():
    torch.manual_seed(0)
    return VAE(**SIZES), Normal(**SIZES)


def optimizer_of(*modules):
    return torch.optim.Adam([p for module in modules for p in module.parameters()], lr=0.01)


# A step of a person's own, which has nothing but what the loop must have.


class Mean(nn.Module):
    """The mean of the data, by gradient descent; its second step may go wrong."""

    def __init__(self, second=None):
        super().__init__()
        self.loc, self.second, self.steps = nn.Parameter(torch.zeros(6)), second, 0

    def __call__(self, x):
        self.steps += 1
        if self.steps == 2 and self.second == "raises":
            raise ValueError("the person's own")
        bound = self.bound(x).mean()
        self.loc.data += 0.1 * torch.autograd.grad(bound, self.loc)[0]
        if self.steps == 2 and self.second == "spoils":
            self.loc.data[0] = torch.nan
        return Info(bound.detach(), finite=torch.tensor(not (self.steps == 2 and self.second == "refuses")))

    def bound(self, x):
        return -(self.loc - x[0]).square().sum(-1)


SECOND = {
    "raises": (ValueError, r"^the person's own$"),
    "refuses": (FloatingPointError, r"epoch 2, a batch was refused, .* best parameters so far back$"),
    "spoils": (
        FloatingPointError,
        r"a parameter became NaN or infinite in epoch 2; .* best parameters so far back\. Look",
    ),
}


@pytest.mark.parametrize("second", SECOND)
def test_a_step_of_ones_own_that_goes_wrong_is_put_back_to_its_best(second):
    step, error = Mean(second), SECOND[second]
    with pytest.raises(error[0], match=error[1]) as raised:
        pv.fit(data=data(), step=step, epochs=3, batch_size=40)
    torch.testing.assert_close(step.loc.detach(), 0.2 * data().mean(0))  # as after the first
    assert not getattr(raised.value, "__notes__", ())


def test_what_a_step_of_ones_own_does_not_show_cannot_be_asked_for():
    step = Mean()
    with pytest.raises(ValueError, match=r"ema: the step shows no programs \(step\.programs\)"):
        pv.fit(data=data(), step=step, epochs=1, ema=0.9)
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    with pytest.raises(ValueError, match=r"scheduler: the step shows no optimizers \(step\.optimizers\(\)\); leave"):
        pv.fit(data=data(), step=step, epochs=1, scheduler=schedule)
    assert step.steps == 0
    fit = pv.fit(data=data(), step=step, epochs=1)
    with pytest.raises(
        ValueError, match=r"fit: the step shows no model and guide; call pv\.evaluate\(\.\.\.\)\.to_arviz"
    ):
        fit.to_arviz()


# The loop.


@pytest.mark.parametrize(("at", "kept"), [(1, "none had ended"), (3, "the parameters of epoch 1 are ")])
@pytest.mark.parametrize("folder", [True, False], ids=["in a folder", "in memory"])
def test_where_processes_are_lost_it_says_what_is_left(tmp_path, monkeypatch, at, kept, folder):
    model, guide = pair()
    states, step = [], pv.svi_step(model, guide, optimizer=optimizer_of(model, guide))
    ascended = type(step)._ascended

    def losing(self, batch):
        states.append(tensors(model))
        if len(states) == at:
            raise LostWorker("process 1 is gone")
        return ascended(self, batch)

    monkeypatch.setattr(type(step), "_ascended", losing)
    where = tmp_path / "run" if folder else None
    with pytest.raises(LostWorker) as raised:
        pv.fit(data=data(), step=step, epochs=3, batch_size=20, out=where)
    there = "" if at == 1 else f"in {where}" if folder else "back in the programs"
    assert str(raised.value) == f"process 1 is gone. Training stopped in epoch {(at + 1) // 2}; {kept}{there}"
    assert_same(model, states[-1])  # as at the end of the last whole epoch
    if folder and at == 3:
        others = pair()
        pv.restore(*others, where)
        assert_same(others[0], states[-1])


def test_a_run_that_ended_by_patience_has_ended(tmp_path):
    model, guide = pair()
    still = {"optimizer": partial(torch.optim.SGD, lr=0.0), "patience": 2, "valid": data(10), "out": tmp_path / "run"}
    first = pv.fit(model, guide, data(), epochs=9, **still)
    again = pv.fit(*pair(), data(), epochs=12, resume=True, **still)
    assert first.history["epoch"] == again.history["epoch"] == [1, 2, 3]
    assert "no better validation bound for 2 epochs" in str(again)


def test_a_run_goes_on_with_the_generators_that_it_had(tmp_path):
    def loader(own):
        sampler = RandomSampler(data(), generator=torch.Generator()) if own else None
        return DataLoader(TensorDataset(data()), batch_size=10, sampler=sampler, shuffle=not own)

    pv.fit(*pair(), loader(True), epochs=1, out=tmp_path / "run")
    model, guide = pair()
    before, random = tensors(model), torch.get_rng_state()
    with pytest.raises(
        ValueError, match=r"data: their loader has 0 generators of its own, and had 1; make it as it was"
    ):
        pv.fit(model, guide, loader(False), epochs=2, out=tmp_path / "run", resume=True)
    assert_same(model, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert pv.fit(*pair(), loader(True), epochs=2, out=tmp_path / "run", resume=True).history["epoch"] == [1, 2]


def test_of_splits_the_validation_data_are_taken():
    digits = pv.data.load("digits", binarize="dynamic")
    sizes = {"x_dim": 64, "z_dim": 2, "hidden": (8,)}
    options = {"epochs": 1, "optimizer": partial(torch.optim.SGD, lr=0.0)}
    bounds = []
    for valid in (digits, digits.valid):
        torch.manual_seed(0)
        fit = pv.fit(VAE(**sizes), Normal(**sizes), digits.train[:100].round(), valid=valid, **options)
        bounds.append(fit.history["valid_bound"])
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize("prior", [False, True], ids=["", "with a prior"])
def test_the_plan_of_a_step_on_chunks_is_that_of_its_parts(prior, uncompiled):
    found = []
    for updates in (10, 10**6):
        model, guide = pair()
        options = {"log_prior": pv.normal_prior(model, scale=1.0), "data_size": 40} if prior else {}
        options |= {"particles": 4, "chunk": 2, "compile": "auto"}
        step = pv.svi_step(model, guide, pv.objectives.iwae, optimizer=optimizer_of(model, guide), **options)
        step.plan(updates)
        assert step.ascent.planned == updates
        for i in range(3):
            torch.manual_seed(i)
            step(data())
        found.append((step.ascent.count, tensors(model)))
    assert (found[0][0], found[1][0]) == (0, 2 + prior)  # densities, gradients, and the prior
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name])


def test_fit_takes_chunks():
    found = []
    for chunk in (None, 2, 4):
        model, guide = pair()
        options = {"particles": 4, "chunk": chunk, "epochs": 2, "batch_size": 10, "valid": data(20)}
        found.append(pv.fit(model, guide, data(), objective=pv.objectives.iwae, **options).history)
    assert found[0]["train_bound"] == found[2]["train_bound"]
    assert found[0]["train_bound"][0] == pytest.approx(found[1]["train_bound"][0], abs=0.2)


def test_a_parameter_without_gradient_is_left_out_of_what_is_accumulated():
    class Unread(Normal):
        def __init__(self):
            super().__init__(**SIZES)
            self.other = nn.Parameter(torch.ones(2))

        def forward(self, x):
            super().forward(x if x.sum() > 0 else x + 0 * self.other.sum())

    torch.manual_seed(0)
    model, guide = VAE(**SIZES), Unread()
    step = pv.svi_step(model, guide, optimizer=optimizer_of(model, guide), accumulate=2, compile=False)
    step.prepare(torch.zeros(10, 6))
    before = tensors(guide)
    for x in data(40).split(20):
        step(x)
    assert torch.equal(guide.other, before["other"])
    assert not torch.equal(guide.encoder[0][0].weight, before["encoder.0.0.weight"])


@pytest.fixture
def notes(monkeypatch):
    """Collect what bars are told."""
    said = []

    def advance(self, note=None, by=1):
        if note:
            said.append(note())

    monkeypatch.setattr(progress.Bar, "advance", advance)
    return said


def test_bars_tell_what_is_estimated(notes):
    pv.ais(pair()[0], data(4), distributions=3, chains=2)
    assert notes[-1].endswith(" nats per datum")
    assert math.isfinite(float(notes[-1].split()[0]))
    notes.clear()
    pv.em(GaussianMixture(), clusters(30))
    assert notes[0].startswith("iteration ")
    assert "log-likelihood " in notes[0]
    notes.clear()
    pv.fit(data=data(), step=Mean("refuses"), epochs=3, batch_size=20, on_fault=guarding.skip)
    assert notes[0].startswith("epoch 1/3, bound -")
    assert notes[1] == notes[0]  # as nothing is added by a batch that was refused
    notes.clear()
    step = Mean("refuses")
    step.steps = 1
    pv.fit(data=data(), step=step, epochs=1, batch_size=20, on_fault=guarding.skip)
    assert notes[0] == "epoch 1/1"
