"""Priors of one-hot codes, several for each datum."""

import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae import distributions
from ppl_vae.arguments import positive, whole

__all__ = ["RelaxedUniformCodes", "UniformCodes"]


class UniformCodes(nn.Module):
    """Codes that are independent of each other, each of them one of C with equal probabilities.

    ::

        log p(c) = -positions log C

    in nats: a constant, whatever carries gradients through c.

    Args:
        positions: number of codes of a datum.
        codes: C, number of values of each.

    Raises:
        ValueError: a number is no whole one of at least 1.

    Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
    https://arxiv.org/abs/1711.00937, section 3.1.

    Example:
        >>> UniformCodes(positions=4, codes=16)().event_shape
        torch.Size([4, 16])
    """

    def __init__(self, positions: int = 4, codes: int = 32):
        super().__init__()
        # A buffer, so that the prior follows the module's device and dtype.
        self.register_buffer(
            "zeros", torch.zeros(whole("positions", positions), whole("codes", codes)), persistent=False
        )

    def forward(self) -> dist.TorchDistribution:
        """Return p(c)."""
        return distributions.OneHotUniform(self.zeros).to_event(1)


class RelaxedUniformCodes(nn.Module):
    """Relaxed codes: independent points of the simplex, with no corner preferred (Concrete distributions).

    Args:
        positions: number of codes of a datum.
        codes: C, number of corners of each.
        temperature: a positive number; the lower, the nearer to corners. Below ``1 / (C - 1)`` the density has
            no mode inside.

    Raises:
        ValueError: the temperature is not positive, or a number no whole one of at least 1.

    Reference: C. Maddison, A. Mnih, Y. W. Teh, "The Concrete Distribution", ICLR 2017,
    https://arxiv.org/abs/1611.00712.

    Example:
        >>> RelaxedUniformCodes(positions=4, codes=16)().sample().shape
        torch.Size([4, 16])
    """

    def __init__(self, positions: int = 4, codes: int = 32, temperature: float = 2 / 3):
        super().__init__()
        self.register_buffer(
            "logits", torch.zeros(whole("positions", positions), whole("codes", codes)), persistent=False
        )
        self.register_buffer("temperature", torch.tensor(positive("temperature", temperature)))

    def forward(self) -> dist.TorchDistribution:
        """Return p(c)."""
        return distributions.RelaxedOneHot(self.temperature, logits=self.logits).to_event(1)
