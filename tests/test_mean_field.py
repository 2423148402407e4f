"""Coordinate ascent on minibatches, on new data and on hard data."""

import math

import mean_field_by_hand as by_hand
import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import bits, close, normal_gamma, numbers, pca, responsibilities, steps, tensor
from exact_models import F64, clusters

import ppl_vae as pv
from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
from ppl_vae.models.bayesian_diagonal_mixture import BayesianDiagonalMixture
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture

# Minibatches


def test_minibatches_reach_the_bound_of_all_data():
    x, model = clusters(200), BayesianGaussianMixture(2, 3).double()
    whole = pv.cavi(model, x, iterations=60, tol=1e-9)
    found = pv.cavi(model, x, iterations=15, tol=0, batch_size=50, rate=pv.robbins_monro(delay=5.0, forgetting=0.8))
    gap = whole.history["elbo"][-1] - found.history["elbo"][-1]
    assert -1e-9 < gap < 2e-3
    assert found.iterations == 15
    torch.testing.assert_close(found.responsibilities, whole.responsibilities, rtol=0, atol=0.05)


def test_minibatches_with_latents_of_their_own():
    torch.manual_seed(0)
    x = torch.randn(30, 2, dtype=F64) @ torch.randn(2, 4, dtype=F64) + 0.3 * torch.randn(30, 4, dtype=F64)
    whole = pv.cavi(pca, x, iterations=3, tol=0)
    at_once = pv.cavi(pca, x, iterations=3, tol=0, batch_size=30, rate=lambda step: 1.0)
    close(at_once.history["elbo"], whole.history["elbo"], atol=1e-9)
    found = pv.cavi(pca, x, iterations=3, tol=0, batch_size=10)
    assert found.history["elbo"][-1] > found.history["elbo"][0]
    assert found.q["z"].batch_shape == (30,)


def test_steps_by_hand():
    """Each moves natural parameters by the rate, towards those of N data like the minibatch."""
    x = bits(20)
    found = pv.cavi(lone_coin, x, iterations=1, tol=0, batch_size=10, rate=lambda t: 0.25, seed=3)
    q = found.q["p"].base_dist
    close(q.concentration1 + q.concentration0, 3.5 + (1 - 0.75**2) * torch.full((5,), 20.0), atol=1e-9)
    torch.manual_seed(3)
    halves = [2 * x[rows].sum(0) for rows in torch.randperm(20).split(10)]
    close(q.concentration1, 2.0 + 0.75 * 0.25 * halves[0] + 0.25 * halves[1], atol=1e-9)


def lone_coin(x):
    p = pyro.sample("p", dist.Beta(torch.full((5,), 2.0, dtype=F64), torch.full((5,), 1.5, dtype=F64)).to_event(1))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=x)


def test_rates_that_would_not_converge_are_refused():
    for name, value in [("delay", 0.5), ("forgetting", 0.5), ("forgetting", 1.1), ("forgetting", math.nan)]:
        with pytest.raises(ValueError, match=f"{name}: .*found {value}"):
            pv.robbins_monro(**{name: value})
    rate = pv.robbins_monro(delay=2.0, forgetting=1.0)
    assert [rate(t) for t in range(3)] == [1 / 2, 1 / 3, 1 / 4]


# New data


def test_predictive_densities_are_students():
    """A mixture of Student t, C. M. Bishop, "Pattern Recognition and Machine Learning", equations 10.81 and 10.82."""
    x, new = clusters(60), clusters(8, seed=1)
    found = pv.cavi(BayesianGaussianMixture(2, 3).double(), x)
    kappa, loc, df, scatter = found.factorised.eta["mean, precision"]
    free = df - 1
    scale = scatter * ((1 + kappa) / (kappa * free))[:, None, None]
    parts = dist.MultivariateStudentT(free, loc, torch.linalg.cholesky(scale)).log_prob(new.unsqueeze(1))
    exact = (parts + found.q["weights"].mean.log()).logsumexp(1).exp()
    runs = torch.stack([found.log_density(new, draws=100, seed=seed).exp() for seed in range(10)])
    odds_of_mean(runs, exact)
    assert runs.std(0).max() > 0


