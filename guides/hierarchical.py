"""Amortised Gaussian guide of several layers, one upon the other from the data upward.

Posterior family, for each datum::

    q(z_1 | x)       = N(z_1; mu_1(x), diag(sigma_1(x)^2))                      = encoder_1(x)
    q(z_l | z_(l-1)) = N(z_l; mu_l(z_(l-1)), diag(sigma_l(z_(l-1))^2))          = encoder_l(z_(l-1)),    l = 2, ..., L

It draws the bottom first, the model the top: KLs between the two have no closed form layer by layer, and bounds that
take these (`elbo_kl`) refuse it.

| symbol | site                              | shape    |
| ------ | --------------------------------- | -------- |
| z_l    | "z" (one layer), "z1", "z2", ...  | (z_dim,) |

Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016,
https://arxiv.org/abs/1509.00519, section 2.

Example:
    >>> from ppl_vae.guides.hierarchical import Hierarchical
    >>> from ppl_vae.models import hierarchical
    >>> pv.check(hierarchical.Hierarchical(layers=3), Hierarchical(layers=3), torch.ones(3, 784))
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class Hierarchical(nn.Module):
    """Guide for models with layers of continuous latents.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions in a layer.
        hidden: widths of the hidden layers of each network.
        layers: number of layers of latents, unless `encoders` say it.
        encoders: modules from ``(B, x_dim)``, then from ``(..., z_dim)``, to the distribution of the next layer upward;
            MLPs with diagonal normals when left out.

    Raises:
        ValueError: there is no layer.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        layers: int = 2,
        encoders: Sequence[nn.Module] | None = None,
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, found {layers}; a guide that draws nothing is Empty")
        sizes = [x_dim] + [z_dim] * (layers - 1)
        normals = [nn.Sequential(nets.MLP(size, hidden, 2 * z_dim), nets.ToNormal()) for size in sizes]
        self.encoders = nn.ModuleList(normals if encoders is None else encoders)

    def forward(self, x: Tensor) -> None:
        """Draw the latents given x of shape ``(B, x_dim)``."""
        below = x
        with pyro.plate("data", x.shape[0], dim=-1):
            for i, encoder in enumerate(self.encoders, start=1):
                below = pyro.sample("z" if len(self.encoders) == 1 else f"z{i}", encoder(below))
