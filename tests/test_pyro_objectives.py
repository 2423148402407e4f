"""Pyro's objectives through `fit` and `svi_step`: the same updates as Pyro's, and the same freedom."""

import copy
import tomllib
from functools import partial

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.effect import AutoNormalMessenger
from small import Bits, BitsGuide, parameter

import ppl_vae as pv
from ppl_vae import runs
from ppl_vae.programs import Programs


class Mixture(torch.nn.Module):
    """Three normals around a latent shift; Pyro sums the component out."""

    def __init__(self):
        super().__init__()
        self.logits = parameter(0.3, -0.2, 0.1)
        self.locs = parameter(-2.0, 0.5, 2.0)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(self.locs[c] + z, 0.5), obs=x)


class ShiftGuide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope, self.log_scale = parameter(0.2), parameter(-0.5)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, self.log_scale.exp()))


def vae():
    pair = pairs.make("vae", "normal")
    return pair.model, pair.guide, pair.data(10)


def mixture():
    return Mixture(), ShiftGuide(), torch.linspace(2.0, 6.0, 10, dtype=torch.float64)


def bits():
    return Bits(), BitsGuide(), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)


CASES = {
    "trace": (Trace_ELBO, vae),
    "trace, particles": (partial(Trace_ELBO, num_particles=3), vae),
    "trace, vectorised": (partial(Trace_ELBO, num_particles=3, vectorize_particles=True), vae),
    "trace, discrete": (Trace_ELBO, bits),
    "mean field": (TraceMeanField_ELBO, vae),
    "graph": (TraceGraph_ELBO, vae),
    "graph, discrete": (partial(TraceGraph_ELBO, num_particles=2), bits),
    "renyi": (partial(RenyiELBO, alpha=0.5, num_particles=4, vectorize_particles=True), vae),
    # With alpha=0 Pyro's gradient for a discrete guide is zero; pv.objectives.iwae has one.
    "renyi, discrete": (partial(RenyiELBO, alpha=0.5), bits),
    "enum": (TraceEnum_ELBO, mixture),
    "enum, vectorised": (partial(TraceEnum_ELBO, num_particles=3, vectorize_particles=True), mixture),
}
every_case = pytest.mark.parametrize("case", CASES)


def parameters(*programs):
    return Programs(*programs).parameters()


def copies(*programs):
    return {name: p.detach().clone() for name, p in parameters(*programs).items()}


def sgd(*programs, lr=0.1):
    return torch.optim.SGD(list(parameters(*programs).values()), lr=lr)


@every_case
def test_fit_moves_every_parameter_and_improves(case):
    make, programs = CASES[case]
    model, guide, x = programs()
    before = copies(model, guide)
    adam = partial(torch.optim.Adam, lr=2e-2)
    result = pv.fit(model, guide, x, make(), epochs=60, batch_size=5, valid=x, optimizer=adam)
    assert all(not torch.equal(p, before[name]) for name, p in parameters(model, guide).items())
    bounds = result.history["valid_bound"]
    assert sum(bounds[-10:]) > sum(bounds[:10])
    assert result.best["bound"] == max(bounds)
    assert not pyro.get_param_store().keys()


@every_case
def test_a_step_is_pyros_at_the_same_seed(case):
    make, programs = CASES[case]
    model, guide, x = programs()
    theirs = pv.registered(copy.deepcopy(model)), pv.registered(copy.deepcopy(guide))
    step = pv.svi_step(model, guide, make(max_plate_nesting=1), optimizer=sgd(model, guide))
    step.prepare(x)
    torch.manual_seed(3)
    bound = step(x).bound
    optimizer = torch.optim.SGD([*theirs[0].parameters(), *theirs[1].parameters()], lr=0.1)
    torch.manual_seed(3)
    loss = make(max_plate_nesting=1).loss_and_grads(*theirs, x)
    for p in (p for program in theirs for p in program.parameters()):
        p.grad /= len(x)
    optimizer.step()
    pyro.clear_param_store()
    assert bound == pytest.approx(-float(loss) / len(x), rel=1e-12)
    ours = [p for program in (model, guide) for p in program.parameters()]
    wanted = [p for program in theirs for p in program.parameters()]
    assert len(ours) == len(wanted)
    assert all(torch.equal(p, q) and torch.equal(p.grad, q.grad) for p, q in zip(ours, wanted, strict=True))


