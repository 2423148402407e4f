"""Networks and the heads that turn their outputs into distributions.

A model's decoder and a guide's encoder are networks that *return a distribution*; put a
network and a head in an ``nn.Sequential`` and you have one. Everything here accepts any
number of leading axes (particles, enumerated values, data), convolutions too.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "ToBernoulli", "ToNormal", "ToNormalOneScale"]


class MLP(nn.Sequential):
    """Fully connected layers with a nonlinearity between them, none at the end.

    Shapes: ``(..., in_dim) -> (..., out_dim)``.

    Args:
        in_dim: size of the last axis of the input.
        hidden: widths of the hidden layers; empty for a linear map.
        out_dim: size of the last axis of the output.
        activation: makes the nonlinearity between two layers.

    Example:
        >>> MLP(784, (400,), 40)(torch.zeros(5, 2, 784)).shape
        torch.Size([5, 2, 40])
    """

    def __init__(
        self,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        sizes = [in_dim, *hidden, out_dim]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), activation()]
        super().__init__(*layers[:-1])


class ConvEncoder(nn.Module):
    """Two strided convolutions and a linear layer over flattened grey images.

    Shapes: ``(..., H * W) -> (..., out_dim)``.

    Args:
        shape: ``(H, W)`` of the image.
        out_dim: size of the last axis of the output.
        channels: channels of the two convolutions, each of which halves the image.

    Example:
        >>> ConvEncoder((28, 20), 8)(torch.zeros(3, 2, 560)).shape
        torch.Size([3, 2, 8])
    """

    def __init__(self, shape: tuple[int, int], out_dim: int, channels: tuple[int, int] = (32, 64)):
        super().__init__()
        self.shape = shape
        quarter = [_halved(_halved(side)) for side in shape]
        self.net = nn.Sequential(
            nn.Conv2d(1, channels[0], 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels[0], channels[1], 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels[1] * prod(quarter), out_dim),
        )
        _channels_innermost(self)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``(..., H * W)`` as ``(..., out_dim)``."""
        if x.shape[-1] != prod(self.shape):
            raise ValueError(
                f"x: expected a last axis of {prod(self.shape)} = {self.shape[0]} x {self.shape[1]} pixels, found "
                f"shape {tuple(x.shape)}; flatten images with x.flatten(1)"
            )
        return self.net(x.reshape(-1, 1, *self.shape)).reshape(*x.shape[:-1], -1)


class ConvDecoder(nn.Module):
    """A linear layer and two transposed convolutions: the mirror of `ConvEncoder`.

    Shapes: ``(..., in_dim) -> (..., H * W)``. Sides that four does not divide are cropped.

    Args:
        in_dim: size of the last axis of the input.
        shape: ``(H, W)`` of the image.
        channels: channels before the two transposed convolutions, each of which doubles the image.

    Example:
        >>> ConvDecoder(8, (28, 20))(torch.zeros(3, 2, 8)).shape
        torch.Size([3, 2, 560])
    """

    def __init__(self, in_dim: int, shape: tuple[int, int], channels: tuple[int, int] = (64, 32)):
        super().__init__()
        self.shape = shape
        quarter = tuple(_halved(_halved(side)) for side in shape)
        self.net = nn.Sequential(
            nn.Linear(in_dim, channels[0] * prod(quarter)),
            nn.ReLU(),
            nn.Unflatten(1, (channels[0], *quarter)),
            nn.ConvTranspose2d(channels[0], channels[1], 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels[1], 1, 4, stride=2, padding=1),
        )
        _channels_innermost(self)

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(..., in_dim)`` to ``(..., H * W)``."""
        image = self.net(z.reshape(-1, z.shape[-1]))[:, 0, : self.shape[0], : self.shape[1]]
        return image.reshape(*z.shape[:-1], -1)


def _channels_innermost(module: nn.Module) -> None:
    """Lay out kernels as fast convolutions read them, which spares compiled steps the conversion."""
    module.to(memory_format=torch.channels_last)


def _halved(side: int) -> int:
    return (side + 1) // 2


def _at_least_single(h: Tensor) -> Tensor:
    """Leave mixed precision: a log density is a sum over pixels, for which eight bits are too few."""
    return h.float() if torch.is_autocast_enabled(h.device.type) else h


class ToBernoulli(nn.Module):
    """Logits ``(..., D)`` to independent Bernoullis with event shape ``(D,)``.

    Example:
        >>> decoder = nn.Sequential(MLP(2, (8,), 784), ToBernoulli())
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
        >>> encoder = nn.Sequential(MLP(784, (8,), 2 * 3), ToNormal())
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
