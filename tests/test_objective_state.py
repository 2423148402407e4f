"""Estimators with state: saved, resumed, advanced once an update; schedules."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from small import Bits, BitsGuide

import ppl_vae as pv
from ppl_vae import nets, objectives

STATEFUL = {
    "NVIL": lambda: objectives.NVIL(x_dim=1, hidden=4),
    "REBAR": objectives.REBAR,
    "RELAX": lambda: objectives.RELAX(z=nets.MLP(2, (4,), 1)),
    "Concrete": lambda: objectives.Concrete(objectives.exponential(1.0, 0.2, rate=0.1)),
    "StraightThroughGumbel": lambda: objectives.StraightThroughGumbel(objectives.linear(1.0, 0.2, 10)),
    "Scheduled": lambda: objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0.0, 1.0, 5)),
}
X = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
BATCHES = [X, X[:4], X[:1], X[3:]]  # short ones among them


def make(name):
    torch.manual_seed(0)
    model, guide, objective = Bits(), BitsGuide(), STATEFUL[name]().double()
    optimizer = torch.optim.Adam([p for m in (model, guide, objective) for p in m.parameters()], lr=0.05)
    return pv.svi_step(model, guide, objective, particles=3, optimizer=optimizer)


def run(step, batches):
    for i, batch in enumerate(batches):
        torch.manual_seed(100 + len(batch) + i)
        step(batch)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_resumed_estimator_goes_on_as_if_never_stopped(name):
    whole, first, second = make(name), make(name), make(name)
    run(whole, BATCHES)
    run(whole, BATCHES)
    run(first, BATCHES)
    second.prepare(X)
    second.load_state_dict(first.state_dict())
    run(second, BATCHES)
    wanted, found = whole.state_dict()["programs"], second.state_dict()["programs"]
    assert any(key.startswith("objective.") for key in wanted)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def test_nvils_averages_move_with_every_batch_and_not_in_validation():
    step = make("NVIL")
    step(X)
    mean = step.objective.mean.clone()
    assert mean != 0
    step.bound(X)
    assert step.objective.mean == mean
    step(X)
    assert step.objective.mean != mean


class Raised(Bits):
    """The bits with every log-weight raised by a constant."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)
            pyro.factor("level", torch.full_like(x, 500.0))


def test_nvils_first_gradient_does_not_depend_on_the_level_of_the_bound():
    def first_gradient(model):
        torch.manual_seed(0)
        guide, nvil = BitsGuide(), objectives.NVIL(x_dim=1, hidden=4).double()
        torch.manual_seed(1)
        surrogate = nvil.estimate(model, guide, X, 3).surrogate
        return torch.cat([g.flatten() for g in torch.autograd.grad(surrogate.mean(), [*guide.parameters()])])

    torch.testing.assert_close(first_gradient(Raised()), first_gradient(Bits()))


def test_a_schedule_advances_once_an_update_and_validation_stands_at_its_end():
    step = make("Scheduled")
    assert step.objective.values()["beta"] == 0
    run(step, BATCHES)
    assert step.objective.step == 4
    assert step.objective.values()["beta"] == pytest.approx(0.8)
    torch.manual_seed(0)
    annealed = step.bound(X)
    torch.manual_seed(0)
    full = objectives.elbo(pv.weigh(step.model, step.guide, X, 3))
    torch.testing.assert_close(annealed, full.detach())


def test_fit_trains_and_keeps_an_estimators_own_parameters():
    rebar = objectives.REBAR().double()
    before = rebar.scale.item()
    result = pv.fit(Bits(), BitsGuide(), X, objective=rebar, particles=2, epochs=3, batch_size=3)
    assert rebar.scale.item() != before
    assert len(result.history["train_bound"]) == 3


def test_an_optimizer_without_the_estimators_parameters_is_refused():
    model, guide = Bits(), BitsGuide()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
    step = pv.svi_step(model, guide, objectives.REBAR().double(), optimizer=optimizer)
    with pytest.raises(ValueError, match=r"optimizer: it lacks objective.log_temperature, objective.scale.*add \*obj"):
        step(X)


def test_an_upper_bound_never_trains_a_model():
    model, guide = Bits(), BitsGuide()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
    with pytest.raises(
        ValueError, match=r"cubo is an upper bound.*it would train model.prior, model.weight; make the optimizer"
    ):
        pv.svi_step(model, guide, objectives.cubo, particles=3, optimizer=optimizer)(X)
    before = model.weight.clone()
    pv.fit(model, guide, X, objective=objectives.cubo, particles=3, epochs=2)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: objectives.Concrete(0.0), "temperature: expected a positive number"),
        (lambda: objectives.REBAR(temperature=-1.0), "temperature: expected a positive number"),
        (lambda: objectives.Concrete(bound=objectives.dreg), "bound: dreg needs gradients of its own"),
        (lambda: objectives.StraightThrough(bound=objectives.NVIL(1)), "bound: expected a function of Particles"),
        (lambda: objectives.Scheduled(objectives.beta_elbo, beta=0.5), "beta: expected a function of the step"),
    ],
)
def test_estimators_refuse_options_that_they_cannot_use(make, error):
    with pytest.raises((TypeError, ValueError), match=error):
        make()
