"""Expectation maximisation: against scikit-learn and closed forms, what every iteration must do, and results."""

import math
import warnings
from functools import partial

import exact_models
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_models import F64, clusters
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import nn
from unchanged import assert_same, tensors

import ppl_vae as pv
from ppl_vae import programs
from ppl_vae.expectation_maximization import ExactEM
from ppl_vae.latent_structure import log_prior
from ppl_vae.models.linear_gaussian import LinearGaussian


def theirs(x, iterations, **options):
    """Return scikit-learn's mixture, whose bound is the log-likelihood after so many iterations from its start."""
    mixture = GaussianMixture(3, tol=0, max_iter=iterations + 1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(x.numpy())


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_every_iteration_is_scikit_learns(floor):
    x, model = clusters(300), exact_models.GaussianMixture(floor=floor)
    found = pv.em(model, x, iterations=12, tol=0, seed=3)
    mixtures = [theirs(x, i, random_state=3, reg_covar=floor) for i in range(13)]
    expected = torch.tensor([m.lower_bound_ for m in mixtures], dtype=F64)
    ours = torch.tensor(found.history["log_likelihood"], dtype=F64)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-8)
    assert len(ours) == found.iterations + 1 == 13
    assert not found.converged
    # After so many M-steps as theirs, which makes one more after its last bound.
    np.testing.assert_allclose(model.mean.detach(), mixtures[11].means_, atol=1e-8)
    np.testing.assert_allclose(found.responsibilities, mixtures[11].predict_proba(x.numpy()), atol=1e-8)
    np.testing.assert_allclose(found.log_px, mixtures[11].score_samples(x.numpy()), atol=1e-8)
    assert torch.equal(found.labels, found.responsibilities.argmax(1))


def test_random_starts_are_scikit_learns():
    x = clusters(100)
    found = pv.em(exact_models.GaussianMixture(), x, iterations=3, tol=0, start=pv.starts.random, seed=5)
    mixture = theirs(x, 3, random_state=5, init_params="random", reg_covar=0)
    assert found.history["log_likelihood"][-1] == pytest.approx(mixture.lower_bound_, abs=1e-8)


def test_a_start_of_ones_own():
    x, shares = clusters(60), torch.rand(60, 3, dtype=F64)
    shares /= shares.sum(1, keepdim=True)
    given = pv.em(exact_models.GaussianMixture(), x, iterations=2, start=shares)
    made = pv.em(exact_models.GaussianMixture(), x, iterations=2, start=lambda x, components, seed: shares)
    assert given.history == made.history
    model = exact_models.GaussianMixture()
    exact = model.log_px(x).mean().item()
    as_they_are = pv.em(model, x, iterations=1, start=pv.starts.as_they_are)
    assert as_they_are.history["log_likelihood"][0] == pytest.approx(exact)


def test_restarts_keep_the_best():
    x, model = clusters(80), exact_models.GaussianMixture(y_dim=4)
    found = pv.em(model, x, restarts=4, start=pv.starts.random, iterations=30)
    alone = [
        pv.em(exact_models.GaussianMixture(y_dim=4), x, start=pv.starts.random, iterations=30, seed=seed)
        for seed in range(4)
    ]
    assert found.runs == tuple(one.history["log_likelihood"][-1] for one in alone)
    assert len({round(value, 6) for value in found.runs}) > 1
    assert found.history["log_likelihood"][-1] == max(found.runs)
    assert model.log_px(x).mean().item() == pytest.approx(max(found.runs), abs=1e-12)
    assert "the best of 4 restarts" in str(found)


def test_ascent_takes_the_place_of_an_m_step():
    """The same maximum as scikit-learn, and no iteration that falls."""
    x, model = clusters(200), exact_models.DiagonalMixture()
    found = pv.em(model, x, iterations=200, tol=1e-10)
    history = torch.tensor(found.history["log_likelihood"], dtype=F64)
    assert (history.diff() >= -1e-12).all()
    mixture = theirs(x, 500, random_state=0, covariance_type="diag", reg_covar=0)
    assert history[-1].item() == pytest.approx(mixture.score(x.numpy()), abs=1e-6)
    assert not found.warnings


