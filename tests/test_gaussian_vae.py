"""A linear Gaussian VAE under a diagonal guide, where every part of the bound has a closed form.

Log densities are quadratic in z, so that their expectation under the guide is the mean over two points on each axis,
``z = m +- sqrt(D) s_i e_i``: given these as particles, bounds equal the closed form to rounding.
"""

import math

import pytest
import torch
from given import Given
from odds import assert_mean
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

import ppl_vae as pv
from ppl_vae import nets
from ppl_vae.estimation import estimate
from ppl_vae.guides.full_covariance import FullCovariance
from ppl_vae.guides.low_rank import LowRank
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

X_DIM, Z_DIM, SCALE, F64 = 6, 3, 0.4, torch.float64
HEADS = {
    "fixed": lambda: nets.ToNormalFixedScale(SCALE),
    "one": lambda: nets.ToNormalOneScale(SCALE),
    "pixel": lambda: nets.ToNormalPixelScale(X_DIM, SCALE),
}
GUIDES = {"diagonal": Normal, "full": FullCovariance, "low rank": LowRank}


@pytest.fixture(params=HEADS)
def model(request):
    torch.manual_seed(0)
    head = HEADS[request.param]()
    for log_scale in head.parameters():  # those that are learned, each another
        log_scale.data.add_(torch.randn(log_scale.shape) / 4)
    return VAE(z_dim=Z_DIM, decoder=nn.Sequential(nets.MLP(Z_DIM, (), X_DIM), head)).double()


def scales(model):
    """Return the standard deviation of each pixel."""
    head = model.decoder[1]
    if isinstance(head, nets.ToNormalFixedScale):
        return torch.full((X_DIM,), SCALE, dtype=F64)
    return (head.log_scale.exp() + getattr(head, "min_scale", 0.0)).expand(X_DIM)


@pytest.fixture(params=GUIDES)
def guide(request):
    torch.manual_seed(1)
    return GUIDES[request.param](x_dim=X_DIM, z_dim=Z_DIM, hidden=()).double()


@pytest.fixture
def x():
    return torch.randn(5, X_DIM, dtype=F64, generator=torch.Generator().manual_seed(2))


def closed_form(model, guide, x):
    """Return E_q[log p(x | z)] and KL(q || p), ``(B,)`` each, by the formulas of a textbook."""
    weight, bias = model.decoder[0][0].weight, model.decoder[0][0].bias
    q = guide.encoder(x)
    covariance = q.variance.diag_embed() if isinstance(guide, Normal) else q.covariance_matrix
    # E|x - W z - b|^2 = |x - W m - b|^2 + tr W S W', pixel by pixel.
    squares = (x - q.mean @ weight.mT - bias).square()
    squares = squares + (weight @ covariance @ weight.mT).diagonal(dim1=-2, dim2=-1)
    scale = scales(model)
    reconstruction = -(squares / (2 * scale**2) + scale.log() + math.log(2 * math.pi) / 2).sum(-1)
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    kl = (trace + q.mean.square().sum(-1) - Z_DIM - torch.logdet(covariance)) / 2
    return reconstruction, kl


def sigma_points(guide, x):
    """Return draws ``(2 D, B, D)`` that have the guide's mean and covariance exactly."""
    q = guide.encoder(x)
    root = q.stddev.diag_embed() if isinstance(guide, Normal) else torch.linalg.cholesky(q.covariance_matrix)
    steps = math.sqrt(Z_DIM) * root.mT.movedim(-2, 0)  # (D, B, D), a column each
    return torch.cat([q.mean + steps, q.mean - steps])


@pytest.mark.parametrize("name", ["elbo", "elbo_kl", "stl", "beta_elbo", "score_function"])
def test_bounds_are_the_closed_form(name, model, guide, x):
    reconstruction, kl = closed_form(model, guide, x)
    with Given({"z": sigma_points(guide, x)}):
        found = estimate(pv.objectives.every()[name], model, guide, x, particles=2 * Z_DIM)
    torch.testing.assert_close(found.value, reconstruction - kl, rtol=1e-8, atol=1e-8)


def test_the_parts_are_the_closed_form(model, guide, x):
    reconstruction, kl = closed_form(model, guide, x)
    with Given({"z": sigma_points(guide, x)}):
        particles = pv.weigh(model, guide, x, particles=2 * Z_DIM, kl=True)
    torch.testing.assert_close(particles.log_p["x"].mean(0), reconstruction, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(particles.kl["z"].expand(2 * Z_DIM, 5), kl.expand(2 * Z_DIM, 5), rtol=1e-8, atol=1e-8)
    divergence = particles.log_q["z"] - particles.log_p["z"]
    torch.testing.assert_close(divergence.mean(0), kl, rtol=1e-8, atol=1e-8)


def test_the_bound_and_the_divergence_from_the_posterior_make_up_the_likelihood(model, guide, x):
    weight, bias = model.decoder[0][0].weight, model.decoder[0][0].bias
    scaled = weight / scales(model).unsqueeze(-1) ** 2
    precision = torch.eye(Z_DIM, dtype=F64) + weight.mT @ scaled
    mean = torch.linalg.solve(precision, ((x - bias) @ scaled).mT).mT
    posterior = MultivariateNormal(mean, precision_matrix=precision)
    marginal = MultivariateNormal(bias, weight @ weight.mT + (scales(model) ** 2).diag())
    q = guide.encoder(x)
    covariance = q.variance.diag_embed() if isinstance(guide, Normal) else q.covariance_matrix
    gap = kl_divergence(MultivariateNormal(q.mean, covariance_matrix=covariance), posterior)
    reconstruction, kl = closed_form(model, guide, x)
    torch.testing.assert_close(reconstruction - kl + gap, marginal.log_prob(x), rtol=1e-8, atol=1e-8)


def slopes(value, model, guide):
    """Return the gradient in the parameters of both programs, as one vector."""
    found = torch.autograd.grad(value, [*model.parameters(), *guide.parameters()])
    return torch.cat([slope.flatten() for slope in found])


def test_gradients_of_draws_average_to_those_of_the_closed_form(model, guide, x):
    reconstruction, kl = closed_form(model, guide, x)
    exact = slopes((reconstruction - kl).sum(), model, guide)
    torch.manual_seed(3)
    found = [estimate(pv.objectives.elbo_kl, model, guide, x, particles=10).surrogate.sum() for _ in range(60)]
    assert_mean(torch.stack([slopes(value, model, guide) for value in found]), exact)


def test_a_scale_that_is_fixed_is_no_parameter():
    assert not [*nets.ToNormalFixedScale(0.3).parameters()]
    assert [p.shape for p in nets.ToNormalPixelScale(4).parameters()] == [(4,)]
    assert [p.shape for p in nets.ToNormalOneScale().parameters()] == [()]


def test_a_scale_for_each_pixel_is_that_pixels():
    head = nets.ToNormalPixelScale(2, scale=0.5, min_scale=0.1).double()
    head.log_scale.data.copy_(torch.tensor([0.3, 2.0]).log())
    x, loc = torch.tensor([[0.1, -0.4]], dtype=F64), torch.tensor([[0.0, 1.0]], dtype=F64)
    exact = sum(torch.distributions.Normal(m, s).log_prob(v) for m, s, v in zip(loc[0], (0.4, 2.1), x[0], strict=True))
    torch.testing.assert_close(head(loc).log_prob(x), exact.unsqueeze(0), rtol=1e-6, atol=0)
