"""Exact posteriors: against enumeration, closed forms, and by what they refuse."""

import exact_models
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_models import F64, clusters
from torch import nn

import ppl_vae as pv
from ppl_vae import conditioning
from ppl_vae.conditioning import expected_log_joint, posterior
from ppl_vae.densities import fast_log_prob
from ppl_vae.latent_structure import structure_of
from ppl_vae.models.linear_gaussian import LinearGaussian

CLOSE = {"rtol": 0, "atol": 1e-10}


def conditioned(model, *batch):
    structure, points = structure_of(model, batch)
    return posterior(structure, batch, points)


@pytest.fixture(params=[2**20, 64])
def chunked(request, monkeypatch):
    """Take all data at a time, and few."""
    monkeypatch.setattr(conditioning, "IN_A_CHUNK", request.param)


@pytest.mark.usefixtures("chunked")
def test_responsibilities_are_those_of_enumeration():
    model, x = exact_models.GaussianMixture(), clusters(50)
    found = conditioned(model, x)
    parts = dist.MultivariateNormal(model.mean, scale_tril=model.tril)
    joint = parts.log_prob(x.unsqueeze(1)) + model.logits.log_softmax(0)
    torch.testing.assert_close(found.discrete["y"], joint.softmax(1).detach(), **CLOSE)
    torch.testing.assert_close(found.log_px, joint.logsumexp(1).detach(), **CLOSE)
    assert not found.log_px.requires_grad


@pytest.mark.usefixtures("chunked")
def test_several_discrete_latents_keep_their_joint_table():
    model, x = exact_models.Regimes(), torch.randn(40, dtype=F64)
    found = conditioned(model, x)
    joint = model.joint(x).detach()
    table = joint.flatten(1).softmax(1).reshape(joint.shape)
    assert found.table.shape == (3, 2, 40)
    torch.testing.assert_close(found.table.permute(2, 1, 0), table, **CLOSE)
    torch.testing.assert_close(found.discrete["a"], table.sum(2), **CLOSE)
    torch.testing.assert_close(found.discrete["b"], table.sum(1), **CLOSE)
    torch.testing.assert_close(found.log_px, joint.flatten(1).logsumexp(1), **CLOSE)


@pytest.mark.usefixtures("chunked")
def test_gaussians_are_those_of_the_closed_form():
    torch.manual_seed(1)
    model, x = LinearGaussian(x_dim=6, z_dim=3).double(), 3 * torch.randn(40, 6, dtype=F64) + 5
    found, exact = conditioned(model, x), model.posterior(x)
    torch.testing.assert_close(found.log_px, model.log_px(x).detach(), **CLOSE)
    torch.testing.assert_close(found.continuous["z"].mean, exact.mean.detach(), **CLOSE)
    covariance = found.continuous["z"].covariance_matrix
    torch.testing.assert_close(covariance, exact.covariance_matrix.detach(), **CLOSE)
    assert covariance.stride(0) == 0  # of all data the same, and kept once


@pytest.mark.usefixtures("chunked")
def test_layers_of_gaussians_and_data_with_holes():
    """Data differ in their precision where parts of them are masked."""
    model, x = exact_models.Chain(), torch.randn(30, 4, dtype=F64)
    present = torch.rand(30, 4) < 0.7
    present[0] = True
    found = conditioned(model, x, present)
    whole = model.covariance().detach()
    for n in range(30):
        here = [5 + i for i in range(4) if present[n, i]]
        seen = x[n, present[n]]
        if not here:
            assert found.log_px[n].abs() < 1e-10
            continue
        gain = whole[:5][:, here] @ torch.linalg.inv(whole[here][:, here])
        exact = whole[:5, :5] - gain @ whole[here][:, :5]
        log_px = dist.MultivariateNormal(torch.zeros(len(here), dtype=F64), whole[here][:, here]).log_prob(seen)
        torch.testing.assert_close(found.log_px[n], log_px, **CLOSE)
        torch.testing.assert_close(found.continuous["z2"].mean[n], (gain @ seen)[:2], **CLOSE)
        torch.testing.assert_close(found.continuous["z1"].mean[n], (gain @ seen)[2:], **CLOSE)
        torch.testing.assert_close(found.continuous["z1"].covariance_matrix[n], exact[2:, 2:], **CLOSE)


