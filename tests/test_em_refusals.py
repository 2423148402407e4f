"""What expectation maximisation refuses, and what it says then."""

import math
from functools import partial

import exact_models
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_models import F64, clusters
from torch import nn
from unchanged import assert_same, tensors

import ppl_vae as pv
from ppl_vae.models.linear_gaussian import LinearGaussian


def refused(message, model, x, error=ValueError, **options):
    before = tensors(model)
    with pytest.raises(error, match=message):
        pv.em(model, x, **options)
    assert_same(model, before)


def test_data_that_are_no_numbers_are_refused():
    x = clusters(20)
    x[[3, 7], 0] = torch.tensor([math.nan, math.inf], dtype=F64)
    refused(r"rows 3, 7 of part 0 hold NaN .*pv.impute", exact_models.GaussianMixture(), x)


def test_types_that_differ_are_refused():
    refused("x: it is in float32, the model's parameters are in float64", exact_models.Strict(), clusters(20).float())


def test_data_outside_the_support_are_refused():
    with pytest.raises(pv.ContractError, match=r"site 'x': data .*outside the support"):
        pv.em(exact_models.coin, torch.tensor([0.0] * 10 + [2.0], dtype=F64))


def test_more_components_than_data_are_refused():
    refused("3 distinct rows.*5 components", exact_models.GaussianMixture(y_dim=5), clusters(3))
    x = clusters(3).repeat(20, 1)
    refused("3 distinct rows.*5 components", exact_models.GaussianMixture(y_dim=5), x)


def test_singular_covariances_name_their_component():
    x = torch.cat([clusters(50), torch.full((10, 2), 100.0, dtype=F64)])  # one cluster of equal points
    refused(r"component \d: its covariance is not positive definite", exact_models.Strict(), x)
    flat = clusters(50)
    flat[:, 1] = 0.0
    refused("component 0: its covariance .*constant", exact_models.GaussianMixture(), flat)
    found = pv.em(exact_models.GaussianMixture(floor=1e-3), x, iterations=3)
    assert found.log_px.isfinite().all()


class ByCovariance(exact_models.GaussianMixture):
    """Parameterised by covariances, of which an M-step makes one singular after some iterations."""

    def forward(self, x):
        covariance = self.tril @ self.tril.mT
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            fn = dist.MultivariateNormal(self.mean[y], covariance_matrix=covariance[y], validate_args=False)
            pyro.sample("x", fn, obs=x)

    def m_step(self, posterior, x):
        super().m_step(posterior, x)
        with torch.no_grad():
            self.tril[1] *= 0.0


def test_errors_in_the_program_leave_all_as_it_was():
    refused("component 1: its covariance is not positive", ByCovariance(), clusters(40))


def test_impossible_data_are_named():
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.0, dtype=F64))

        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                fn = dist.Normal(0.0, self.scale, validate_args=False)
                pyro.sample("x", fn, obs=x)

    refused("row 0 is nan", Bounded(), torch.randn(4, dtype=F64), FloatingPointError)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"iterations": 0}, ValueError, "iterations"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"restarts": 0}, ValueError, "restarts"),
        ({"restarts": 2, "start": pv.starts.as_they_are}, ValueError, "restarts: each would begin at the same"),
        ({"start": torch.ones(3, 3)}, ValueError, "start: .*shape"),
        ({"start": torch.ones(20, 3)}, ValueError, "row 0 is no distribution"),
        ({"start": "kmeans"}, TypeError, "start: "),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error, message):
    refused(message, exact_models.GaussianMixture(), clusters(20), error, **options)


def test_responsibilities_need_one_discrete_latent():
    refused("start: .*none", LinearGaussian(2, 1).double(), clusters(20), start=pv.starts.random)


def test_a_model_with_nothing_to_fit_is_refused():
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(pv.ContractError, match="nothing to fit"):
        pv.em(model, torch.randn(4))


class Forgetful(exact_models.MixtureWithPriors):
    def m_step(self, posterior, x):
        return {"weights": posterior["y"].mean(0)}


def test_an_m_step_gives_every_global_latent():
    with pytest.raises(pv.ContractError, match=r"m_step: it returned 'weights' .*'loc'"):
        pv.em(Forgetful(), clusters(20)[:, 0])


def gaussian(rows=None):
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0, dtype=F64))
        with pyro.plate("data", rows or len(x), subsample_size=len(x), dim=-1):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


def test_a_plate_larger_than_the_data_is_refused():
    x = clusters(20)[:, 0]
    with pytest.raises(pv.ContractError, match=r"site 'x' has a scale, 200 .*pass all of them"):
        pv.em(gaussian(4000), x)
    assert pv.em(gaussian(20), x).parameters["loc"].item() == pytest.approx(x.mean().item(), abs=1e-7)