def odds_of_mean(runs, exact):
    """Means of a few runs, whose own means over draws are close to normal."""
    odds.assert_agree(runs.mean(0), 1.5 * runs.std(0) / len(runs) ** 0.5, exact)


def test_predictive_densities_of_coins():
    x = bits(30)
    found = pv.cavi(lone_coin, x)
    chance = (2.0 + x.sum(0)) / (3.5 + 30)
    new = torch.eye(5, dtype=F64)
    exact = (new * chance.log() + (1 - new) * (1 - chance).log()).sum(1).exp()
    odds_of_mean(torch.stack([found.log_density(new, draws=200, seed=seed).exp() for seed in range(10)]), exact)


def test_predictive_densities_with_a_latent_of_each_datum():
    torch.manual_seed(0)
    x = torch.randn(20, 4, dtype=F64)
    found = pv.cavi(pca, x, iterations=20, point=["w", "tau"])
    w, tau = found.q["w"].v, found.q["tau"].v
    exact = dist.MultivariateNormal(torch.zeros(4, dtype=F64), w @ w.mT + torch.eye(4, dtype=F64) / tau)
    new = torch.randn(5, 4, dtype=F64)
    close(found.log_density(new), exact.log_prob(new), atol=1e-9)


def test_a_new_datum_is_treated_as_an_old_one():
    x = clusters(60)
    found = pv.cavi(BayesianGaussianMixture(2, 3).double(), x)
    order = torch.randperm(60)
    close(found.predict(x), found.responsibilities, atol=1e-12)
    close(found.predict(x[order][:7]), found.responsibilities[order][:7], atol=1e-12)
    with pytest.raises(ValueError, match="NaN"):
        found.predict(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match="NaN"):
        found.log_density(torch.full((2, 2), math.nan))


def test_results_without_a_choice_say_so():
    found = pv.cavi(normal_gamma(), numbers())
    for ask in (lambda: found.responsibilities, lambda: found.labels, lambda: found.predict(numbers())):
        with pytest.raises(ValueError, match="no discrete latent"):
            ask()


# Hard data


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_are_nobodys_business(scale):
    """With priors in the same units, nothing but the units changes."""
    x, shares = clusters(80), responsibilities(80)
    options = {"start": shares, "iterations": 5, "tol": 0}
    one = pv.cavi(BayesianGaussianMixture(2, 3, scatter=torch.eye(2).double()).double(), x, **options)
    prior = scale**2 * torch.eye(2, dtype=F64)
    other = pv.cavi(BayesianGaussianMixture(2, 3, scatter=prior).double(), scale * x, **options)
    close(tensor(*other.history["elbo"]) + 2 * math.log(scale), one.history["elbo"], atol=1e-9)
    close(other.q["mean"].loc / scale, one.q["mean"].loc, atol=1e-8)
    close(other.responsibilities, one.responsibilities, atol=1e-8)


@pytest.mark.parametrize("program", [BayesianGaussianMixture, BayesianDiagonalMixture])
@pytest.mark.parametrize("shift", [1e3, 1e6, -1e8])
def test_origins_are_nobodys_business(shift, program):
    x, shares = clusters(80), responsibilities(80)
    options = {"start": shares, "iterations": 5, "tol": 0}
    one = pv.cavi(program(2, 3).double(), x, **options)
    other = pv.cavi(program(2, 3, prior_mean=torch.tensor(shift, dtype=F64)).double(), x + shift, **options)
    close(other.history["elbo"], one.history["elbo"], atol=1e-11 * abs(shift) + 1e-9)
    close(other.q["mean"].mean - shift, one.q["mean"].mean, atol=1e-11 * abs(shift) + 1e-9)


