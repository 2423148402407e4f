"""Pyro programs of every style as one set of parameters, buffers and modes.

Three styles are accepted: an ``nn.Module`` or ``PyroModule`` with ``forward``; bound methods such
as ``vae.model`` and ``vae.guide``; plain functions that use ``pyro.module`` or ``pyro.param``.
"""

import dis
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ppl_vae.batches import Batch
from ppl_vae.threads import one_thread

__all__ = [
    "Program",
    "Programs",
    "forked_random_state",
    "modes_and_buffers_kept",
    "own_parameters",
    "program_name",
    "pyros_parameters",
    "undisturbed",
]

Program = Callable[..., Any]

_in_pyros_store = ContextVar("in Pyro's store", default=False)


@contextmanager
def pyros_parameters() -> Iterator[None]:
    """Let programs declare their parameters in Pyro's store, where ``SVI`` finds them."""
    token = _in_pyros_store.set(True)
    try:
        yield
    finally:
        _in_pyros_store.reset(token)


@contextmanager
def own_parameters() -> Iterator[None]:
    """Run Pyro programs without touching what others left in Pyro's parameter store, in one thread at a time.

    Parameters of modules belong to their modules: inside, the store starts without any, and afterwards it is as before.
    (Pyro would hand a second model the first one's tensors where the names agree.) Plain ``pyro.param`` tensors have no
    other home than the store and stay in it.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> with own_parameters():
        ...     _ = pyro.module("net", net)
        >>> list(pyro.get_param_store().keys())
        []
    """
    with one_thread():
        if _in_pyros_store.get():
            yield
            return
        store = pyro.get_param_store()
        with store.scope(_without_modules(store.get_state())) as inner:
            yield
        plain = _without_modules(inner)
        if plain["params"].keys() - store.keys():
            outer = store.get_state()
            store.set_state({key: {**outer[key], **plain[key]} for key in outer})


def _without_modules(state: Mapping[str, dict]) -> dict[str, dict]:
    """Return a store's state less the tensors that are some module's parameters."""
    plain = {name for name, tensor in state["params"].items() if not isinstance(tensor, nn.Parameter)}
    return {key: {n: v for n, v in entries.items() if n in plain} for key, entries in state.items()}


def modules_of(program: Program) -> list[nn.Module]:
    """Return the modules that a program is, is a method of, or refers to by name.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> def model(x):
        ...     pyro.module("net", net)
        >>> modules_of(model)
        [Linear(in_features=2, out_features=2, bias=True)]
    """
    return [thing for thing in reached(program) if isinstance(thing, nn.Module)]


def reached(program: Program) -> list[Any]:
    """Return a program and what it refers to: modules (but not what is in them), functions, objects.

    Example:
        >>> scale = {"prior": 2.0}
        >>> [type(thing).__name__ for thing in reached(lambda x: scale["prior"] * x)]
        ['function', 'dict', 'float']
    """
    found: dict[int, Any] = {}
    _collect(program, found)
    return list(found.values())


def _collect(thing: Any, found: dict[int, Any]) -> None:
    if id(thing) in found:
        return
    found[id(thing)] = thing
    if not isinstance(thing, nn.Module):
        for part in _parts(thing):
            _collect(part, found)


def _parts(thing: Any) -> Iterable[Any]:
    """Return what a callable is made of, as far as modules can hide in it."""
    if isinstance(thing, MethodType):
        owner = thing.__self__
        return [owner] if isinstance(owner, nn.Module) else [thing.__func__, *vars(owner).values()]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, FunctionType):
        # Global names that are loaded as such; attributes may have a global's name by chance.
        used = [thing.__globals__[name] for name in globals_of(thing)]
        return [*inspect.getclosurevars(thing).nonlocals.values(), *filter(_may_hold_modules, used)]
    if isinstance(thing, list | tuple):
        return thing
    if isinstance(thing, dict):
        return thing.values()
    return vars(thing).values() if callable(thing) and _may_hold_modules(thing) else []


