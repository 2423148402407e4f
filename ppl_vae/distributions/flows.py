"""Normalising flows: noise pushed through a transform whose Jacobian is known."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor

__all__ = ["NormalizingFlow"]


class NormalizingFlow(dist.TorchDistribution):
    """The distribution of ``z = f(u)`` with noise ``u ~ base`` and an invertible f.

        log p(z) = log base(u) - log |det df/du|,    u = f^-1(z)

    A draw and its own log density come from one pass through f: the last draw is remembered with its
    density, so that scoring it costs nothing. Any other value is taken back to its noise, which for an
    autoregressive f takes a pass for each dimension, and for a coupling two (the other way round for
    the inverse of either). The remembered density is that of the parameters at the draw.

    Shapes: those of ``base``; a transform with a context broadcasts it over the leading axes.

    Args:
        base: distribution of the noise, with one event axis.
        transform: from noise to values, with ``call_and_ladj`` as zuko's transforms have it (see
            `ppl_vae.nets.flows`), in both directions.

    Raises:
        ValueError: the noise has no event axis, or several.

    Reference: D. J. Rezende, S. Mohamed, "Variational Inference with Normalizing Flows", ICML 2015,
    https://arxiv.org/abs/1505.05770; G. Papamakarios et al., "Normalizing Flows for Probabilistic
    Modeling and Inference", JMLR 2021, https://arxiv.org/abs/1912.02762.

    Example:
        >>> from ppl_vae.nets import flows
        >>> noise = torch.distributions.Normal(torch.zeros(5, 3), 1.0)
        >>> q = NormalizingFlow(torch.distributions.Independent(noise, 1), flows.autoregressive(z_dim=3)())
        >>> z = q.rsample((2,))
        >>> torch.allclose(q.log_prob(z), q.log_prob(z.clone()), atol=1e-5)    # one pass, and three
        True
    """

    arg_constraints = {}  # noqa: RUF012  (torch's name and form)
    support = dist.constraints.real_vector

    def __init__(self, base: Any, transform: Any, validate_args: bool | None = None):
        if len(base.event_shape) != 1:
            raise ValueError(
                f"base: expected noise with one event axis, found event shape {tuple(base.event_shape)}; declare it "
                "with .to_event(1)"
            )
        self.base = base
        self.transform = transform
        self._forget()
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    def _forget(self) -> None:
        self._drawn: tuple[Tensor | None, Tensor | None, bool] = (None, None, False)

    @property
    def has_rsample(self) -> bool:
        """Whether draws carry gradients: they do where the noise does."""
        return self.base.has_rsample

    def expand(self, batch_shape: Size, _instance: Any = None) -> "NormalizingFlow":
        """Return the same flow with another batch shape."""
        return type(self)(self.base.expand(batch_shape), self.transform, validate_args=self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw values, with gradients."""
        noise = self.base.rsample(sample_shape)
        value, ladj = _in_full_precision(self.transform, noise)
        self._drawn = (value, self.base.log_prob(noise) - ladj, torch.is_grad_enabled())
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value) in nats."""
        if self._validate_args:
            self._validate_sample(value)
        drawn, density, with_gradient = self._drawn
        # What was drawn without gradients may be scored with some.
        if value is drawn and (with_gradient or not torch.is_grad_enabled()):
            return density
        noise, ladj = _in_full_precision(self.transform.inv, value)
        return self.base.log_prob(noise) + ladj


def _in_full_precision(transform: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Transform outside mixed precision: in eight bits no inverse would find its noise again."""
    with torch.autocast(x.device.type, enabled=False):
        return transform.call_and_ladj(x)
