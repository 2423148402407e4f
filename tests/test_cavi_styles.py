"""Coordinate ascent on programs in other styles, which must not matter."""

import mean_field_by_hand as by_hand
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import close, responsibilities, steps, tensor, zero
from exact_models import F64, clusters
from pyro.ops.indexing import Vindex

import ppl_vae as pv
from ppl_vae.models.bayesian_diagonal_mixture import BayesianDiagonalMixture
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture


def indexed(x):
    """Without Vindex, dims, marks, or tensors."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[y], tau[y].rsqrt()), obs=x)


def spelt_out(x):
    one = torch.ones((), dtype=x.dtype)
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=x.dtype)))
    with pyro.plate("components", 3, dim=-1):
        tau = pyro.sample("tau", dist.Gamma(2.0 * one, one))
        mean = pyro.sample("mean", dist.Normal(0.0 * one, 5.0 * one))
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
        scale = Vindex(tau)[..., y].rsqrt()
        pyro.sample("x", dist.Normal(Vindex(mean)[..., y], scale), obs=x)


@pytest.mark.parametrize("type_", [torch.float32, F64])
def test_styles_are_nobodys_business(type_):
    x = 3 * clusters(60, 1)[:, 0].to(type_)
    shares = responsibilities(60).to(type_)
    one, other = (pv.cavi(model, x, start=shares, iterations=15, tol=0) for model in (indexed, spelt_out))
    torch.testing.assert_close(one.history, other.history, rtol=0, atol=1e-4)
    torch.testing.assert_close(one.responsibilities.double(), other.responsibilities.double(), rtol=0, atol=1e-3)
    assert steps(other).min() > (-1e-10 if type_ == F64 else -1e-5)


def test_pieces_of_one_likelihood_add_up():
    """A multivariate normal with one Cholesky factor, independent normals, and numbers of their own."""
    x = clusters(50)

    def together(x):
        mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.MultivariateNormal(mean, scale_tril=2 * torch.eye(2, dtype=F64)), obs=x)

    def apart(x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(mean, 2.0).to_event(1), obs=x)

    def in_two(x):
        first = pyro.sample("first", dist.Normal(tensor(0.0).squeeze(), 1.0))
        second = pyro.sample("second", dist.Normal(tensor(0.0).squeeze(), 1.0))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x1", dist.Normal(first, 2.0), obs=x[:, 0])
            pyro.sample("x2", dist.Normal(second, 2.0), obs=x[:, 1])

    bounds = [pv.cavi(model, x).elbo for model in (together, apart, in_two)]
    loc, spread = torch.zeros(50, dtype=F64), 4 * torch.eye(50, dtype=F64) + 1
    evidence = dist.MultivariateNormal(loc, spread).log_prob(x.mT).sum()
    close(bounds, evidence.expand(3), atol=1e-9)


def choosing(draw):
    """Return a mixture of two exponentials, with its choice drawn in one way or another."""

    def model(x):
        with pyro.plate("components", 2, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(torch.ones(2, dtype=F64), 1.0))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2, dtype=F64)))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Exponential(draw(weights, rate)), obs=x)

    return model


CHOICES = {
    "number": lambda weights, rate: rate[pyro.sample("y", dist.Categorical(weights))],
    "bit": lambda weights, rate: rate[pyro.sample("y", dist.Bernoulli(weights[1])).long()],
    "vector": lambda weights, rate: (pyro.sample("y", dist.OneHotCategorical(weights)) * rate).sum(-1),
}


@pytest.mark.parametrize("how", CHOICES)
def test_a_choice_is_a_choice(how):
    x = torch.cat([torch.rand(30), 5 * torch.rand(30)]).double()
    options = {"start": responsibilities(60, 2), "iterations": 10, "tol": 0}
    found, plain = (pv.cavi(choosing(CHOICES[which]), x, **options) for which in (how, "number"))
    close(found.history["elbo"], plain.history["elbo"], atol=1e-10)
    close(found.responsibilities, plain.responsibilities)


@pytest.mark.parametrize("program", [BayesianGaussianMixture, BayesianDiagonalMixture])
def test_a_single_component_is_a_conjugate_model(program):
    """Its bound is the evidence: the product of predictive densities, each a Student t."""
    x, found = clusters(15), pv.cavi(program(2, 1).double(), clusters(15))
    close(found.responsibilities, torch.ones(15, 1), atol=0)
    evidence = 0.0
    components = {BayesianGaussianMixture: by_hand.NormalWisharts, BayesianDiagonalMixture: by_hand.NormalGammas}
    for n in range(15):
        so_far = components[program](program(2, 1).double())
        so_far.fit(x[:n], torch.ones(n, 1, dtype=F64)) if n else so_far.fit(x[:1], 1e-300 * torch.ones(1, 1).double())
        evidence = evidence + predictive(so_far, x[n])
    assert found.elbo == pytest.approx(float(evidence), abs=1e-8)


def predictive(components, x):
    kappa = components.kappa
    if isinstance(components, by_hand.NormalGammas):
        scale = (components.rate * (kappa + 1) / (components.shape * kappa)).sqrt()
        return dist.StudentT(2 * components.shape, components.loc, scale).log_prob(x).sum()
    free = components.df - 1
    scale = components.scatter * ((kappa + 1) / (kappa * free))[:, None, None]
    return dist.MultivariateStudentT(free, components.loc, torch.linalg.cholesky(scale)).log_prob(x).sum()


def test_masks_of_handlers_have_their_say():
    def model(x, present):
        mean = pyro.sample("mean", dist.Normal(zero(), 2.0))
        with pyro.plate("data", x.shape[0], dim=-1), pyro.poutine.mask(mask=present):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x, present = torch.randn(10, dtype=F64), torch.arange(10) < 6
    found = pv.cavi(model, (x, present))
    close(found.q["mean"].loc, x[:6].sum() / 6.25, atol=1e-10)
    close(found.q["mean"].scale ** -2, 6.25, atol=1e-10)


def test_a_prior_that_a_mask_takes_away_is_flat():
    """Least squares, in one update."""
    f = torch.randn(30, 2, dtype=F64)
    x = f @ tensor(1.0, -2.0) + torch.randn(30, dtype=F64)

    def model(x, f):
        with pyro.poutine.mask(mask=False):
            w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(f @ w, 1.0), obs=x)

    found = pv.cavi(model, (x, f))
    close(found.q["w"].mean, torch.linalg.lstsq(f, x.unsqueeze(1)).solution.squeeze(1), atol=1e-10)
    close(found.q["w"].covariance_matrix, torch.linalg.inv(f.mT @ f), atol=1e-10)


@pytest.mark.parametrize("written", ["probs", "logits"])
def test_components_of_missing_data_have_their_prior(written):
    """What is left is a bound on the evidence of the data that are there."""
    x, present = torch.randn(10, dtype=F64), torch.arange(10) < 6

    def model(x, present):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2, dtype=F64)))
        with pyro.plate("data", x.shape[0], dim=-1), pyro.poutine.mask(mask=present):
            y = pyro.sample("y", dist.Categorical(**{written: weights if written == "probs" else weights.log()}))
            pyro.sample("x", dist.Normal(tensor(-1.0, 2.0)[y], 1.0), obs=x)

    found = pv.cavi(model, (x, present), start=pv.starts.as_they_are, tol=1e-12, iterations=500)
    weights = dist.Dirichlet(found.q["weights"].concentration)
    log = torch.digamma(weights.concentration) - torch.digamma(weights.concentration.sum())
    close(found.discrete["y"][6:], log.softmax(0).expand(4, 2), atol=1e-6)
    share = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000  # of the first component, uniform a priori
    densities = dist.Normal(tensor(-1.0, 2.0), 1.0).log_prob(x[:6, None]).exp()
    each = densities[:, :1] * share + densities[:, 1:] * (1 - share)
    evidence = each.log().sum(0).exp().mean().log()
    assert evidence - 2 < found.elbo < evidence