def test_a_step_is_that_of_svi():
    model, guide, x = mixture()
    theirs = copy.deepcopy(model), copy.deepcopy(guide)
    step = pv.svi_step(model, guide, TraceEnum_ELBO(max_plate_nesting=1), optimizer=sgd(model, guide))
    optimizer = pyro.optim.SGD({"lr": 0.1 / len(x)})
    svi = SVI(*map(pv.registered, theirs), optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    step.prepare(x)
    for run in (step, svi.step):
        torch.manual_seed(3)
        for _ in range(3):
            run(x)
    pyro.clear_param_store()
    for name, p in parameters(model, guide).items():
        torch.testing.assert_close(p, parameters(*theirs)[name], rtol=1e-12, atol=1e-12)


def test_trace_elbo_learns_what_our_elbo_learns_from_the_same_noise():
    first, second = pairs.make("vae", "normal"), pairs.make("vae", "normal")
    x = first.data(10)
    ours = pv.fit(first.model, first.guide, x, epochs=3, batch_size=5)
    theirs = pv.fit(second.model, second.guide, x, Trace_ELBO(), epochs=3, batch_size=5)
    assert theirs.history["train_bound"] == pytest.approx(ours.history["train_bound"], rel=1e-9)
    for name, p in second.parameters().items():
        torch.testing.assert_close(p, first.parameters()[name], rtol=1e-6, atol=1e-9)


def test_a_component_that_the_model_enumerates_is_summed_out():
    logits, locs = torch.tensor([0.2, -0.4]), parameter(-1.0, 1.5)

    def model(x):
        with pyro.plate("rows", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits.double()), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(pyro.param("locs", locs)[c], 1.0), obs=x)

    x = torch.randn(7, dtype=torch.float64)
    step = pv.svi_step(model, lambda x: None, TraceEnum_ELBO(), optimizer=torch.optim.SGD([locs], lr=0.1))
    exact = (logits.double().log_softmax(0) + dist.Normal(locs, 1.0).log_prob(x.unsqueeze(-1))).logsumexp(-1).mean()
    (slope,) = torch.autograd.grad(-exact, locs)
    bound = step.bound(x)
    assert bound.shape == (7,)
    torch.testing.assert_close(bound.mean(), exact.detach())
    torch.testing.assert_close(step(x).bound, exact.detach())
    torch.testing.assert_close(locs.grad, slope)


def test_the_best_state_is_kept_and_restored(tmp_path):
    model, guide, x = vae()
    result = pv.fit(model, guide, x, TraceMeanField_ELBO(num_particles=2), epochs=4, valid=x, out=tmp_path / "run")
    fresh_model, fresh_guide, _ = vae()
    pv.restore(fresh_model, fresh_guide, tmp_path / "run")
    for name, p in parameters(model, guide).items():
        assert torch.equal(p, parameters(fresh_model, fresh_guide)[name])
    assert runs.read_best(tmp_path / "run")["best"] == result.best
    settings = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (settings["objective"], settings["particles"]) == ("TraceMeanField_ELBO", 2)


def test_a_step_resumes_where_it_was():
    first, second = bits(), bits()
    steps = [pv.svi_step(m, g, TraceGraph_ELBO(), optimizer=sgd(m, g)) for m, g, _ in (first, second)]
    x = first[2]
    steps[0](x)
    steps[1].load_state_dict(copy.deepcopy(steps[0].state_dict()))
    for step in steps:
        step.prepare(x)
        torch.manual_seed(5)
        step(x)
    assert all(torch.equal(p, parameters(*second[:2])[name]) for name, p in parameters(*first[:2]).items())


def state(model, guide):
    return [(p, p.detach().clone(), p.grad) for p in parameters(model, guide).values()]


def assert_unchanged(before):
    assert all(torch.equal(p, value) and p.grad is gradient for p, value, gradient in before)


@every_case
def test_validation_changes_nothing(case):
    make, programs = CASES[case]
    model, guide, x = programs()
    step = pv.svi_step(model, guide, make(), optimizer=sgd(model, guide))
    step(x)
    before = state(model, guide)
    bound = step.bound(x)
    assert bound.shape == (len(x),)
    assert not bound.requires_grad
    assert_unchanged(before)


