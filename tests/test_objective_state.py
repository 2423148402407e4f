"""Estimators with state: saved, resumed, advanced once an update; schedules."""

import warnings
from functools import partial

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
    """The bits with every log-weight raised, by a number that may depend on the datum."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)
            pyro.factor("level", self.level(x))


def test_nvils_first_gradient_does_not_depend_on_the_level_of_the_bound():
    def first_gradient(model):
        torch.manual_seed(0)
        guide, nvil = BitsGuide(), objectives.NVIL(x_dim=1, hidden=4).double()
        torch.manual_seed(1)
        surrogate = nvil.estimate(model, guide, X, 3).surrogate
        return torch.cat([g.flatten() for g in torch.autograd.grad(surrogate.mean(), [*guide.parameters()])])

    torch.testing.assert_close(first_gradient(Raised(lambda x: torch.full_like(x, 500.0))), first_gradient(Bits()))


def test_nvils_averages_are_weighted_by_their_age():
    """The first batch's own, then lerped towards each batch, of what the draws earn."""
    nvil = objectives.NVIL(x_dim=1, hidden=4, decay=0.7).double()
    model, guide, mean, variance = Bits(), BitsGuide(), None, None
    for seed in range(4):
        torch.manual_seed(seed)
        log_w = pv.weigh(model, guide, X, 3).log_w.detach()
        torch.manual_seed(seed)
        nvil.estimate(model, guide, X, 3)
        own = log_w.mean(), log_w.var(correction=0)
        mean, variance = own if seed == 0 else (0.7 * mean + 0.3 * own[0], 0.7 * variance + 0.3 * own[1])
    torch.testing.assert_close(nvil.mean, mean)
    torch.testing.assert_close(nvil.variance, variance)


def trained_alone(objective, model, steps, lr=0.05):
    """Train an estimator's own parameters, with model and guide as they are; return the variances before and after."""
    guide = BitsGuide()
    optimizer = torch.optim.Adam(objective.parameters(), lr=lr)

    def variance():
        return pv.gradient_statistics(model, guide, X, objective, 1, 200)["guide"].variance

    before = variance()
    with pyro.validation_enabled(False):
        for seed in range(steps):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            (-objective.estimate(model, guide, X.repeat(20), 1).surrogate.mean()).backward()
            optimizer.step()
    return before, variance()


@pytest.mark.parametrize(
    "make",
    [
        lambda: objectives.REBAR(temperature=3.0, scale=3.0),
        lambda: objectives.RELAX(3.0, 3.0, z=nets.MLP(2, (4,), 1)),
    ],
    ids=["REBAR", "RELAX"],
)
def test_control_variates_learn_to_vary_less(make):
    torch.manual_seed(0)
    before, after = trained_alone(make().double(), Bits(), steps=60, lr=0.1)
    assert after < 0.6 * before


def test_nvils_baseline_learns_what_the_datum_tells():
    """Log-weights that are 0 or 6 as the datum is: their mean alone would leave a standard deviation of 3."""
    torch.manual_seed(0)
    nvil = objectives.NVIL(x_dim=1, hidden=8, normalise=False).double()
    model = Raised(lambda x: 6 * x)
    trained_alone(nvil, model, steps=60, lr=0.1)
    left = pv.gradient_statistics(model, BitsGuide(), X, nvil, 1, 400)["guide"].variance
    nvil.baseline.requires_grad_(False).apply(lambda m: m.weight.zero_() if hasattr(m, "weight") else None)
    nvil.baseline[-1].bias.zero_()
    by_mean = pv.gradient_statistics(model, BitsGuide(), X, nvil, 1, 400)["guide"].variance
    assert left < 0.2 * by_mean


def test_a_schedule_inside_an_estimator_advances_with_it():
    inner = objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0.0, 1.0, 5))
    for outer in (objectives.Concrete(0.5, inner), objectives.StraightThroughGumbel(0.5, inner)):
        inner.step.zero_()
        model, guide = Bits(), BitsGuide()
        optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
        run(pv.svi_step(model, guide, outer.double(), 2, optimizer=optimizer), BATCHES)
        assert inner.step == 4


class Line(torch.nn.Module):
    """Nothing discrete: z, and x given z."""

    def __init__(self, role):
        super().__init__()
        self.role, self.loc = role, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc.expand_as(x), 1.0))
            if self.role == "model":
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def first_step(objective, particles=3, hold_model=True):
    model, guide = Line("model"), Line("guide")
    held = [model.loc, guide.loc] if hold_model else [guide.loc]
    pv.svi_step(model, guide, objective, particles, optimizer=torch.optim.Adam(held))(X)


def test_a_step_says_when_an_estimator_finds_nothing_discrete():
    with pytest.warns(
        UserWarning, match="Concrete changes the gradients of discrete sites alone, and the guide draws no"
    ):
        first_step(objectives.Concrete())


