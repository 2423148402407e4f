"""Fully connected networks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from ppl_vae.arguments import whole

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Fully connected layers with a nonlinearity between them, none at the end.

    Shapes: ``(..., in_dim) -> (..., out_dim)``.

    Args:
        in_dim: size of the last axis of the input.
        hidden: widths of the hidden layers; empty for a linear map.
        out_dim: size of the last axis of the output.
        activation: makes the nonlinearity between two layers.

    Raises:
        ValueError: a size is no whole number of at least 1.

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
        sizes = [whole("in_dim", in_dim), *(whole("hidden", width) for width in hidden), whole("out_dim", out_dim)]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), activation()]
        super().__init__(*layers[:-1])
