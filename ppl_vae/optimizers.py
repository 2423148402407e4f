"""Optimizers made for a pair of programs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_vae.objectives import facts
from ppl_vae.programs import Programs

__all__ = ["FusedAdam", "adam", "laid_out", "made", "to_train"]


NO_STATE: dict[str, Any] = {}


class FusedAdam(torch.optim.Adam):
    """torch's fused Adam, whose lists of tensors are made once and not in every step.

    It computes and saves what ``torch.optim.Adam(..., fused=True)`` does, bit for bit. On a small
    network those lists take as long as the update.

    Args:
        parameters: floating-point tensors on a CPU or a GPU, or groups of them.
        lr: step size.
        options: torch's, such as ``betas`` and ``weight_decay``, but ``amsgrad``.

    Reference: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015,
    https://arxiv.org/abs/1412.6980.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = FusedAdam([weight], lr=0.1)
        >>> weight.grad = torch.ones(2)
        >>> optimizer.step()
        >>> weight
        Parameter containing:
        tensor([-0.1000, -0.1000], requires_grad=True)
    """

    def __init__(self, parameters: Any, lr: float = 1e-3, **options: Any):
        super().__init__(parameters, lr=lr, fused=True, **options)
        if any(group["amsgrad"] for group in self.param_groups):
            raise ValueError("amsgrad: not part of this form of Adam; use torch.optim.Adam")
        # A gradient scaler then divides the gradients itself.
        self._step_supports_amp_scaling = False
        self._lists: dict[int, tuple[list[int], list[tuple[list[Tensor], ...]]]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for i, group in enumerate(self.param_groups):
            complete = all(p.grad is not None for p in group["params"])
            if not complete or self._lists.get(i, (None,))[0] != self._known(group):
                lists = self._gathered(group)
                self._lists[i] = (self._known(group), lists)
            self._update(group, self._lists[i][1])
            if not complete:
                del self._lists[i]
        return loss

    def _known(self, group: dict[str, Any]) -> list[int]:
        """Return which tensors the lists of a group are made of, by identity; the lists keep them from being freed."""
        of_state = [id(self.state.get(p, NO_STATE).get("exp_avg")) for p in group["params"]]
        return [*map(id, group["params"]), *of_state]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._step_supports_amp_scaling, self._lists = False, {}

    def _gathered(self, group: dict[str, Any]) -> list[tuple[list[Tensor], ...]]:
        """Return the parameters with gradients and their state as lists, one set for each device and type."""
        alike: dict[Any, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise ValueError(
                    f"optimizer: Adam takes no sparse gradients, and a parameter of shape {tuple(parameter.shape)} has "
                    "one; leave out sparse=True, or pass torch.optim.SparseAdam for it"
                )
            if parameter.grad is not None:
                alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        for parameter in (p for parameters in alike.values() for p in parameters):
            if not self.state[parameter]:
                averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                steps = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state[parameter] = {"step": steps, **averages}
        names = ("exp_avg", "exp_avg_sq", "step")
        return [(ps, *([self.state[p][name] for p in ps] for name in names)) for ps in alike.values()]

    def _update(self, group: dict[str, Any], lists: list[tuple[list[Tensor], ...]]) -> None:
        update = torch._fused_adamw_ if group.get("decoupled_weight_decay") else torch._fused_adam_
        for parameters, averages, squares, steps in lists:
            torch._foreach_add_(steps, 1)
            update(
                parameters,
                [laid_out(p.grad, p) for p in parameters],
                averages,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
            )


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


def laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return a gradient in the memory layout of its parameter, which fused updates take for granted.

    Autograd gives others: transposed, or one number expanded.

    Example:
        >>> laid_out(torch.ones(()).expand(2, 3), torch.zeros(2, 3)).stride()
        (3, 1)
    """
    if gradient.is_sparse or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def adam(parameters: list[Tensor], lr: float = 1e-3) -> torch.optim.Optimizer:
    """Return Adam, in its fused form where torch has it.

    Example:
        >>> adam([torch.zeros(2, requires_grad=True)]).defaults["fused"]
        True
    """
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return (FusedAdam if fused else torch.optim.Adam)(parameters, lr=lr)


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
