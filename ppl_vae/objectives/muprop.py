"""MuProp: a control variate from one deterministic pass through the means."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.gradients import along, gap, zero_with_gradient
from ppl_vae.objectives.bounds import elbo
from ppl_vae.objectives.drawing import Hard, earnings, estimate_elbo
from ppl_vae.objectives.relaxations import variable
from ppl_vae.objectives.vocabulary import Estimate, objective
from ppl_vae.particles import Particles
from ppl_vae.weighing import weigh

__all__ = ["MuProp"]


@objective(
    formula="sum_k m log w_k",
    reference="S. Gu et al. 2016, arXiv:1511.05176",
    linear=True,
    discrete=True,
)
class MuProp(nn.Module):
    """The ELBO with MuProp's gradient for Bernoulli and one-hot sites; unbiased.

    With f the log-weight, and f', z' from a pass in which each discrete site takes its mean::

        signal_k = f(z_k) - f(z') - f'(z') (z_k - z')

    to which the gradient of ``f'(z') E[z]`` is added. For several layers each has its own linear term.

    Reference: S. Gu, S. Levine, I. Sutskever, A. Mnih, "MuProp: Unbiased Backpropagation for
    Stochastic Neural Networks", ICLR 2016, https://arxiv.org/abs/1511.05176.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> sizes = {"x_dim": 6, "z_dim": 2}
        >>> model, guide = SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)
        >>> value, surrogate = pv.objectives.MuProp().estimate(model, guide, torch.ones(4, 6), particles=3)
        >>> value.shape, surrogate.shape
        (torch.Size([4]), torch.Size([4]))
    """

    bound = staticmethod(elbo)

    def estimate(self, model: Any, guide: Any, batch: Any, particles: int = 1) -> Estimate:
        """Return the ELBO, ``(B,)``, and what to differentiate.

        Raises:
            ValueError: a discrete site is neither Bernoulli nor one-hot.
        """

        def slopes(drawn: Hard, record: Particles, earned: Tensor) -> Tensor:
            return _around_means(model, guide, batch, particles, drawn, earned)

        return estimate_elbo(model, guide, batch, particles, slopes)


def _around_means(model: Any, guide: Any, batch: Any, particles: int, drawn: Hard, earned: Tensor) -> Tensor:
    means: dict[str, Tensor] = {}

    def at_mean(name: str, fn: Any) -> Tensor | None:
        if fn.has_rsample:
            return None
        means[name] = variable(name, fn).mean
        return means[name]

    at_means = earnings(weigh(model, guide, batch, particles, linear=True, draw=at_mean))
    moving = {name: mean for name, mean in means.items() if mean.requires_grad}
    if not moving:
        return torch.zeros_like(earned)
    slopes = torch.autograd.grad(at_means.sum(), [*moving.values()], allow_unused=True)
    surrogate = torch.zeros_like(earned)
    for (name, mean), slope in zip(moving.items(), slopes, strict=True):
        slope = torch.zeros_like(mean) if slope is None else slope
        possible = (earned.isfinite() & at_means.isfinite()).reshape(earned.shape + (1,) * (slope.dim() - 2))
        slope = slope.masked_fill(~possible, 0.0)
        linear = (slope * (drawn.values[name] - mean)).flatten(2).sum(-1)
        signal = gap(earned, at_means + linear)
        surrogate = surrogate + signal * zero_with_gradient(drawn.log_q[name])
        surrogate = surrogate + along(drawn.variables[name].mean, slope)
    return surrogate