FOREIGN = nn.Parameter(torch.zeros(2))

PRIORS = {
    "no function": (3.0, TypeError, "log_prior: expected a function"),
    "a vector": (lambda model: -model.mean.square().sum(0), ValueError, r"log_prior: .*shape \(\)"),
    "of others": (lambda model: -FOREIGN.square().sum(), ValueError, "log_prior: it depends on none"),
}


@pytest.mark.parametrize("which", PRIORS)
def test_priors_that_cannot_be_maximised_are_refused(which):
    log_prior, error, message = PRIORS[which]
    model, x = exact_models.GaussianMixture(), clusters(20)
    given = partial(log_prior, model) if callable(log_prior) else log_prior
    refused(message, model, x, error, log_prior=given)
    with pytest.raises(error, match=message):
        pv.em_step(model, log_prior=given)(x)
    if which == "of others":
        with pytest.raises(error, match=message):  # no parameters of its own
            pv.em(exact_models.MixtureWithPriors(), x[:, 0], log_prior=partial(log_prior, None))


def test_what_is_no_model_data_or_seed_is_refused_by_name():
    with pytest.raises(pv.ContractError, match=r"model: .*pass an instance"):
        pv.em(exact_models.GaussianMixture, clusters(20))
    refused(
        r"x: site 'x' \(MultivariateNormal\) .*int64", exact_models.GaussianMixture(), clusters(20).long(), TypeError
    )
    refused("seed: ", exact_models.GaussianMixture(), clusters(20), TypeError, seed=None)
    with pytest.raises(TypeError, match="seed: "):
        pv.em_step(exact_models.GaussianMixture(), seed=None)


def test_a_start_that_gives_nothing_is_refused():
    refused(
        r"start: expected responsibilities \(N, C\), or a function to them .* found None",
        *(exact_models.GaussianMixture(), clusters(20), TypeError),
        start=lambda x, components, seed: None,
    )


class Tilted(nn.Module):
    """z ~ N(0, 1) and a factor, x ~ a location at z + bias; a coin that nothing follows."""

    def __init__(self, factor, likelihood=dist.Normal, shared=None):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros((), dtype=F64))
        self.factor, self.likelihood, self.shared = factor, likelihood, shared

    def forward(self, x):
        if self.shared is not None:
            pyro.factor("shared", self.shared(self.bias))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("c", dist.Categorical(torch.ones(2, dtype=F64)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.factor("tilt", self.factor(z))
            pyro.sample("x", self.likelihood(z + self.bias, 1.0), obs=x)


AS_IT_IS = {"start": pv.starts.as_they_are}


def test_a_joint_density_that_rises_for_ever_is_refused():
    refused(
        r"site 'z': the joint density is quadratic, but does not fall in every direction.*Gaussian prior",
        *(Tilted(torch.square), clusters(20)[:, 0], pv.ContractError),
        **AS_IT_IS,
    )


def test_the_site_that_is_not_quadratic_is_told_from_those_that_are_flat_or_linear():
    refused(
        r"site 'x': its log density is not quadratic in 'z'",
        *(Tilted(lambda z: 3 * z, dist.Cauchy), clusters(20)[:, 0], pv.ContractError),
        **AS_IT_IS,
    )


@pytest.mark.parametrize("tilt", [0.0, 3.0])
def test_factors_count_in_the_plate_and_outside(tilt):
    """With exp(tilt z), z ~ N(tilt, 1); exp(-2 bias^2) then is a prior of variance 1/4, and the bias its mode."""
    x = clusters(20)[:, 0]
    model = Tilted(lambda z: tilt * z, shared=lambda bias: -2 * bias.square())
    found = pv.em(model, x, iterations=200, tol=1e-14, **AS_IT_IS)
    wanted = (x - tilt).sum() / 2 / (20 / 2 + 4)
    assert model.bias.item() == pytest.approx(wanted.item(), abs=1e-6)
    exact = dist.Normal(tilt + wanted, math.sqrt(2)).log_prob(x).mean() + tilt**2 / 2
    assert found.history["log_likelihood"][-1] == pytest.approx(exact.item(), abs=1e-6)


def test_a_parameter_that_the_likelihood_does_not_read_goes_to_the_mode_of_its_prior():
    model = Tilted(torch.zeros_like, lambda loc, scale: dist.Normal(torch.zeros_like(loc).detach(), scale))
    nn.init.constant_(model.bias, 3.0)
    pv.em(model, clusters(20)[:, 0], log_prior=pv.normal_prior(model, scale=1.0), **AS_IT_IS)
    assert model.bias.item() == pytest.approx(0.0, abs=1e-6)
