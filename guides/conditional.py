"""Amortised mean-field Gaussian guide given data and a condition.

Posterior family, for each datum::

    q(z | x, y) = N(z; mu(x, y), diag(sigma(x, y)^2)) = encoder(x, e(y)),    e the embedding

| symbol | site  | shape                              |
| ------ | ----- | ---------------------------------- |
| z      | "z"   | (z_dim,)                           |
| y      | given | () or any that the embedding takes |

Reference: K. Sohn, H. Lee, X. Yan, "Learning Structured Output Representation using Deep Conditional Generative
Models", NeurIPS 2015, https://papers.nips.cc/paper/5775.

Example:
    >>> from ppl_vae.guides.conditional import Conditional as Guide
    >>> from ppl_vae.models.conditional import Conditional
    >>> x, y = torch.ones(4, 784), torch.tensor([0, 1, 2, 3])
    >>> pv.weigh(Conditional(), Guide(), (x, y), particles=3).log_w.shape    # log p(x | y), each an estimate
    torch.Size([3, 4])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class Conditional(nn.Module):
    """Guide for models with one continuous latent vector "z" and a condition y.

    Args:
        x_dim: number of pixels that the model generates.
        z_dim: number of latent dimensions.
        y_dim: size of the embedded condition: of a class, the number of classes.
        hidden: widths of the encoder's hidden layers.
        embedding: module from y to vectors ``(..., y_dim)``, the guide's own; one-hot classes when left out, zeros
            for -1.
        encoder: module from x ``(B, x_dim)`` and embedded y to a distribution with event shape ``(z_dim,)``, such as
            `nets.Joined`; an MLP with a diagonal normal when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        y_dim: int = 10,
        hidden: Sequence[int] = (400,),
        embedding: nn.Module | None = None,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.embedding = embedding or nets.OneHot(y_dim)
        self.encoder = encoder or nets.JoinedMLP((x_dim, y_dim), hidden, 2 * z_dim, nets.ToNormal())

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Draw z given x ``(B, x_dim)`` and y ``(B, ...)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(x, self.embedding(y)))
