"""Coordinate ascent against scikit-learn, closed forms, and updates written out by hand."""

import math
import warnings

import mean_field_by_hand as by_hand
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from conjugate import bits, close, normal_gamma, numbers, responsibilities, tensor
from exact_models import F64, clusters
from scipy import special
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture as Theirs
from torch import digamma

import ppl_vae as pv
from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
from ppl_vae.models.bayesian_diagonal_mixture import BayesianDiagonalMixture
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from ppl_vae.models.bayesian_linear_regression import BayesianLinearRegression
from ppl_vae.models.beta_bernoulli import BetaBernoulli
from ppl_vae.models.correlated_gaussian import CorrelatedGaussian


def eta(found, name):
    return found.factorised.eta[name]


class Started(Theirs):
    """scikit-learn's from given responsibilities."""

    def __init__(self, shares, **options):
        super().__init__(weight_concentration_prior_type="dirichlet_distribution", reg_covar=0, tol=0, **options)
        self.shares = shares

    def _initialize_parameters(self, X, random_state=None, *args, **kwargs):
        self._initialize(X, self.shares)


PRIORS = {"prior_mean": tensor(1.0, -1.0), "scatter": torch.tensor([[2.0, 0.25], [0.25, 1.0]], dtype=F64)}


def gaussian_mixture():
    return BayesianGaussianMixture(2, 3, 0.75, mean_precision=0.5, degrees_of_freedom=4.5, **PRIORS).double()