def test_single_precision_far_from_zero():
    x, shares = clusters(80), responsibilities(80)
    wide = pv.cavi(BayesianGaussianMixture(2, 3).double(), x, start=shares, iterations=10, tol=0)
    model = BayesianGaussianMixture(2, 3, prior_mean=1000.0)
    narrow = pv.cavi(model, x.float() + 1000, start=shares.float(), iterations=10, tol=0)
    assert narrow.history["elbo"][-1] == pytest.approx(wide.history["elbo"][-1], abs=1e-3)
    close(narrow.q["mean"].loc.double() - 1000, wide.q["mean"].loc, atol=1e-2)


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_priors_of_another_size_than_the_data(factor):
    x = factor * clusters(60)
    for program in (BayesianGaussianMixture, BayesianDiagonalMixture):
        found = pv.cavi(program(2, 3).double(), x, tol=0, iterations=8)
        assert steps(found).min() > -1e-10


@pytest.mark.parametrize("small", [1e-2, 1e-4])
def test_components_that_empty_under_vague_priors(small):
    """Factors that are nearly certain of zero, and a bound that is right nevertheless."""
    x, shares = clusters(40), responsibilities(40, 8)
    model = BayesianDiagonalMixture(2, 8, concentration=small, shape=small, rate=small).double()
    components = by_hand.NormalGammas(model)
    _, alpha, history = by_hand.mixture(components, x, shares, model.concentration, 40)
    found = pv.cavi(model, x, start=shares, iterations=40, tol=0)
    assert alpha.min() < small + 1e-3
    close(found.history["elbo"], history, atol=1e-8)
    close(found.q["weights"].concentration, alpha, atol=1e-6)
    assert steps(found).min() > -1e-10
    assert not found.warnings  # they are as the prior left them


def test_pixels_that_are_always_on():
    x = torch.cat([bits(40), torch.ones(40, 2, dtype=F64), torch.zeros(40, 1, dtype=F64)], 1)
    model, shares = BayesianBernoulliMixture(8, 3, on=0.1, off=0.1).double(), responsibilities(40)
    _, alpha, history = by_hand.mixture(by_hand.Betas(model), x, shares, model.concentration, 20)
    found = pv.cavi(model, x, start=shares, iterations=20, tol=0)
    close(found.history["elbo"], history, atol=1e-9)
    narrow = pv.cavi(model.float(), x.float(), start=shares.float(), iterations=20, tol=0)
    assert narrow.history["elbo"][-1] == pytest.approx(history[-1], abs=1e-3)
    close(narrow.q["weights"].concentration.double(), alpha, atol=1e-2)


def test_points_at_the_edge_have_densities():
    x = torch.cat([torch.ones(20, 2, dtype=F64), torch.zeros(20, 2, dtype=F64)], 1)
    model = BayesianBernoulliMixture(4, 2, on=1.0, off=1.0).double()
    found = pv.cavi(model, x, start=pv.starts.random, point=["weights", "probability"])
    close(found.q["probability"].v, x[:2], atol=1e-12)
    assert found.history["elbo"][-1] == pytest.approx(0.0, abs=1e-9)


HARD = {
    "fewer data than components": clusters(60)[:2],
    "four points, twenty times": clusters(60)[:4].repeat(20, 1),
    "a constant column": torch.stack([clusters(40)[:, 0], torch.full((40,), 2.0, dtype=F64)], 1),
    "one point": torch.ones(30, 2, dtype=F64),
}


@pytest.mark.parametrize("program", [BayesianGaussianMixture, BayesianDiagonalMixture])
@pytest.mark.parametrize("x", HARD.values(), ids=HARD.keys())
def test_proper_priors_bear_hard_data(x, program):
    found = pv.cavi(program(2, 6).double(), x, start=pv.starts.random, iterations=15, tol=0)
    assert steps(found).min() > -1e-10
    assert found.responsibilities.isfinite().all()


def test_means_of_clusters_need_as_many_points():
    for x in (HARD["fewer data than components"], HARD["four points, twenty times"], HARD["one point"]):
        with pytest.raises(ValueError, match="distinct row"):
            pv.cavi(BayesianGaussianMixture(2, 6).double(), x)
