"""What the library must know about a bound, attached to the function by one decorator."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ppl_vae.particles import Particles

Objective = Callable[[Particles], Tensor]


@dataclass(frozen=True)
class Facts:
    """Facts about an objective.

    Attributes:
        formula: the bound in plain text, for tables.
        reference: authors, year, link.
        min_particles: smallest K for which the bound is defined.
        linear: whether the bound is linear in the log-weights, so that a scale on a single site
            (annealing, per-datum weights) keeps a meaning. Inside a log-sum-exp it has none.
        name: the function's name.
    """

    formula: str = ""
    reference: str = ""
    min_particles: int = 1
    linear: bool = False
    name: str = ""


def objective(
    *, formula: str, reference: str, min_particles: int = 1, linear: bool = False
) -> Callable[[Objective], Objective]:
    """Attach `Facts` to a bound, by which tests and tables find it.

    Example:
        >>> pv.objectives.facts(pv.objectives.iwae).name
        'iwae'
    """

    def attach(function: Objective) -> Objective:
        function.facts = Facts(formula, reference, min_particles, linear, function.__name__)
        return function

    return attach


def facts(bound: Objective) -> Facts:
    """Return the facts of a bound, through any number of ``functools.partial``.

    A plain function without facts is accepted as a bound that is not linear and needs one
    particle.

    Example:
        >>> facts(lambda particles: particles.log_w[0]).min_particles
        1
    """
    while isinstance(bound, partial):
        bound = bound.func
    return getattr(bound, "facts", None) or Facts(name=getattr(bound, "__name__", type(bound).__name__))


def with_score(bound: Tensor, particles: Particles) -> Tensor:
    """Add to a bound the score function of sites drawn without reparameterisation.

    The value stays; the gradient becomes unbiased for the expected bound::

        grad E[L] = E[ grad L + L sum_k grad log q(z_k | x) ]

    Args:
        bound: a function of the weights, ``(B,)``.
        particles: those that it was computed from.

    Reference: R. J. Williams, "Simple Statistical Gradient-Following Algorithms for Connectionist
    Reinforcement Learning", Machine Learning 1992, https://doi.org/10.1007/BF00992696.

    Example:
        >>> particles = pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={})
        >>> with_score(torch.ones(2), particles)
        tensor([1., 1.])
    """
    if not particles.log_q_score.requires_grad:
        return bound
    # An impossible draw (-inf) must stay -inf: 0 * inf is not zero.
    weight = bound.detach().nan_to_num(neginf=0.0, posinf=0.0)
    return bound + weight * zero_with_gradient(particles.log_q_score).sum(0)


def mean_penalty(penalty: Tensor, particles: Particles) -> Tensor:
    """Return a training penalty per datum, ``(B,)``, from ``(K, B)``, with the score of its draws.

    Example:
        >>> mean_penalty(torch.ones(3, 2), pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={}))
        tensor([1., 1.])
    """
    return (penalty + penalty.detach() * zero_with_gradient(particles.log_q_score)).mean(0)


def zero_with_gradient(x: Tensor) -> Tensor:
    """Return a zero whose gradient is that of x.

    Example:
        >>> zero_with_gradient(torch.tensor([2.0, 3.0]))
        tensor([0., 0.])
    """
    return x - x.detach()
