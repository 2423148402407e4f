"""Expectations over a guide's discrete latents, by listing every value that they can take together."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

from ppl_vae.objectives import Objective, facts
from ppl_vae.particles import Particles, Path, total
from ppl_vae.programs import Program
from ppl_vae.weighing import weigh

__all__ = ["expected_bound"]

MOST = 2**16


def expected_bound(bound: Objective, model: Program, guide: Program, x: Any, particles: int = 1) -> Tensor:
    """Return the expectation of a bound over the guide's draws, penalties added, exactly.

    Args:
        bound: a function of Particles that follows the total derivative.
        model: Pyro program.
        guide: Pyro program with the same arguments, all of whose latents have finitely many values.
        x: a batch.
        particles: K.

    Returns:
        Nats per datum, ``(B,)``, differentiable in the parameters of both programs.

    Raises:
        ValueError: a site cannot be listed, there are too many values, or the bound does not fit.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> model, guide = SigmoidBeliefNetwork(x_dim=6, z_dim=2), Bernoulli(x_dim=6, z_dim=2)
        >>> expected_bound(pv.objectives.iwae, model, guide, torch.ones(4, 6), particles=2).shape
        torch.Size([4])
    """
    _check(bound, particles)
    corners = _corners(model, guide, x)
    options = {"linear": facts(bound).linear, "kl": facts(bound).kl}
    together = max(map(len, corners.values()), default=1)
    record = weigh(model, guide, x, together, draw=_each(corners), **options)
    shape = record.log_w.shape
    rows = prod(shape[:-1])
    _check_count(rows**particles, f"{rows:,} values for {particles} particles")
    log_q = total(record.log_q).expand(shape).flatten(0, -2)
    _check_mass(log_q)
    tuples = torch.cartesian_prod(*[torch.arange(rows, device=log_q.device)] * particles).reshape(-1, particles)
    drawn = _gathered(record, tuples)
    values = bound(drawn) + sum(drawn.mean(penalty) for penalty in drawn.penalties.values())
    return (log_q[tuples].sum(1).exp() * values.view(len(tuples), -1)).sum(0)


def _check(bound: Objective, particles: int) -> None:
    known = facts(bound)
    if hasattr(bound, "estimate") or known.path is not Path.TOTAL or known.upper:
        raise ValueError(
            f"bound: expected one that is differentiated as it stands, found {known.name}; give the bound that "
            "it estimates, such as objectives.elbo or objectives.iwae"
        )
    if particles < known.min_particles:
        raise ValueError(f"particles: {known.name} needs at least {known.min_particles}, found {particles}")


def _check_count(count: int, what: str) -> None:
    if count > MOST:
        raise ValueError(
            f"guide: {what} make more than {MOST:,} to list; take smaller latents, fewer particles, or compare with a "
            "long run of an unbiased estimator such as objectives.rloo"
        )


def _check_mass(log_q: Tensor) -> None:
    """Raise unless the listed values have all mass, as they have not where sites are masked or scaled."""
    mass = log_q.exp().sum(0)
    if not torch.allclose(mass, torch.ones_like(mass), atol=1e-3):
        raise ValueError(
            f"guide: the listed values have a mass of {mass.max():.3g}, not 1; take masks and scales off its sites"
        )


def _corners(model: Program, guide: Program, x: Any) -> dict[str, Tensor]:
    """Return the values of each drawn site of the guide in all combinations, ``(K, *event)`` with one K."""
    listed: dict[str, Tensor] = {}

    def note(name: str, fn: Any) -> None:
        listed[name] = _values(name, fn)

    with torch.no_grad():
        weigh(model, guide, x, 1, linear=True, draw=note)
    _check_count(prod(map(len, listed.values())), f"all values of {', '.join(listed)}")
    axes = [torch.arange(len(values), device=values.device) for values in listed.values()]
    chosen = torch.cartesian_prod(*axes).reshape(-1, len(axes)).unbind(1) if axes else []
    return {name: values[rows] for (name, values), rows in zip(listed.items(), chosen, strict=True)}


def _values(name: str, fn: Any) -> Tensor:
    """Return every value of a site, ``(S, *event)``."""
    inner = fn
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if not inner.has_enumerate_support:
        raise ValueError(
            f"guide: site '{name}' is a {type(inner).__name__}, whose values cannot be listed; exact gradients are for "
            "discrete latents, others compare with a long run of objectives.elbo"
        )
    event = inner.event_shape
    support = inner.enumerate_support(expand=False)
    support = support.reshape(len(support), *event)
    cells = prod(fn.event_shape[: len(fn.event_shape) - len(event)])
    _check_count(len(support) ** cells, f"the values of site '{name}'")
    digits = torch.arange(len(support), device=support.device)
    chosen = torch.cartesian_prod(*[digits] * cells).reshape(-1, cells)
    return support[chosen].reshape(-1, *fn.event_shape)


def _each(corners: Mapping[str, Tensor]) -> Callable[[str, Any], Tensor]:
    """Return a rule that gives each datum the values of a site, one for each particle."""

    def draw(name: str, fn: Any) -> Tensor:
        values = corners[name]
        return values.unsqueeze(1).expand(*fn.batch_shape, *fn.event_shape)

    return draw


def _gathered(record: Particles, tuples: Tensor) -> Particles:
    """Return every tuple of particles as if it had been drawn for a datum of its own."""
    shape = record.log_w.shape

    def gathered(densities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flat = {name: density.expand(shape).flatten(0, -2) for name, density in densities.items()}
        return {name: density[tuples].transpose(0, 1).flatten(1) for name, density in flat.items()}

    parts = {name: gathered(getattr(record, name)) for name in ("log_p", "log_q", "penalties", "kl")}
    return Particles(**parts, scale=record.scale, path=record.path)
