"""Hold an objective to what it promises, on one batch, before it trains anything."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.batches import Batch
from ppl_vae.estimation import weigh_for
from ppl_vae.objectives.vocabulary import Objective, facts
from ppl_vae.particles import Particles, Path
from ppl_vae.programs import Program, forked_random_state
from ppl_vae.remarks import remark
from ppl_vae.weighing import weigh

__all__ = ["check_in_sight", "check_objective", "inner_function"]


def inner_function(objective: Any) -> Any:
    """Return what any number of ``functools.partial`` go around."""
    while isinstance(objective, partial):
        objective = objective.func
    return objective


def check_in_sight(objective: Any) -> None:
    """Raise if modules that belong to an objective are hidden in it: they would neither train, nor follow updates.

    Example:
        >>> nvil = pv.objectives.NVIL(x_dim=6)
        >>> check_in_sight(lambda particles: nvil(particles))
        Traceback (most recent call last):
        ...
        TypeError: objective: a function that reads 'nvil' hides its parameters and its state, which would ...
    """
    whole = inner_function(objective)
    held = (whole, *objective.args, *objective.keywords.values()) if isinstance(objective, partial) else ()
    hidden = "a functools.partial around a module" if any(isinstance(part, nn.Module) for part in held) else ""
    for name, part in _read(whole).items():
        if isinstance(part, nn.Module) and (hasattr(part, "advance") or hasattr(part, "estimate")):
            hidden = f"a function that reads '{name}'"
    if hidden:
        raise TypeError(
            f"objective: {hidden} hides its parameters and its state, which would neither train, nor follow the step, "
            "nor be saved; give the module itself, such as Scheduled(function, beta=...) or Concrete(bound=function)"
        )


def _read(function: Any) -> dict[str, Any]:
    """Return what a function reads of what is around it, by name."""
    if inspect.isfunction(function):
        with suppress(ValueError):  # a variable that has no value yet
            found = inspect.getclosurevars(function)
            return {**found.globals, **found.nonlocals}
    return {}


def check_objective(
    objective: Any, model: Program, guide: Program, batch: Batch, particles: int, chunks: int = 1
) -> None:
    """Raise if an objective gives anything but one number per datum, or a gradient that must be wrong.

    Args:
        objective: a function of Particles, or a module with ``estimate``.
        model: Pyro program.
        guide: Pyro program with the same arguments.
        batch: tensors.
        particles: K, or of one chunk.
        chunks: of which there are so many.

    Raises:
        ValueError: the message says what is wrong, and the repair.
    """
    rows = batch[0].shape[:1]
    warn_without_discrete(objective, model, guide, batch)
    if hasattr(objective, "estimate"):
        for name, found in zip(("value", "surrogate"), objective.estimate(model, guide, batch, particles), strict=True):
            check_shape(found, rows, f"objective: its {name}")
        return
    record = weigh_for(objective, model, guide, batch, particles)
    check_shape(objective(record), rows, "objective")
    check_scores(objective, record)
    check_enumerated(objective, record)
    warn_of_few(objective, record, chunks)
    if facts(objective).path is Path.STOPPED:
        check_scored_again(objective, model, guide, batch, particles)


def warn_without_discrete(objective: Any, model: Program, guide: Program, batch: Batch) -> None:
    """An estimator for discrete sites has some."""
    if facts(objective).discrete and not weigh(model, guide, batch, linear=True).score:
        remark(
            f"objective: {facts(objective).name} changes the gradients of discrete sites alone, and the guide draws "
            "none, so that it trains as its bound does"
        )


def warn_of_few(objective: Objective, record: Particles, chunks: int) -> None:
    """An upper bound has particles enough to be near what it estimates."""
    log_w = record.log_per_draw(record.log_w).detach()  # masses of what is enumerated move too
    size = chunks * (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp().mean()
    if facts(objective).upper and size < 10:
        remark(
            f"objective: {facts(objective).name} is an upper bound as K grows, and with {chunks * len(record)} "
            f"particles (effective sample size {float(size):.1f}) making its estimate small may drive the guide away "
            "from the posterior; take more particles, and watch the ELBO beside it"
        )


def check_shape(found: Any, rows: torch.Size, what: str) -> None:
    """A bound is one number per datum."""
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != tuple(rows):
        raise ValueError(
            f"{what}: expected one number per datum, shape {tuple(rows)}, found {shape}; sum over particles "
            "(dim 0), never over data"
        )


def check_scores(objective: Objective, record: Particles) -> None:
    """A bound uses the score of every site drawn without reparameterisation."""
    leaves = _leaves(record.score)
    if not leaves:
        return
    forgotten = _unused(objective(replace(record, score=leaves)), leaves)
    # Objectives that take draws as given may learn the guide from its log density instead.
    if forgotten and record.path is not Path.NONE:
        raise ValueError(
            f"objective: the guide draws site '{forgotten[0]}' without reparameterisation, and this bound does not use "
            "particles.score, so the guide's gradient would be wrong; return objectives.with_score(bound, particles)"
        )


def check_enumerated(objective: Objective, record: Particles) -> None:
    """What the guide enumerates has a part in the bound, so that its probabilities learn."""
    leaves = _leaves({name: record.log_q[name] for name in record.enumerated})
    if not leaves:
        return
    bound = objective(replace(record, log_q={**record.log_q, **leaves}))
    slopes = torch.autograd.grad(bound.sum(), [*leaves.values()], allow_unused=True)
    for name, slope in zip(leaves, slopes, strict=True):
        if slope is None or slope.abs().max() < 1e-4:  # each value's mass is far above rounding
            raise ValueError(
                f"objective: site '{name}' is enumerated in the guide, and its probability cancels out of this bound, "
                "so the guide would never learn it; leave the site out of the guide and mark it in the model, which "
                "sums it out exactly, or train on elbo"
            )


def check_scored_again(objective: Any, model: Program, guide: Program, batch: Batch, particles: int) -> None:
    """A guide of several layers gives its draws the same density when it is run on them again."""
    densities = []
    for path in (Path.TOTAL, Path.STOPPED):
        with forked_random_state(0):
            densities.append(weigh(model, guide, batch, particles, linear=facts(objective).linear, path=path).log_q)
    for name, first in densities[0].items():
        if not torch.allclose(densities[1][name], first, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"objective: {facts(objective).name} runs a guide of several layers twice, and site '{name}' then has "
                "another density for the same draws; take dropout and other noise out of the guide, or train on elbo "
                "or iwae"
            )


def _leaves(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_() for name, t in tensors.items() if t.requires_grad}


def _unused(bound: Tensor, leaves: Mapping[str, Tensor]) -> list[str]:
    if not bound.requires_grad:
        return list(leaves)
    slopes = torch.autograd.grad(bound.sum(), [*leaves.values()], allow_unused=True)
    return [name for name, slope in zip(leaves, slopes, strict=True) if slope is None]
