"""Maximum a posteriori estimates: log p(theta) / N beside the bound, however a step is made."""

import copy
from functools import partial

import numpy as np
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, step_on
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

import ppl_vae as pv
from ppl_vae.estimation import estimate
from ppl_vae.guides.exact import Exact
from ppl_vae.log_priors import laplace_prior
from ppl_vae.models.linear_gaussian import LinearGaussian

N = 40
SCALE = 0.75


@pytest.fixture
def pair():
    return pairs.make("vae", "normal")


def step_with(pair, options, **more):
    prior = pv.normal_prior(pair.model, SCALE)
    return step_on(pair.model, pair.guide, pair.data(), particles=4, log_prior=prior, data_size=N, **options, **more)


FORMS = {
    "eager": {},
    "captured": {"compile": True},
    "chunked": {"chunk": 4},
    "clipped far away": {"clip_norm": 1e6},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_bound_and_the_log_prior_over_n(form, pair, uncompiled):
    x, twin = pair.data(8), pairs.make("vae", "normal")
    torch.manual_seed(5)
    value, surrogate = estimate(pv.objectives.elbo, twin.model, twin.guide, x, 4)
    by_hand = sum(dist.Normal(0.0, SCALE).log_prob(p).sum() for p in twin.model.parameters())
    (-(surrogate.mean() + by_hand / N)).backward()
    torch.manual_seed(5)
    info = step_with(pair, FORMS[form])(x)
    torch.testing.assert_close(info.bound, value.mean())  # which the prior is no part of
    torch.testing.assert_close(info.log_prior, by_hand.detach() / N)
    for name, wanted in twin.parameters().items():
        torch.testing.assert_close(pair.parameters()[name].grad, wanted.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "clip_norm": 0.1}, {"chunk": 2}], ids=str)
def test_captured_steps_are_the_eager_ones(options, pair, uncompiled):
    twin = pairs.Pair(*copy.deepcopy((pair.model, pair.guide)))
    eager, captured = step_with(pair, options), step_with(twin, options, compile=True)
    assert_steps_agree(eager, captured, [pair.data(n) for n in (8, 8, 5, 8)])
    assert captured.graphs == (3 if "chunk" in options else 1)


def test_accumulated_batches_are_one_large_batch():
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for parts, accumulate in (((x,), 1), ((x[:5], x[5:7], x[7:]), 3)):
        torch.manual_seed(0)
        model = LinearGaussian(x_dim=6, z_dim=2).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        prior = {"log_prior": pv.normal_prior(model), "data_size": 12}
        step = pv.svi_step(model, Exact(model), optimizer=optimizer, accumulate=accumulate, **prior)
        for part in parts:
            step(part)
        found.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_a_normal_prior_is_weight_decay(pair):
    """Under plain gradient steps, by 1 / (N scale^2)."""
    twin = pairs.make("vae", "normal")
    x = pair.data(N)
    for each, decay in ((pair, 0.0), (twin, 1 / (N * SCALE**2))):
        groups = [{"params": each.model.parameters(), "weight_decay": decay}, {"params": each.guide.parameters()}]
        prior = None if decay else pv.normal_prior(each.model, SCALE)
        optimizer = torch.optim.SGD(groups, lr=0.05)
        pv.fit(each.model, each.guide, x, epochs=3, batch_size=16, optimizer=optimizer, log_prior=prior)
    before = pairs.make("vae", "normal").parameters()
    for name, p in pair.parameters().items():
        torch.testing.assert_close(p, twin.parameters()[name], rtol=1e-10, atol=1e-12)
        assert not torch.equal(p, before[name])


