"""Discrete VAE on a grid: relaxed codes for the regions of an image, pushed through a convolutional network.

Generative process, for each datum::

    c_i ~ Concrete(uniform over the codes, temperature),    i = 1, ..., h w
    x   ~ p(x | c) = decoder(c)

The codes are points of the simplex, so that gradients reach the encoder and, with `guides.relaxed.Relaxed`, the
bound is a true one for this model. It pays for the noise between corners too, the more the more codes there are: take
few, at one temperature in model and guide, and raise the weight of the KL divergence from zero (`objectives.Scheduled`)
where codes stay unused. With ``prior=priors.UniformCodes(h w, codes)`` the codes are discrete:
`guides.categorical.Categorical` then draws them, and `objectives.Concrete` relaxes them for training only.

| symbol | site | shape        |
| ------ | ---- | ------------ |
| c      | "c"  | (h w, codes) |
| x      | "x"  | (H W,)       |

Reference: A. Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021, https://arxiv.org/abs/2102.12092;
C. Maddison, A. Mnih, Y. W. Teh, "The Concrete Distribution", ICLR 2017, https://arxiv.org/abs/1611.00712;
E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017,
https://arxiv.org/abs/1611.01144.

Example:
    >>> from ppl_vae.guides.relaxed import Relaxed
    >>> from ppl_vae.models.dvae import DVAE
    >>> model, guide = DVAE(shape=(8, 8)), Relaxed(shape=(8, 8))
    >>> pv.weigh(model, guide, torch.ones(3, 64), particles=5).values["c"].shape
    torch.Size([5, 3, 4, 8])
"""

from collections.abc import Sequence
from math import prod

import pyro
from torch import Tensor, nn

from ppl_vae import nets, priors


class DVAE(nn.Module):
    """A grid of codes under an image; the likelihood is whatever distribution the decoder returns.

    Args:
        x_dim: number of pixels of a square image, or of one row where they make no square.
        codes: number of values of each code.
        shape: ``(H, W)`` of the image, in place of ``x_dim``.
        channels: those of the encoder, from the image to the grid; each convolution halves the image.
        prior: module that returns p(c), from `ppl_vae.priors`; relaxed codes when left out.
        decoder: module from ``(..., h w, codes)`` to a distribution with event shape ``(H W,)``; a
            `nets.GridDecoder` with Bernoulli pixels when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        codes: int = 8,
        shape: tuple[int, int] | None = None,
        channels: Sequence[int] = (32, 64),
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        shape = shape or nets.image_shape(x_dim)
        self.prior = prior or priors.RelaxedUniformCodes(prod(nets.grid_of(shape, channels)), codes)
        self.decoder = decoder or nn.Sequential(nets.GridDecoder(codes, shape, channels), nets.ToBernoulli())

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, H W)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            c = pyro.sample("c", self.prior())
            pyro.sample("x", self.decoder(c), obs=x)
