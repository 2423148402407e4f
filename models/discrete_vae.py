"""Discrete variational autoencoder: a few one-hot codes pushed through a network.

Generative process, for each datum::

    c_i ~ p(c), uniform over the codes unless told otherwise,    i = 1, ..., positions
    x   ~ p(x | c) = decoder(c)

| symbol | site | shape              |
| ------ | ---- | ------------------ |
| c      | "c"  | (positions, codes) |
| x      | "x"  | (x_dim,)           |

Reference: A. Mnih, D. J. Rezende, "Variational Inference for Monte Carlo Objectives", ICML 2016,
https://arxiv.org/abs/1602.06725; E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with
Gumbel-Softmax", ICLR 2017, https://arxiv.org/abs/1611.01144.

Example:
    >>> from ppl_vae.guides.categorical import Categorical
    >>> from ppl_vae.models.discrete_vae import DiscreteVAE
    >>> sizes = {"x_dim": 6, "positions": 2, "codes": 3, "hidden": (8,)}
    >>> model, guide = DiscreteVAE(**sizes), Categorical(**sizes)
    >>> pv.weigh(model, guide, torch.ones(4, 6), particles=5).values["c"].shape
    torch.Size([5, 4, 2, 3])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets, priors


class DiscreteVAE(nn.Module):
    """Discrete codes; the likelihood is whatever distribution the decoder returns.

    Args:
        x_dim: number of pixels.
        positions: number of codes of a datum.
        codes: number of values of each.
        hidden: widths of the decoder's hidden layers.
        prior: module that returns p(c), from `ppl_vae.priors`; uniform when left out.
        decoder: module from ``(..., positions, codes)`` to a distribution with event shape ``(x_dim,)``; an MLP
            with Bernoulli pixels when left out. What takes flat vectors comes after ``nn.Flatten(-2)``.
    """

    def __init__(
        self,
        x_dim: int = 784,
        positions: int = 4,
        codes: int = 32,
        hidden: Sequence[int] = (400,),
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.prior = prior or priors.UniformCodes(positions, codes)
        self.decoder = decoder or nn.Sequential(
            nn.Flatten(-2), nets.MLP(positions * codes, hidden, x_dim), nets.ToBernoulli()
        )

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            c = pyro.sample("c", self.prior())
            pyro.sample("x", self.decoder(c), obs=x)
