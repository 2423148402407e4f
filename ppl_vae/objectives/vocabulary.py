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
