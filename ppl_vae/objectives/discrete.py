"""Bounds whose gradients reach discrete latents by the score function with a baseline from the other draws."""

from math import log

import torch
from torch import Tensor

from ppl_vae.gradients import gap
from ppl_vae.objectives.options import checked
from ppl_vae.objectives.vocabulary import mean_with_score, objective, with_signal
from ppl_vae.particles import Particles

__all__ = ["log_mean_of_others", "ovis", "reinforce", "rloo", "vimco", "vimco_arithmetic"]

NOTHING = -1e30


@objective(
    formula="sum_k m log w_k",
    reference="R. Williams 1992, doi:10.1007/BF00992696",
    linear=True,
    discrete=True,
)
def reinforce(particles: Particles) -> Tensor:
    """The ELBO by the score function without any control variate: what the others are measured against.

    For sites drawn without reparameterisation, others follow the path::

        grad ELBO = E[ sum_k m (grad log w_k + log w_k grad log q(z_k | x)) ]

    Args:
        particles: any K >= 1.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: R. J. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist
    Reinforcement Learning", Machine Learning 1992, https://doi.org/10.1007/BF00992696.

    Example:
        >>> reinforce(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}))
        tensor([-3.])
    """
    return mean_with_score(particles.log_w, particles)


@objective(
    formula="sum_k m log w_k",
    reference="W. Kool et al. 2019, openreview.net/forum?id=r1lgTGL5DE",
    min_particles=2,
    linear=True,
    discrete=True,
)
def rloo(particles: Particles) -> Tensor:
    """The ELBO by the score function, each draw's baseline being the mean of the others.

    For sites drawn without reparameterisation, others follow the path::

        signal_k = log w_k - 1/(K-1) sum_{l != k} log w_l

    Args:
        particles: K >= 2.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: W. Kool, H. van Hoof, M. Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!",
    ICLR workshop 2019, https://openreview.net/forum?id=r1lgTGL5DE.

    Example:
        >>> rloo(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}))
        tensor([-3.])
    """
    log_w = particles.log_w
    # Averaged over what the guide enumerates below a draw, since that has a mass made of the draw.
    # As in elbo, one less cancels the zero-mean gradient of -log q in log_w.
    return mean_with_score(log_w, particles, baseline=mean_of_others(particles.per_draw(log_w)) - 1)


