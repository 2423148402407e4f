"""Bounds on log p(x), computed from the log-weights alone."""

from math import inf, isinf

import torch
from torch import Tensor

from ppl_vae.gradients import weighted
from ppl_vae.objectives.discrete import log_mean_of_others
from ppl_vae.objectives.options import checked
from ppl_vae.objectives.vocabulary import check_slopes, mean_with_score, objective, with_score
from ppl_vae.particles import Particles

__all__ = ["ciwae", "cubo", "elbo", "iwae", "jackknife", "miwae", "renyi"]


@objective(
    formula="sum_k m log w_k",
    reference="M. Jordan et al. 1999, doi:10.1023/A:1007665907178; D. Kingma, M. Welling 2014, arXiv:1312.6114",
    linear=True,
)
def elbo(particles: Particles) -> Tensor:
    """Evidence lower bound, always by Monte Carlo: the mean log-weight.

    With m the mass of a particle (1/K for a drawn one)::

        ELBO = sum_k m log w_k,    log w_k = log p(x, z_k) - log q(z_k | x)

    The gradient is that of the path for reparameterised sites, and the score function times the
    log-weight for the others (as Pyro's ``Trace_ELBO`` has it).

    Args:
        particles: any K >= 1.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: M. Jordan, Z. Ghahramani, T. Jaakkola, L. Saul, "An Introduction to Variational
    Methods for Graphical Models", 1999, https://doi.org/10.1023/A:1007665907178.

    Example:
        >>> elbo(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}))
        tensor([-3.])
    """
    log_w = particles.log_w
    # The score of q has zero mean: a baseline of -1 cancels the -log q of the same sites in log_w.
    return mean_with_score(log_w, particles, baseline=-1.0)


