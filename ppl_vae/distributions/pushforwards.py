"""Distributions of which draws are known, and no density."""

from typing import NoReturn

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Pushforward"]


class Pushforward(dist.Delta):
    """The distribution of a network's output ``z = f(noise)``, of which a program shows the draw alone.

    It is what a guide samples from that has no density that could be written down: noise is drawn at a site of its
    own, marked ``infer={"is_auxiliary": True}``, and pushed forward. Where a density is asked for there is an error. A
    plain ``Delta`` in its place would be scored as if the noise had the density of z.

    Args:
        value: the draw z, ``(..., *event)``, differentiable in what made it.
        event_dim: how many of its last axes are the event.

    Reference: S. Mohamed, B. Lakshminarayanan, "Learning in Implicit Generative Models", 2016,
    https://arxiv.org/abs/1610.03483.

    Example:
        >>> q = Pushforward(torch.zeros(5, 2), event_dim=1)
        >>> q.batch_shape, q.event_shape, q.rsample().shape
        (torch.Size([5]), torch.Size([2]), torch.Size([5, 2]))
        >>> q.log_prob(torch.zeros(5, 2))
        Traceback (most recent call last):
        ...
        NotImplementedError: Pushforward: the density of a network's output is not known; ...
    """

    def __init__(self, value: Tensor, event_dim: int = 0):
        super().__init__(value, event_dim=event_dim, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Pushforward":
        """Return it with other batch axes."""
        return Pushforward(self.v.expand(torch.Size(batch_shape) + self.event_shape), self.event_dim)

    def log_prob(self, value: Tensor) -> NoReturn:
        """Raise, as there is no density."""
        raise NotImplementedError(
            "Pushforward: the density of a network's output is not known; train by pv.adversarial_step, and evaluate "
            "the model by pv.ais"
        )
