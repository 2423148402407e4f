"""Heads: what turns a network's output into a distribution."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ToBernoulli", "ToNormal", "ToNormalOneScale"]


def _at_least_single(h: Tensor) -> Tensor:
    """Leave mixed precision: a log density is a sum over pixels, for which eight bits are too few."""
    return h.float() if torch.is_autocast_enabled(h.device.type) else h


class ToBernoulli(nn.Module):
    """Logits ``(..., D)`` to independent Bernoullis with event shape ``(D,)``.

    Example:
        >>> decoder = nn.Sequential(pv.nets.MLP(2, (8,), 784), ToBernoulli())
        >>> d = decoder(torch.zeros(5, 2))
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([784]))
    """

    def forward(self, logits: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return dist.Bernoulli(logits=_at_least_single(logits)).to_event(1)


class ToNormal(nn.Module):
    """Two halves ``(..., 2 D)`` to independent normals with event shape ``(D,)``.

    The first half is the mean; the second becomes the standard deviation through a softplus.

    Args:
        min_scale: added to every standard deviation, so that a density can neither divide by
            zero nor, as a likelihood, grow without bound on a constant pixel.

    Example:
        >>> encoder = nn.Sequential(pv.nets.MLP(784, (8,), 2 * 3), ToNormal())
        >>> encoder(torch.zeros(5, 784)).event_shape
        torch.Size([3])
    """

    def __init__(self, min_scale: float = 1e-4):
        super().__init__()
        self.min_scale = min_scale

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        loc, raw = _at_least_single(h).chunk(2, dim=-1)
        return dist.Normal(loc, F.softplus(raw) + self.min_scale).to_event(1)


class ToNormalOneScale(nn.Module):
    """Means ``(..., D)`` to independent normals that share one learned standard deviation.

    The usual Gaussian likelihood of a VAE. The logarithm of the scale is the parameter.

    Args:
        scale: standard deviation to begin with, in the units of the data.

    Example:
        >>> ToNormalOneScale(0.1)(torch.zeros(5, 784)).base_dist.scale[0, 0]
        tensor(0.1000, ...)
    """

    def __init__(self, scale: float = 0.1):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())

    def forward(self, loc: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return dist.Normal(_at_least_single(loc), self.log_scale.exp()).to_event(1)
