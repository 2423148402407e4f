"""Deterministic guide for a codebook: the code whose vector is nearest to what a network gives.

Posterior family, for each datum::

    q(c | x) = prod_i 1[c_i = argmin_j |encoder(x)_i - e_j|^2]

so that log q = 0 at its codes. Under a uniform prior over C codes::

    ELBO = log p(x | c) - positions log C,    KL(q || p) = positions log C

Gradients go straight through to the encoder. The commitment, and whatever else the codebook asks for, are training
penalties and no part of the bound: ``penalty_commitment = -beta sum_i |encoder(x)_i - stop(e_i)|^2``.

| symbol | site | shape              |
| ------ | ---- | ------------------ |
| c      | "c"  | (positions, codes) |

Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
https://arxiv.org/abs/1711.00937, equations 1 to 3.

Example:
    >>> from ppl_vae.guides.nearest_code import NearestCode
    >>> from ppl_vae.models.vq_vae import VQVAE
    >>> model = VQVAE(x_dim=6, z_dim=2, hidden=(8,))
    >>> guide = NearestCode(model, x_dim=6, hidden=(8,))
    >>> pv.perplexity(guide, torch.ones(5, 6)).codes
    {'c': 32}
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class NearestCode(nn.Module):
    """Guide for models with a codebook, such as `VQVAE`, trained by bounds that follow the path (`elbo`).

    Args:
        model: a model with ``codebook``, ``positions`` and ``z_dim``.
        x_dim: number of pixels.
        hidden: widths of the encoder's hidden layers.
        encoder: module from ``(B, x_dim)`` to vectors ``(B, positions, z_dim)``, such as
            ``GridEncoder((28, 28), z_dim)``; an MLP when left out.

    Raises:
        TypeError: the model has no codebook.
    """

    def __init__(
        self, model: nn.Module, x_dim: int = 784, hidden: Sequence[int] = (400,), encoder: nn.Module | None = None
    ):
        super().__init__()
        if not hasattr(model, "codebook"):
            raise TypeError(
                f"model: {type(model).__name__} has no codebook to take the nearest code of; for codes without one "
                "use ppl_vae.guides.categorical.Categorical"
            )
        # Bound methods, not the module: the codebook belongs to the model.
        self.nearest, self.penalties = model.codebook.nearest, model.codebook.penalties
        shape = (model.positions, model.z_dim)
        self.encoder = encoder or nn.Sequential(nets.MLP(x_dim, hidden, shape[0] * shape[1]), nn.Unflatten(-1, shape))

    def forward(self, x: Tensor) -> None:
        """Choose the codes given x of shape ``(B, x_dim)``."""
        z = self.encoder(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("c", self.nearest(z))
            for name, penalty in self.penalties(z).items():
                # In a guide a factor counts with a minus, so that this is made small.
                pyro.factor(f"penalty_{name}", penalty, has_rsample=True)
