"""What the library must know about a bound, and the few gradients that all of them are made of."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.gradients import along, gap, zero_with_gradient
from ppl_vae.particles import Particles, Path

__all__ = [
    "Estimate",
    "Facts",
    "Objective",
    "advance",
    "around",
    "check_slopes",
    "facts",
    "mean_penalties",
    "mean_penalty",
    "mean_with_score",
    "objective",
    "split_path",
    "with_score",
    "with_signal",
]

Objective = Callable[[Particles], Tensor]


@dataclass(frozen=True)
class Facts:
    """Facts about an objective.

    Attributes:
        formula: the bound in plain text, for tables.
        reference: authors, year, link.
        min_particles: smallest K for which it is defined.
        linear: whether the bound is linear in the log-weights, so that a scale on a single site
            (annealing, per-datum weights) keeps a meaning. Inside a log-sum-exp it has none.
        path: how gradients reach the guide through its draws; `weigh` supplies log q accordingly.
        kl: whether it reads closed-form KLs.
        upper: whether it is to be made small, as an upper bound is.
        discrete: whether it does anything of its own only for sites drawn without reparameterisation.
        exempt: laws that the objective does not obey, each with the reason.
        name: the function's name.
    """

    formula: str = ""
    reference: str = ""
    min_particles: int = 1
    linear: bool = False
    path: Path = Path.TOTAL
    kl: bool = False
    upper: bool = False
    discrete: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def weighing(self) -> dict[str, Any]:
        """The options with which `weigh` serves this objective."""
        return {"linear": self.linear, "path": self.path, "kl": self.kl}


def objective(
    *,
    formula: str,
    reference: str,
    min_particles: int = 1,
    linear: bool = False,
    path: Path = Path.TOTAL,
    kl: bool = False,
    upper: bool = False,
    discrete: bool = False,
    exempt: Mapping[str, str] | None = None,
) -> Callable[[Any], Any]:
    """Attach `Facts` to a bound (a function, or a module's class), by which tests and tables find it.

    Example:
        >>> pv.objectives.facts(pv.objectives.iwae).name
        'iwae'
    """

    def attach(bound: Any) -> Any:
        known = {"min_particles": min_particles, "linear": linear, "path": path, "kl": kl, "upper": upper}
        bound.facts = Facts(formula, reference, discrete=discrete, exempt=exempt or {}, name=bound.__name__, **known)
        return bound

    return attach


def facts(bound: Any) -> Facts:
    """Return the facts of a bound, through any number of ``functools.partial``, one that sets ``bound`` included.

    A plain function without facts is accepted as a bound that is not linear and needs one
    particle.

    Example:
        >>> facts(lambda particles: particles.log_w[0]).min_particles
        1
    """
    inner = None
    while isinstance(bound, partial):
        inner = bound.keywords.get("bound", inner)
        bound = bound.func
    known = getattr(bound, "facts", None) or Facts(name=getattr(bound, "__name__", type(bound).__name__))
    return known if inner is None else around(known, inner)


def around(outer: Facts, bound: Any) -> Facts:
    """Return the facts of an estimator that is given another bound than its own.

    Example:
        >>> around(pv.objectives.stl.facts, pv.objectives.iwae).linear
        False
    """
    inner = facts(bound)
    return replace(
        outer,
        formula=inner.formula,
        min_particles=max(outer.min_particles, inner.min_particles),
        linear=outer.linear and inner.linear,
        kl=outer.kl or inner.kl,
        upper=outer.upper or inner.upper,
        exempt={**inner.exempt, **outer.exempt},
    )


def advance(*parts: Any) -> None:
    """Tell those parts of an objective that follow the step of an update; a module may hold such parts unawares.

    Example:
        >>> beta = pv.objectives.linear(0.0, 1.0, steps=2)
        >>> warm_up = pv.objectives.Scheduled(pv.objectives.beta_elbo, beta=beta)
        >>> advance(pv.objectives.elbo, torch.nn.ModuleList([warm_up]))
        >>> warm_up.step
        tensor(1)
    """
    for part in parts:
        if hasattr(part, "advance"):
            part.advance()
        elif isinstance(part, nn.Module):
            advance(*part.children())


@dataclass(frozen=True)
class Estimate:
    """What an estimator gives for a batch; unpacks into value and surrogate.

    Attributes:
        value: the bound of each datum, ``(B,)``, in nats, its options at their ends if they follow the step.
        surrogate: what to differentiate, ``(B,)``: its gradient estimates that of the bound, and of
            the penalties.
        penalties: training penalties by name, ``(B,)`` each.
        scale: of the plate "data", for totals over it.
        annealed: the bound with its options as they are at this step, ``(B,)``, of which the surrogate has the
            gradient; None where no option follows the step.
    """

    value: Tensor
    surrogate: Tensor
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    annealed: Tensor | None = None

    @property
    def trained(self) -> Tensor:
        """The bound that is trained at this step, ``(B,)``."""
        return self.value if self.annealed is None else self.annealed

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.value, self.surrogate))


def with_signal(bound: Tensor, particles: Particles, signal: Callable[[Tensor], Tensor] | Tensor) -> Tensor:
    """Add to a bound the score of each draw, times a learning signal for it.

    The value stays; the gradient gains ``sum_k s_k grad log q(z_k | x)`` over the sites drawn without
    reparameterisation.

    Args:
        bound: a function of the weights, ``(B,)``.
        particles: those that it was computed from.
        signal: for each draw, ``(K, B)``, with the axes of enumerated values where it has them.

    Example:
        >>> particles = pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={})
        >>> with_signal(torch.ones(2), particles, torch.zeros(3, 2))
        tensor([1., 1.])
    """
    weight = gap(signal, 0.0)
    for score in moving_scores(particles):
        bound = bound + over_draws(weight * zero_with_gradient(score))
    return bound


def moving_scores(particles: Particles) -> list[Tensor]:
    """Return the scores that have a gradient.

    Example:
        >>> moving_scores(pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={}))
        []
    """
    return [score for score in particles.score.values() if score.requires_grad]


def over_draws(f: Tensor) -> Tensor:
    """Return the sum over all axes but the data's, ``(B,)``.

    Example:
        >>> over_draws(torch.ones(4, 3, 2))
        tensor([12., 12.])
    """
    return f.flatten(0, -2).sum(0)


def with_score(bound: Tensor, particles: Particles) -> Tensor:
    """Add to a bound the score function of sites drawn without reparameterisation.

    The value stays; the gradient becomes unbiased for the expected bound, whatever the bound::

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
    return with_signal(bound, particles, bound)