MODELS = {
    "mixture": (exact_models.GaussianMixture, clusters(100)),
    "diagonal": (exact_models.DiagonalMixture, clusters(100)),
    "factors": (exact_models.FactorMixture, clusters(60, 4)),
    "regimes": (exact_models.Regimes, 2 * torch.randn(50, dtype=F64, generator=torch.Generator().manual_seed(0))),
    "linear": (partial(LinearGaussian, 4, 2), clusters(60, 4)),
    "priors": (exact_models.MixtureWithPriors, 3 * clusters(60, 1)[:, 0]),
    "modes": (exact_models.MixtureWithClosedForm, 3 * clusters(60, 1)[:, 0]),
}


@pytest.mark.parametrize("which", MODELS)
def test_no_iteration_falls(which):
    make, x = MODELS[which]
    found = pv.em(make().double(), x, iterations=15, tol=0)
    tracked = torch.tensor(found.history.get("log_posterior", found.history["log_likelihood"]), dtype=F64)
    assert (tracked.diff() >= -1e-11).all()
    assert tracked[-1] > tracked[0]
    assert found.log_px.mean().item() == pytest.approx(found.history["log_likelihood"][-1], abs=1e-12)


def test_a_fixed_point_has_no_slope():
    x, model = clusters(200), exact_models.GaussianMixture()
    found = pv.em(model, x, iterations=2000, tol=1e-15)
    assert found.converged
    mean, tril, logits = torch.autograd.grad(model.log_px(x).mean(), [model.mean, model.tril, model.logits])
    assert max(float(slope.abs().max()) for slope in (mean, tril.tril(), logits)) < 1e-6


def test_factor_analysis_is_scikit_learns():
    torch.manual_seed(0)
    factors, noise = torch.randn(200, 2, dtype=F64), torch.randn(200, 6, dtype=F64)
    x = factors @ torch.randn(2, 6, dtype=F64) + noise * (0.3 + torch.rand(6, dtype=F64))
    found = pv.em(LinearGaussian(6, 2).double(), x, iterations=150, tol=1e-8)
    fitted = FactorAnalysis(2, tol=1e-10, max_iter=10000, svd_method="lapack").fit(x.numpy())
    assert found.history["log_likelihood"][-1] == pytest.approx(fitted.score(x.numpy()), abs=1e-4)


def test_the_mode_of_a_coin():
    x = torch.tensor([1.0] * 7 + [0.0] * 13, dtype=F64)
    found = pv.em(exact_models.coin, x, tol=1e-13)
    heads = (7 + 3 - 1) / (20 + 3 + 2 - 2)  # the mode of Beta(10, 15)
    assert found.parameters["heads"].item() == pytest.approx(heads, abs=1e-7)
    likelihood = 7 * math.log(heads) + 13 * math.log(1 - heads)
    prior = dist.Beta(torch.tensor(3.0, dtype=F64), 2.0).log_prob(torch.tensor(heads, dtype=F64)).item()
    assert found.history["log_likelihood"][-1] == pytest.approx(likelihood / 20, abs=1e-7)
    assert found.history["log_posterior"][-1] == pytest.approx((likelihood + prior) / 20, abs=1e-9)


def test_the_mode_of_weights():
    x = torch.tensor([0] * 5 + [1] * 2 + [2] * 9 + [3] * 4)
    found = pv.em(exact_models.shares, x, tol=1e-13)
    counts = torch.tensor([5.0, 2, 9, 4], dtype=F64) + torch.tensor([2.0, 1.5, 3.0, 2.0], dtype=F64) - 1
    torch.testing.assert_close(found.parameters["weights"], counts / counts.sum(), rtol=0, atol=1e-6)


def test_ascent_and_closed_form_find_the_same_mode():
    x = 3 * clusters(100, 1)[:, 0]
    ascent = pv.em(exact_models.MixtureWithPriors(), x, iterations=300, tol=1e-11)
    closed = pv.em(exact_models.MixtureWithClosedForm(), x, iterations=300, tol=1e-11)
    assert ascent.history["log_posterior"][-1] == pytest.approx(closed.history["log_posterior"][-1], abs=1e-7)
    for name in ("weights", "loc"):
        torch.testing.assert_close(ascent.parameters[name], closed.parameters[name], rtol=0, atol=1e-3)


