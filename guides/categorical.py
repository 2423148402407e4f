"""Amortised guide for one-hot codes: independent choices, with probabilities from a network.

Posterior family, for each datum::

    q(c | x) = prod_i Categorical(c_i; softmax(encoder(x)_i))

Under a uniform prior, with C codes::

    KL(q || p) = positions log C - sum_i H(q(c_i | x))

| symbol | site | shape              |
| ------ | ---- | ------------------ |
| c      | "c"  | (positions, codes) |

Reference: A. Mnih, D. J. Rezende, "Variational Inference for Monte Carlo Objectives", ICML 2016,
https://arxiv.org/abs/1602.06725; E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with
Gumbel-Softmax", ICLR 2017, https://arxiv.org/abs/1611.01144.

Example:
    >>> from ppl_vae.guides.categorical import Categorical
    >>> guide = Categorical(x_dim=6, positions=2, codes=3, hidden=(8,))
    >>> guide.encoder(torch.zeros(4, 6)).event_shape
    torch.Size([2, 3])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class Categorical(nn.Module):
    """Guide for models with one-hot codes "c", such as `DiscreteVAE`.

    Args:
        x_dim: number of pixels.
        positions: number of codes of a datum.
        codes: number of values of each.
        hidden: widths of the encoder's hidden layers.
        encoder: module from ``(B, x_dim)`` to a distribution with event shape ``(positions, codes)``, such as
            ``nn.Sequential(GridEncoder((28, 28), codes), ToCodes())``; an MLP when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        positions: int = 4,
        codes: int = 32,
        hidden: Sequence[int] = (400,),
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder or nn.Sequential(
            nets.MLP(x_dim, hidden, positions * codes), nn.Unflatten(-1, (positions, codes)), nets.ToCodes()
        )

    def forward(self, x: Tensor, *rest: Tensor) -> None:
        """Draw the codes given x of shape ``(B, x_dim)`` alone, whatever texts or labels are there besides."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("c", self.encoder(x))
