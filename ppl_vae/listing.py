"""Expectations over a guide's latents: discrete ones by a sum over all values, normal ones by quadrature."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor
from torch.distributions import Normal

from ppl_vae.contract import innermost
from ppl_vae.objectives import Objective, facts
from ppl_vae.objectives.options import whole
from ppl_vae.particles import Particles, Path, total
from ppl_vae.programs import Program
from ppl_vae.weighing import weigh

__all__ = ["expected_bound"]

MOST = 2**16


def expected_bound(
    bound: Objective, model: Program, guide: Program, x: Any, particles: int = 1, nodes: int = 24
) -> Tensor:
    """Return the expectation of a bound over the guide's draws, penalties added.

    Exact for latents with finitely many values. Normal ones are integrated by a Gauss-Hermite rule,
    which is exact where the bound is a polynomial of degree ``2 nodes - 1`` in their noise.

    Args:
        bound: a function of Particles that follows the total derivative.
        model: Pyro program.
        guide: Pyro program with the same arguments; each latent has finitely many values, or is Normal.
        x: a batch.
        particles: K.
        nodes: of the rule, for each dimension.

    Returns:
        Nats per datum, ``(B,)``, differentiable in the parameters of both programs.

    Raises:
        ValueError: a site cannot be listed, there are too many values, or the bound does not fit.

    Reference: M. Abramowitz, I. Stegun, "Handbook of Mathematical Functions", 1964, 25.4.46, for the
    quadrature.

    Example:
        >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
        >>> from ppl_vae.guides.bernoulli import Bernoulli
        >>> model, guide = SigmoidBeliefNetwork(x_dim=6, z_dim=2), Bernoulli(x_dim=6, z_dim=2)
        >>> expected_bound(pv.objectives.iwae, model, guide, torch.ones(4, 6), particles=2).shape
        torch.Size([4])
    """
    _check(bound, particles)
    if whole("nodes", nodes) > 100:
        raise ValueError(f"nodes: expected at most 100, beyond which the rule's weights are too small, found {nodes}")
    corners, log_rule = _corners(model, guide, x, nodes)
    options = {"linear": facts(bound).linear, "kl": facts(bound).kl}
    together = max(map(len, corners.values()), default=1)
    record = weigh(model, guide, x, together, draw=_each(corners), **options)
    _check_enumerated(bound, record)
    shape = record.log_w.shape
    rows = prod(shape[:-1])
    _check_count(rows**particles, f"{rows:,} values for {particles} particles")
    log_q = _log_mass(record, log_rule).expand(shape).flatten(0, -2)
    _check_mass(log_q)
    tuples = torch.cartesian_prod(*[torch.arange(rows, device=log_q.device)] * particles).reshape(-1, particles)
    drawn = _gathered(record, tuples)
    values = bound(drawn) + sum(drawn.mean(penalty) for penalty in drawn.penalties.values())
    return (log_q[tuples].sum(1).exp() * values.view(len(tuples), -1)).sum(0)


def _check(bound: Objective, particles: int) -> None:
    known = facts(bound)
    if not callable(bound) or hasattr(bound, "estimate") or known.path is not Path.TOTAL or known.upper:
        raise ValueError(
            f"bound: expected a function of Particles that is made large and differentiated as it stands, found "
            f"{known.name}; give the one whose gradient it estimates (objectives.elbo, objectives.iwae), write its "
            "value as a function of particles.log_w, or, for cubo(n), partial(objectives.renyi, alpha=1 - n)"
        )
    if particles < known.min_particles:
        raise ValueError(f"particles: {known.name} needs at least {known.min_particles}, found {particles}")


def _check_count(count: int, what: str) -> None:
    if count > MOST:
        raise ValueError(
            f"guide: {what} make more than {MOST:,} to list; take smaller latents, fewer particles or nodes, or "
            "compare with a long run of an unbiased estimator such as objectives.rloo"
        )


def _check_enumerated(bound: Objective, record: Particles) -> None:
    """Listed as draws, values that the guide enumerates give the same expectation of linear bounds alone."""
    if record.enumerated and not facts(bound).linear:
        raise ValueError(
            f"guide: site '{record.enumerated[0]}' is marked for enumeration, and {facts(bound).name} is not linear in "
            "the log-weights, so that values listed are not values drawn; take the mark off, or measure objectives.elbo"
        )


def _log_mass(record: Particles, log_rule: Mapping[str, Tensor]) -> Tensor:
    """Return the log mass of each row: a rule's weights for normal sites, densities for the others."""
    densities = {name: log_q for name, log_q in record.log_q.items() if name not in log_rule}
    weights = {name: log_weight.unsqueeze(-1) for name, log_weight in log_rule.items()}
    return total({**densities, **weights})


