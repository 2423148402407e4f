"""Networks of several inputs, and heads without noise."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["Joined", "ToDelta"]


class Joined(nn.Module):
    """A network on the concatenation of its inputs, whose leading axes are broadcast.

    What a critic T(x, z) and an encoder of data and noise are made of.

    Shapes: ``(..., D_1), (..., D_2), ... -> (..., out_dim)``.

    Args:
        network: module from ``(..., D_1 + D_2 + ...)`` to what is returned.

    Example:
        >>> critic = Joined(pv.nets.MLP(6 + 2, (8,), 1))
        >>> critic(torch.zeros(4, 6), torch.zeros(3, 4, 2)).shape
        torch.Size([3, 4, 1])
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """Concatenate and go on."""
        leading = torch.broadcast_shapes(*[part.shape[:-1] for part in inputs])
        return self.network(torch.cat([part.expand(*leading, part.shape[-1]) for part in inputs], dim=-1))


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