def test_preparing_changes_nothing_and_the_dropout_of_validation_is_off():
    model, guide, x = vae()
    guide.encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Dropout(), guide.encoder).double()
    first = next(iter(guide.parameters()))
    first.grad = torch.ones_like(first)
    before, mean = state(model, guide), guide.encoder[0].running_mean.clone()
    random_state = torch.get_rng_state()
    step = pv.svi_step(model, guide, Trace_ELBO(), optimizer=sgd(model, guide))
    step.prepare(x)
    assert_unchanged(before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(guide.encoder[0].running_mean, mean)
    step.bound(x)
    assert torch.equal(guide.encoder[0].running_mean, mean)
    assert guide.encoder[1].training
    step(x)
    assert not torch.equal(guide.encoder[0].running_mean, mean)


def test_one_instance_serves_two_models():
    """Pyro writes the number of plates that it found into its object."""

    class Nested(torch.nn.Module):
        """A vector of normals as a second plate."""

        def __init__(self, observes):
            super().__init__()
            self.observes, self.loc = observes, parameter(0.1, 0.2, 0.3)

        def forward(self, x):
            with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0))
                if self.observes:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True)
    model, guide, x = vae()
    pv.fit(model, guide, x, elbo, epochs=1)
    nested = Nested(True)
    pv.fit(nested, Nested(False), torch.randn(4, 3, dtype=torch.float64), elbo, epochs=1)
    assert not torch.equal(nested.loc, Nested(True).loc)
    pv.fit(model, guide, x, elbo, epochs=1)
    assert elbo.max_plate_nesting == float("inf")


class Regression(torch.nn.Module):
    """A global slope; the rows are a part of ``size`` data."""

    def __init__(self, size):
        super().__init__()
        self.size, self.log_scale = size, parameter(0.0)

    def forward(self, x, y):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 10.0))
        with pyro.plate("data", self.size, len(x)):
            pyro.sample("y", dist.Normal(slope * x, self.log_scale.exp()), obs=y)


def regression_data(n):
    torch.manual_seed(2)
    x = torch.randn(n, dtype=torch.float64)
    return x, 1.7 * x + 0.1 * torch.randn(n, dtype=torch.float64)


