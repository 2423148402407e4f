"""Variational autoencoder: a Gaussian latent vector pushed through a network.

Generative process, for each datum::

    z ~ p(z), N(0, I) unless told otherwise
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
from torch import Tensor, nn

from ppl_vae import nets, priors


class VAE(nn.Module):
    """Deep latent Gaussian model; the likelihood is whatever distribution the decoder returns.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the decoder's hidden layers.
        prior: module that returns p(z), from `ppl_vae.priors`; standard normal when left out.
        decoder: module from ``(..., z_dim)`` to a distribution with event shape ``(x_dim,)``;
            an MLP with Bernoulli pixels when left out. For real-valued data use
            ``nn.Sequential(MLP(z_dim, hidden, x_dim), ToNormalOneScale())``.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.prior = prior or priors.StandardNormal(z_dim)
        self.decoder = decoder or nn.Sequential(nets.MLP(z_dim, hidden, x_dim), nets.ToBernoulli())

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z), obs=x)
