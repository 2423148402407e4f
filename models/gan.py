"""Generative adversarial network: noise pushed through a generator, trained against a critic.

Generative process, for each datum::

    z ~ p(z), N(0, I) unless told otherwise
    x ~ p(x | z) = likelihood(generator(z)), N(generator(z), sigma^2 I) unless told otherwise

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |
| x      | "x"  | (x_dim,) |

With noise in the likelihood x has a density, and the program also meets guides and bounds. Without
(``likelihood=nets.ToDelta()``, the usual one) it is drawn from and trained by `ppl_vae.gan_step` alone.

Reference: I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, https://arxiv.org/abs/1406.2661.

Example:
    >>> from ppl_vae.models.gan import GAN
    >>> model = GAN(x_dim=6, z_dim=2, hidden=(8,), likelihood=pv.nets.ToDelta())
    >>> critic = pv.nets.MLP(6, (8,), 1)
    >>> adams = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (model, critic)]
    >>> step = pv.gan_step(model, critic, optimizer=adams[0], critic_optimizer=adams[1])
    >>> fit = pv.fit(step=step, data=torch.randn(40, 6), epochs=2)
    >>> sorted(fit.history)
    ['critic_loss', 'epoch', 'generator_loss', 'seconds', 'train_bound']
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets, priors


class GAN(nn.Module):
    """Generator of real-valued data.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the generator's hidden layers.
        prior: module that returns p(z), from `ppl_vae.priors`; standard normal when left out.
        generator: module from ``(..., z_dim)`` to ``(..., x_dim)``; an MLP when left out.
        likelihood: module from ``(..., x_dim)`` to a distribution with event shape ``(x_dim,)`` that is drawn by
            reparameterisation; normal with one learned scale when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        prior: nn.Module | None = None,
        generator: nn.Module | None = None,
        likelihood: nn.Module | None = None,
    ):
        super().__init__()
        self.prior = prior or priors.StandardNormal(z_dim)
        self.generator = generator or nets.MLP(z_dim, hidden, x_dim)
        self.likelihood = likelihood or nets.ToNormalOneScale()

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.generator(z)), obs=x)
