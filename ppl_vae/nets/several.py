"""Networks of several inputs, such as an image and its label."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ppl_vae.nets.dense import MLP

__all__ = ["Joined", "JoinedMLP", "Reads"]


class Joined(nn.Module):
    """A network of several inputs: each through a part of its own, their sum through the rest.

    Parts of one layer make it a network of the concatenated inputs, ``W (a, b) = U a + V b``, in which the leading
    axes of the inputs broadcast: what concerns the data alone is not repeated for every particle or class.

    Shapes: ``(..., in_1), (..., in_2), ... -> whatever the rest returns``.

    Args:
        parts: a module for each input, all of one output size.
        rest: modules for their sum, one after the other.

    Raises:
        ValueError: there are more or fewer inputs than parts.

    Example:
        >>> parts = pv.nets.ConvEncoder((28, 28), 50), nn.Linear(10, 50)
        >>> encoder = Joined(parts, nn.ReLU(), nn.Linear(50, 2 * 20), pv.nets.ToNormal())
        >>> encoder(torch.zeros(4, 784), torch.zeros(10, 1, 4, 10)).batch_shape
        torch.Size([10, 1, 4])
    """

    def __init__(self, parts: Sequence[nn.Module], *rest: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.rest = nn.Sequential(*rest)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the rest makes of the sum."""
        if len(inputs) != len(self.parts):
            raise ValueError(f"inputs: expected {len(self.parts)}, one for each part, found {len(inputs)}")
        first, *others = (part(given) for part, given in zip(self.parts, inputs, strict=True))
        return self.rest(sum(others, start=first))


class JoinedMLP(Joined):
    """Fully connected layers over several inputs side by side, and a head.

    Each input's weights begin as those of a layer of its own, so that a label of ten classes is not lost beside
    hundreds of pixels.

    Shapes: ``(..., in_1), (..., in_2), ... -> (..., out_dim)``, or what the head makes of it.

    Args:
        in_dims: sizes of the inputs' last axes.
        hidden: widths of the hidden layers; empty for a linear map.
        out_dim: size of the output before the head.
        head: what comes after the last layer.
        activation: makes the nonlinearity between two layers.

    Example:
        >>> JoinedMLP((784, 10), (400,), 40, pv.nets.ToNormal())(torch.zeros(4, 784), torch.zeros(4, 10)).event_shape
        torch.Size([20])
    """

    def __init__(
        self,
        in_dims: Sequence[int],
        hidden: Sequence[int],
        out_dim: int,
        head: nn.Module | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        width, *others = (*hidden, out_dim)
        parts = [nn.Linear(size, width, bias=i == 0) for i, size in enumerate(in_dims)]
        layers = [activation(), MLP(width, others[:-1], out_dim, activation)] if others else []
        super().__init__(parts, *layers, *([head] if head else []))


class Reads(nn.Module):
    """A module among several inputs, of which it reads some or none.

    Args:
        module: takes the inputs that it reads.
        positions: which these are, from zero; none for a module that is called without arguments.

    Example:
        >>> prior = Reads(pv.priors.StandardNormal(2))  # the same whatever it is given
        >>> prior(torch.ones(4, 10)).event_shape
        torch.Size([2])
        >>> Reads(nn.Linear(6, 2), 0)(torch.ones(4, 6), torch.ones(4, 10)).shape
        torch.Size([4, 2])
    """

    def __init__(self, module: nn.Module, *positions: int):
        super().__init__()
        self.module = module
        self.positions = positions

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the module makes of the inputs that it reads."""
        return self.module(*(inputs[position] for position in self.positions))
