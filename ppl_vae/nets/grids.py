"""Convolutional networks between grey images and grids of vectors, with any number of leading axes."""

from collections.abc import Sequence
from itertools import pairwise
from math import isqrt, prod

import torch
from torch import Tensor, nn

from ppl_vae.nets.convolutions import CHANNELS, as_images, grid_of, halving

__all__ = ["GridDecoder", "GridEncoder", "image_shape"]


def image_shape(x_dim: int) -> tuple[int, int]:
    """Return the sides of a square image of so many pixels, or of one row where they make no square.

    Example:
        >>> image_shape(784), image_shape(6)
        ((28, 28), (1, 6))
    """
    side = isqrt(x_dim)
    return (side, side) if side * side == x_dim else (1, x_dim)


class GridEncoder(nn.Module):
    """Strided convolutions from flattened grey images to a grid of vectors.

    Shapes: ``(..., H * W) -> (..., h * w, out_dim)``, positions in raster order.

    Args:
        shape: ``(H, W)`` of the image.
        out_dim: size of each vector.
        channels: channels of the convolutions, each of which halves the image.

    Raises:
        ValueError: the data are no such images.

    Example:
        >>> GridEncoder((28, 20), 8)(torch.zeros(3, 2, 560)).shape
        torch.Size([3, 2, 35, 8])
    """

    def __init__(self, shape: tuple[int, int], out_dim: int, channels: Sequence[int] = CHANNELS):
        super().__init__()
        self.shape = shape
        self.net = nn.Sequential(*halving(channels), nn.Conv2d([1, *channels][-1], out_dim, 1))
        self.to(memory_format=torch.channels_last)  # as fast convolutions read kernels

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``(..., H * W)`` as ``(..., h * w, out_dim)``."""
        grid = self.net(as_images(x, self.shape)).flatten(-2).transpose(-1, -2)
        return grid.reshape(*x.shape[:-1], *grid.shape[1:])


class GridDecoder(nn.Module):
    """Transposed convolutions from a grid of vectors to flattened grey images: the mirror of `GridEncoder`.

    Shapes: ``(..., h * w, in_dim) -> (..., H * W)``. What the last grid has beyond the image is cropped. Each position
    of the grid adds a learned vector of its own: convolutions tell the edge from the middle, but not left from right,
    so that without one the codes would have to spend their information on the mean image.

    Args:
        in_dim: size of each vector.
        shape: ``(H, W)`` of the image.
        channels: channels of the encoder that this one mirrors; each convolution doubles the grid.

    Raises:
        ValueError: the vectors make no such grid, or are of another size.

    Example:
        >>> GridDecoder(8, (28, 20))(torch.zeros(3, 2, 35, 8)).shape
        torch.Size([3, 2, 560])
    """

    def __init__(self, in_dim: int, shape: tuple[int, int], channels: Sequence[int] = CHANNELS):
        super().__init__()
        self.shape, self.grid = shape, grid_of(shape, channels)
        widths = [*reversed(channels), 1]
        self.read = nn.Conv2d(in_dim, widths[0], 1)
        self.places = nn.Parameter(torch.zeros(widths[0], *self.grid))
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.ReLU(), nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1)]
        self.net = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``(..., h * w, in_dim)`` to ``(..., H * W)``."""
        if z.shape[-2:] != (prod(self.grid), self.read.in_channels):
            raise ValueError(
                f"z: expected {prod(self.grid)} = {self.grid[0]} x {self.grid[1]} positions of "
                f"{self.read.in_channels} numbers, found shape {tuple(z.shape)}; an image of {self.shape[0]} x "
                f"{self.shape[1]} pixels has so many positions (nets.grid_of tells), and the prior's codes= is to be "
                "the decoder's"
            )
        grid = z.transpose(-1, -2).reshape(-1, z.shape[-1], *self.grid)
        image = self.net(self.read(grid) + self.places)[:, 0, : self.shape[0], : self.shape[1]]
        return image.reshape(*z.shape[:-2], prod(self.shape))