@pytest.mark.usefixtures("chunked")
def test_mixtures_of_factor_analysers():
    model, x = exact_models.FactorMixture(), 2 * torch.randn(30, 4, dtype=F64)
    found, joint = conditioned(model, x), model.joint(x).detach()
    torch.testing.assert_close(found.log_px, joint.logsumexp(1), **CLOSE)
    torch.testing.assert_close(found.discrete["y"], joint.softmax(1), **CLOSE)
    loc, covariance = (t.detach() for t in model.of_z(x))
    assert found.continuous["z"].batch_shape == (30, 3)
    torch.testing.assert_close(found.continuous["z"].mean, loc, **CLOSE)
    torch.testing.assert_close(found.continuous["z"].covariance_matrix, covariance.expand(30, 3, 2, 2), **CLOSE)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("make", [exact_models.FactorMixture, exact_models.GaussianMixture, exact_models.Regimes])
def test_expected_log_joint_plus_entropy_is_the_log_likelihood(make):
    """And its gradient there is the log-likelihood's (Fisher's identity)."""
    model = make()
    x = {"FactorMixture": torch.randn(30, 4, dtype=F64), "Regimes": torch.randn(30, dtype=F64)}.get(
        make.__name__, clusters(30)
    )
    structure, points = structure_of(model, (x,))
    found = posterior(structure, (x,), points)
    entropy = -torch.special.xlogy(found.table, found.table).sum()
    for z in found.continuous.values():
        entropy += (found.discrete["y"] * z.entropy()).sum()
    expected = sum(expected_log_joint(structure, (x,), found, points))
    torch.testing.assert_close((expected + entropy).detach(), found.log_px.sum(), rtol=1e-12, atol=1e-9)
    exact = model.log_px(x) if hasattr(model, "log_px") else model.joint(x).flatten(1).logsumexp(1)
    for ours, theirs in zip(
        torch.autograd.grad(expected, [*model.parameters()]),
        torch.autograd.grad(exact.sum(), [*model.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_expectations_away_from_the_posterior_are_exact():
    """E_q[log p] for q at one place and p at another, against Gaussian algebra."""
    torch.manual_seed(2)
    model, x = LinearGaussian(x_dim=4, z_dim=2).double(), torch.randn(10, 4, dtype=F64)
    structure, points = structure_of(model, (x,))
    found = posterior(structure, (x,), points)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    q, variance = found.continuous["z"], (2 * model.log_scale).exp()
    loc = q.mean @ model.weight.mT + model.bias
    around = torch.einsum("dz,nzw,dw->nd", model.weight, q.covariance_matrix, model.weight)
    exact = dist.Normal(loc, model.log_scale.exp()).log_prob(x).sum() - (around / variance).sum() / 2
    exact += dist.Normal(0.0, 1.0).log_prob(q.mean).sum() - q.variance.sum() / 2
    torch.testing.assert_close(sum(expected_log_joint(structure, (x,), found, points)), exact, **CLOSE)


def test_one_value_and_one_hot_values():
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            one = pyro.sample("one", dist.Categorical(torch.ones(1, dtype=F64)))
            hot = pyro.sample("hot", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5], dtype=F64)))
            pyro.sample("x", dist.Normal(hot @ torch.tensor([0.0, 1.0, 2.0], dtype=F64) + one, 1.0), obs=x)

    x = torch.randn(6, dtype=F64)
    found = conditioned(model, x)
    joint = dist.Normal(torch.tensor([0.0, 1.0, 2.0], dtype=F64), 1.0).log_prob(x.unsqueeze(-1))
    joint = joint + torch.tensor([0.2, 0.3, 0.5], dtype=F64).log()
    torch.testing.assert_close(found.discrete["one"], torch.ones(6, 1, dtype=F64), **CLOSE)
    torch.testing.assert_close(found.discrete["hot"], joint.softmax(1), **CLOSE)


def test_impossible_values_have_no_share():
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=torch.tensor([-torch.inf, 0.4, 0.6], dtype=F64)))
            pyro.sample("x", dist.Normal(y.to(F64), 1.0), obs=x)

    found = conditioned(model, torch.randn(5, dtype=F64))
    assert torch.equal(found.discrete["y"][:, 0], torch.zeros(5, dtype=F64))
    assert found.log_px.isfinite().all()


def continuous(prior, likelihood):
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    return model


