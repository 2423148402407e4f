"""The standard normal prior."""

import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae.arguments import whole

__all__ = ["StandardNormal"]


class StandardNormal(nn.Module):
    """p(z) = N(0, I).

    Args:
        z_dim: number of latent dimensions.

    Raises:
        ValueError: it is no whole number of at least 1.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    def __init__(self, z_dim: int = 20):
        super().__init__()
        # A buffer, so that the prior follows the module's device and dtype.
        self.register_buffer("zeros", torch.zeros(whole("z_dim", z_dim)), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z)."""
        return dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)