def globals_of(function: FunctionType) -> list[str]:
    """Return the names of the globals that a function loads and that exist.

    Example:
        >>> globals_of(globals_of)
        ['_codes', 'dis']
    """
    codes = _codes(function.__code__)
    loaded = {i.argval for code in codes for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return sorted(name for name in loaded if name in function.__globals__)


def names_in(function: FunctionType) -> set[str]:
    """Return the names of globals and attributes in a function, functions within it included.

    Example:
        >>> names_in(lambda x: [torch.tanh(y) for y in x]) == {"torch", "tanh"}
        True
    """
    return {name for code in _codes(function.__code__) for name in code.co_names}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _may_hold_modules(thing: Any) -> bool:
    """Tell a person's own objects, functions and containers from those of libraries."""
    if isinstance(thing, nn.Module | list | tuple | dict):
        return True
    home = thing.__module__ if isinstance(thing, FunctionType) else type(thing).__module__
    library = (home or "").split(".")[0] in {"builtins", "pyro", "torch", "numpy", "types", "typing", "functools"}
    return hasattr(thing, "__dict__") and not library and not inspect.isclass(thing)


def program_name(program: Program) -> str:
    """Return the name by which a report may call a program.

    Example:
        >>> program_name(nn.Linear(2, 2)), program_name(partial(print))
        ('Linear', 'print')
    """
    while isinstance(program, partial):
        program = program.func
    return getattr(program, "__qualname__", type(program).__name__).replace("<locals>.", "")


class Programs:
    """The parameters, buffers and modes of a model and its guide, each once.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        objective: an estimator, if it is a module with parameters or state of its own.

    Attributes:
        modules: name to module; a module used by both programs stands under the first name.
        at_sites: tensors that no module holds, by the param site that declares them (see `run_once`).

    Example:
        >>> programs = Programs(nn.Linear(2, 1), nn.Linear(2, 2))
        >>> list(programs.parameters())
        ['model.weight', 'model.bias', 'guide.weight', 'guide.bias']
    """

    def __init__(self, model: Program, guide: Program, objective: Any = None):
        self.modules: dict[str, nn.Module] = {}
        self.at_sites: dict[str, Tensor] = {}
        self.said: set[str] = set()  # of what has been warned
        for role, program in (("model", model), ("guide", guide)):
            found = [m for m in modules_of(program) if not any(m is n for n in self.modules.values())]
            for i, module in enumerate(found):
                self.modules[role if len(found) == 1 else f"{role}.{i}"] = module
        if isinstance(objective, nn.Module):
            self.modules["objective"] = objective

    def run_once(self, model: Program, guide: Program, batch: Batch) -> "Programs":
        """Run both on a batch, so that parameters made on the way exist and are known.

        Those are ``pyro.param`` tensors, lazy layers, and modules that only ``pyro.module`` names.
        """
        with undisturbed(self), torch.no_grad():
            met = _parameters_met(guide, batch) | _parameters_met(model, batch)
        owned = {id(p) for module in self.modules.values() for p in module.parameters()}
        self.at_sites = {name: p for name, p in met.items() if id(p) not in owned}
        return self

    def parameters(self) -> dict[str, Tensor]:
        """Return every trainable tensor once, by name."""
        found = ((f"{owner}.{name}", p) for owner, m in self.modules.items() for name, p in m.named_parameters())
        named = dict(found) | {f"param.{name}": p for name, p in self.at_sites.items()}
        once = {id(p): (name, p) for name, p in reversed(named.items()) if p.requires_grad}
        return dict(reversed(once.values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers, frozen and unsaved ones too, each once, by name."""
        named = {
            f"{owner}.{name}": tensor
            for owner, module in self.modules.items()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        named |= {f"param.{name}": p for name, p in self.at_sites.items()}
        once = {id(tensor): (name, tensor) for name, tensor in reversed(named.items())}
        return dict(reversed(once.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameters and persistent buffers by name, sharing their memory."""
        state = {
            f"{owner}.{name}": t for owner, module in self.modules.items() for name, t in module.state_dict().items()
        }
        return state | {f"param.{name}": p.detach() for name, p in self.at_sites.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state into the programs; nothing is changed unless all of it fits.

        Raises:
            ValueError: names or shapes differ; the message lists them.
        """
        own = self.state_dict()
        problems = [f"{name} is missing" for name in own.keys() - state.keys()]
        problems += [f"{name} is not in these programs" for name in state.keys() - own.keys()]
        problems += [
            f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own.keys() & state.keys()
            if state[name].shape != own[name].shape
        ]
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError("state: does not fit model and guide: " + "; ".join(sorted(problems)[:5]) + more)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def train(self, mode: bool = True) -> None:
        """Put every module in training (or evaluation) mode."""
        for module in self.modules.values():
            module.train(mode)

    def on_device(self, batch: Batch) -> Batch:
        """Return the batch on the device of the parameters; as it is where there are none."""
        device = self.device
        if device is None or all(part.device == device for part in batch):
            return batch
        return tuple(part.to(device, non_blocking=True) for part in batch)

    @cached_property
    def device(self) -> torch.device | None:
        """Where the tensors are; None where there are none."""
        in_modules = (t for m in self.modules.values() for t in (*m.parameters(), *m.buffers()))
        return next((t.device for t in (*in_modules, *self.at_sites.values())), None)


@contextmanager
def undisturbed(programs: Programs, seed: int | None = None, training: bool | None = None) -> Iterator[None]:
    """Leave modes, buffers, frozen parameters and the caller's random state as they were found.

    Args:
        programs: whose modes and tensors to restore.
        seed: seeds the draws inside; without one they start from the caller's state.
        training: mode of the modules inside; as it is when left out.
    """
    with forked_random_state(seed), modes_and_buffers_kept(programs, training):
        yield


@contextmanager
def modes_and_buffers_kept(programs: Programs, training: bool | None = None) -> Iterator[None]:
    """Leave modes, buffers and frozen parameters as found, those of lent modules too; draws move the random state."""
    own = [m for module in programs.modules.values() for m in module.modules()]
    held = [v.__self__ for m in own for v in vars(m).values() if isinstance(v, MethodType)]
    modules = [*own, *(n for m in held if isinstance(m, nn.Module) for n in m.modules())]
    modes = [m.training for m in modules]
    # By name, since a module may put another tensor in a buffer's place.
    kept = [
        (places, name, tensor, tensor.detach().clone())
        for m in modules
        for places in (m._buffers, m._parameters)
        for name, tensor in places.items()
        if tensor is not None and not is_lazy(tensor) and (places is m._buffers or not tensor.requires_grad)
    ]
    try:
        if training is not None:
            nn.ModuleList(modules).train(training)
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with torch.no_grad():
            for places, name, tensor, before in kept:
                places[name] = tensor
                if not torch.equal(tensor, before):
                    tensor.copy_(before)


@contextmanager
def forked_random_state(seed: int | None = None) -> Iterator[None]:
    """Draw inside from a state of its own, in one thread at a time; the caller's torch generators do not move."""
    with one_thread(), torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        yield


def _parameters_met(program: Program, batch: Batch) -> dict[str, Tensor]:
    """Run a program and return the unconstrained tensors of the param sites it meets."""
    with own_parameters(), poutine.trace(param_only=True) as tracer:
        program(*batch)
        sites = {name: site["value"] for name, site in tracer.trace.nodes.items() if site["type"] == "param"}
        # Asked inside: the store takes these references back when the scope ends.
        return {name: value.unconstrained() for name, value in sites.items()}
