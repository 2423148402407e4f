"""Keep what is no finite number out of parameters, optimizers and buffers; what a loop may do when it came."""

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ppl_vae.programs import Programs

__all__ = ["KeptBuffers", "Policy", "all_finite", "back_off", "bounded", "skip", "step_if", "step_or_back", "stop"]

# What a loop does about refused batches: from the step and how many were refused in a row, whether to go on.
Policy = Callable[[Any, int], bool]

# Where torch's fused optimizers look for a number that tells them, if it is 1, to do nothing.
FLAG = "found_inf"

# Sizes whose squares are finite in a type.
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = {dtype: sqrt(torch.finfo(dtype).max) for dtype in TYPES}

# The learning rates in a group of parameters: its own, and those from which torch's schedules compute it.
RATES = ("lr", "initial_lr", "max_lr", "min_lr")


def bounded(gradients: Iterable[Tensor]) -> bool:
    """Tell whether the squares of each gradient's numbers have a finite sum; waits for the device.

    If so, all are finite, and so are averages of their squares. If not, they may be finite all the same.

    Example:
        >>> bounded([torch.ones(3)]), bounded([torch.tensor([torch.nan])]), bounded([torch.tensor([1e30])])
        (True, False, False)
    """
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    # The norms of some devices are summed in a wider type. A comparison with NaN is false.
    return not dense or all(norm.item() < LARGEST[norm.dtype] for norm in torch._foreach_norm(dense))


def all_finite(tensors: Iterable[Tensor], squared: bool = False) -> Tensor:
    """Return whether no number is NaN or infinite, ``()``, a truth value on the device of the first tensor.

    Largest sizes are compared, since sums of finite numbers may overflow.

    Args:
        tensors: of any shapes; those of whole numbers pass.
        squared: whether the squares of the numbers are to be finite too, in their own type.

    Example:
        >>> all_finite([torch.tensor([1e30, 3e38])]), all_finite([torch.ones(2), torch.tensor([-torch.inf])])
        (tensor(True), tensor(False))
    """
    numbers = _numbers(tensors)
    if not numbers:
        return torch.tensor(True)
    largest = [size.square() if squared else size for size in torch._foreach_norm(numbers, torch.inf)]
    return torch.stack([size.to(largest[0].device, torch.float64) for size in largest]).isfinite().all()


