"""Coordinate ascent on minibatches, on new data and on hard data; what it refuses, and what it says then."""

import math

import mean_field_by_hand as by_hand
import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import bits, close, normal_gamma, numbers, pca, poisson_mixture, responsibilities, steps, tensor, zero
from exact_models import F64, clusters

import ppl_vae as pv
from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
from ppl_vae.models.bayesian_diagonal_mixture import BayesianDiagonalMixture
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from ppl_vae.models.normal_gamma import NormalGamma

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
    assert any("less than one" in warning for warning in found.warnings)


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


# What is refused


def observing(draw, likelihood):
    """Return a program of one latent."""

    def model(x):
        latent = draw()
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", likelihood(latent), obs=x)

    return model


def normal(name="a"):
    return pyro.sample(name, dist.Normal(zero(), 1.0))


def without_plate(x):
    pyro.sample("x", dist.Normal(normal(), 1.0).expand(x.shape).to_event(1), obs=x)


def looped(x):
    a = normal()
    for i in range(len(x)):
        pyro.sample(f"x_{i}", dist.Normal(a, 1.0), obs=x[i])


def misnamed(x):
    with pyro.plate("rows", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(normal(), 1.0), obs=x)


def penalised(x):
    a = normal()
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)
        pyro.factor("penalty_a", a.expand(x.shape))


def scaled(x):
    a = normal()
    with pyro.plate("data", x.shape[0], dim=-1), pyro.poutine.scale(scale=0.5):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def scaled_prior(x):
    with pyro.poutine.scale(scale=0.5):
        a = normal()
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def subsampled(x):
    a = normal()
    with pyro.plate("data", 1000, subsample=torch.arange(len(x)), dim=-1):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def discrete(x):
    y = pyro.sample("y", dist.Categorical(torch.ones(3, dtype=F64)))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(tensor(0.0, 1.0, 2.0)[y], 1.0), obs=x)


def blind(x):
    normal()


def gaussian_rows(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(zero(), 1.0), obs=x)