def test_a_step_says_when_an_upper_bound_has_too_few_particles():
    with pytest.warns(UserWarning, match=r"cubo is an upper bound as K grows, and with 3 particles \(effective sample"):
        first_step(objectives.cubo, hold_model=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_step(objectives.cubo, particles=500, hold_model=False)


def test_facts_of_an_estimator_are_those_of_the_bound_that_it_is_given():
    upper = objectives.facts(partial(objectives.stl, bound=objectives.cubo))
    assert (upper.upper, upper.linear, upper.path) == (True, False, objectives.stl.facts.path)
    assert objectives.facts(objectives.Concrete(bound=objectives.jackknife)).min_particles == 2
    with pytest.raises(ValueError, match="stl is an upper bound"):
        first_step(partial(objectives.stl, bound=objectives.cubo))


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
    pv.fit(model, guide, X, objective=objectives.cubo, particles=100, epochs=2)
    assert torch.equal(model.weight, before)


def test_objectives_that_no_step_can_hold_are_refused():
    warm_up = objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0.0, 1.0, 5))
    pair, optimizer = (Bits(), BitsGuide()), torch.optim.Adam([torch.nn.Parameter(torch.zeros(()))])
    for wrong, error in (
        (objectives.DisARM, r"DisARM is a class; pass one made of it, DisARM\(...\)"),
        (partial(objectives.NVIL, x_dim=1), "NVIL is a class"),
        (pyro.infer.Trace_ELBO, "Trace_ELBO is a class"),
        (partial(objectives.stl, bound=warm_up), "functools.partial around a module hides"),
        (partial(lambda bound, particles: bound(particles), warm_up), "functools.partial around a module hides"),
        (lambda particles: warm_up(particles), "a function that reads 'warm_up' hides its parameters and its state"),
        ("elbo", "expected a function of Particles"),
    ):
        with pytest.raises(TypeError, match=error):
            pv.svi_step(*pair, wrong, optimizer=optimizer)
    with pytest.raises(ValueError, match="particles: expected a whole number of at least 1, found True"):
        pv.svi_step(*pair, objectives.elbo, particles=True, optimizer=optimizer)


def test_schedules_inside_a_module_of_ones_own_follow_the_step():
    class Halved(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0.0, 1.0, 5))

        def forward(self, particles):
            return self.inner(particles) / 2

    model, guide, objective = Bits(), BitsGuide(), Halved()
    step = pv.svi_step(model, guide, objective, optimizer=torch.optim.Adam([*model.parameters(), *guide.parameters()]))
    for _ in range(3):
        step(X)
    assert objective.inner.step == 3


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: objectives.Concrete(0.0), "temperature: expected a positive number"),
        (lambda: objectives.REBAR(temperature=-1.0), "temperature: expected a positive number"),
        (lambda: objectives.Concrete(bound=objectives.dreg), "bound: dreg needs gradients of its own"),
        (lambda: objectives.StraightThrough(bound=objectives.NVIL(1)), "bound: expected a function of Particles"),
        (lambda: objectives.Scheduled(objectives.beta_elbo, beta=0.5), "beta: expected a function of the step"),
        (
            lambda: objectives.Scheduled(objectives.beta_elbo, gamma=len),
            "gamma: beta_elbo has no such option; it has beta",
        ),
        (
            lambda: objectives.Scheduled(objectives.ciwae, beta=objectives.linear(0.0, 2.0, 4)),
            "beta: expected a weight",
        ),
        (
            lambda: objectives.Scheduled(objectives.tvo, betas=objectives.linear(0.0, 1.0, 4)),
            "betas: tvo takes no number there",
        ),
        (lambda: objectives.Scheduled(objectives.Concrete, temperature=len), "bound: expected a function of Particles"),
        (lambda: objectives.Concrete(torch.tensor(float("nan"))), "temperature: expected a positive number"),
        (lambda: objectives.NVIL(baseline=3), "baseline: expected a network"),
        (lambda: objectives.NVIL(hidden=0), "hidden: expected a whole number of at least 1"),
        (lambda: objectives.Concrete(float("nan")), "temperature: expected a positive number"),
        (
            lambda: objectives.Concrete(objectives.linear(1.0, 0.0, 9)),
            "temperature: expected positive numbers at every",
        ),
        (lambda: objectives.REBAR(scale=float("inf")), "scale: expected a finite number"),
        (lambda: objectives.RELAX(z=3), "z: expected a network"),
        (lambda: objectives.NVIL(decay=1.0), "decay: expected a number from 0 to 1"),
        (lambda: objectives.WakeSleep(-1.0, 2.0), "wake: expected a finite number of at least 0"),
        (lambda: objectives.WakeSleep(0.0, 0.0), "wake, sleep: expected one above 0"),
        (lambda: objectives.EUBO("exact"), "posterior: expected a guide"),
        (lambda: objectives.linear(0.0, 1.0, 0), "steps: expected a whole number of at least 1"),
        (lambda: objectives.cyclical(0.0, 1.0, 0), "period: expected a whole number of at least 1"),
        (lambda: objectives.cyclical(0.0, 1.0, 9, rise=2.0), "rise: expected a share"),
        (lambda: objectives.exponential(1.0, 0.5, rate=-1.0), "rate: expected a finite number of at least 0"),
        (lambda: objectives.exponential(0.1, 0.5, rate=1.0), r"start: expected at least end \(0.5\)"),
    ],
)
def test_estimators_refuse_options_that_they_cannot_use(make, error):
    with pytest.raises((TypeError, ValueError), match=error):
        make()