NOT_GAUSSIAN = {
    "a gamma prior": (dist.Gamma(2.0, 1.0), lambda z: dist.Normal(z, 1.0), "site 'z' .*not Gaussian"),
    "a Laplace prior": (dist.Laplace(0.0, 1.0), lambda z: dist.Normal(z, 1.0), "site 'z': .*not quadratic"),
    "a bent mean": (dist.Normal(0.0, 1.0), lambda z: dist.Normal(z.sin(), 1.0), "site 'x': .*not quadratic"),
    "a scale": (dist.Normal(0.0, 1.0), lambda z: dist.Normal(0.0, z.exp()), "site 'x': .*not quadratic"),
    "heavy tails": (dist.Normal(0.0, 1.0), lambda z: dist.StudentT(3.0, z, 1.0), "site 'x': .*not quadratic"),
    "a list": (dist.Poisson(2.0), lambda z: dist.Normal(z, 1.0), "site 'z' .*no finite list"),
    "a vector of bits": (
        dist.Bernoulli(0.5 * torch.ones(3)).to_event(1),
        lambda z: dist.Normal(z.sum(-1), 1.0),
        "site 'z' .*no finite list",
    ),
}


@pytest.mark.parametrize("which", NOT_GAUSSIAN)
def test_what_is_not_gaussian_is_refused_by_name(which):
    prior, likelihood, message = NOT_GAUSSIAN[which]
    with pytest.raises(pv.ContractError, match=message):
        conditioned(continuous(prior, likelihood), torch.randn(8))


def site(draw):
    """Return a model that also does something else, in or outside its plate."""

    def model(x):
        draw(x, inside=False)
        with pyro.plate("data", x.shape[0], dim=-1):
            draw(x, inside=True)
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return model


def penalty(x, inside):
    if inside:
        pyro.factor("penalty_z", x)


def unplated(x, inside):
    if not inside:
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def observed_outside(x, inside):
    if not inside:
        pyro.sample("w", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1), obs=x)


def discrete_outside(x, inside):
    if not inside:
        pyro.sample("k", dist.Bernoulli(0.5))


def scaled(x, inside):
    if inside:
        with pyro.poutine.scale(scale=0.5):
            pyro.sample("y", dist.Bernoulli(0.5))


def gated(x, inside):
    if inside:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Bernoulli(logits=z))


REFUSED = {
    penalty: "factor 'penalty_z'.*part of no likelihood",
    unplated: "site 'z' follows the number of data.*outside the plate 'data'",
    observed_outside: "site 'w' follows the number of data.*outside the plate 'data'",
    discrete_outside: "site 'k' .*discrete global latent",
    scaled: "site 'y' .*scale of its own",
    gated: "site 'y': its probabilities depend on .*z",
}


@pytest.mark.parametrize("draw", REFUSED, ids=lambda draw: draw.__name__)
def test_sites_without_a_place_are_refused_by_name(draw):
    with pytest.raises(pv.ContractError, match=REFUSED[draw]):
        conditioned(site(draw), torch.randn(8))


def test_a_model_without_data_is_refused():
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("y", dist.Bernoulli(0.5))

    with pytest.raises(pv.ContractError, match="observes nothing"):
        conditioned(model, torch.randn(4))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("tied", [False, True])
def test_whitened_densities_are_those_of_torch(leading, tied):
    torch.manual_seed(3)
    loc = 1e3 + torch.randn(*leading, 1, 4, dtype=F64)
    tril = (
        torch.linalg.cholesky(torch.eye(4, dtype=F64) + 0.2) if tied else torch.rand(*leading, 1, 4, 4).double().tril()
    )
    fn = dist.MultivariateNormal(loc, scale_tril=tril + 0.5 * torch.eye(4, dtype=F64)).expand((*leading, 7))
    x = 1e3 + torch.randn(7, 4, dtype=F64)
    torch.testing.assert_close(fast_log_prob(fn, x), fn.log_prob(x), rtol=1e-10, atol=1e-8)


def test_densities_that_change_along_the_data_compute_their_own():
    fn = dist.MultivariateNormal(torch.randn(5, 3), torch.eye(3))
    x = torch.randn(5, 3)
    assert torch.equal(fast_log_prob(fn, x), fn.log_prob(x))
    assert torch.equal(fast_log_prob(dist.Normal(0.0, 1.0), x), dist.Normal(0.0, 1.0).log_prob(x))


def test_whitened_densities_have_gradients():
    loc, tril = nn.Parameter(torch.randn(3, 1, 2, dtype=F64)), nn.Parameter(torch.eye(2, dtype=F64).repeat(3, 1, 1, 1))
    x = torch.randn(6, 2, dtype=F64)
    fn = dist.MultivariateNormal(loc, scale_tril=tril)
    ours = torch.autograd.grad(fast_log_prob(fn.expand((3, 6)), x).square().sum(), [loc, tril])
    theirs = torch.autograd.grad(fn.log_prob(x).square().sum(), [loc, tril])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
