"""Convolutional networks on flattened grey images, with any number of leading axes."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["ConvDecoder", "ConvEncoder", "as_images", "grid_of", "halving"]

CHANNELS = (32, 64)


def grid_of(shape: tuple[int, int], channels: Sequence[int] = CHANNELS) -> tuple[int, int]:
    """Return the sides of the grid that an image shrinks to, halved by each convolution and rounded up.

    Example:
        >>> grid_of((28, 20)), grid_of((1, 6))
        ((7, 5), (1, 2))
    """
    return (-(-shape[0] // 2 ** len(channels)), -(-shape[1] // 2 ** len(channels)))


def halving(channels: Sequence[int]) -> list[nn.Module]:
    """Return convolutions of a grey image, each of which halves it, with nonlinearities.

    Example:
        >>> nn.Sequential(*halving((3, 5)))(torch.zeros(2, 1, 8, 6)).shape
        torch.Size([2, 5, 2, 2])
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise([1, *channels]):
        layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.ReLU()]
    return layers


def as_images(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return flattened images ``(..., H * W)`` as convolutions take them, ``(N, 1, H, W)``.

    Raises:
        ValueError: they are no such images.

    Example:
        >>> as_images(torch.zeros(3, 2, 560), (28, 20)).shape
        torch.Size([6, 1, 28, 20])
    """
    if x.shape[-1] != prod(shape):
        raise ValueError(
            f"x: expected a last axis of {prod(shape)} = {shape[0]} x {shape[1]} pixels, found shape {tuple(x.shape)}; "
            "flatten images with x.flatten(1), or say their sides by shape="
        )
    return x.reshape(-1, 1, *shape)


class ConvEncoder(nn.Module):
    """Strided convolutions and a linear layer over flattened grey images.

    Shapes: ``(..., H * W) -> (..., out_dim)``.

    Args:
        shape: ``(H, W)`` of the image.
        out_dim: size of the last axis of the output.
        channels: channels of the convolutions, each of which halves the image; at least one.

    Raises:
        ValueError: the data are no such images.

    Example:
        >>> ConvEncoder((28, 20), 8)(torch.zeros(3, 2, 560)).shape
        torch.Size([3, 2, 8])
    """

    def __init__(self, shape: tuple[int, int], out_dim: int, channels: Sequence[int] = CHANNELS):
        super().__init__()
        self.shape = shape
        size = channels[-1] * prod(grid_of(shape, channels))
        self.net = nn.Sequential(*halving(channels), nn.Flatten(), nn.Linear(size, out_dim))
        # Kernels laid out as fast convolutions read them, which spares compiled steps the conversion.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``(..., H * W)`` as ``(..., out_dim)``."""
        found = self.net(as_images(x, self.shape))
        return found.reshape(*x.shape[:-1], found.shape[-1])  # a size of -1 would be unknown for no data


class ConvDecoder(nn.Module):
    """A linear layer and transposed convolutions: the mirror of `ConvEncoder`.

    Shapes: ``(..., in_dim) -> (..., outputs * H * W)``. What the last image has beyond ``shape`` is cropped.

    Args:
        in_dim: size of the last axis of the input.
        shape: ``(H, W)`` of the image.
        channels: channels before each transposed convolution, which doubles the image; at least one.
        outputs: images to give, one after the other; as many as a head takes for a pixel (``Head.outputs``).

    Example:
        >>> ConvDecoder(8, (28, 20))(torch.zeros(3, 2, 8)).shape
        torch.Size([3, 2, 560])
    """

    def __init__(self, in_dim: int, shape: tuple[int, int], channels: Sequence[int] = CHANNELS[::-1], outputs: int = 1):
        super().__init__()
        self.shape = shape
        grid = (channels[0], *grid_of(shape, channels))
        layers: list[nn.Module] = [nn.Linear(in_dim, prod(grid)), nn.ReLU(), nn.Unflatten(1, grid)]
        for n_in, n_out in pairwise([*channels, outputs]):
            layers += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        self.to(memory_format=torch.channels_last)  # as above

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(..., in_dim)`` to ``(..., outputs * H * W)``."""
        image = self.net(z.reshape(-1, z.shape[-1]))[..., : self.shape[0], : self.shape[1]]
        return image.reshape(*z.shape[:-1], prod(image.shape[1:]))
