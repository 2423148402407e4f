"""Guide with a discrete component above a continuous latent: which cluster, and where in it.

Posterior family, for each datum::

    q(y | x)    = Categorical(softmax(classifier(x)))
    q(z | x, y) = N(z; mu(x, y), diag(sigma(x, y)^2)) = encoder(x, one-hot y)

Every y is tried, with draws of z for each; bounds weigh them by q(y | x) exactly. (A guide that leaves y out, such as
`guides/normal.py`, has it summed out of the model, with fewer runs of the decoder and a tighter bound for the same z.)

| symbol | site             | shape    |
| ------ | ---------------- | -------- |
| y      | "y" (enumerated) | ()       |
| z      | "z"              | (z_dim,) |

Reference: D. P. Kingma, D. J. Rezende, S. Mohamed, M. Welling, "Semi-Supervised Learning with Deep Generative Models",
NeurIPS 2014, https://arxiv.org/abs/1406.5298; R. Shu, "Gaussian Mixture VAE: Lessons in Variational Inference,
Generative Models, and Deep Nets", 2016.

Example:
    >>> from ppl_vae.guides.component import Component
    >>> from ppl_vae.models.gmvae import GMVAE
    >>> sizes = {"x_dim": 6, "z_dim": 2, "y_dim": 3, "hidden": (8,)}
    >>> pv.weigh(GMVAE(**sizes), Component(**sizes), torch.ones(4, 6), linear=True).values["z"].shape
    torch.Size([3, 1, 4, 2])
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import nets


class Component(nn.Module):
    """Guide for models with a component "y" and a continuous latent vector "z".

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        y_dim: number of components.
        hidden: widths of the hidden layers of both networks.
        classifier: module from ``(B, x_dim)`` to logits ``(B, y_dim)``; an MLP when left out.
        encoder: module from x ``(B, x_dim)`` and one-hot y ``(..., y_dim)`` to a distribution with event shape
            ``(z_dim,)``, such as `nets.Joined`; an MLP with a diagonal normal when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        y_dim: int = 10,
        hidden: Sequence[int] = (400,),
        classifier: nn.Module | None = None,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.one_hot = nets.OneHot(y_dim)
        self.classifier = classifier or nets.MLP(x_dim, hidden, y_dim)
        self.encoder = encoder or nets.JoinedMLP((x_dim, y_dim), hidden, 2 * z_dim, nets.ToNormal())

    def forward(self, x: Tensor) -> None:
        """Draw y and z given x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            logits = self.classifier(x)
            y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(x, self.one_hot(y)))
