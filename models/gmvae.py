"""Gaussian-mixture variational autoencoder: clusters in the latent space.

Generative process, for each datum::

    y ~ Categorical(pi)
    z | y ~ N(mu_y, diag(sigma_y^2))
    x | z ~ decoder(z)

y is summed out where the guide does not draw it; the model is then `models/vae.py` with a mixture as its prior.

| symbol | site             | shape    |
| ------ | ---------------- | -------- |
| y      | "y" (enumerated) | ()       |
| z      | "z"              | (z_dim,) |
| x      | "x"              | (x_dim,) |

Reference: R. Shu, "Gaussian Mixture VAE: Lessons in Variational Inference, Generative Models, and Deep Nets", 2016;
Z. Jiang et al., "Variational Deep Embedding", IJCAI 2017, https://arxiv.org/abs/1611.05148; N. Dilokthanakul et al.,
"Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders", 2016, https://arxiv.org/abs/1611.02648.

Example:
    >>> from ppl_vae.guides.normal import Normal
    >>> from ppl_vae.models.gmvae import GMVAE
    >>> model, guide = GMVAE(x_dim=6, z_dim=2, y_dim=3, hidden=(8,)), Normal(x_dim=6, z_dim=2, hidden=(8,))
    >>> z = pv.weigh(model, guide, torch.ones(4, 6)).values["z"]
    >>> model.clusters(z).shape    # p(y | z)
    torch.Size([1, 4, 3])
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import components, distributions, nets


class GMVAE(nn.Module):
    """VAE whose latent vectors come from one of several normal distributions.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        y_dim: number of clusters.
        hidden: widths of the decoder's hidden layers.
        decoder: module from ``(..., z_dim)`` to a distribution with event shape ``(x_dim,)``;
            an MLP with Bernoulli pixels when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        y_dim: int = 10,
        hidden: Sequence[int] = (400,),
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(y_dim))
        self.loc = nn.Parameter(torch.randn(y_dim, z_dim))
        self.log_scale = nn.Parameter(torch.zeros(y_dim, z_dim))
        self.decoder = decoder or nn.Sequential(nets.MLP(z_dim, hidden, x_dim), nets.ToBernoulli())

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            loc, log_scale = (components.select(part, y) for part in (self.loc, self.log_scale))
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)

    def clusters(self, z: Tensor) -> Tensor:
        """Return p(y | z) for z of shape ``(..., z_dim)``: ``(..., y_dim)``."""
        prior = distributions.NormalMixture(self.logits, self.loc, self.log_scale.exp())
        return prior.log_joint(z).softmax(-1)
