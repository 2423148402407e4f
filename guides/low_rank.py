"""Amortised Gaussian guide with a low-rank covariance: a network gives a mean, scales and a few directions per datum.

Posterior family, for each datum::

    q(z | x) = N(z; mu(x), W(x) W(x)' + diag(s(x)^2)) = encoder(x)

with W of ``rank`` columns. The network in front of it has ``(2 + rank) z_dim`` outputs, and a density takes
``rank^2 z_dim`` operations, where a full covariance takes ``z_dim^2`` of both.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: D. J. Rezende, S. Mohamed, D. Wierstra, "Stochastic Backpropagation and Approximate Inference in Deep
Generative Models", ICML 2014, https://arxiv.org/abs/1401.4082; V. M.-H. Ong, D. J. Nott, M. S. Smith, "Gaussian
Variational Approximation With a Factor Covariance Structure", Journal of Computational and Graphical Statistics
2018, https://arxiv.org/abs/1701.03208.

Example:
    >>> from ppl_vae.guides.low_rank import LowRank
    >>> guide = LowRank(x_dim=6, z_dim=3, hidden=(8,), rank=1)
    >>> guide.encoder(torch.zeros(4, 6)).cov_factor.shape
    torch.Size([4, 3, 1])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class LowRank(nn.Module):
    """Guide for models with one continuous latent vector "z", correlated along a few directions given x.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the encoder's hidden layers.
        rank: columns of W, the number of directions; ``z_dim - 1`` reach every covariance.
        encoder: module from ``(B, x_dim)`` to a distribution with event shape ``(z_dim,)``;
            an MLP with `nets.ToLowRankNormal` when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        rank: int = 4,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        head = nets.ToLowRankNormal(z_dim, rank)
        self.encoder = encoder or nn.Sequential(nets.MLP(x_dim, hidden, head.in_dim), head)

    def forward(self, x: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(x))