def test_a_prior_of_the_parameters():
    """Ridge on the mean of a Gaussian, whose mode is known."""
    model, x = LinearGaussian(2, 1).double(), torch.randn(30, 2, dtype=F64) + 2
    with torch.no_grad():
        model.weight.zero_()
    for frozen in (model.weight, model.log_scale):
        frozen.requires_grad_(False)
    found = pv.em(model, x, log_prior=lambda: dist.Normal(0.0, 0.1).log_prob(model.bias).sum())
    torch.testing.assert_close(model.bias.detach(), x.sum(0) / (30 + 100), rtol=0, atol=1e-7)
    assert found.history["log_posterior"][-1] > found.history["log_posterior"][0]


def around_the_data(x):
    """A location whose prior lies at the mean of the data, and is seen through another summary of them."""
    loc = pyro.sample("loc", dist.Normal(x[:, 0].mean(), 0.1))
    pyro.sample("summary", dist.Normal(loc, 0.5), obs=x[:, 1].mean())
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 2])


def test_a_prior_may_read_all_data():
    x = clusters(30, 3)
    weights = torch.tensor([100.0, 4.0, 30.0], dtype=F64)  # precisions, of a mode known in closed form
    mode = (weights * x.mean(0)).sum() / weights.sum()
    found, turned = (pv.em(around_the_data, data, iterations=200, tol=1e-13) for data in (x, x.flip(0)))
    torch.testing.assert_close(found.parameters["loc"], mode, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.parameters["loc"], turned.parameters["loc"], rtol=0, atol=1e-6)
    prior = dist.Normal(x[:, 0].mean(), 0.1).log_prob(mode) + dist.Normal(mode, 0.5).log_prob(x[:, 1].mean())
    exact = dist.Normal(mode, 1.0).log_prob(x[:, 2]).mean() + prior / 30
    assert found.history["log_posterior"][-1] == pytest.approx(exact.item(), abs=1e-9)


class Centred(nn.Module):
    """A location whose prior reads the data through a parameter that is zero at first."""

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x):
        loc = pyro.sample("loc", dist.Normal(self.share * x.mean(), 0.1))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_a_prior_may_come_to_read_data():
    model, x = Centred(), 2 + torch.randn(30, dtype=F64)
    found = pv.em(model, x, iterations=200, tol=1e-13)
    assert model.share.item() == pytest.approx(1.0, abs=1e-5)
    top = -math.log(0.1 * math.sqrt(2 * math.pi))  # of a normal density of this scale
    exact = dist.Normal(x.mean(), 1.0).log_prob(x).mean() + top / 30
    assert found.history["log_posterior"][-1] == pytest.approx(exact.item(), abs=1e-9)


def test_a_log_prior_has_all_that_stands_outside_the_plate():
    prior = dist.Gamma(torch.tensor(2.0, dtype=F64), 1.0)

    def model(x):
        for i in pyro.plate("sizes", 2):
            size = pyro.sample(f"size_{i}", prior)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(0.0, size), obs=x)
        pyro.sample("spread", dist.Normal(size, 1.0), obs=x.std())

    x = torch.randn(10, dtype=F64)
    algorithm = ExactEM(model, (x,), None, None)
    for part in (x, 3 * x):
        sizes = algorithm.points
        exact = sum(prior.log_prob(size) for size in sizes.values())
        exact = exact + dist.Normal(sizes["size_1"], 1.0).log_prob(part.std())
        torch.testing.assert_close(log_prior(algorithm.structure, (part,), sizes), exact)


def test_a_buffer_may_be_expanded():
    class Coin(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2, dtype=F64))
            self.register_buffer("scale", torch.ones((), dtype=F64).expand(2))

        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("x", dist.Normal(self.loc, self.scale).to_event(1), obs=x)

    x = torch.randn(20, 2, dtype=F64)
    found = pv.em(Coin(), x, restarts=1)
    torch.testing.assert_close(found.parameters["loc"], x.mean(0), rtol=0, atol=1e-6)


