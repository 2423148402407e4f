"""One estimate of a bound and of its gradient: what steps, Pyro's ``SVI`` and the laboratory share."""

from typing import Any

from ppl_vae.objectives.schedules import reported
from ppl_vae.objectives.vocabulary import Estimate, Objective, facts, mean_penalties
from ppl_vae.particles import Particles
from ppl_vae.programs import Program
from ppl_vae.weighing import weigh

__all__ = ["estimate", "weigh_for"]


def estimate(objective: Any, model: Program, guide: Program, x: Any, particles: int) -> Estimate:
    """Estimate a bound on a batch, with what to differentiate.

    Args:
        objective: a function of Particles, or a module with ``estimate``.
        model: Pyro program.
        guide: Pyro program with the same arguments.
        x: a batch.
        particles: K.

    Returns:
        `Estimate`. The surrogate is larger-is-better: that of an upper bound has its sign turned. Of a bound whose
        options follow the step (`Scheduled`), value and annealed value are of the same draws.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> value, surrogate = estimate(pv.objectives.iwae, VAE(), Normal(), torch.ones(4, 784), particles=3)
        >>> value.shape
        torch.Size([4])
    """
    sign = -1.0 if facts(objective).upper else 1.0
    if hasattr(objective, "estimate"):
        found = objective.estimate(model, guide, x, particles)
        value, surrogate = found
        besides = {name: getattr(found, name) for name in ("penalties", "scale", "annealed") if hasattr(found, name)}
        return Estimate(value, sign * surrogate, **besides)
    record = weigh_for(objective, model, guide, x, particles)
    trained = objective(record)
    added, penalties = mean_penalties(record)
    value, annealed = reported(objective, record, trained)
    return Estimate(value, sign * trained + added, penalties, record.scale, annealed)


def weigh_for(objective: Objective, model: Program, guide: Program, x: Any, particles: int) -> Particles:
    """Weigh as an objective needs it, by its facts.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> weigh_for(pv.objectives.stl, VAE(), Normal(), torch.ones(4, 784), particles=3).path.name
        'STOPPED'
    """
    return weigh(model, guide, x, particles, **facts(objective).weighing)