@objective(
    formula="log sum_k m w_k",
    reference="Y. Burda, R. Grosse, R. Salakhutdinov 2016, arXiv:1509.00519",
)
def iwae(particles: Particles) -> Tensor:
    """Importance-weighted bound: the log of the mean weight.

    With m the mass of a particle (1/K for a drawn one)::

        L_K = log sum_k m w_k,    ELBO = L_1 <= L_K <= L_{K+1} <= log p(x)

    The gradient is that of the path for reparameterised sites. Sites drawn without it enter by
    the plain score function, unbiased for the K-sample bound and of high variance; `vimco` is made
    for them. A site enumerated in the guide cancels out of the bound, which then never trains its
    probabilities: sum it out on the model's side.

    Args:
        particles: any K >= 1.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR
    2016, https://arxiv.org/abs/1509.00519.

    Example:
        >>> iwae(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    return with_score(particles.log_mean(particles.log_w), particles)


@objective(
    formula="1/(1-alpha) log sum_k m w_k^(1-alpha)",
    reference="Y. Li, R. Turner 2016, arXiv:1602.02311",
)
def renyi(particles: Particles, alpha: float = 0.5) -> Tensor:
    """Variational Rényi bound of any order.

    With m the mass of a particle (1/K for a drawn one)::

        L_alpha = 1/(1-alpha) log sum_k m w_k^(1-alpha)

    ``alpha=0`` is `iwae`, ``alpha=1`` is the limit, `elbo`, and ``-inf`` the largest log-weight. In
    the limit of many particles the bound falls in alpha, and lies above log p(x) for negative alpha;
    with finitely many it is below its limit in expectation for alpha < 1, so that a negative alpha
    gives an upper bound only as K grows.

    Args:
        particles: any K >= 1.
        alpha: the order, a number.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: Y. Li, R. Turner, "Rényi Divergence Variational Inference", NeurIPS 2016,
    https://arxiv.org/abs/1602.02311.

    Example:
        >>> renyi(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}), alpha=-1.0)
        tensor([-2.])
    """
    checked("alpha", alpha, "a number", lambda a: True)
    if not isinstance(alpha, Tensor) and alpha == 1:
        return elbo(particles)
    return with_score(power_mean(particles, 1 - alpha), particles)


def power_mean(particles: Particles, power: float | Tensor) -> Tensor:
    """Return ``log sum_k m w_k^power / power``, ``(B,)``, exactly also where the power is almost zero.

    There the logarithm is almost zero too, and its digits would be lost in the division; so that
    the weights are taken around their centre, by the functions that are exact about zero.

    Example:
        >>> particles = pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={})
        >>> power_mean(particles, 1e-9), power_mean(particles, 0.0)
        (tensor([-3.]), tensor([-3.]))
    """
    log_w = particles.log_w
    if not isinstance(power, Tensor) and isinf(power):
        flat = log_w.flatten(0, -2)
        return flat.amax(0) if power > 0 else flat.amin(0)
    power = torch.as_tensor(power, dtype=log_w.dtype, device=log_w.device)
    zero, power = power == 0, torch.where(power == 0, 1.0, power)
    centre = log_w.detach().nan_to_num(neginf=0.0, nan=torch.nan).flatten(0, -2).mean(0)
    u = power * (log_w - centre)
    small = u.detach().abs().flatten(0, -2).amax(0) < 0.5
    near = particles.mean(u.masked_fill(~small, 0.0).expm1()).log1p()
    far = particles.log_mean(u)
    return torch.where(zero, particles.mean(log_w), centre + torch.where(small, near, far) / power)


@objective(
    formula="1/n log sum_k m w_k^n",
    reference="A. Dieng et al. 2017, arXiv:1611.00328",
    upper=True,
    exempt={"bound": "the logarithm of the estimate is an upper bound only as K grows"},
)
def cubo(particles: Particles, n: float = 2.0) -> Tensor:
    """Chi upper bound: what it estimates lies above log p(x), for n >= 1.

    With m the mass of a particle (1/K for a drawn one)::

        CUBO_n = 1/n log E_q[w^n] >= log p(x),    estimated by 1/n log sum_k m w_k^n

    ``exp(n * estimate)`` is unbiased for the moment ``E_q[w^n]``. The logarithm of the estimate is
    not an upper bound on log p(x): by Jensen's inequality it lies below CUBO_n in expectation, with
    one particle at the ELBO. It approaches CUBO_n as K grows.

    It is made small, which fits the guide, **given many particles**. With few, or with a guide narrower
    than the posterior, what lies between estimate and CUBO_n is most of it, and making the estimate
    small drives the guide away from the posterior: with K = 1 it is the ELBO that would be made small.
    A step warns when the effective sample size of its first batch is below 10; look at the ELBO
    beside. A model trained on an upper bound would learn to make the data unlikely, so a step refuses
    an optimizer that holds the model's parameters.

    Args:
        particles: any K >= 1.
        n: order, at least 1.

    Returns:
        Nats per datum, ``(B,)``.

    Raises:
        ValueError: n is below 1, or a site's draws have a gradient and its density has none.

    Reference: A. B. Dieng, D. Tran, R. Ranganath, J. Paisley, D. Blei, "Variational Inference via
    chi Upper Bound Minimization", NeurIPS 2017, https://arxiv.org/abs/1611.00328.

    Example:
        >>> cubo(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    checked("n", n, "a finite number of at least 1 (below it the moment is no upper bound)", lambda n: 1 <= n < inf)
    check_slopes(particles, "cubo")
    return with_score(particles.log_mean(n * particles.log_w) / n, particles)


@objective(
    formula="mean over groups of log mean_k w_k",
    reference="T. Rainforth et al. 2018, arXiv:1802.04537",
    exempt={"order": "particles are bound to their groups"},
)
def miwae(particles: Particles, groups: int = 1) -> Tensor:
    """Multiply importance-weighted bound: the mean of `iwae` over groups of particles.

    With K particles in M groups of K / M::

        L_{M, K/M} = 1/M sum_g log (M/K) sum_{k in group g} w_k

    Less tight than `iwae` on all of them, with a guide gradient of higher signal-to-noise ratio.

    Args:
        particles: K, a multiple of the number of groups.
        groups: M.

    Returns:
        Nats per datum, ``(B,)``.

    Raises:
        ValueError: K cannot be split evenly.

    Reference: T. Rainforth, A. Kosiorek, T. A. Le, C. Maddison, M. Igl, F. Wood, Y. W. Teh, "Tighter
    Variational Bounds are Not Necessarily Better", ICML 2018, https://arxiv.org/abs/1802.04537.

    Example:
        >>> miwae(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}), groups=2)
        tensor([-3.])
    """
    return sum(iwae(group) for group in particles.split(groups)) / groups


@objective(
    formula="beta ELBO + (1-beta) IWAE",
    reference="T. Rainforth et al. 2018, arXiv:1802.04537",
)
def ciwae(particles: Particles, beta: float = 0.5) -> Tensor:
    """Combination of the ELBO and the importance-weighted bound, from the same particles.

    ::

        L = beta ELBO + (1 - beta) L_K

    Args:
        particles: any K >= 1.
        beta: weight of the ELBO, from 0 to 1.

    Returns:
        Nats per datum, ``(B,)``.

    Raises:
        ValueError: beta is outside [0, 1].

    Reference: as `miwae`, section 4.

    Example:
        >>> ciwae(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    checked("beta", beta, "a weight from 0 to 1", lambda b: 0 <= b <= 1)
    return weighted(beta, elbo(particles)) + weighted(1 - beta, iwae(particles))


@objective(
    formula="K L_K - (K-1) mean_k L_(-k)",
    reference="S. Nowozin 2018, openreview.net/forum?id=HyZoi-WRb",
    min_particles=2,
    exempt={"bound": "the correction takes off the bias of order 1/K, and may overshoot log p(x)"},
)
def jackknife(particles: Particles) -> Tensor:
    """Jackknife-debiased importance-weighted estimate of log p(x), of first order.

    With L_(-k) the importance-weighted bound without particle k::

        J_K = K L_K - (K-1)/K sum_k L_(-k)

    Its bias falls as 1/K^2, that of L_K as 1/K. It is an estimate, not a bound. (Where all draws but one
    are impossible it is L_K.)

    Args:
        particles: K >= 2.

    Returns:
        Nats per datum, ``(B,)``.

    Reference: S. Nowozin, "Debiasing Evidence Approximations: On Importance-weighted Autoencoders and
    Jackknife Variational Inference", ICLR 2018, https://openreview.net/forum?id=HyZoi-WRb.

    Example:
        >>> jackknife(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    k = len(particles)
    log_w = particles.log_per_draw(particles.log_w)
    without = log_mean_of_others(log_w)
    whole = particles.log_mean(particles.log_w)
    debiased = k * whole - (k - 1) * without.mean(0)
    # Where a draw has all the weight, what is left without it has none, and there is nothing to extrapolate.
    return with_score(torch.where(debiased.isfinite(), debiased, whole), particles)