def _numbers(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what may be NaN in tensors, sparse ones too."""
    dense = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    return [t.detach() for t in dense if (t.is_floating_point() or t.is_complex()) and t.numel()]


def step_or_back(optimizer: torch.optim.Optimizer) -> bool:
    """Step an optimizer; put all back, and return False, if parameters or its state have overflowed.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.tensor([1e30])
        >>> step_or_back(torch.optim.SGD([weight], lr=1e10)), weight.item()
        (False, 1.0)
    """
    moving, state = _moving(optimizer), optimizer.state
    before = [p.detach().clone() for p in moving]
    kept = {p: {name: _copied(part) for name, part in state[p].items()} for p in moving if p in state}
    optimizer.step()
    if all_finite([*moving, *_parts(optimizer, moving)]):
        return True
    with torch.no_grad():
        for parameter, old in zip(moving, before, strict=True):
            parameter.copy_(old)
            _give_back(state, parameter, kept.get(parameter))
    return False


def _copied(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part


def _give_back(state: dict[Tensor, dict[str, Any]], parameter: Tensor, kept: dict[str, Any] | None) -> None:
    """Give a parameter the state that it had, in the same tensors, which optimizers may have in lists."""
    if kept is None:
        state.pop(parameter, None)
        return
    now = state[parameter]
    same = {name: part for name, part in now.items() if isinstance(part, Tensor) and isinstance(kept.get(name), Tensor)}
    for name, part in same.items():
        part.copy_(kept[name])
    state[parameter] = {**kept, **same}


def step_if(optimizer: torch.optim.Optimizer, finite: Tensor, stepped: set[int]) -> Tensor:
    """Step an optimizer if a truth value on the device is true and nothing overflows; nobody waits for the device.

    torch's fused optimizers, and `FusedAdam`, are told; they refuse gradients whose squares overflow too, as averages
    of these would stay infinite. Others step, and what they moved is put back where the truth value is false. Three
    kinds of step do wait: a parameter's first, of which an optimizer makes its state; one by sparse gradients; and
    those of optimizers whose state is not all on the device (torch's that are neither fused nor capturable count steps
    on the CPU).

    Args:
        optimizer: whose parameters have their gradients.
        finite: ``()``.
        stepped: the parameters that it has moved so far, by identity; taken note of.

    Returns:
        Whether the parameters have moved, ``()``.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.tensor([torch.nan])
        >>> step_if(torch.optim.SGD([weight], lr=0.1), torch.tensor(True), set()), weight.item()
        (tensor(False), 1.0)
    """
    moving = _moving(optimizer)
    gradients = [p.grad for p in moving]
    if not stepped.issuperset(map(id, moving)) or not _all_on(finite.device, optimizer, moving):
        done = bool(finite & all_finite(gradients)) and step_or_back(optimizer)
        stepped.update(map(id, moving) if done else ())
        return torch.tensor(done, device=finite.device)
    if _takes_flag(optimizer):
        return _step_told(optimizer, finite & all_finite(gradients, squared=True))
    places = [*moving, *_parts(optimizer, moving)]
    before = [tensor.detach().clone() for tensor in places]
    optimizer.step()
    done = finite & all_finite([*gradients, *places])
    with torch.no_grad():
        for tensor, old in zip(places, before, strict=True):
            tensor.copy_(torch.where(done, tensor, old))
    return done


def _step_told(optimizer: torch.optim.Optimizer, finite: Tensor) -> Tensor:
    setattr(optimizer, FLAG, (~finite).float())
    try:
        optimizer.step()
    finally:
        setattr(optimizer, FLAG, None)
    return finite


def _takes_flag(optimizer: torch.optim.Optimizer) -> bool:
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return hasattr(optimizer, FLAG) or (fused and getattr(optimizer, "_step_supports_amp_scaling", False))


def _all_on(device: torch.device, optimizer: torch.optim.Optimizer, moving: list[Tensor]) -> bool:
    """Tell whether all that an optimizer reads and writes is dense tensors on a device."""
    parts = [part for p in moving for part in optimizer.state.get(p, {}).values()]
    dense = not any(p.grad.is_sparse for p in moving)
    return dense and all(isinstance(part, Tensor) and part.device == device for part in [*moving, *parts])


def _moving(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _parts(optimizer: torch.optim.Optimizer, moving: list[Tensor]) -> list[Tensor]:
    parts = [part for p in moving for part in optimizer.state.get(p, {}).values()]
    return [part for part in parts if isinstance(part, Tensor)]


STEPS_BETWEEN_SEARCHES = 50


class KeptBuffers:
    """Buffers as they were before programs ran, of which some (batch norm's, NVIL's) are written by the run.

    Which those are is learnt: all are copied at first, and again when modes have changed; later those alone that have
    been seen to change. Modules that have been put in are found within so many steps, as a search takes longer than
    all else here. What writes into a buffer for the first time at another step stays.

    Args:
        programs: whose buffers.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> buffers = KeptBuffers(Programs(net, net))
        >>> buffers.keep()
        >>> _ = net(torch.full((3, 2), torch.nan))
        >>> buffers.settle(finite=False)
        >>> net.running_mean, net.num_batches_tracked
        (tensor([0., 0.]), tensor(0))
    """

    def __init__(self, programs: Programs):
        self.programs = programs
        self.written: set[tuple[int, str]] = set()
        self._modules: list[nn.Module] = []
        self._known: list[bool] | None = None
        self._until_search = 0
        self._before: list[tuple[nn.Module, str, Tensor, int, Tensor | None]] = []

    def keep(self) -> None:
        """Take note of all buffers, and copy those that may be written."""
        if self._until_search == 0:
            self._modules = [m for root in self.programs.modules.values() for m in root.modules() if m._buffers]
            self._until_search = STEPS_BETWEEN_SEARCHES
        self._until_search -= 1
        known = [module.training for module in self._modules]
        anew, self._known = known != self._known, known
        self._before = [
            (
                module,
                name,
                buffer,
                _version(buffer),
                buffer.clone() if anew or (id(module), name) in self.written else None,
            )
            for module in self._modules
            for name, buffer in module._buffers.items()
            if buffer is not None and not is_lazy(buffer)
        ]

    @torch.no_grad()
    def settle(self, finite: Tensor | bool) -> None:
        """Put them back unless a batch was finite, by a truth value of Python's or one on the device."""
        for module, name, buffer, version, copy in self._before:
            now = module._buffers.get(name)
            if now is buffer and _version(buffer) == version and copy is None:
                continue
            if now is not buffer or _version(buffer) != version or not torch.equal(buffer, copy):
                self.written.add((id(module), name))
            if finite is not True:
                _settle(module, name, buffer, copy, finite)
        self._before = []


def _settle(module: nn.Module, name: str, buffer: Tensor, copy: Tensor | None, finite: Tensor | bool) -> None:
    now = module._buffers.get(name)
    if now is not buffer:  # the old one has its old numbers
        module._buffers[name] = buffer if finite is False or now is None else torch.where(finite, now, buffer)
    elif copy is not None:
        buffer.copy_(copy if finite is False else torch.where(finite, buffer, copy))


def _version(buffer: Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version


def stop(step: Any, faults_so_far: int) -> bool:
    """Have a loop stop at the first batch that was refused.

    Args:
        step: that refused.
        faults_so_far: batches refused in a row.

    Returns:
        Whether to go on.

    Example:
        >>> stop(None, 1)
        False
    """
    return False


def skip(step: Any, faults_so_far: int) -> bool:
    """Have a loop go on without the batches that were refused.

    Example:
        >>> skip(None, 1)
        True
    """
    return True


def back_off(factor: float = 0.5, most: int = 10) -> Policy:
    """Return what makes the learning rates of a step smaller each time batches were refused, and then goes on.

    It lasts: the rates from which schedules of torch's compute that of an update are made smaller too, where they stand
    in the optimizer (``initial_lr``; those of ``OneCycleLR``); `ppl_vae.fit` sees to those that schedules keep.

    Args:
        factor: of the learning rates, between 0 and 1.
        most: batches refused in a row from which it stops, as smaller steps do not help.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=()), Normal(x_dim=6, z_dim=2, hidden=())
        >>> step = pv.svi_step(model, guide, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        >>> back_off(most=3)(step, 1), step.optimizer.param_groups[0]["lr"], back_off(most=3)(step, 4)
        (True, 0.05, False)
    """
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1:
        raise ValueError(f"factor: expected a number between 0 and 1, both excluded, found {factor!r}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"most: expected a whole number of at least 1, found {most!r}")

    def policy(step: Any, faults_so_far: int) -> bool:
        if faults_so_far > most:
            return False
        for optimizer in step.optimizers().values():
            for group in optimizer.param_groups:
                group.update({name: _scaled(group[name], factor) for name in RATES if group.get(name) is not None})
        return True

    return policy


def _scaled(rate: Any, factor: float) -> Any:
    # A rate that is a tensor may be held by a graph on the device.
    return rate.mul_(factor) if isinstance(rate, Tensor) else rate * factor
