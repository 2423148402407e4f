"""A linear VAE, trained on its ELBO, reaches the maximum of the likelihood, which is probabilistic PCA's.

M. Tipping, C. Bishop, "Probabilistic Principal Component Analysis", JRSS B 1999; J. Lucas et al., "Don't Blame the
ELBO! A Linear VAE Perspective on Posterior Collapse", NeurIPS 2019, for the ELBO having no other maxima.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import ppl_vae as pv
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

X_DIM, Z_DIM, N = 6, 2, 500
LOADINGS = [[2.0, -1.0, 1.5, 0.5, 0.0, 1.0], [0.0, 1.0, 0.5, -1.0, 1.0, 0.5]]


@pytest.fixture(scope="module")
def x():
    draw = torch.Generator().manual_seed(1)
    z, noise = (torch.randn(N, size, generator=draw).double() for size in (Z_DIM, X_DIM))
    return 1 + z @ torch.tensor(LOADINGS).double() + 0.5 * noise


def log_likelihood(x, weight, bias, variance):
    """Return the mean of log N(x; bias, W W' + variance)."""
    covariance = weight @ weight.mT + variance * torch.eye(X_DIM).double()
    return MultivariateNormal(bias, covariance).log_prob(x).mean()


def principal_components(x):
    """Return W = U (L - s2)^(1/2), the mean, and s2, the mean of the discarded eigenvalues."""
    values, vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0))
    variance = values[:-Z_DIM].mean()
    return vectors[:, -Z_DIM:] * (values[-Z_DIM:] - variance).sqrt(), x.mean(0), variance


def test_the_closed_form_is_a_maximum(x):
    found = [part.requires_grad_() for part in principal_components(x)]
    slopes = torch.autograd.grad(log_likelihood(x, *found), found)
    for slope in slopes:
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)


def by_svi(model, guide, x, rate, **options):
    return pv.fit(model, guide, x, optimizer=rate, **options)


def by_variational_em(model, guide, x, rate, **options):
    return pv.variational_em(model, guide, x, guide_optimizer=rate, model_optimizer=rate, **options)


@pytest.mark.parametrize("train", [by_svi, by_variational_em])
def test_a_linear_vae_is_probabilistic_pca(train, x):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(Z_DIM, X_DIM), pv.nets.ToNormalOneScale(1.0))
    model = VAE(z_dim=Z_DIM, decoder=decoder).double()
    guide = Normal(x_dim=X_DIM, z_dim=Z_DIM, hidden=()).double()
    options = {"objective": pv.objectives.elbo_kl, "particles": 5, "batch_size": N, "compile": False}
    for lr, epochs in ((0.05, 150), (0.01, 80)):
        fit = train(model, guide, x, partial(torch.optim.Adam, lr=lr), epochs=epochs, **options)
    maximum = log_likelihood(x, *principal_components(x)).item()
    linear, head = decoder
    found = log_likelihood(x, linear.weight, linear.bias, (2 * head.log_scale).exp()).item()
    assert maximum - 0.02 < found < maximum
    assert fit.history["train_bound"][-1] == pytest.approx(maximum, abs=0.1)  # the guide holds the posterior