def _check_mass(log_q: Tensor) -> None:
    """Raise unless the listed values have all mass, as they have not where sites are masked or scaled."""
    mass = log_q.exp().sum(0)
    if not torch.allclose(mass, torch.ones_like(mass), atol=1e-3):
        raise ValueError(
            f"guide: the listed values have a mass of {mass.max():.3g}, not 1; take masks and scales off its sites"
        )


def _corners(model: Program, guide: Program, x: Any, nodes: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what each drawn site of the guide takes, in all combinations, and the rule's log weights.

    Values are ``(K, *event)``, with one K; of a normal site they are those of its standardised noise, whose
    log weights are ``(K,)``.
    """
    listed: dict[str, Tensor] = {}
    log_rule: dict[str, Tensor] = {}

    def note(name: str, fn: Any) -> None:
        if isinstance(innermost(fn), Normal):
            listed[name], log_rule[name] = _rule(name, fn, nodes)
        else:
            listed[name] = _values(name, fn)

    with torch.no_grad():
        weigh(model, guide, x, 1, linear=True, draw=note)
    _check_count(prod(map(len, listed.values())), f"all values of {', '.join(listed)}")
    axes = [torch.arange(len(values), device=values.device) for values in listed.values()]
    chosen = torch.cartesian_prod(*axes).reshape(-1, len(axes)).unbind(1) if axes else []
    rows = dict(zip(listed, chosen, strict=True))
    log_weights = {name: log_rule[name][rows[name]] for name in log_rule}
    return {name: values[rows[name]] for name, values in listed.items()}, log_weights


def _rule(name: str, fn: Any, nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes ``(S, *event)`` and log weights ``(S,)`` for the standardised noise of a normal site."""
    dimensions = prod(fn.event_shape)
    _check_count(nodes**dimensions, f"{nodes} nodes in each dimension of site '{name}'")
    at, weights = hermegauss(nodes)
    loc = innermost(fn).loc
    at, log_weights = (torch.as_tensor(v).to(loc) for v in (at, numpy.log(weights / weights.sum())))
    chosen = torch.cartesian_prod(*[torch.arange(nodes, device=loc.device)] * dimensions).reshape(-1, dimensions)
    return at[chosen].reshape(-1, *fn.event_shape), log_weights[chosen].sum(-1)


def _values(name: str, fn: Any) -> Tensor:
    """Return every value of a site, ``(S, *event)``."""
    inner = innermost(fn)
    if inner.has_enumerate_support and inner.has_rsample:
        raise ValueError(
            f"guide: site '{name}' is a {type(inner).__name__}, whose gradient goes straight through its draws and is "
            "that of no expectation, so that there is no exact one to compare with"
        )
    if not inner.has_enumerate_support:
        raise ValueError(
            f"guide: site '{name}' is a {type(inner).__name__}, whose values cannot be listed; exact gradients are for "
            "discrete and Normal latents, others compare with a long run of objectives.elbo"
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
        values = corners[name].unsqueeze(1)
        inner = innermost(fn)
        if isinstance(inner, Normal):
            return inner.loc + inner.scale * values
        return values.expand(*fn.batch_shape, *fn.event_shape)

    return draw


def _gathered(record: Particles, tuples: Tensor) -> Particles:
    """Return every tuple of particles as if it had been drawn for a datum of its own."""
    shape = record.log_w.shape

    def gathered(densities: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flat = {name: density.expand(shape).flatten(0, -2) for name, density in densities.items()}
        return {name: density[tuples].transpose(0, 1).flatten(1) for name, density in flat.items()}

    parts = {name: gathered(getattr(record, name)) for name in ("log_p", "log_q", "penalties", "kl")}
    return Particles(**parts, scale=record.scale, summed=record.summed, path=record.path)
