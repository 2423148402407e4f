"""Whose parameters are whose, where the model and the guide are trained apart."""

from typing import Any

import torch
from torch import Tensor

from ppl_vae.batches import Batch
from ppl_vae.indexing import alike
from ppl_vae.optimizers import held_by
from ppl_vae.particles import Path
from ppl_vae.programs import Program, Programs, undisturbed
from ppl_vae.weighing import weigh

__all__ = ["check_apart", "owned"]


def owned(model: Program, guide: Program, objective: Any, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Return the trainable parameters of the model, and those of the guide and the objective.

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
        >>> [len(part) for part in owned(model, Exact(model), pv.objectives.elbo, (torch.ones(3, 6),))]
        [3, 0]
    """
    model, guide = alike(model, guide)
    found = Programs(model, guide, objective).run_once(model, guide, batch)
    alone = [{id(p) for p in Programs(p, p).run_once(p, p, batch).parameters().values()} for p in (model, guide)]
    shared = [p for p in found.parameters().values() if all(id(p) in held for held in alone)]
    # Of what both hold, the model's densities leave out what is the guide's.
    theta = (alone[0] - {id(p) for p in shared}) | _used_by_model(model, guide, found, batch, shared)
    parameters = found.parameters().values()
    if not theta:
        raise ValueError(
            "model: it has no trainable parameters of its own, so that there is no M-step; train the guide by pv.fit"
        )
    return [p for p in parameters if id(p) in theta], [p for p in parameters if id(p) not in theta]


def _used_by_model(model: Program, guide: Program, programs: Programs, batch: Batch, shared: list[Tensor]) -> set[int]:
    """Return which parameters the model's densities use, given latents, by identity."""
    if not shared:
        return set()
    with undisturbed(programs), torch.enable_grad():
        record = weigh(model, guide, batch, linear=True, path=Path.NONE)
        total = sum(density.sum() for density in record.log_p.values())
        if not total.requires_grad:
            return set()
        slopes = torch.autograd.grad(total, shared, allow_unused=True)
    return {id(p) for p, slope in zip(shared, slopes, strict=True) if slope is not None}


def check_apart(first: Any, second: Any, programs: Programs) -> None:
    """Raise if a parameter is moved by both kinds of update.

    Args:
        first: the guide's optimizer.
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
    for name, optimizer in (("guide_optimizer", first), ("model_optimizer", second)):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{name}: expected a torch optimizer, found {optimizer!r}")
    names = {id(p): name for name, p in programs.parameters().items()}
    both = {id(p) for p in held_by(first)} & {id(p) for p in held_by(second)}
    if both:
        found = ", ".join(sorted(names.get(i, "a parameter of neither program") for i in both)[:3])
        raise ValueError(
            f"guide_optimizer, model_optimizer: both hold {found}, which each kind of step would move; leave it to the "
            "program that owns it"
        )
