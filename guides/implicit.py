"""Implicit guide: data and noise go through one network, and what comes out has no density that is known.

Posterior family, for each datum::

    e ~ N(0, I)
    z = encoder(x, e)

Any posterior is within reach of the network, correlated, skewed or of several modes. Since q(z | x) is not known, no
bound can be computed: the guide is trained by `ppl_vae.adversarial_step`, and refused by name elsewhere. The model
that it was trained with is evaluated by `ppl_vae.ais`, which needs no guide.

| symbol | site    | shape         |
| ------ | ------- | ------------- |
| e      | "noise" | (noise_dim,)  |
| z      | "z"     | (z_dim,)      |

Reference: L. Mescheder, S. Nowozin, A. Geiger, "Adversarial Variational Bayes", ICML 2017,
https://arxiv.org/abs/1701.04722.

Example:
    >>> from ppl_vae.guides.implicit import Implicit
    >>> from ppl_vae.models.vae import VAE
    >>> sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
    >>> model, guide, critic = VAE(**sizes), Implicit(**sizes), pv.nets.JoinedMLP((6, 2), (8,), 1)
    >>> adam = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)
    >>> critic_adam = torch.optim.Adam(critic.parameters(), lr=1e-3)
    >>> step = pv.adversarial_step(model, guide, critic, optimizer=adam, critic_optimizer=critic_adam)
    >>> step(torch.ones(4, 6)).bound
    tensor(-...)
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import distributions, nets


class Implicit(nn.Module):
    """Guide for models with one continuous latent vector "z", by draws alone.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the encoder's hidden layers.
        noise_dim: number of noise dimensions; fewer than z_dim leave the posterior on a surface.
        encoder: module of x ``(B, x_dim)`` and noise ``(..., B, noise_dim)`` to ``(..., B, z_dim)``; an MLP of both
            together when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        noise_dim: int = 20,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder or nets.JoinedMLP((x_dim, noise_dim), hidden, z_dim)
        self.register_buffer("zeros", torch.zeros(noise_dim), persistent=False)

    def forward(self, x: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)``."""
        normal = dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)
        with pyro.plate("data", x.shape[0], dim=-1):
            noise = pyro.sample("noise", normal, infer={"is_auxiliary": True})
            pyro.sample("z", distributions.Pushforward(self.encoder(x, noise), event_dim=1))
