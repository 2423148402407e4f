"""Amortised Gaussian guide with a full covariance: a network gives a mean and a triangle per datum.

Posterior family, for each datum::

    q(z | x) = N(z; mu(x), L(x) L(x)') = encoder(x)

with L lower triangular, positive on its diagonal. The network in front of it has ``z_dim`` outputs for mu and
``z_dim (z_dim + 1) / 2`` for L. Mean field, by contrast, spreads no wider than the narrowest cut through a posterior.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: D. P. Kingma, M. Welling, "An Introduction to Variational Autoencoders", Foundations and Trends in
Machine Learning 2019, section 2.5.1, https://arxiv.org/abs/1906.02691.

Example:
    >>> from ppl_vae.guides.full_covariance import FullCovariance
    >>> guide = FullCovariance(x_dim=6, z_dim=2, hidden=(8,))
    >>> guide.encoder(torch.zeros(4, 6)).scale_tril.shape
    torch.Size([4, 2, 2])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class FullCovariance(nn.Module):
    """Guide for models with one continuous latent vector "z", whose elements depend on each other given x.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the encoder's hidden layers.
        encoder: module from ``(B, x_dim)`` to a distribution with event shape ``(z_dim,)``;
            an MLP with `nets.ToMultivariateNormal` when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        head = nets.ToMultivariateNormal(z_dim)
        self.encoder = encoder or nn.Sequential(nets.MLP(x_dim, hidden, head.in_dim), head)

    def forward(self, x: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(x))