class Mean(nn.Module):
    """Data of unknown mean and known scale, without latents."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(self.loc, 2.0).to_event(1), obs=x)


def nothing(x):
    """The guide of a model without latents."""


def test_a_conjugate_mean_goes_to_its_posterior_mode():
    """x_n ~ N(mu, 4), mu ~ N(0, 1/4): the mode is sum x / 4 / (N / 4 + 4)."""
    x = 3 + torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).double()
    model = Mean()
    optimizer = partial(torch.optim.SGD, lr=1.5)
    prior = pv.normal_prior(model, 0.5)
    fit = pv.fit(model, nothing, x, epochs=60, batch_size=10, optimizer=optimizer, log_prior=prior)
    mode = (x.sum(0) / 4) / (10 / 4 + 4)
    torch.testing.assert_close(model.loc.detach(), mode, rtol=0, atol=1e-9)
    assert fit.history["log_prior"][-1] == pytest.approx(prior().item() / 10)


def by_gradients(model, x, prior):
    optimizer = partial(torch.optim.SGD, lr=0.2)
    pv.fit(model, Exact(model), x, epochs=150, batch_size=20, optimizer=optimizer, log_prior=prior)


def by_em(model, x, prior):
    pv.em(model, x, tol=1e-14, log_prior=prior)


@pytest.mark.parametrize("train", [by_gradients, by_em])
def test_a_latent_model_goes_to_the_mode_of_its_marginal_posterior(train):
    """Given W and sigma, with S the covariance of x, it solves (N S^-1 + 1 / t^2) mu = N S^-1 mean(x)."""
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=4, z_dim=2).double()
    model.weight.requires_grad_(False)
    model.log_scale.requires_grad_(False)
    x = 2 + torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    train(model, x, pv.normal_prior(model, 0.25))
    precision = torch.linalg.inv(model.weight @ model.weight.mT + (2 * model.log_scale).exp().diag())
    mode = torch.linalg.solve(20 * precision + torch.eye(4) / 0.25**2, 20 * precision @ x.mean(0))
    torch.testing.assert_close(model.bias.detach(), mode.detach(), rtol=0, atol=1e-6)


def test_the_densities_are_those_of_pyro():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)).double()
    net[1].weight = net[0].weight  # counted once
    values = torch.cat([net[0].weight.flatten(), net[0].bias, net[1].bias])
    torch.testing.assert_close(pv.normal_prior(net, 0.5)(), dist.Normal(0.0, 0.5).log_prob(values).sum())
    torch.testing.assert_close(laplace_prior(net, 0.5)(), dist.Laplace(0.0, 0.5).log_prob(values).sum())
    prior = pv.normal_prior(net[0])
    before = prior()
    with torch.no_grad():
        net[0].bias.add_(1.0)
    assert prior() != before  # read anew


def test_any_function_of_the_parameters_will_do(pair, uncompiled):
    """One that holds a tensor itself cannot be captured, and says so."""
    weight = next(pair.model.parameters())
    options = {"log_prior": lambda: -weight.square().sum(), "data_size": N, "compile": True}
    step = step_on(pair.model, pair.guide, pair.data(), **options)
    before = weight.square().sum().item()
    with pytest.warns(UserWarning, match=r"cannot be captured as a graph: a parameter of shape .* is used"):
        info = step(pair.data())
    assert float(info.log_prior) == pytest.approx(-before / N)
    assert step.graphs == 0


def test_a_param_site_has_a_prior_too():
    pyro.clear_param_store()

    def model(x):
        loc = pyro.param("loc", lambda: torch.ones(2))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    prior = {"log_prior": lambda: dist.Normal(0.0, 0.5).log_prob(pyro.param("loc")).sum()}
    x = torch.full((12, 2), 3.0)
    pv.fit(model, nothing, x, epochs=40, batch_size=12, optimizer=partial(torch.optim.SGD, lr=0.7), **prior)
    torch.testing.assert_close(pyro.param("loc").detach(), torch.full((2,), 12 * 3.0 / (12 + 4)))
    with pytest.raises(ValueError, match="holds no parameters in modules; write a function"):
        pv.normal_prior(model)
    pyro.clear_param_store()


@pytest.mark.parametrize("mode", [False, True])
def test_what_is_frozen_later_stays(mode, pair, uncompiled):
    step = step_with(pair, {}, compile=mode)
    step(pair.data())
    pair.model.requires_grad_(False)
    before = copy.deepcopy(pair.model.state_dict())
    for _ in range(2):
        assert float(step(pair.data()).log_prior) == pytest.approx(float(step.log_prior()) / N)
    assert all(torch.equal(t, before[name]) for name, t in pair.model.state_dict().items())


def test_a_saved_step_goes_on(pair):
    x, twin = pair.data(8), pairs.make("vae", "normal")
    first, second = step_with(pair, {}), step_with(twin, {})
    first(x)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in (first, second):
        torch.manual_seed(3)
        step(x)
    for name, p in pair.parameters().items():
        assert torch.equal(p, twin.parameters()[name])


def test_history_has_the_log_prior_apart(pair):
    prior = pv.normal_prior(pair.model)
    fit = pv.fit(pair.model, pair.guide, pair.data(20), valid=pair.data(5), epochs=2, batch_size=8, log_prior=prior)
    assert list(fit.history) == ["epoch", "train_bound", "log_prior", "valid_bound", "seconds"]
    assert fit.history["log_prior"][0] == pytest.approx(prior().item() / 20, rel=0.1)


REFUSED = {
    "an upper bound": ({"objective": pv.objectives.cubo, "particles": 2}, "log_prior: cubo is an upper bound"),
    "Pyro's": ({"objective": Trace_ELBO()}, "log_prior: steps on Pyro's objectives have no such option"),
    "no size": ({"data_size": None}, "data_size: expected the number N of training data"),
    "half a datum": ({"data_size": 0.5}, "data_size: expected the number N of training data.*found 0.5"),
    "a size alone": ({"log_prior": None}, "data_size: it goes with log_prior, found 40"),
    "a number": ({"log_prior": -3.0}, "log_prior: expected a function without arguments.*found -3.0"),
    "an argument": (
        {"log_prior": lambda model: 0.0},
        r"log_prior: expected a function without arguments.*found one of \(model\); let it read",
    ),
    "a distribution's module": ({"log_prior": nn.Linear(2, 2)}, "log_prior: expected a function without arguments"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_meaningless_options_are_refused(case, pair):
    change, message = REFUSED[case]
    options = {"log_prior": pv.normal_prior(pair.model), "data_size": N} | change
    with pytest.raises((TypeError, ValueError), match=message):
        pv.svi_step(pair.model, pair.guide, optimizer=torch.optim.SGD(pair.guide.parameters(), lr=0.1), **options)


NO_PRIOR = {
    "a vector": (lambda model: -next(model.parameters()).square(), r"expected a tensor of shape \(\), found shape"),
    "a number of Python": (lambda model: 0.0, r"expected a tensor of shape \(\), found 0.0"),
    "nowhere": (
        lambda model: next(model.parameters()).sum() - float("inf"),
        r"log p\(theta\) is -inf at the parameters",
    ),
    "of nothing": (lambda model: torch.zeros(()), "depends on none of the parameters that the optimizer moves"),
    "detached": (lambda model: next(model.parameters()).detach().sum(), "depends on none of the parameters"),
}


@pytest.mark.parametrize("case", NO_PRIOR)
def test_functions_that_are_no_prior_are_refused_before_anything_moves(case, pair):
    make, message = NO_PRIOR[case]
    before = copy.deepcopy(pair.model.state_dict())
    with pytest.raises(ValueError, match="log_prior: .*" + message):
        pv.fit(pair.model, pair.guide, pair.data(), log_prior=lambda: make(pair.model))
    assert all(torch.equal(t, before[name]) for name, t in pair.model.state_dict().items())


def test_an_argument_is_refused_by_name_in_fit_too(pair):
    for verb in (pv.fit, pv.variational_em):
        with pytest.raises(TypeError, match=r"log_prior: expected a function without arguments.*one of \(model\)"):
            verb(pair.model, pair.guide, pair.data(), log_prior=lambda model: 0.0)


def test_numbers_of_numpy_are_numbers(pair):
    twin, x = pairs.make("vae", "normal"), pair.data()
    for each, number, size in ((pair, np.float32(0.5), np.int64(N)), (twin, 0.5, N)):
        for make in (pv.normal_prior, laplace_prior):
            assert make(each.model, number)().item() == make(twin.model, 0.5)().item()
        torch.manual_seed(0)
        step = step_on(
            each.model, each.guide, x, log_prior=pv.normal_prior(each.model, number), data_size=size, compile=False
        )
        step(x)
    for name, p in pair.parameters().items():
        assert torch.equal(p, twin.parameters()[name])


class WithScale(Mean):
    """mu ~ N(0, tau^2), log tau ~ N(0, 1)."""

    def __init__(self):
        super().__init__()
        self.log_tau = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def log_prior(self):
        return dist.Normal(0.0, self.log_tau.exp()).log_prob(self.loc).sum() + dist.Normal(0.0, 1.0).log_prob(
            self.log_tau
        )


def test_a_hyper_parameter_moves_that_the_model_has():
    """To where the slope of the joint log density is zero: of log tau, -3 + sum mu^2 / tau^2 - log tau."""
    x = 3 + torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    model, optimizer = WithScale(), partial(torch.optim.SGD, lr=0.5)
    pv.fit(model, nothing, x, epochs=600, batch_size=50, optimizer=optimizer, log_prior=model.log_prior)
    assert model.log_tau > 0.2
    slope = -3 + model.loc.square().sum() / (2 * model.log_tau).exp() - model.log_tau
    assert slope.item() == pytest.approx(0.0, abs=1e-3)


def test_a_hyper_parameter_that_no_program_has_is_refused():
    model, tau = Mean(), nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.SGD([model.loc, tau], lr=0.5)
    with pytest.raises(ValueError, match=r"optimizer: it holds a parameter of shape \(\) that neither.*model\.tau = "):
        pv.fit(
            model,
            nothing,
            torch.ones(5, 3).double(),
            optimizer=optimizer,
            log_prior=lambda: dist.Normal(0.0, tau.exp()).log_prob(model.loc).sum(),
        )
    assert not model.loc.any()


class Both(nn.Module):
    """A model and a guide that are methods of one object."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, 3), nn.Linear(3, 2)

    def model(self, x):
        """Use the decoder."""