@pytest.mark.parametrize("guide_of", [AutoNormal, AutoNormalMessenger])
def test_an_autoguide_with_a_global_latent_trains(guide_of):
    data = regression_data(40)
    model = Regression(40)
    guide = guide_of(model)
    adam = partial(torch.optim.Adam, lr=5e-2)
    result = pv.fit(model, guide, data, Trace_ELBO(), epochs=100, batch_size=10, optimizer=adam, valid=data)
    slopes = [p for name, p in guide.named_parameters() if "loc" in name]
    assert len(slopes) == 1
    assert slopes[0].item() == pytest.approx(1.7, abs=0.1)
    assert result.best["bound"] > result.history["valid_bound"][0] + 1
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("plate", ["data", "rows"])
def test_the_bound_is_per_datum_whatever_part_of_them_the_batch_is(plate):
    class Flipped(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size, self.loc = size, parameter(0.4)

        def forward(self, x):
            with pyro.plate(plate, self.size, len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    x = torch.randn(8, dtype=torch.float64)
    exact = dist.Normal(0.4, 1.0).log_prob(x).mean()
    gradients = []
    for size in (8, 80):
        model = Flipped(size)
        step = pv.svi_step(model, lambda x: None, Trace_ELBO(), optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
        torch.testing.assert_close(step(x).bound, exact)
        torch.testing.assert_close(step.bound(x), exact.expand(8))
        gradients.append(model.loc.grad)
    torch.testing.assert_close(*gradients)


class BaselineGuide(BitsGuide):
    """With a running average of costs, as TraceGraph_ELBO offers it."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            q = dist.Bernoulli(logits=self.logits + x.unsqueeze(-1)).to_event(1)
            pyro.sample("z", q, infer={"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}})


def test_running_averages_of_a_baseline_go_on_from_step_to_step():
    model, guide, x = Bits(), BaselineGuide(), bits()[2]
    theirs = pv.registered(copy.deepcopy(model)), pv.registered(copy.deepcopy(guide))
    step = pv.svi_step(model, guide, TraceGraph_ELBO(), optimizer=sgd(model, guide, lr=0.0))
    step.prepare(x)
    assert not step.state_dict()["averages"]
    torch.manual_seed(3)
    for _ in range(4):
        step(x)
    assert not pyro.get_param_store().keys()
    torch.manual_seed(3)
    for _ in range(4):
        theirs[1].zero_grad()
        TraceGraph_ELBO().loss_and_grads(*theirs, x)
    pyro.clear_param_store()
    wanted = next(theirs[1].parameters()).grad / len(x)
    assert torch.equal(guide.logits.grad, wanted)
    (average,) = step.state_dict()["averages"].values()
    assert average.shape == x.shape


def test_parameters_that_no_optimizer_holds_gather_no_gradients():
    model, guide, x = vae()
    kept = torch.ones_like(next(model.parameters()))
    next(model.parameters()).grad = kept
    step = pv.svi_step(model, guide, Trace_ELBO(), optimizer=torch.optim.SGD(guide.parameters(), lr=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    step(x)
    assert [p.grad for p in model.parameters()] == [kept] + [None] * (len(before) - 1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_functions_with_parameters_of_their_own_train():
    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    pv.fit(model, lambda x: None, torch.full((10,), 3.0), Trace_ELBO(), epochs=5)
    assert pyro.param("loc") > 0
    pyro.clear_param_store()


def test_a_parameter_that_would_never_train_is_named_and_nothing_changes():
    model, guide, x = vae()
    guide.spare = parameter(1.0)
    first = next(iter(guide.parameters()))
    first.grad = torch.ones_like(first)
    before, random_state = state(model, guide), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"parameter guide.spare: .* Trace_ELBO gives it no gradient"):
        pv.fit(model, guide, x, Trace_ELBO())
    assert_unchanged(before)
    assert torch.equal(torch.get_rng_state(), random_state)
    guide.spare.requires_grad_(False)
    pv.fit(model, guide, x, Trace_ELBO(), epochs=1)


def test_renyi_elbo_of_order_zero_says_that_it_leaves_a_discrete_guide_alone():
    model, guide = Bits(), BitsGuide()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
    step = pv.svi_step(model, guide, RenyiELBO(alpha=0, num_particles=3), optimizer=optimizer)
    with pytest.warns(UserWarning, match=r"no gradient through site 'z'.*train on pv.objectives.vimco"):
        step(torch.ones(4, dtype=torch.float64))


def test_mean_field_refuses_a_discrete_guide_as_pyro_does():
    model, guide, x = bits()
    before = state(model, guide)
    # Pyro looks only while it validates; the first batch is looked at also where a person has turned that off.
    with pyro.validation_enabled(False), pytest.raises(NotImplementedError, match="must be fully reparameterized"):
        pv.fit(model, guide, x, TraceMeanField_ELBO())
    assert_unchanged(before)


WRONG = {
    "particles": ({"objective": Trace_ELBO(), "particles": 5}, r"particles: Trace_ELBO .* pass .*num_particles=5"),
    "our bound in Pyro's form": (
        {"objective": pv.ELBO(pv.objectives.iwae, num_particles=5)},
        r"objective: found iwae .* objective=elbo.objective, particles=elbo.num_particles",
    ),
    "two losses": ({"objective": ReweightedWakeSleep()}, "ReweightedWakeSleep has two losses"),
    "Pyro's compiler": ({"objective": JitTrace_ELBO()}, "JitTrace_ELBO compiles.*pass Trace_ELBO"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_driven_is_refused(case):
    change, message = WRONG[case]
    model, guide, x = vae()
    with pytest.raises((TypeError, ValueError), match=message):
        pv.fit(model, guide, x, **change)
    with pytest.raises((TypeError, ValueError), match=message):
        pv.svi_step(model, guide, optimizer=sgd(model, guide), **change)


def test_validation_data_that_no_program_takes_are_found_before_training():
    model, guide, x = vae()
    with pytest.raises(pv.ContractError, match=r"model: it takes \(x\), but the batch has 2 tensors"):
        pv.fit(model, guide, x, Trace_ELBO(), valid=(x, x))
