"""Amortised mixture guide: a network gives a mixture of diagonal normals per datum.

Posterior family, for each datum::

    q(z | x) = sum_c w_c(x) N(z; mu_c(x), diag(sigma_c(x)^2)) = encoder(x)

Draws are reparameterised in means, scales and weights, so that bounds follow the path as with one normal.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: W. Morningstar, S. Vikram, C. Ham, A. Gallagher, J. Dillon, "Automatic Differentiation Variational Inference
with Mixtures", AISTATS 2021, https://arxiv.org/abs/2003.01687; gradients as in M. Figurnov, S. Mohamed, A. Mnih,
"Implicit Reparameterization Gradients", NeurIPS 2018, https://arxiv.org/abs/1805.08498.

Example:
    >>> from ppl_vae.guides.mixture import Mixture
    >>> guide = Mixture(x_dim=6, z_dim=2, hidden=(8,), components=3)
    >>> guide.encoder(torch.zeros(4, 6)).loc.shape
    torch.Size([4, 3, 2])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class Mixture(nn.Module):
    """Guide for models with one continuous latent vector "z" whose posterior has several modes.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the encoder's hidden layers.
        components: number of components of each posterior.
        encoder: module from ``(B, x_dim)`` to a distribution with event shape ``(z_dim,)``;
            an MLP with `nets.ToNormalMixture` when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        components: int = 5,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder or nn.Sequential(
            nets.MLP(x_dim, hidden, components * (2 * z_dim + 1)), nets.ToNormalMixture(components)
        )

    def forward(self, x: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(x))
