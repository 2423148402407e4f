"""Whose parameters are whose, where the model and the guide are trained apart."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.batches import Batch
from ppl_vae.indexing import alike
from ppl_vae.optimizers import held_by
from ppl_vae.particles import Particles, Path
from ppl_vae.programs import Program, Programs, own_parameters, undisturbed
from ppl_vae.weighing import weigh

__all__ = ["check_apart", "check_e_steps", "check_owner", "owned"]

Parameters = dict[str, Tensor]


def owned(model: Program, guide: Program, objective: Any, batch: Batch) -> tuple[Parameters, Parameters]:
    """Return the trainable parameters of the model, and those of the guide and the objective, by name.

    What both hold is the model's if its densities or penalties use it, or nothing but a log prior does.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        objective: whose own parameters go with the guide's.
        batch: tensors.

    Raises:
        ValueError: the model has none.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model = LinearGaussian(x_dim=6, z_dim=2)
        >>> [[*part] for part in owned(model, Exact(model), pv.objectives.elbo, (torch.ones(3, 6),))]
        [['model.weight', 'model.bias', 'model.log_scale'], []]
    """
    model, guide = alike(model, guide)
    found = Programs(model, guide, objective).run_once(model, guide, batch)
    alone = [{id(p) for p in Programs(p, p).run_once(p, p, batch).parameters().values()} for p in (model, guide)]
    shared = [p for p in found.parameters().values() if all(id(p) in held for held in alone)]
    theta = (alone[0] - {id(p) for p in shared}) | _models_of_both(model, guide, found, batch, shared)
    if not theta:
        raise ValueError(
            "model: it has no trainable parameters of its own, so that there is no M-step; train the guide by pv.fit"
        )
    of_model = {name: p for name, p in found.parameters().items() if id(p) in theta}
    return of_model, {name: p for name, p in found.parameters().items() if name not in of_model}


def _models_of_both(model: Program, guide: Program, programs: Programs, batch: Batch, shared: list[Tensor]) -> set[int]:
    """Return which of the parameters that both programs hold are the model's, by identity."""
    if not shared:
        return set()
    with undisturbed(programs), torch.enable_grad():
        with own_parameters():
            of_guide = poutine.trace(guide).get_trace(*batch).nodes
        given = weigh(model, guide, batch, linear=True, path=Path.NONE)
        penalties = [penalty for name, penalty in given.penalties.items() if name not in of_guide]
        by_model = _used([*given.log_p.values(), *penalties], shared)
        by_both = _used(_terms(weigh(model, guide, batch, linear=True)), shared)
    return by_model | ({id(p) for p in shared} - by_both)


def _terms(record: Particles) -> list[Tensor]:
    return [*record.log_p.values(), *record.log_q.values(), *record.penalties.values()]


def _used(densities: list[Tensor], parameters: list[Tensor]) -> set[int]:
    """Return which parameters densities depend on, by identity."""
    total = sum(density.sum() for density in densities)
    if not total.requires_grad:
        return set()
    slopes = torch.autograd.grad(total, parameters, allow_unused=True)
    return {id(p) for p, slope in zip(parameters, slopes, strict=True) if slope is not None}


def check_e_steps(
    guide: Program, batch: Batch, of_model: Parameters, of_guide: Parameters, asked: Mapping[str, bool]
) -> None:
    """Raise if E-steps were asked for, and the guide has nothing to move.

    Args:
        guide: Pyro program.
        batch: tensors.
        of_model: see `owned`.
        of_guide: likewise.
        asked: names of arguments that are about E-steps, and whether they were given.

    Raises:
        ValueError: the message names the argument, and what the guide shares with the model.

    Example:
        >>> check_e_steps(lambda x: None, (torch.ones(3),), {}, {}, {"e_steps": True})
        Traceback (most recent call last):
        ...
        ValueError: e_steps: the guide has no trainable parameter of its own, so that there is no E-step; leave it ...
    """
    if any(not name.startswith("objective.") for name in of_guide):
        return
    if of_guide:
        raise ValueError(
            f"objective: it has parameters of its own ({', '.join([*of_guide][:3])}), which adapt to a guide in "
            "E-steps, and this guide has no trainable parameter of its own; take a bound without any, such as elbo"
        )
    for argument in (name for name, given in asked.items() if given):
        held = {id(p) for p in Programs(guide, guide).run_once(guide, guide, batch).parameters().values()}
        shared = [name for name, p in of_model.items() if id(p) in held]
        why = f" (the model's densities use {', '.join(shared[:3])}, which are the model's then)" if shared else ""
        raise ValueError(
            f"{argument}: the guide has no trainable parameter of its own{why}, so that there is no E-step; leave it "
            "out, or train both together by pv.fit"
        )


def check_owner(optimizer: torch.optim.Optimizer, name: str, others: Parameters, owner: str) -> None:
    """Raise if an optimizer holds parameters of the other program.

    Args:
        optimizer: a torch optimizer.
        name: of its argument.
        others: parameters that it should not move, by name.
        owner: ``"guide"`` or ``"model"``, whose they are.

    Raises:
        ValueError: it does.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> check_owner(optimizer, "model_optimizer", {"guide.bias": net.bias}, "guide")
        Traceback (most recent call last):
        ...
        ValueError: model_optimizer: it holds guide.bias, which is the guide's; leave it to guide_optimizer
    """
    held = {id(p) for p in held_by(optimizer)}
    if wrong := [each for each, p in others.items() if id(p) in held]:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{name}: it holds {', '.join(wrong[:3])}{more}, which is the {owner}'s; leave it to {owner}_optimizer"
        )


def check_apart(first: Any, second: Any, programs: Programs) -> None:
    """Raise if a parameter is moved by both kinds of update.

    Args:
        first: the guide's optimizer, or None.
        second: the model's.
        programs: which know the parameters by name.

    Raises:
        TypeError: one is no torch optimizer.
        ValueError: both hold a parameter.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> check_apart(optimizer, optimizer, Programs(net, net))
        Traceback (most recent call last):
        ...
        ValueError: guide_optimizer, model_optimizer: both hold model.bias, model.weight, which each kind ...
    """
    torchs = torch.optim.Optimizer
    for name, given, kind in (("guide_optimizer", first, torchs | None), ("model_optimizer", second, torchs)):
        if not isinstance(given, kind):
            raise TypeError(f"{name}: expected a torch optimizer, found {given!r}")
    if first is None:
        return
    names = {id(p): name for name, p in programs.parameters().items()}
    both = {id(p) for p in held_by(first)} & {id(p) for p in held_by(second)}
    if both:
        found = ", ".join(sorted(names.get(i, "a parameter of neither program") for i in both)[:3])
        raise ValueError(
            f"guide_optimizer, model_optimizer: both hold {found}, which each kind of step would move; leave it to the "
            "program that owns it"
        )