@objective(
    formula="log sum_k m w_k",
    reference="A. Mnih, D. Rezende 2016, arXiv:1602.06725",
    min_particles=2,
    discrete=True,
)
def vimco(particles: Particles) -> Tensor:
    """Importance-weighted bound with the leave-one-out signal of VIMCO, geometric mean.

    For sites drawn without reparameterisation, with w_(-k) the geometric mean of the other weights::

        signal_k = L_K - v_k - log 1/K (w_(-k) + sum_{l != k} w_l)

    The term v_k, the normalised weight, comes from log q in the weights.

    Args:
        particles: K >= 2.

    Returns:
        Nats per datum, ``(B,)``: the value is that of `iwae`.

    Reference: A. Mnih, D. J. Rezende, "Variational Inference for Monte Carlo Objectives", ICML 2016,
    https://arxiv.org/abs/1602.06725.

    Example:
        >>> vimco(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    log_w = particles.log_per_draw(particles.log_w).detach()
    others = log_sum_of_others(log_w)
    return _leaving_one_out(particles, torch.logaddexp(others, mean_of_others(log_w)) - log(len(log_w)))


@objective(
    formula="log sum_k m w_k",
    reference="A. Mnih, D. Rezende 2016, arXiv:1602.06725",
    min_particles=2,
    discrete=True,
)
def vimco_arithmetic(particles: Particles) -> Tensor:
    """Importance-weighted bound with the leave-one-out signal of VIMCO, arithmetic mean.

    For sites drawn without reparameterisation::

        signal_k = L_K - v_k - log 1/(K-1) sum_{l != k} w_l

    The term v_k, the normalised weight, comes from log q in the weights.

    Args:
        particles: K >= 2.

    Returns:
        Nats per datum, ``(B,)``: the value is that of `iwae`.

    Reference: as `vimco`.

    Example:
        >>> vimco_arithmetic(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    return _leaving_one_out(particles, log_mean_of_others(particles.log_per_draw(particles.log_w).detach()))


@objective(
    formula="log sum_k m w_k",
    reference="V. Liévin et al. 2020, arXiv:2008.01998",
    min_particles=2,
    discrete=True,
)
def ovis(particles: Particles, gamma: float = 1.0) -> Tensor:
    """Importance-weighted bound with the asymptotically optimal control variate (OVIS).

    For sites drawn without reparameterisation, with v_k the normalised weights::

        signal_k = L_K - v_k - c_k,    c_k = log 1/(K-1) sum_{l != k} w_l + gamma log(1 - 1/K)

    With ``gamma=1`` the signal-to-noise ratio of the guide's gradient rises with K when the
    effective sample size is large; ``gamma=0``, which is `vimco_arithmetic`, suits one near 1. (The
    term v_k comes from log q in the weights.)

    Args:
        particles: K >= 2.
        gamma: from 0 to 1.

    Returns:
        Nats per datum, ``(B,)``: the value is that of `iwae`.

    Raises:
        ValueError: gamma is outside [0, 1].

    Reference: V. Liévin, A. Dittadi, A. Christensen, O. Winther, "Optimal Variance Control of the
    Score Function Gradient Estimator for Importance Weighted Bounds", NeurIPS 2020,
    https://arxiv.org/abs/2008.01998.

    Example:
        >>> ovis(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    checked("gamma", gamma, "a number from 0 to 1", lambda g: 0 <= g <= 1)
    k = len(particles)
    baseline = log_mean_of_others(particles.log_per_draw(particles.log_w).detach())
    return _leaving_one_out(particles, baseline + gamma * log(1 - 1 / k))


def _leaving_one_out(particles: Particles, baseline: Tensor) -> Tensor:
    """Return `iwae` with a baseline for each draw, ``(K, B)``, that the draw has no part in."""
    bound = particles.log_mean(particles.log_w)
    return with_signal(bound, particles, gap(bound, baseline))


def mean_of_others(f: Tensor) -> Tensor:
    """Return for each draw the mean over the others, along the axis of particles.

    Example:
        >>> mean_of_others(torch.tensor([[1.0], [3.0], [5.0]]))
        tensor([[4.],
                [3.],
                [2.]])
    """
    impossible = f.isneginf()
    possible = f.masked_fill(impossible, 0.0)
    mean = (possible.sum(-2, keepdim=True) - possible) / (f.shape[-2] - 1)
    # Infinite for all but a draw that is the only impossible one: subtracting it would give nan.
    return mean.masked_fill(impossible.sum(-2, keepdim=True) > impossible.int(), -torch.inf)


def log_mean_of_others(log_f: Tensor) -> Tensor:
    """Return for each draw the log of the mean over the others, along the axis of particles.

    Example:
        >>> log_mean_of_others(torch.zeros(3, 1)).flatten()
        tensor([0., 0., 0.])
    """
    return log_sum_of_others(log_f) - log(log_f.shape[-2] - 1)


def log_sum_of_others(log_f: Tensor) -> Tensor:
    """Return for each draw the log of the sum over the others, along the axis of particles.

    From running sums of both sides: subtracting one weight from the total would lose all digits
    where that weight is most of it.

    Example:
        >>> log_sum_of_others(torch.tensor([[0.0], [1e4]])).flatten()
        tensor([10000.,     0.])
    """
    # Near enough to minus infinity, which logcumsumexp cannot differentiate.
    log_f = log_f.clamp_min(NOTHING)
    none = torch.full_like(log_f[..., :1, :], NOTHING)
    before = torch.cat([none, log_f[..., :-1, :].logcumsumexp(-2)], -2)
    after = torch.cat([log_f[..., 1:, :].flip(-2).logcumsumexp(-2).flip(-2), none], -2)
    others = torch.logaddexp(before, after)
    return others.masked_fill(others < NOTHING / 2, -torch.inf)
