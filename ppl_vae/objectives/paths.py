"""Bounds whose gradients take another way through the draws than the total derivative."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_vae.gradients import weighted, zero_with_gradient
from ppl_vae.objectives.bounds import elbo, iwae, power_mean
from ppl_vae.objectives.options import checked, finite
from ppl_vae.objectives.vocabulary import check_slopes, objective, over_draws, split_path, with_signal
from ppl_vae.particles import Particles, Path, shares, total

__all__ = ["dreg", "piwae", "score_function", "stl"]


@objective(
    formula="sum_k m log w_k",
    reference="J. Paisley et al. 2012, arXiv:1206.6430; R. Ranganath et al. 2014, arXiv:1401.0118",
    linear=True,
    path=Path.NONE,
)
def score_function(particles: Particles) -> Tensor:
    """The ELBO by the score function at every site, reparameterised or not.

    For any guide whose density is differentiable in its parameters::

        grad ELBO = E[ sum_k m (grad log p(x, z_k) + log w_k grad log q(z_k | x)) ]

    It needs no derivative of the model in z, and pays with variance.

    Args:
        particles: any K >= 1, weighed with ``path=Path.NONE``.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: J. Paisley, D. Blei, M. Jordan, "Variational Bayesian Inference with Stochastic
    Search", ICML 2012, https://arxiv.org/abs/1206.6430; R. Ranganath, S. Gerrish, D. Blei, "Black Box
    Variational Inference", AISTATS 2014, https://arxiv.org/abs/1401.0118.

    Example:
        >>> score_function(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}))
        tensor([-3.])
    """
    require(particles, Path.NONE)
    return elbo(particles)


@objective(
    formula="sum_k m log w_k",
    reference="G. Roeder et al. 2017, arXiv:1703.09194",
    linear=True,
    path=Path.STOPPED,
)
def stl(particles: Particles, bound: Callable[[Particles], Tensor] = elbo) -> Tensor:
    """Sticking the landing: the ELBO by the path alone, without the score of log q.

    For reparameterised sites (others keep their score function), with stopped parameters phi'::

        grad = E[ sum_k m (d/dz)(log p(x, z_k) - log q_phi'(z_k | x)) dz_k/dphi ]

    What is left out has zero mean, so the gradient of the ELBO is unbiased, and it vanishes with all
    its variance when the guide is exact. With ``bound=iwae`` and K > 1 it is biased: use `dreg`.

    Args:
        particles: any K >= 1, weighed with ``path=Path.STOPPED``.
        bound: the bound to differentiate so.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: G. Roeder, Y. Wu, D. Duvenaud, "Sticking the Landing: Simple, Lower-Variance Gradient
    Estimators for Variational Inference", NeurIPS 2017, https://arxiv.org/abs/1703.09194.

    Example:
        >>> stl(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}))
        tensor([-3.])
    """
    require(particles, Path.STOPPED)
    return bound(particles)


@objective(
    formula="1/(1-alpha) log sum_k m w_k^(1-alpha)",
    reference="G. Tucker et al. 2019, arXiv:1810.04152",
    path=Path.STOPPED,
)
def dreg(particles: Particles, alpha: float = 0.0) -> Tensor:
    """Importance-weighted (or Rényi) bound with doubly reparameterised gradients.

    With v_k the normalised ``w_k^(1-alpha)`` and log q's parameters stopped::

        d/dtheta = sum_k v_k d log w_k / dtheta
        d/dphi   = sum_k (alpha v_k + (1-alpha) v_k^2) (d log w_k / dz_k) (dz_k / dphi)

    Unbiased, with a guide gradient whose signal-to-noise ratio rises with K where that of `iwae`
    falls. ``alpha=1`` is `stl`.

    Args:
        particles: any K >= 1, weighed with ``path=Path.STOPPED``; every latent reparameterised.
        alpha: order of the Rényi bound, 0 for the importance-weighted one.

    Returns:
        Nats per datum, ``(B,)``: the value is that of `iwae`, or of `renyi`.

    Raises:
        ValueError: a site is drawn without reparameterisation, enumerated in the guide, or has draws with a gradient
            and a density without.

    Reference: G. Tucker, D. Lawson, S. Gu, C. Maddison, "Doubly Reparameterized Gradient Estimators
    for Monte Carlo Objectives", ICLR 2019, https://arxiv.org/abs/1810.04152, sections 4 and 6.

    Example:
        >>> dreg(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    checked("alpha", alpha, "a finite number", finite)
    require(particles, Path.STOPPED)
    if particles.score:
        raise ValueError(
            f"objective: site '{next(iter(particles.score))}' is drawn without reparameterisation, which dreg "
            "needs; use vimco, or sum the site out by enumeration"
        )
    check_slopes(particles, "dreg")
    log_w = particles.log_w
    weights = shares(weighted(1 - alpha, log_w), -2)
    value = power_mean(particles, 1 - alpha).detach()
    return value + split_path(log_w, particles, weights, alpha * weights + (1 - alpha) * weights.square())


@objective(
    formula="log sum_k m w_k",
    reference="T. Rainforth et al. 2018, arXiv:1802.04537",
    exempt={
        "order": "particles are bound to their groups",
        "unbiased": "model and guide learn from different bounds",
    },
)
def piwae(particles: Particles, groups: int = 1) -> Tensor:
    """Partially importance-weighted bound: the model learns from `iwae`, the guide from `miwae`.

    With K particles in M groups::

        d/dtheta of log sum_k m w_k,    d/dphi of 1/M sum_g log (M/K) sum_{k in group g} w_k

    Parameters are told apart by how they enter: those of log p at given draws learn from the first,
    all else from the second.

    Args:
        particles: K, a multiple of the number of groups.
        groups: M.

    Returns:
        Nats per datum, ``(B,)``: the value is that of `iwae`.

    Raises:
        ValueError: K cannot be split evenly, or the guide enumerates a site.

    Reference: as `miwae`, section 4.

    Example:
        >>> piwae(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}), groups=2)
        tensor([-2.])
    """
    signal = miwae_signal(particles, groups)
    log_w = particles.log_w.detach()
    by_group = shares(log_w.unflatten(-2, (groups, -1)), -2).flatten(-3, -2) / groups
    value = particles.log_mean(log_w).detach()
    value = value + split_path(total(particles.log_p), particles, shares(log_w, -2), by_group)
    if particles.log_q:
        value = value - over_draws(by_group * zero_with_gradient(total(particles.log_q)))
    return with_signal(value, particles, signal)


def miwae_signal(particles: Particles, groups: int) -> Tensor:
    """Return for each draw its share in the bound that it is part of, ``(K, B)``.

    Example:
        >>> miwae_signal(pv.Particles(log_p={"x": torch.zeros(4, 1)}, log_q={}), groups=2).shape
        torch.Size([4, 1])
    """
    bounds = [iwae(group).detach() / groups for group in particles.split(groups)]
    return torch.stack(bounds).repeat_interleave(len(particles) // groups, 0)


def require(particles: Particles, path: Path) -> None:
    """Raise if particles were not weighed as an objective needs them.

    Example:
        >>> require(pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={}), Path.STOPPED)
    """
    moving = any(density.requires_grad for density in particles.log_q.values())
    if moving and particles.path is not path:
        raise ValueError(
            f"objective: it needs particles weighed with path=Path.{path.name}, found Path.{particles.path.name}; "
            "pass that to pv.weigh (steps and pv.ELBO do so by the objective's facts)"
        )