def mean_with_score(f: Tensor, particles: Particles, baseline: Tensor | float = 0.0) -> Tensor:
    """Return ``sum_k m f_k`` with the score function of each draw times what the draw earned.

    The value is the mean, ``(B,)``; the gradient is unbiased for ``grad E[f]``, as long as each
    draw's baseline does not depend on that draw::

        grad E[f] = E[ sum_k m (grad f_k + (f_k - b_k) grad log q(z_k | x)) ]

    Args:
        f: values, ``(K, B)``, such as the log-weights.
        particles: those that they were computed from.
        baseline: ``(K, B)``, or one number.

    Example:
        >>> particles = pv.Particles(log_p={"x": torch.zeros(2, 1)}, log_q={})
        >>> mean_with_score(torch.tensor([[1.0], [3.0]]), particles)
        tensor([2.])
    """
    weight = gap(f, baseline)
    for score in moving_scores(particles):
        f = f + weight * zero_with_gradient(score)
    return particles.mean(f)


def mean_penalty(penalty: Tensor, particles: Particles) -> Tensor:
    """Return a training penalty per datum, ``(B,)``, from ``(K, B)``, with the score of its draws.

    Example:
        >>> mean_penalty(torch.ones(3, 2), pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={}))
        tensor([1., 1.])
    """
    return mean_with_score(penalty, particles)


def mean_penalties(particles: Particles) -> tuple[Tensor | float, dict[str, Tensor]]:
    """Return what the penalties add to a surrogate, and each of them as it is reported, ``(B,)``.

    Example:
        >>> mean_penalties(pv.Particles(log_p={"x": torch.zeros(3, 2)}, log_q={}))
        (0, {})
    """
    penalties = {name: mean_penalty(penalty, particles) for name, penalty in particles.penalties.items()}
    return sum(penalties.values()), {name: penalty.detach() for name, penalty in penalties.items()}


def check_slopes(particles: Particles, name: str) -> None:
    """Raise if a draw moves with the guide while its density has no gradient, as that of a point mass on codes.

    Args:
        particles: K draws.
        name: of an objective whose gradient is right only together with the density's.

    Raises:
        ValueError: there is such a site; the message names it.

    Example:
        >>> check_slopes(pv.Particles(log_p={"x": torch.zeros(2, 1)}, log_q={}), "dreg")
    """
    for site, value in particles.values.items():
        if value.requires_grad and site in particles.log_q and not particles.log_q[site].requires_grad:
            raise ValueError(
                f"objective: site '{site}' has a gradient straight through its draws and none of its density, which "
                f"{name} needs; train on elbo"
            )


def split_path(f: Tensor, particles: Particles, direct: Tensor, path: Tensor) -> Tensor:
    """Return a zero with the gradient of f, weighed apart for parameters and for draws.

    For f a function of parameters and of the draws, the gradient is::

        sum_k direct_k (df_k / dparameters) + path_k (df_k / dz_k) (dz_k / dparameters)

    It costs one more backward pass from f to the draws.

    Args:
        f: ``(K, B)``, such as the log-weights; f_k of a datum depends on its own k-th draws.
        particles: those that it was computed from.
        direct: weights ``(K, B)`` of the direct part.
        path: weights ``(K, B)`` of the part through the draws.

    Returns:
        Zeros, ``(B,)``.

    Raises:
        ValueError: the guide enumerates a site.

    Example:
        >>> particles = pv.Particles(log_p={"x": torch.zeros(2, 1)}, log_q={})
        >>> split_path(particles.log_w, particles, torch.ones(2, 1), torch.ones(2, 1))
        tensor([0.])
    """
    if particles.enumerated:
        raise ValueError(
            f"objective: the guide enumerates {', '.join(particles.enumerated)}, and this estimator tells draws apart, "
            "not values; leave the site out of the guide and mark it in the model, which sums it out exactly"
        )
    surrogate = direct.detach() * zero_with_gradient(f)
    draws = [value for value in particles.values.values() if value.requires_grad]
    if draws and f.requires_grad:
        slopes = torch.autograd.grad(f.sum(), draws, retain_graph=True, allow_unused=True)
        for draw, slope in zip(draws, slopes, strict=True):
            if slope is not None:
                surrogate = surrogate + (path - direct).detach() * along(draw, slope)
    return over_draws(surrogate)
