"""Semi-supervised VAE (M2): a class and a Gaussian style make the data, and some classes are known.

Generative process, for each datum::

    y ~ Categorical(pi)
    z ~ p(z), N(0, I) unless told otherwise
    x ~ p(x | z, y) = decoder(z, one-hot y)

A batch is (x, y) with y = -1 where the label is missing; batches may mix rows with and without. y is a latent site in
all of them. A label holds it: log p(y) of the label is the factor "label", and p(y | label) a point mass. So a weight
estimates p(x, y) of a row with a label and p(x) of one without, and `ppl_vae.sample` draws y where there is no label.

| symbol              | site    | shape    |
| ------------------- | ------- | -------- |
| y                   | "y"     | ()       |
| log p(y) of a label | "label" | ()       |
| z                   | "z"     | (z_dim,) |
| x                   | "x"     | (x_dim,) |

Reference: D. P. Kingma, D. J. Rezende, S. Mohamed, M. Welling, "Semi-Supervised Learning with Deep Generative
Models", NeurIPS 2014, https://arxiv.org/abs/1406.5298.

Example:
    >>> from ppl_vae.models.semi_supervised import SemiSupervised
    >>> model = SemiSupervised(x_dim=6, z_dim=2, y_dim=3, hidden=(8,))
    >>> draws = pv.sample(model, like=(torch.zeros(4, 6), torch.tensor([-1, 0, 1, 2])), n=4)
    >>> draws["x"].shape, draws["y"][1:]    # one of any class, one of each
    (torch.Size([4, 6]), tensor([0, 1, 2]))
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import nets, priors


class SemiSupervised(nn.Module):
    """Deep generative model of a class, a style and data.

    To sum y out in the model and draw z alone in the guide, pass ``pyro.infer.config_enumerate(model)``.

    Args:
        x_dim: number of pixels.
        z_dim: number of dimensions of the style.
        y_dim: number of classes.
        hidden: widths of the decoder's hidden layers.
        prior: module that returns p(z), from `ppl_vae.priors`; standard normal when left out.
        decoder: module from z ``(..., z_dim)`` and one-hot y ``(..., y_dim)`` to a distribution with event shape
            ``(x_dim,)``, such as `nets.Joined`; an MLP with Bernoulli pixels when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        y_dim: int = 10,
        hidden: Sequence[int] = (400,),
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(y_dim))
        self.one_hot = nets.OneHot(y_dim)
        self.prior = prior or priors.StandardNormal(z_dim)
        self.decoder = decoder or nets.JoinedMLP((z_dim, y_dim), hidden, x_dim, nets.ToBernoulli())

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Generate x ``(B, x_dim)`` and, where they are -1, labels y ``(B,)``."""
        label, log_pi = self.one_hot(y), self.logits.log_softmax(-1)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.factor("label", (label * log_pi).sum(-1))
            y = pyro.sample("y", dist.Categorical(logits=nets.held_to(log_pi, label)))
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z, self.one_hot(y)), obs=x)
