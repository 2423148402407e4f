"""Convolutional networks on flattened grey images, with any number of leading axes."""

from math import prod

import torch
from torch import Tensor, nn

__all__ = ["ConvDecoder", "ConvEncoder"]


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

    Shapes: ``(..., in_dim) -> (..., outputs * H * W)``. Sides that four does not divide are cropped.

    Args:
        in_dim: size of the last axis of the input.
        shape: ``(H, W)`` of the image.
        channels: channels before the two transposed convolutions, each of which doubles the image.
        outputs: images to give, one after the other; as many as a head takes for a pixel (``Head.outputs``).

    Example:
        >>> ConvDecoder(8, (28, 20))(torch.zeros(3, 2, 8)).shape
        torch.Size([3, 2, 560])
    """

    def __init__(self, in_dim: int, shape: tuple[int, int], channels: tuple[int, int] = (64, 32), outputs: int = 1):
        super().__init__()
        self.shape = shape
        quarter = tuple(_halved(_halved(side)) for side in shape)
        self.net = nn.Sequential(
            nn.Linear(in_dim, channels[0] * prod(quarter)),
            nn.ReLU(),
            nn.Unflatten(1, (channels[0], *quarter)),
            nn.ConvTranspose2d(channels[0], channels[1], 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels[1], outputs, 4, stride=2, padding=1),
        )
        _channels_innermost(self)

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(..., in_dim)`` to ``(..., outputs * H * W)``."""
        image = self.net(z.reshape(-1, z.shape[-1]))[..., : self.shape[0], : self.shape[1]]
        return image.reshape(*z.shape[:-1], -1)


def _channels_innermost(module: nn.Module) -> None:
    """Lay out kernels as fast convolutions read them, which spares compiled steps the conversion."""
    module.to(memory_format=torch.channels_last)


def _halved(side: int) -> int:
    return (side + 1) // 2
