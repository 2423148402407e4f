"""Conditional VAE: data given a condition, such as a class, or the visible pixels of an image.

Generative process, for each datum::

    z ~ p(z | y) = prior(e(y))
    x ~ p(x | z, y) = decoder(z, e(y)),    e the embedding: one-hot unless told otherwise

y is given and not modelled: weights estimate p(x | y), and `ppl_vae.sample` draws given the y that it is passed. To
complete images, take the missing pixels as x, the visible ones as y, and ``embedding=torch.nn.Identity()``.

| symbol | site  | shape                              |
| ------ | ----- | ---------------------------------- |
| z      | "z"   | (z_dim,)                           |
| x      | "x"   | (x_dim,)                           |
| y      | given | () or any that the embedding takes |

Reference: K. Sohn, H. Lee, X. Yan, "Learning Structured Output Representation using Deep Conditional Generative
Models", NeurIPS 2015, https://papers.nips.cc/paper/5775.

Example:
    >>> from ppl_vae.models.conditional import Conditional
    >>> threes = torch.full((4,), 3)
    >>> pv.sample(Conditional(), like=(torch.zeros(4, 784), threes), n=4)["x"].shape
    torch.Size([4, 784])
    >>> lower = Conditional(x_dim=392, y_dim=392, embedding=torch.nn.Identity())    # given the upper half
    >>> pv.sample(lower, like=(torch.zeros(4, 392), torch.ones(4, 392)), n=4)["x"].shape
    torch.Size([4, 392])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class Conditional(nn.Module):
    """Deep generative model of data given a condition.

    Args:
        x_dim: number of pixels to model.
        z_dim: number of latent dimensions.
        y_dim: size of the embedded condition: of a class, the number of classes.
        hidden: widths of the hidden layers of both networks.
        embedding: module from y to vectors ``(..., y_dim)``; one-hot classes when left out, zeros for -1.
        prior: module from embedded y to p(z | y); an MLP with a diagonal normal when left out. A prior that reads no y
            is ``nets.Reads(priors.StandardNormal(z_dim))``.
        decoder: module from z ``(..., z_dim)`` and embedded y to a distribution with event shape ``(x_dim,)``, such
            as `nets.Joined`; an MLP with Bernoulli pixels when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        y_dim: int = 10,
        hidden: Sequence[int] = (400,),
        embedding: nn.Module | None = None,
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.embedding = embedding or nets.OneHot(y_dim)
        self.prior = prior or nn.Sequential(nets.MLP(y_dim, hidden, 2 * z_dim), nets.ToNormal())
        self.decoder = decoder or nets.JoinedMLP((z_dim, y_dim), hidden, x_dim, nets.ToBernoulli())

    def forward(self, x: Tensor, y: Tensor) -> None:
        """Generate x ``(B, x_dim)`` given y ``(B, ...)``."""
        given = self.embedding(y)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(given))
            pyro.sample("x", self.decoder(z, given), obs=x)
