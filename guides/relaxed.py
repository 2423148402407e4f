"""Amortised guide for relaxed codes on a grid: independent points of the simplex around a network's choice.

Posterior family, for each datum::

    q(c | x) = prod_i Concrete(c_i; encoder(x)_i, temperature),    i = 1, ..., h w

| symbol | site | shape        |
| ------ | ---- | ------------ |
| c      | "c"  | (h w, codes) |

Reference: C. Maddison, A. Mnih, Y. W. Teh, "The Concrete Distribution", ICLR 2017,
https://arxiv.org/abs/1611.00712; E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with
Gumbel-Softmax", ICLR 2017, https://arxiv.org/abs/1611.01144.

Example:
    >>> from ppl_vae.guides.relaxed import Relaxed
    >>> guide = Relaxed(shape=(28, 20), codes=16)
    >>> guide.encoder(torch.zeros(4, 560)).event_shape
    torch.Size([35, 16])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class Relaxed(nn.Module):
    """Guide for models with relaxed codes "c": `DVAE`, or any model with `priors.RelaxedUniformCodes`.

    Args:
        x_dim: number of pixels of a square image, or of one row where they make no square.
        codes: number of corners of the simplex of each code.
        shape: ``(H, W)`` of the image, in place of ``x_dim``.
        channels: from the image to the grid; each convolution halves the image.
        temperature: a positive number; the lower, the nearer draws are to corners; the prior's, or else the
            bound pays for the difference, whatever the encoder says.
        encoder: module from ``(B, H W)`` to a distribution with event shape ``(h w, codes)``, such as
            ``nn.Sequential(MLP(...), nn.Unflatten(-1, (positions, codes)), ToRelaxedCodes())``; a
            `nets.GridEncoder` when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        codes: int = 8,
        shape: tuple[int, int] | None = None,
        channels: Sequence[int] = (32, 64),
        temperature: float = 2 / 3,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder or nn.Sequential(
            nets.GridEncoder(shape or nets.image_shape(x_dim), codes, channels), nets.ToRelaxedCodes(temperature)
        )

    def forward(self, x: Tensor) -> None:
        """Draw the relaxed codes given x of shape ``(B, H W)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("c", self.encoder(x))
