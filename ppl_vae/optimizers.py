"""Optimizers made for a pair of programs."""

from typing import Any

import torch
from torch import Tensor

from ppl_vae.objectives import facts
from ppl_vae.programs import Programs

__all__ = ["adam", "made", "to_train"]


def to_train(programs: Programs, objective: Any) -> list[Tensor]:
    """Return what an optimizer is made of: all parameters, but for the model's under an upper bound.

    Raises:
        ValueError: there are none.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> [tuple(p.shape) for p in to_train(Programs(net, net), pv.objectives.elbo)]
        [(1, 2), (1,)]
    """
    parameters = programs.parameters()
    if facts(objective).upper:
        parameters = {name: p for name, p in parameters.items() if not name.startswith("model")}
    if not parameters:
        raise ValueError(
            "model, guide: neither has a trainable parameter for this objective (an upper bound trains the guide "
            "alone); evaluate them with pv.evaluate"
        )
    return list(parameters.values())


def adam(parameters: list[Tensor], lr: float = 1e-3) -> torch.optim.Optimizer:
    """Return Adam, whose update is one operation where torch has it (``fused``).

    Reference: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015,
    https://arxiv.org/abs/1412.6980.

    Example:
        >>> adam([torch.zeros(2, requires_grad=True)]).defaults["fused"]
        True
    """
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=fused)


def made(make: Any, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer that a function makes of parameters.

    Raises:
        TypeError: it is no function of parameters, or gives no torch optimizer.

    Example:
        >>> made(torch.optim.SGD, [torch.zeros(2, requires_grad=True)]).defaults["lr"]
        0.001
    """
    optimizer = make(parameters) if callable(make) else None
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: expected a torch optimizer, or a function from parameters to one such as "
            f"partial(torch.optim.Adam, lr=1e-3), found {make!r}"
        )
    return optimizer
