"""Amortised mean-field Gaussian guide: a network gives a mean and a scale per datum.

Posterior family, for each datum::

    q(z | x) = N(z; mu(x), diag(sigma(x)^2)) = encoder(x)

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014,
https://arxiv.org/abs/1312.6114.

Example:
    >>> from ppl_vae.guides.normal import Normal
    >>> guide = Normal(x_dim=6, z_dim=2, hidden=(8,))
    >>> guide.encoder(torch.zeros(4, 6)).event_shape
    torch.Size([2])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class Normal(nn.Module):
    """Guide for models with one continuous latent vector "z".

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the encoder's hidden layers.
        encoder: module from ``(B, x_dim)`` to a distribution with event shape ``(z_dim,)``;
            an MLP with `nets.ToNormal`, a diagonal normal, when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder or nn.Sequential(nets.MLP(x_dim, hidden, 2 * z_dim), nets.ToNormal())

    def forward(self, x: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(x))
