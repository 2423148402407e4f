"""Objectives that reweigh given draws: wake-sleep and the thermodynamic bounds."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ppl_vae.gradients import gap, zero_with_gradient
from ppl_vae.objectives.options import checked, finite
from ppl_vae.objectives.paths import require
from ppl_vae.objectives.vocabulary import objective, over_draws
from ppl_vae.particles import Particles, Path, shares, total

__all__ = ["rws", "tvo", "tvo_upper", "wake"]

BETAS = (0.0, 0.02, 0.1, 0.3, 1.0)


def normalised(particles: Particles, power: float = 1.0) -> Tensor:
    """Return ``m w^power`` over its sum, ``(K, B)``, without gradient.

    Example:
        >>> normalised(pv.Particles(log_p={"x": torch.zeros(4, 1)}, log_q={})).flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    # To the power of zero an impossible draw weighs as much as any other.
    tempered = power * particles.log_w if power else torch.zeros_like(particles.log_w)
    log_w = (tempered + particles.log_mass).detach()
    return shares(log_w.flatten(0, -2), 0).unflatten(0, log_w.shape[:-1])


def wake(particles: Particles, phi: float = 1.0) -> Tensor:
    """Return the zero whose gradients are those of wake-theta, and phi times those of wake-phi.

    Example:
        >>> wake(pv.Particles(log_p={"x": torch.zeros(4, 2)}, log_q={}))
        tensor([0., 0.])
    """
    weights = normalised(particles)
    surrogate = over_draws(weights * zero_with_gradient(total(particles.log_p)))
    if particles.log_q:
        surrogate = surrogate + phi * over_draws(weights * zero_with_gradient(total(particles.log_q)))
    return surrogate


@objective(
    formula="log sum_k m w_k",
    reference="J. Bornschein, Y. Bengio 2015, arXiv:1406.2751",
    min_particles=2,
    path=Path.NONE,
    exempt={"unbiased": "wake-phi is another objective for the guide, with self-normalised weights"},
)
def rws(particles: Particles) -> Tensor:
    """Reweighted wake-sleep, both wake updates, for each datum with its own weights.

    With v_k the normalised weights::

        wake-theta: sum_k v_k grad log p(x, z_k)        wake-phi: sum_k v_k grad log q(z_k | x)

    The first is the model's gradient of `iwae`. The second pulls the guide towards the posterior in
    the other direction, KL(p || q); it is no gradient of the value, and biased by the
    self-normalised weights, less so as K grows. Draws are taken as given: latents may be of any
    kind. `WakeSleep` adds sleep-phi.

    Args:
        particles: K >= 2, weighed with ``path=Path.NONE``. (With one the guide would learn its own
            draws, which is nothing on average.)

    Returns:
        Nats per datum, ``(B,)``: the value is that of `iwae`.

    Reference: J. Bornschein, Y. Bengio, "Reweighted Wake-Sleep", ICLR 2015,
    https://arxiv.org/abs/1406.2751; T. A. Le et al., "Revisiting Reweighted Wake-Sleep", UAI 2019,
    https://arxiv.org/abs/1805.10469.

    Example:
        >>> rws(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    require(particles, Path.NONE)
    return particles.log_mean(particles.log_w).detach() + wake(particles)


@objective(
    formula="sum_t (b_(t+1) - b_t) E_(w^b_t)[log w]",
    reference="V. Masrani, T. A. Le, F. Wood 2019, arXiv:1907.00031",
    min_particles=2,
    path=Path.NONE,
    exempt={"unbiased": "its expectations are self-normalised"},
)
def tvo(particles: Particles, betas: Sequence[float] = BETAS) -> Tensor:
    """Thermodynamic variational objective: a lower Riemann sum for log p(x).

    The integrand rises from the ELBO to an upper bound; with v_k(b) the normalised ``w_k^b``::

        log p(x) = int_0^1 E_b[log w] db >= sum_t (b_(t+1) - b_t) sum_k v_k(b_t) log w_k

    On any set of particles the sum is at most `iwae`. Draws are taken as given, and the gradient is
    the covariance estimator, biased by self-normalised weights, less so as K grows: at beta = 0 the
    guide's part is (K-1)/K of what it should be, which is why one particle would teach nothing.

    Args:
        particles: K >= 2, weighed with ``path=Path.NONE``.
        betas: rising, from 0 to 1.

    Returns:
        Nats per datum, ``(B,)``.

    Raises:
        ValueError: betas do not rise from 0 to 1.

    Reference: V. Masrani, T. A. Le, F. Wood, "The Thermodynamic Variational Objective", NeurIPS 2019,
    https://arxiv.org/abs/1907.00031.

    Example:
        >>> tvo(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    return _riemann(particles, betas, betas[:-1])


@objective(
    formula="sum_t (b_(t+1) - b_t) E_(w^b_(t+1))[log w]",
    reference="V. Masrani, T. A. Le, F. Wood 2019, arXiv:1907.00031",
    min_particles=2,
    path=Path.NONE,
    upper=True,
    exempt={"unbiased": "its expectations are self-normalised", "bound": "it is an upper bound only as K grows"},
)
def tvo_upper(particles: Particles, betas: Sequence[float] = BETAS) -> Tensor:
    """Upper Riemann sum of the thermodynamic integral (see `tvo`).

    ::

        sum_t (b_(t+1) - b_t) sum_k v_k(b_(t+1)) log w_k

    On any set of particles the sum is at least `iwae`; it bounds log p(x) from above only as K
    grows. It is made small, for the guide alone and with many particles (see `cubo`).

    Args:
        particles: K >= 2, weighed with ``path=Path.NONE``.
        betas: rising, from 0 to 1.

    Returns:
        Nats per datum, ``(B,)``.

    Raises:
        ValueError: betas do not rise from 0 to 1.

    Reference: as `tvo`.

    Example:
        >>> tvo_upper(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-2.0]])}, log_q={}))
        tensor([-2.])
    """
    return _riemann(particles, betas, betas[1:])


def _riemann(particles: Particles, betas: Sequence[float], nodes: Sequence[float]) -> Tensor:
    require(particles, Path.NONE)
    betas = betas.tolist() if isinstance(betas, Tensor) else betas
    for beta in betas:
        checked("betas", beta, "numbers that rise from 0 to 1", finite)
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or any(a >= b for a, b in pairwise(betas)):
        raise ValueError(f"betas: expected numbers that rise from 0 to 1, found {tuple(betas)}")
    widths = [b - a for a, b in pairwise(betas)]
    return sum(width * _expected_log_weight(particles, node) for width, node in zip(widths, nodes, strict=True))


def _expected_log_weight(particles: Particles, beta: float) -> Tensor:
    """Return ``E_b[log w]`` with its gradient: E[grad log w] + Cov(log w, grad log of the tempered density)."""
    weights, log_w = normalised(particles, beta), particles.log_w
    value = over_draws(weights * log_w.detach().masked_fill(weights == 0, 0.0))
    log_q = total(particles.log_q) if particles.log_q else log_w.new_zeros(())
    tempered = beta * zero_with_gradient(total(particles.log_p)) + (1 - beta) * zero_with_gradient(log_q)
    moving = zero_with_gradient(log_w) + gap(log_w, value) * tempered
    return value + over_draws(weights * moving)