def test_methods_are_refused_since_their_owner_holds_an_encoder_too():
    vae = Both()
    for make in (pv.normal_prior, laplace_prior):
        for program in (vae.model, partial(vae.model, None)):
            with pytest.raises(TypeError, match=r"program: Both\.model is a method.*such as vae\.decoder"):
                make(program)
        assert make(vae.decoder)() > make(vae)()


@pytest.mark.parametrize("verb", [pv.fit, pv.variational_em])
def test_n_is_the_number_of_data_that_a_sampler_draws_from(verb, pair):
    data = TensorDataset(pair.data(10))
    still = partial(torch.optim.SGD, lr=0.0)
    how = {"optimizer": still} if verb is pv.fit else {"guide_optimizer": still, "model_optimizer": still}
    for n, sampler in ((4, SubsetRandomSampler(range(4))), (10, RandomSampler(data, replacement=True, num_samples=30))):
        loader, prior = DataLoader(data, batch_size=4, sampler=sampler), pv.normal_prior(pair.model, SCALE)
        fit = verb(pair.model, pair.guide, loader, epochs=1, log_prior=prior, **how)
        assert fit.history["log_prior"] == [pytest.approx(prior().item() / n)]


def test_what_fit_cannot_know_is_asked_for(pair):
    x, prior = pair.data(10), pv.normal_prior(pair.model)
    weighted = WeightedRandomSampler(torch.ones(10), 10)
    for loader in (DataLoader(x, batch_size=4, drop_last=True), DataLoader(x, batch_size=4, sampler=weighted)):
        with pytest.raises(ValueError, match=r"log_prior: it needs the number.*which this DataLoader.*data_size"):
            pv.fit(pair.model, pair.guide, loader, log_prior=prior)
    with pytest.raises(ValueError, match=r"step: it brings its own chunk.*log_prior"):
        pv.fit(step=step_with(pair, {}), data=pair.data(), log_prior=prior)
    for scale in (0.0, -1.0, float("inf"), "wide", True):
        with pytest.raises(ValueError, match="scale: expected a positive number"):
            pv.normal_prior(pair.model, scale)