REFUSED = {
    "link": (observing(normal, lambda a: dist.Normal(zero(), a.exp())), r"site 'a': .* not linear .*\(Normal\)"),
    "rate": (observing(normal, lambda a: dist.Poisson(a.exp())), "site 'a': .* not linear"),
    "square": (observing(normal, lambda a: dist.Normal(a**2, 1.0)), "site 'a': .* not linear"),
    "scale": (
        observing(lambda: pyro.sample("s", dist.Gamma(zero() + 2, 1.0)), lambda s: dist.Normal(zero(), s)),
        r"site 's': .* not linear .*\(Gamma\)",
    ),
    "logit": (observing(normal, lambda a: dist.Bernoulli(logits=a)), "site 'a': .* not linear"),
    "uniform": (
        observing(lambda: pyro.sample("s", dist.Uniform(zero(), 1.0)), lambda s: dist.Normal(s, 1.0)),
        "site 's': its prior is Uniform.*pv.variational_em",
    ),
    "two axes of a Dirichlet": (
        observing(
            lambda: pyro.sample("s", dist.Dirichlet(torch.ones(2, 3, dtype=F64)).to_event(1)),
            lambda s: dist.Normal(s[0, 0], 1.0),
        ),
        "site 's': its prior is Dirichlet",
    ),
    "discrete and global": (discrete, "site 'y': discrete and outside the plate 'data'"),
    "penalty": (penalised, "factor 'penalty_a': .*leave it out"),
    "scale of its own": (scaled, "site 'x' has a scale, 0.5"),
    "scale of a prior": (scaled_prior, "site 'a' has a scale, 0.5"),
    "plate with more data": (subsampled, "site 'x' has a scale, 50 .*batch_size="),
    "no plate": (without_plate, "site 'x' follows the number of data .*pyro.plate"),
    "a loop": (looped, "site 'x_1' follows the number of data .*pyro.plate"),
    "misnamed plate": (misnamed, "site 'a' follows the number of data .*pyro.plate"),
    "nothing observed": (blind, "observes nothing"),
    "nothing latent": (gaussian_rows, "no latents"),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_closed_form_is_refused(model, message):
    state = torch.get_rng_state()
    with pytest.raises(pv.ContractError, match=f"(?s){message}"):
        pv.cavi(model, bits(20)[:, 0])
    assert torch.equal(torch.get_rng_state(), state)


MIXTURE = BayesianGaussianMixture(2, 3).double()
OPTIONS = [
    ({"iterations": 0}, ValueError, "iterations"),
    ({"tol": -1.0}, ValueError, "tol"),
    ({"restarts": 0}, ValueError, "restarts"),
    ({"restarts": 2, "start": responsibilities(40)}, ValueError, "same place"),
    ({"start": responsibilities(40, 2)}, ValueError, r"start: .*\(40, 3\)"),
    ({"start": responsibilities(40) + 1}, ValueError, "start: row 0"),
    ({"start": "kmeans"}, TypeError, "start"),
    ({"batch_size": 0}, ValueError, "batch_size: expected a whole number from 1 to 40, found 0"),
    ({"batch_size": 41}, ValueError, "batch_size"),
    ({"batch_size": 10.0}, ValueError, "batch_size"),
    ({"rate": pv.robbins_monro()}, ValueError, "rate: .*batch_size"),
    ({"batch_size": 10, "rate": lambda t: 1.5}, ValueError, r"rate: .*\(0, 1\], found 1.5 at step 0"),
    ({"point": ["wights"]}, pv.ContractError, "point: 'wights' .*weights"),
    ({"point": ["y"]}, pv.ContractError, "point: 'y'"),
    ({"point": "weights"}, TypeError, r"point: .*\['weights'\]"),
    ({"point": ["mean"]}, pv.ContractError, r"point: 'mean, precision' is one factor.*joint=\(\)"),
    ({"joint": [("weights", "precision")]}, pv.ContractError, "joint: .*'weights' Dirichlet"),
    ({"joint": [("precision", "mean")]}, pv.ContractError, "joint: .*'precision' Wishart"),
    ({"joint": [("mu", "precision")]}, pv.ContractError, "joint: 'mu' .*weights"),
    ({"joint": 2 * [("mean", "precision")]}, pv.ContractError, "joint: 'mean' .* two pairs"),
    ({"joint": ("mean", "precision")}, TypeError, "joint: expected pairs"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_options_that_mean_nothing_are_refused(options, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        pv.cavi(MIXTURE, clusters(40), **options)


def test_data_that_are_no_numbers_are_refused():
    for value in (math.nan, math.inf):
        x = clusters(40)
        x[3, 1] = value
        with pytest.raises(ValueError, match="row 3"):
            pv.cavi(MIXTURE, x)
    with pytest.raises(ValueError, match="empty"):
        pv.cavi(MIXTURE, clusters(40)[:0])


def test_responsibilities_need_one_choice():
    for start in (pv.starts.random, responsibilities(40)):
        with pytest.raises(ValueError, match=r"start: .*none; leave start out"):
            pv.cavi(NormalGamma(2).double(), clusters(40), start=start)


SPARSE = [
    (BayesianBernoulliMixture(5, 3, on=0.1, off=0.1), bits(), ["probability"], "(?s)point: .*'probability' .*elements"),
    (BayesianGaussianMixture(2, 5, concentration=0.01), clusters(60), ["weights"], "point: .*'weights' rises"),
]


@pytest.mark.parametrize(("model", "x", "point", "message"), SPARSE)
def test_points_need_a_mode(model, x, point, message):
    with pytest.raises(pv.ContractError, match=message):
        pv.cavi(model.double(), x, start=pv.starts.random, point=point, iterations=200, tol=0)


def test_too_many_combinations_are_refused():
    def model(x):
        a = pyro.sample("a", dist.Normal(torch.zeros(70, dtype=F64), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(70, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(a @ b, 1.0), obs=x)

    with pytest.raises(pv.ContractError, match=r"5041 runs of the program.*plate for each row"):
        pv.cavi(model, bits(10)[:, 0])


def test_what_did_not_converge_says_so():
    found = pv.cavi(MIXTURE, clusters(60), start=pv.starts.random, iterations=2, tol=1e-12)
    assert not found.converged
    assert "not converged: the last of 2 iterations" in found.warnings[0]
    assert "Warning: not converged" in str(found)
    assert not any("not converged" in w for w in pv.cavi(MIXTURE, clusters(60), iterations=2, tol=0).warnings)
    assert pv.cavi(poisson_mixture, bits(40)[:, 0], start=pv.starts.random, iterations=300).converged