def theirs(x, shares, iterations):
    mixture = Started(
        shares.numpy(),
        n_components=3,
        max_iter=iterations,
        weight_concentration_prior=0.75,
        mean_precision_prior=0.5,
        mean_prior=PRIORS["prior_mean"].numpy(),
        degrees_of_freedom_prior=4.5,
        covariance_prior=PRIORS["scatter"].numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(x.numpy())


@pytest.mark.parametrize("iterations", [1, 2, 5, 30])
def test_every_iteration_is_scikit_learns(iterations):
    x, shares = clusters(200), responsibilities(200)
    found = pv.cavi(gaussian_mixture(), x, start=shares, iterations=iterations, tol=0)
    wanted = theirs(x, shares, iterations)
    _, loc, df, scatter = eta(found, "mean, precision")
    close(found.q["weights"].concentration, wanted.weight_concentration_)
    close(loc, wanted.means_)
    close(df, wanted.degrees_of_freedom_)
    close(scatter / df[:, None, None], wanted.covariances_)
    close(found.q["precision"].mean, wanted.precisions_)
    close(found.responsibilities, wanted.predict_proba(x.numpy()))
    assert torch.equal(found.labels, torch.as_tensor(wanted.predict(x.numpy())))
    assert len(found.history["elbo"]) == found.iterations + 1 == iterations + 1


MIXTURES = {
    "full": (gaussian_mixture, by_hand.NormalWisharts, clusters(100)),
    "diagonal": (
        lambda: BayesianDiagonalMixture(2, 3, 0.7, prior_mean=1.0, mean_precision=0.3, shape=2.0, rate=0.5).double(),
        by_hand.NormalGammas,
        clusters(100),
    ),
    "bits": (lambda: BayesianBernoulliMixture(5, 3, 0.7, on=0.5, off=1.5).double(), by_hand.Betas, bits()),
}


@pytest.mark.parametrize("which", MIXTURES)
def test_mixtures_are_those_by_hand(which):
    make, components, x = MIXTURES[which]
    model, shares = make(), responsibilities(len(x))
    components = components(model)
    r, alpha, history = by_hand.mixture(components, x, shares, model.concentration, 12)
    found = pv.cavi(model, x, start=shares, iterations=12, tol=0)
    close(found.history["elbo"], history, atol=1e-10)
    close(found.responsibilities, r, atol=1e-9)
    close(found.q["weights"].concentration, alpha, atol=1e-8)
    if which == "bits":
        close(found.q["probability"].base_dist.concentration1, components.on, atol=1e-8)
        close(found.q["probability"].base_dist.concentration0, components.off, atol=1e-8)
    elif which == "diagonal":
        close(found.q["precision"].base_dist.concentration, components.shape, atol=1e-8)
        close(found.q["precision"].base_dist.rate, components.rate, atol=1e-7)
        close(found.q["mean"].mean, components.loc, atol=1e-9)
    else:
        close(found.q["precision"].df, components.df, atol=1e-8)
        close(found.q["mean"].loc, components.loc, atol=1e-9)


def test_coins_have_their_posterior_and_evidence():
    x = bits(30)[:, :2]
    found = pv.cavi(BetaBernoulli(2, on=0.5, off=2.0).double(), x)
    on, off = 0.5 + x.sum(0), 2.0 + (1 - x).sum(0)
    q = found.q["probability"].base_dist
    close(q.concentration1, on, atol=1e-10)
    close(q.concentration0, off, atol=1e-10)
    evidence = special.betaln(on.numpy(), off.numpy()) - special.betaln(0.5, 2.0)
    close(found.elbo, evidence.sum(), atol=1e-9)
    assert found.converged
    close(found.history["elbo"][1:], [evidence.sum() / 30] * (len(found.history["elbo"]) - 1), atol=1e-12)


def test_a_mean_and_its_precision_have_their_posterior_and_evidence():
    x, n = numbers(), 40
    found = pv.cavi(normal_gamma(), x)
    kappa, shape = 0.25 + n, 2 + n / 2
    loc = (0.25 * 0.5 + x.sum(0)) / kappa
    rate = 1.5 + ((x - x.mean(0)) ** 2).sum(0) / 2 + 0.25 * n * (x.mean(0) - 0.5) ** 2 / (2 * kappa)
    q = found.q["precision"].base_dist
    close(q.concentration, torch.full((2,), shape), atol=1e-10)
    close(q.rate, rate, atol=1e-10)
    student = found.q["mean"].base_dist
    close(student.df, torch.full((2,), 2 * shape), atol=1e-10)
    close(student.loc, loc, atol=1e-12)
    close(student.scale, (rate / (shape * kappa)).sqrt(), atol=1e-12)
    evidence = (
        math.lgamma(shape) - math.lgamma(2) + 2 * math.log(1.5) - shape * rate.log() + math.log(0.25 / kappa) / 2
    ) - n / 2 * math.log(2 * math.pi)
    close(found.elbo, evidence.sum(), atol=1e-9)


def test_a_mean_and_its_precision_apart_are_those_of_the_textbook():
    """C. M. Bishop, "Pattern Recognition and Machine Learning", equations 10.26 to 10.30."""
    x, n = numbers(), 40
    found = pv.cavi(normal_gamma(), x, joint=(), iterations=60, tol=0)
    kappa, shape = 0.25 + n, 2 + (n + 1) / 2
    loc = (0.25 * 0.5 + x.sum(0)) / kappa
    rate = tensor(1.0, 1.0)
    for _ in range(300):
        variance = 1 / (kappa * shape / rate)
        squares = ((x - loc) ** 2).sum(0) + 0.25 * (loc - 0.5) ** 2
        rate = 1.5 + (squares + kappa * variance) / 2
    q = found.q["precision"].base_dist
    close(q.concentration, torch.full((2,), shape), atol=1e-9)
    close(q.rate, rate, atol=1e-7)
    close(found.q["mean"].mean, loc, atol=1e-9)
    close(found.q["mean"].covariance_matrix, variance.diag(), atol=1e-9)
    assert found.elbo < pv.cavi(normal_gamma(), x).elbo


def test_correlated_latents_are_less_uncertain_than_they_should_be():
    model, x = CorrelatedGaussian(correlation=0.25, scale=2.0).double(), torch.randn(20, 1, dtype=F64) + 1
    found = pv.cavi(model, x, iterations=80, tol=0)
    exact = model.posterior(x)
    for i, name in enumerate(("z1", "z2")):
        close(found.q[name].loc, exact.mean[i], atol=1e-9)
        close(found.q[name].scale ** -2, exact.precision_matrix[i, i], atol=1e-9)
        assert found.q[name].scale ** 2 < 0.8 * exact.covariance_matrix[i, i]
    # What the bound lacks is the divergence from the posterior, known for normals.
    q = dist.MultivariateNormal(exact.mean, torch.stack([found.q[n].scale ** 2 for n in ("z1", "z2")]).diag())
    gap = torch.distributions.kl_divergence(q, exact)
    shared = (1.0 + 1.0 + 2 * 0.25) * torch.ones(20, 20, dtype=F64) + 4 * torch.eye(20, dtype=F64)
    evidence = dist.MultivariateNormal(torch.zeros(20, dtype=F64), shared).log_prob(x[:, 0])
    close(found.elbo, evidence - gap, atol=1e-8)


def test_linear_regression_is_that_by_hand():
    model = BayesianLinearRegression(3, prior_mean=0.5, prior_precision=2.0, shape=2.0, rate=1.5).double()
    u = torch.randn(50, 3, dtype=F64)
    x = u @ tensor(1.0, -2.0, 0.5) + 0.7 * torch.randn(50, dtype=F64)
    found = pv.cavi(model, (x, u), iterations=8, tol=0)
    again = pv.cavi(model, (x, u), iterations=9, tol=0)
    # An iteration brings coefficients to their optimum given the noise, and then the noise.
    before, after = found.q["precision"], again.q["precision"]
    noise = before.concentration / before.rate
    precision = 2 * torch.eye(3, dtype=F64) + noise * u.mT @ u
    loc = torch.linalg.solve(precision, noise * u.mT @ x + 1.0)
    covariance = torch.linalg.inv(precision)
    close(again.q["coefficients"].loc, loc, atol=1e-9)
    close(again.q["coefficients"].covariance_matrix, covariance, atol=1e-9)
    misfit = (x - u @ loc).square().sum() + torch.einsum("ni,ij,nj->", u, covariance, u)
    close(after.concentration, 2 + 25.0, atol=1e-9)
    close(after.rate, 1.5 + misfit / 2, atol=1e-8)
    mean, log = after.mean, digamma(after.concentration) - after.rate.log()
    fit = 25 * (log - math.log(2 * math.pi)) - mean * misfit / 2
    prior = dist.MultivariateNormal(torch.full((3,), 0.5, dtype=F64), precision_matrix=2 * torch.eye(3, dtype=F64))
    far = torch.distributions.kl_divergence(dist.MultivariateNormal(loc, covariance), prior)
    noise_far = by_hand.kl_gamma(after.concentration, after.rate, tensor(2.0).squeeze(), tensor(1.5).squeeze())
    close(again.elbo, fit - far - noise_far, atol=1e-9)


# Expectation maximisation is coordinate ascent with point masses.


def flat():
    return BayesianGaussianMixture(2, 3, 1.0, mean_precision=1e-8, degrees_of_freedom=2.0, scatter=1e-8 * torch.eye(2))


POINTS = {
    "full": (lambda: BayesianGaussianMixture(2, 3, 1.5, mean_precision=0.5), ["weights", "mean", "precision"]),
    "flat": (flat, ["weights", "mean", "precision"]),
    "diagonal": (lambda: BayesianDiagonalMixture(2, 3, 1.5, mean_precision=0.5), ["weights", "mean", "precision"]),
    "bits": (lambda: BayesianBernoulliMixture(5, 3, 1.5), ["weights", "probability"]),
}


@pytest.mark.parametrize("which", POINTS)
def test_point_masses_are_expectation_maximisation(which):
    make, names = POINTS[which]
    x = bits() if which == "bits" else clusters(80)
    shares = responsibilities(len(x))
    found = pv.cavi(make().double(), x, start=shares, point=names, iterations=15, tol=0)
    em = pv.em(make().double(), x, start=shares, iterations=15, tol=0)
    close(found.history["elbo"], em.history["log_posterior"], atol=1e-8)
    close(found.responsibilities, em.responsibilities)
    for name in names:
        assert isinstance(found.q[name], dist.Delta)
        close(found.q[name].v, em.parameters[name], rtol=1e-7)
        assert found.q[name].batch_shape + found.q[name].event_shape == em.parameters[name].shape
    new = bits(10) if which == "bits" else clusters(10, seed=3)
    close(found.log_density(new), em.log_density(new), atol=1e-9)
    close(found.predict(new), em.predict(new), atol=1e-9)
    assert torch.equal(found.sample(2)[names[0]], found.q[names[0]].v.expand(2, *found.q[names[0]].v.shape))


def test_some_latents_may_be_points_and_others_not():
    x = clusters(80)
    model = gaussian_mixture()
    found = pv.cavi(model, x, start=responsibilities(80), point=["weights"], iterations=10, tol=0)
    held = found.history["elbo"]
    assert isinstance(found.q["weights"], dist.Delta)
    assert min(np.diff(held)) > -1e-11
    close(found.sample(3)["weights"][0], found.q["weights"].v)
    assert found.sample(3)["mean"].std() > 0
