"""What coordinate ascent refuses, and what it says then."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import bits, poisson_mixture, responsibilities, tensor, zero
from exact_models import F64, clusters

import ppl_vae as pv
from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from ppl_vae.models.normal_gamma import NormalGamma


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
