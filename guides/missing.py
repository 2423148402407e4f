"""Amortised mean-field Gaussian guide given incomplete data, zeros in place of missing values.

Posterior family, for each datum::

    q(z | x_observed) = N(z; mu, diag(sigma^2)) = encoder(x with zeros where missing, observed)

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: P.-A. Mattei, J. Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets", ICML
2019, https://arxiv.org/abs/1812.02633. Their encoder does not see which values are missing; with the mask beside
them, a zero that was observed is told from one that stands for nothing, as in C. Ma et al., "EDDI: Efficient Dynamic
Discovery of High-Value Information with Partial VAE", ICML 2019, https://arxiv.org/abs/1809.11142.

Example:
    >>> from ppl_vae.guides.missing import Missing as Guide
    >>> from ppl_vae.models.missing import Missing
    >>> x, observed = torch.full((4, 784), torch.nan), torch.zeros(4, 784, dtype=torch.bool)
    >>> blind = pv.nets.Reads(torch.nn.Sequential(pv.nets.MLP(784, (400,), 40), pv.nets.ToNormal()), 0)
    >>> pv.weigh(Missing(), Guide(encoder=blind), (x, observed), particles=3).log_w.shape    # without the mask
    torch.Size([3, 4])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import distributions, nets


class Missing(nn.Module):
    """Guide for models of incomplete data with one continuous latent vector "z".

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the encoder's hidden layers.
        encoder: module from x ``(B, x_dim)`` with zeros, and zeros and ones ``(B, x_dim)`` that say what was observed,
            to a distribution with event shape ``(z_dim,)``; an MLP with a diagonal normal when left out. One that
            sees no mask is ``nets.Reads(network, 0)``.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder or nets.JoinedMLP((x_dim, x_dim), hidden, 2 * z_dim, nets.ToNormal())

    def forward(self, x: Tensor, observed: Tensor) -> None:
        """Draw z given x ``(B, x_dim)``, of which only what is True in ``observed`` ``(B, x_dim)`` is read."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(distributions.zero_where_missing(x, observed), observed.to(x.dtype)))
