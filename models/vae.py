"""Variational autoencoder: a Gaussian latent vector pushed through a network.

Generative process, for each datum::

    z ~ N(0, I)
    x ~ p(x | z) = decoder(z)

| symbol | site | shape        |
| ------ | ---- | ------------ |
| z      | "z"  | (z_dim,)     |
| x      | "x"  | (x_dim,)     |

Reference: D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014,
https://arxiv.org/abs/1312.6114; D. J. Rezende, S. Mohamed, D. Wierstra, "Stochastic
Backpropagation and Approximate Inference in Deep Generative Models", ICML 2014,
https://arxiv.org/abs/1401.4082.

Example:
    >>> from ppl_vae.guides.normal import Normal
    >>> from ppl_vae.models.vae import VAE
    >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=(8,)), Normal(x_dim=6, z_dim=2, hidden=(8,))
    >>> x = torch.ones(4, 6)
    >>> pv.weigh(model, guide, x, particles=3).log_w.shape
    torch.Size([3, 4])
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import nets


class VAE(nn.Module):
    """Deep latent Gaussian model; the likelihood is whatever distribution the decoder returns.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the decoder's hidden layers.
        decoder: module from ``(..., z_dim)`` to a distribution with event shape ``(x_dim,)``;
            an MLP with Bernoulli pixels when left out. For real-valued data use
            ``nn.Sequential(MLP(z_dim, hidden, x_dim), ToNormalOneScale())``.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.decoder = decoder or nn.Sequential(nets.MLP(z_dim, hidden, x_dim), nets.ToBernoulli())
        # A buffer, so that the prior follows the module's device and dtype.
        self.register_buffer("zeros", torch.zeros(z_dim), persistent=False)

    def prior(self) -> dist.TorchDistribution:
        """Return p(z)."""
        return dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z), obs=x)