def test_pyro_params_are_fitted_and_told():
    def model(x):
        rate = pyro.param("rate", torch.tensor(1.0, dtype=F64), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    found = pv.em(model, torch.tensor([1.0, 4.0, 2.0, 5.0], dtype=F64))
    assert found.parameters["rate"].item() == pytest.approx(3.0, abs=1e-7)
    assert pyro.param("rate").item() == pytest.approx(3.0, abs=1e-7)


def test_single_precision():
    """Where rounding passes for a bend, the message says so."""
    found = pv.em(exact_models.GaussianMixture().float(), clusters(100).float(), iterations=5)
    assert found.log_px.dtype == torch.float32
    double = pv.em(exact_models.GaussianMixture(), clusters(100), iterations=5)
    torch.testing.assert_close(found.log_px.double(), double.log_px, rtol=1e-3, atol=1e-3)


def test_new_data():
    x, model = clusters(200), exact_models.GaussianMixture()
    found = pv.em(model, x, iterations=20)
    new = clusters(50, seed=1)
    exact = model.log_px(new).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # whatever becomes of the model
    before = tensors(model)
    torch.testing.assert_close(found.log_density(new), exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.predict(x), found.responsibilities, rtol=0, atol=1e-10)
    assert_same(model, before)


def test_the_same_seed_gives_the_same_and_the_callers_draws_go_on():
    x = clusters(60)
    state = torch.get_rng_state()
    one, two = (pv.em(exact_models.MixtureWithPriors(), x[:, 0], iterations=3, seed=4) for _ in range(2))
    assert one.history == two.history
    assert torch.equal(torch.get_rng_state(), state)


class Wrong(exact_models.GaussianMixture):
    """Its M-step forgets the data."""

    def m_step(self, posterior, x):
        with torch.no_grad():
            self.mean.add_(0.1)


def test_a_fall_is_told():
    found = pv.em(Wrong(), clusters(60), iterations=30, tol=0, start=pv.starts.as_they_are)
    assert any("fell" in warning and "m_step" in warning for warning in found.warnings)
    assert "Warning" in str(found)


def test_what_is_said_of_a_result():
    x = clusters(100)
    found = pv.em(exact_models.GaussianMixture(y_dim=3), x, iterations=2, tol=1e-12)
    assert any("not converged" in warning for warning in found.warnings)
    assert "EM on GaussianMixture: log-likelihood" in str(found)
    assert "not converged after 2 iterations" in str(found)
    shares = torch.full((100, 4), 0.005, dtype=F64)
    shares[:, 0] = 0.985
    empty = pv.em(exact_models.MixtureWithPriors(), x[:, 0], iterations=1)
    assert empty.parameters.keys() == {"weights", "loc"}
    held = pv.em(exact_models.GaussianMixture(y_dim=4, floor=1.0), x, iterations=1, tol=0, start=shares)
    assert any("fewer than two" in warning and "(0.50)" in warning for warning in held.warnings)


def test_an_estimate_for_arviz():
    found = pv.em(exact_models.GaussianMixture(), clusters(30), iterations=2)
    inference = found.to_arviz()
    assert inference["posterior"]["mean"].shape == (1, 1, 3, 2)
    np.testing.assert_array_equal(inference["posterior"]["responsibilities"].values[0, 0], found.responsibilities)
    np.testing.assert_array_equal(inference["log_likelihood"]["log_px"].values[0, 0], found.log_px)
    assert inference["constant_data"]["log_likelihood"].shape == (len(found.history["log_likelihood"]),)


def test_two_discrete_latents_have_no_one_responsibility():
    found = pv.em(exact_models.Regimes(), torch.randn(20, dtype=F64), iterations=1)
    assert {name: table.shape for name, table in found.discrete.items()} == {"a": (20, 2), "b": (20, 3)}
    with pytest.raises(ValueError, match="2 discrete latents"):
        _ = found.responsibilities
    assert "responsibilities_a" in found.to_arviz()["posterior"]


def test_modes_and_gradients_stay():
    model, x = exact_models.DiagonalMixture(), clusters(30)
    model.mean.grad = torch.ones_like(model.mean)
    pv.em(model, x, iterations=2)
    assert model.training
    assert torch.equal(model.mean.grad, torch.ones_like(model.mean))
    assert model.logits.grad is None
    assert programs.Programs(model, model).parameters()["model.mean"].requires_grad


def test_frozen_parameters_stay():
    model, x = exact_models.GaussianMixture(), clusters(60)
    kept = model.mean.requires_grad_(False).clone()
    before = model.tril.detach().clone()
    found = pv.em(model, x, iterations=10)
    assert torch.equal(model.mean, kept)
    assert not torch.equal(model.tril, before)
    assert torch.tensor(found.history["log_likelihood"], dtype=F64).diff().min() > -1e-10
