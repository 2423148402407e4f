"""Optimizers made for a pair of programs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ppl_vae.objectives import facts
from ppl_vae.programs import Programs

__all__ = [
    "FusedAdam",
    "Role",
    "adam",
    "check_kind",
    "check_optimizer",
    "check_optimizer_state",
    "check_strangers",
    "held_by",
    "laid_out",
    "made",
    "moved_by",
    "to_train",
]

NO_STATE: dict[str, Any] = {}


@dataclass(frozen=True)
class Role:
    """What messages call an optimizer, and say that it is to be made of.

    Attributes:
        name: the argument by which it was passed.
        parameters: in Python.
    """

    name: str = "optimizer"
    parameters: str = "[*model.parameters(), *guide.parameters()]"


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
        self.found_inf: Tensor | None = None  # on the device: a step does nothing where it is 1
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
        self._step_supports_amp_scaling, self._lists, self.found_inf = False, {}, None

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
                found_inf=self.found_inf,
            )
            if self.found_inf is not None:
                torch._foreach_sub_(steps, [self.found_inf] * len(steps))


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


def held_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters that an optimizer moves.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> _ = net.bias.requires_grad_(False)
        >>> len(held_by(torch.optim.SGD(net.parameters(), lr=0.1)))
        1
    """
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def moved_by(optimizer: torch.optim.Optimizer, programs: Programs, role: Role) -> dict[str, Tensor]:
    """Return the parameters that an optimizer moves, by the names that the programs give them.

    Raises:
        ValueError: there are none, or one that no program has.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> [*moved_by(torch.optim.SGD(net.parameters(), lr=0.1), Programs(net, net), Role())]
        ['model.weight', 'model.bias']
    """
    held = held_by(optimizer)
    if not held:
        raise ValueError(f"{role.name}: none of its parameters requires a gradient any more; thaw some, or stop")
    check_strangers(optimizer, programs, role)
    names = {id(tensor): name for name, tensor in programs.tensors().items()}
    return {names[id(p)]: p for p in held}


def check_optimizer(
    optimizer: torch.optim.Optimizer, programs: Programs, objective: Any, role: Role | None = None
) -> None:
    """Raise if an optimizer moves nothing of the programs, not all of the objective, or up what should go down.

    Args:
        optimizer: a torch optimizer.
        programs: after `Programs.run_once`.
        objective: a bound or an estimator.
        role: what messages call the optimizer.

    Raises:
        ValueError: the message names the parameters, and the repair.

    Example:
        >>> net, tau = torch.nn.Linear(2, 1), torch.nn.Parameter(torch.zeros(()))
        >>> optimizer = torch.optim.SGD([*net.parameters(), tau], lr=0.1)
        >>> check_optimizer(optimizer, Programs(net, net), pv.objectives.elbo)
        Traceback (most recent call last):
        ...
        ValueError: optimizer: it holds a parameter of shape () that neither program has, and that would never ...
    """
    role = role or Role()
    check_kind(optimizer, role)
    held = {id(p) for p in held_by(optimizer)}
    parameters = programs.parameters()
    if not held & {id(p) for name, p in parameters.items() if not name.startswith("objective.")}:
        raise ValueError(
            f"{role.name}: it holds no parameter of model or guide that requires a gradient, so nothing would train; "
            f"make it of {role.parameters}"
        )
    check_strangers(optimizer, programs, role)
    left_out = [name for name, p in parameters.items() if name.startswith("objective.") and id(p) not in held]
    if left_out:
        raise ValueError(
            f"{role.name}: it lacks {', '.join(left_out)}, so the estimator would not adapt; add "
            "*objective.parameters()"
        )
    wrong = [name for name, p in parameters.items() if name.startswith("model") and id(p) in held]
    if facts(objective).upper and wrong:
        raise ValueError(
            f"objective: {facts(objective).name} is an upper bound, which is made small, and a model trained so learns "
            f"to make the data unlikely; it would train {', '.join(wrong[:3])}; make the optimizer of "
            "guide.parameters()"
        )


def check_kind(optimizer: torch.optim.Optimizer, role: Role) -> None:
    """Raise if an optimizer is none of torch's, or cannot follow noisy gradients.

    Example:
        >>> check_kind(1e-3, Role())
        Traceback (most recent call last):
        ...
        TypeError: optimizer: expected a torch optimizer over [*model.parameters(), *guide.parameters()], found 0.001
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{role.name}: expected a torch optimizer over {role.parameters}, found {optimizer!r}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(f"{role.name}: LBFGS asks for the loss several times a step, with one noise; choose another")


def check_strangers(optimizer: torch.optim.Optimizer, programs: Programs, role: Role) -> None:
    """Raise if an optimizer holds what no program has: only what has a name there is followed, and moves.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> check_strangers(torch.optim.SGD(net.parameters(), lr=0.1), Programs(net, net), Role())
    """
    known = {id(p) for p in programs.tensors().values()}
    strangers = [tuple(p.shape) for p in held_by(optimizer) if id(p) not in known]
    if strangers:
        more = f", and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise ValueError(
            f"{role.name}: it holds a parameter of shape {strangers[0]} that neither program has, and that would never "
            f"move{more}; leave it out, or make it an attribute of the model (model.tau = nn.Parameter(...) for a "
            "hyper-parameter tau that the log prior reads)"
        )


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], role: Role) -> None:
    """Raise if a state is of an optimizer with other groups of parameters.

    Example:
        >>> nets = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1, bias=False)
        >>> one, other = (torch.optim.SGD(net.parameters(), lr=0.1) for net in nets)
        >>> check_optimizer_state(one, other.state_dict(), Role())
        Traceback (most recent call last):
        ...
        ValueError: state: that of optimizer has groups of [1] parameters, expected [2]
    """
    found, wanted = (
        [len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if found != wanted:
        raise ValueError(f"state: that of {role.name} has groups of {found} parameters, expected {wanted}")


def made(make: Any, parameters: list[Tensor], name: str = "optimizer") -> torch.optim.Optimizer:
    """Return the optimizer that a function makes of parameters.

    Args:
        make: a function from parameters to an optimizer.
        parameters: tensors.
        name: of the argument, for messages.

    Raises:
        TypeError: it is no function of parameters, or gives no torch optimizer.

    Example:
        >>> made(torch.optim.SGD, [torch.zeros(2, requires_grad=True)]).defaults["lr"]
        0.001
    """
    if isinstance(make, PyroOptim):  # called, it would take a step
        raise TypeError(
            f"{name}: those of pyro.optim are for Pyro's SVI; pass torch.optim.Adam, or "
            "partial(torch.optim.Adam, lr=1e-3)"
        )
    optimizer = make(parameters) if callable(make) else None
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{name}: expected a torch optimizer, or a function from parameters to one such as "
            f"partial(torch.optim.Adam, lr=1e-3), found {make!r}"
        )
    return optimizer
