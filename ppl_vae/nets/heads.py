"""Heads: what turns a network's output into a distribution with one event axis.

The attribute ``outputs`` says how many numbers a head takes for one value, so that a network for any of them has
``Head.outputs * x_dim``. (Heads for correlated values: `ppl_vae.nets.correlated_heads`.)
"""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae import distributions
from ppl_vae.arguments import positive
from ppl_vae.nets.precision import at_least_single

__all__ = [
    "ToBernoulli",
    "ToContinuousBernoulli",
    "ToDelta",
    "ToDiscretisedLogistic",
    "ToNormal",
    "ToNormalFixedScale",
    "ToNormalOneScale",
    "ToNormalPixelScale",
]


def _halves(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return locations and what becomes of scales, from one output ``(..., 2 D)``."""
    if h.shape[-1] % 2:
        raise ValueError(
            f"h: expected an even last axis, a location and a scale for each value, found shape {tuple(h.shape)}; give "
            "the network 2 * D outputs"
        )
    loc, raw = at_least_single(h).chunk(2, dim=-1)
    return loc, raw


class ToBernoulli(nn.Module):
    """Logits ``(..., D)`` to independent Bernoullis with event shape ``(D,)``.

    Attributes:
        outputs: 1, numbers taken for one value.

    Example:
        >>> decoder = nn.Sequential(pv.nets.MLP(2, (8,), 784), ToBernoulli())
        >>> d = decoder(torch.zeros(5, 2))
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([784]))
    """

    outputs = 1

    def forward(self, logits: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return dist.Bernoulli(logits=at_least_single(logits)).to_event(1)


class ToContinuousBernoulli(nn.Module):
    """Natural parameters ``(..., D)`` to independent continuous Bernoullis, densities of intensities in [0, 1].

    A Bernoulli's likelihood of grey values, ``x log p + (1 - x) log(1 - p)``, is no density; this one is.

    Attributes:
        outputs: 1, numbers taken for one value.

    Reference: G. Loaiza-Ganem, J. P. Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", NeurIPS 2019, https://arxiv.org/abs/1907.06845.

    Example:
        >>> ToContinuousBernoulli()(torch.zeros(5, 784)).mean[0, 0]
        tensor(0.5000)
    """

    outputs = 1

    def forward(self, logits: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return distributions.ContinuousBernoulli(at_least_single(logits)).to_event(1)


class ToDiscretisedLogistic(nn.Module):
    """Two halves ``(..., 2 D)`` to independent masses of grey levels ``k / (levels - 1)`` in [0, 1].

    The first half is the location; the second becomes the logistic's scale through a softplus.

    Args:
        levels: number of grey levels.
        min_scale: added to every scale, in the units of the data.

    Attributes:
        outputs: 2, numbers taken for one value.

    Raises:
        ValueError: ``min_scale`` is not positive, or ``levels`` below two; the last axis is odd.

    Reference: T. Salimans et al., "PixelCNN++", ICLR 2017, https://arxiv.org/abs/1701.05517, section 2.1, with one
    component.

    Example:
        >>> decoder = nn.Sequential(pv.nets.MLP(2, (8,), 2 * 784), ToDiscretisedLogistic())
        >>> decoder(torch.zeros(5, 2)).log_prob(torch.ones(5, 784) * 3 / 255).shape
        torch.Size([5])
    """

    outputs = 2

    def __init__(self, levels: int = 256, min_scale: float = 1e-4):
        super().__init__()
        self.levels, self.min_scale = distributions.GreyLevels(levels).levels, positive("min_scale", min_scale)

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        loc, raw = _halves(h)
        return distributions.DiscretisedLogistic(loc, F.softplus(raw) + self.min_scale, self.levels).to_event(1)


class ToDelta(nn.Module):
    """Outputs ``(..., D)`` as they are: a point mass with event shape ``(D,)``, for a likelihood without noise.

    A model with it can be drawn from and trained by `ppl_vae.gan_step`; it has no density to weigh.

    Example:
        >>> ToDelta()(torch.zeros(5, 784)).event_shape
        torch.Size([784])
    """

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return dist.Delta(h, event_dim=1)


class ToNormal(nn.Module):
    """Two halves ``(..., 2 D)`` to independent normals with event shape ``(D,)``.

    The first half is the mean; the second becomes the standard deviation through a softplus.

    Args:
        min_scale: added to every standard deviation, so that a density can neither divide by
            zero nor, as a likelihood, grow without bound on a constant pixel.

    Attributes:
        outputs: 2, numbers taken for one value.

    Raises:
        ValueError: ``min_scale`` is not positive; the last axis is odd.

    Example:
        >>> encoder = nn.Sequential(pv.nets.MLP(784, (8,), 2 * 3), ToNormal())
        >>> encoder(torch.zeros(5, 784)).event_shape
        torch.Size([3])
    """

    outputs = 2

    def __init__(self, min_scale: float = 1e-4):
        super().__init__()
        self.min_scale = positive("min_scale", min_scale)

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        loc, raw = _halves(h)
        return dist.Normal(loc, F.softplus(raw) + self.min_scale).to_event(1)


class ToNormalFixedScale(nn.Module):
    """Means ``(..., D)`` to independent normals with a standard deviation that is given and never learned.

    Up to constants the log density is a squared error over ``2 scale^2``, so that the scale weighs reconstruction
    against the divergence of the latents, as beta does in a beta-VAE.

    Args:
        scale: standard deviation, in the units of the data.

    Attributes:
        outputs: 1, numbers taken for one value.

    Raises:
        ValueError: the scale is not positive.

    Reference: O. Rybkin, K. Daniilidis, S. Levine, "Simple and Effective VAE Training with Calibrated Decoders", ICML
    2021, https://arxiv.org/abs/2006.13202, on what to choose of this, `ToNormalOneScale` and `ToNormal`.

    Example:
        >>> ToNormalFixedScale(0.5)(torch.zeros(5, 784)).base_dist.scale[0, 0]
        tensor(0.5000)
    """

    outputs = 1

    def __init__(self, scale: float = 0.1):
        super().__init__()
        self.scale = positive("scale", scale)

    def forward(self, loc: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return dist.Normal(at_least_single(loc), self.scale).to_event(1)


class ToNormalOneScale(nn.Module):
    """Means ``(..., D)`` to independent normals that share one learned standard deviation.

    The usual Gaussian likelihood of a VAE. The logarithm of the scale is the parameter.

    Args:
        scale: standard deviation to begin with, in the units of the data.

    Attributes:
        outputs: 1, numbers taken for one value.

    Raises:
        ValueError: the scale is not positive.

    Example:
        >>> ToNormalOneScale(0.1)(torch.zeros(5, 784)).base_dist.scale[0, 0]
        tensor(0.1000, ...)
    """

    outputs = 1

    def __init__(self, scale: float = 0.1):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(positive("scale", scale)).log())

    def forward(self, loc: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return dist.Normal(at_least_single(loc), self.log_scale.exp()).to_event(1)


class ToNormalPixelScale(nn.Module):
    """Means ``(..., x_dim)`` to independent normals with a learned standard deviation for each pixel.

    The same for every datum, as in factor analysis. On a pixel that is constant in the data the likelihood grows
    without bound as its scale falls, which ``min_scale`` limits.

    Args:
        x_dim: number of pixels.
        scale: standard deviation to begin with, in the units of the data.
        min_scale: part of every standard deviation that is not learned, below ``scale``.

    Attributes:
        outputs: 1, numbers taken for one value.

    Raises:
        ValueError: not ``0 < min_scale < scale``; the last axis is not ``x_dim``.

    Example:
        >>> head = ToNormalPixelScale(784, scale=0.2)
        >>> head(torch.zeros(5, 784)).base_dist.scale.shape, head.log_scale.shape
        (torch.Size([5, 784]), torch.Size([784]))
    """

    outputs = 1

    def __init__(self, x_dim: int, scale: float = 0.1, min_scale: float = 1e-4):
        super().__init__()
        self.min_scale = positive("min_scale", min_scale)
        learned = positive("scale - min_scale", scale - min_scale)
        self.log_scale = nn.Parameter(torch.full((x_dim,), learned).log())

    def forward(self, loc: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        if loc.shape[-1:] != self.log_scale.shape:
            raise ValueError(
                f"loc: expected a last axis of x_dim = {len(self.log_scale)}, found shape {tuple(loc.shape)}; make the "
                "head with the number of outputs of the network"
            )
        return dist.Normal(at_least_single(loc), self.log_scale.exp() + self.min_scale).to_event(1)
