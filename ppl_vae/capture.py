"""Capture what Pyro programs do to tensors as one graph, without running them."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyro
import sympy
import torch
from pyro import poutine
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributions import constraints, transform_to
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from ppl_vae.batches import Batch
from ppl_vae.keeping import Written
from ppl_vae.parallel import LostWorker
from ppl_vae.programs import Programs, forked_random_state
from ppl_vae.remarks import WITHIN
from ppl_vae.watching import Watch

__all__ = ["CannotCapture", "Function", "Graph", "capture"]

# From the programs' tensors by name and a batch to tensors, in tuples, lists and dicts.
Function = Callable[[Mapping[str, Tensor], Batch], Any]


class CannotCapture(RuntimeError):
    """Programs whose operations depend on what is in tensors, or that torch cannot follow."""


class Graph:
    """A function of programs and a batch, as operations on tensors alone.

    Made by `capture`. It reads and updates the programs' own tensors, and draws what they would draw.

    Attributes:
        module: the operations.
        inputs: stand-ins for its inputs, by which a compiler knows shapes and types.
        run: what is called: the module, or what a compiler made of it.
        watch: what must be as it was for the graph to hold.
        rows: of the batch for which it was made.
        held: numbers of rows at which it has been compared with what it was made of.
    """

    watch: Any = None
    rows: int = 0

    def __init__(self, tensors: Sequence[Tensor], batch: Batch, any_size: bool):
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self._tensors = list(tensors)
        stand_ins = [_stand_in(self.mode, part, any_size) for part in batch]
        self.inputs = [self.mode.from_tensor(t, static_shapes=True) for t in tensors] + stand_ins
        # As they are now: a symbol that turns out to be a number stays in what was found out about it.
        self._sizes = [_expression(part.shape[0]) for part in stand_ins]
        self._rows: dict[int, bool] = {}
        self.held: set[int] = set()

    def finish(self, module: fx.GraphModule, spec: Any, filled: list[bool], rebound: Sequence[int]) -> None:
        """Take in what the capture found."""
        self.module = self.run = module
        self._spec, self._filled = spec, filled
        self._rebound = [self._tensors[i] for i in rebound]

    @property
    def fixed(self) -> int:
        """How many of the inputs are the programs' own tensors; the batch follows."""
        return len(self._tensors)

    def __call__(self, batch: Batch) -> Any:
        """Return what the function returns for a batch."""
        with torch.no_grad():
            found = list(self.run(*self._tensors, *batch))
            for tensor in reversed(self._rebound):
                tensor.copy_(found.pop())
        leaves = iter(found)
        return tree_unflatten([next(leaves) if there else None for there in self._filled], self._spec)

    def serves(self, rows: int) -> bool:
        """Tell whether the graph holds for batches of so many rows.

        Programs, and the compiler, may have decided something by the size (``if x.shape[0] > 10``).
        """
        if rows not in self._rows:
            self._rows[rows] = self._holds(rows)
        return self._rows[rows]

    def _holds(self, rows: int) -> bool:
        env = self.mode.shape_env
        if any(size != rows for size in self._sizes if size.is_Integer):
            return False
        given = {size: sympy.Integer(rows) for size in self._sizes if size.is_Symbol}
        allowed = [env.var_to_range[symbol] for symbol in given]
        conditions = (guard.expr.xreplace(given) for guard in env.guards)
        # A condition on something else than rows decides nothing, and so does not hold.
        return all(some.lower <= rows <= some.upper for some in allowed) and all(c == sympy.true for c in conditions)


def capture(
    function: Function, programs: Programs, batch: Batch, any_size: bool = True, watch: Watch | None = None
) -> Graph:
    """Return a function of programs and a batch as a graph; nothing is run, changed or drawn.

    The programs go through Pyro's handlers once, with stand-ins that have shapes and no values; what
    they do to tensors is written down. Gradients that the function takes are part of it, and so are
    updates of buffers.

    Args:
        function: from the programs' tensors by name, and a batch, to tensors. It runs the programs,
            in which those tensors then stand.
        programs: whose tensors to put in, by `Programs.tensors`.
        batch: tensors of the shapes that are to come.
        any_size: whether the number of rows stays open (where the programs let it).
        watch: what the programs read of Python; of the modules if left out.

    Returns:
        A `Graph`.

    Raises:
        CannotCapture: the programs read a value off a tensor, change numbers that they read, or hold parameters
            that cannot be found.

    Reference: H. He, R. Zou, "functorch", 2021, and the proxy tensors of torch.fx; J. Reed et al.,
    "torch.fx: Practical Program Capture and Transformation", MLSys 2022, https://arxiv.org/abs/2112.08429.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> graph = capture(lambda tensors, batch: net(batch[0]).sum(), Programs(net, net), (torch.ones(4, 2),))
        >>> torch.equal(graph((torch.ones(3, 2),)), net(torch.ones(3, 2)).sum())
        True
    """
    tensors = programs.tensors()
    for name, tensor in tensors.items():
        if tensor._backward_hooks:
            raise CannotCapture(f"{name} has a hook on its gradient, which no graph can hold")
    graph = Graph(list(tensors.values()), batch, any_size)
    together, found = _Together(programs), {}

    def flat(*stand_ins: Tensor) -> list[Tensor]:
        named = dict(zip(tensors, stand_ins, strict=False))
        with _NoReading():
            result, found["rebound"] = together.call(function, named, stand_ins[len(named) :])
        leaves, found["spec"] = tree_flatten(result)
        found["filled"] = [leaf is not None for leaf in leaves]
        return [leaf for leaf in leaves if leaf is not None] + [named[name] for name in found["rebound"]]

    watch = watch or Watch(list(programs.modules.values()))
    try:
        # Argument validation reads values.
        with watch.unmoved() as replaced, forked_random_state(), pyro.validation_enabled(False), graph.mode:
            module = make_fx(flat, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*graph.inputs)
    except LostWorker:
        raise
    except Exception as error:
        raise CannotCapture(_reason(error)) from error
    _refuse_strangers(module, replaced)
    order = {name: i for i, name in enumerate(tensors)}
    graph.finish(module, found["spec"], found["filled"], [order[name] for name in found["rebound"]])
    return graph


class _Together(nn.Module):
    """Modules under one roof, so that other tensors can take the place of theirs for a call."""

    def __init__(self, programs: Programs):
        super().__init__()
        self.keys: dict[str, str] = {}
        for owner, module in programs.modules.items():
            self.add_module(_key(owner), module)
            self.keys |= {
                name: _key(owner) + name.removeprefix(owner)
                for name in programs.tensors()
                if name.startswith(owner + ".")
            }

    def call(self, function: Function, named: dict[str, Tensor], batch: Batch) -> tuple[Any, list[str]]:
        """Run a function with these tensors in place; return what it gives, and which it put others in place of.

        The latter are exchanged in ``named``.
        """
        kept = dict(_places(self))
        instead = {id(kept[key]): named[name] for name, key in self.keys.items()}
        # torch would tie weights by name, and a module of two names would keep the stand-ins that it got first.
        inside = {key: instead[id(tensor)] for key, tensor in kept.items()}
        before = dict(inside)
        with _at_param_sites({name: t for name, t in named.items() if name not in self.keys}):
            result = torch.func.functional_call(self, inside, (function, named, batch), tie_weights=False)
        rebound = [name for name, key in self.keys.items() if inside[key] is not before[key]]
        named |= {name: inside[self.keys[name]] for name in rebound}
        return result, rebound

    def forward(self, function: Function, named: Mapping[str, Tensor], batch: Batch) -> Any:
        return function(named, batch)


def _places(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each place in which a module keeps a tensor, once, whatever holds the module."""
    for prefix, module in root.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{name}", tensor


def _key(owner: str) -> str:
    return owner.replace(".", "-")


def _at_param_sites(named: Mapping[str, Tensor]) -> AbstractContextManager:
    """Put tensors at ``pyro.param`` sites, through the constraints that were declared there."""
    declared = pyro.get_param_store().get_state()["constraints"]
    sites = {name.removeprefix("param."): tensor for name, tensor in named.items()}
    return poutine.substitute(
        data={site: transform_to(declared.get(site, constraints.real))(tensor) for site, tensor in sites.items()}
    )


def _expression(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _stand_in(mode: FakeTensorMode, part: Tensor, any_size: bool) -> Tensor:
    if not any_size:
        return mode.from_tensor(part, static_shapes=True)
    sizes = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (part.dim() - 1)
    return mode.from_tensor(part, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))


def _refuse_strangers(module: fx.GraphModule, replaced: list[Any]) -> None:
    """No parameter may be in the graph as a constant (it would get no gradient), nor what programs replace."""
    storages = {_storage(tensor) for tensor in replaced if isinstance(tensor, Tensor)}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            constant = getattr(module, node.target)
            if isinstance(constant, Tensor) and _storage(constant) in storages:
                raise CannotCapture(
                    f"a tensor of shape {tuple(constant.shape)} is read and then another one put in its place, which a "
                    "graph would not do; register it as a buffer"
                )
            if isinstance(constant, Tensor) and constant.requires_grad:
                raise CannotCapture(
                    f"a parameter of shape {tuple(constant.shape)} is used that was not found in model, guide or "
                    "objective; hold it in an nn.Module that a program is, or refers to by name"
                )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _NoReading(TorchDispatchMode):
    """Refuse to read a number off a tensor from outside: the graph would not see it change."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not isinstance(args[0], FakeTensor):
            raise Written(
                "a number is read (.item(), float(), if) off a tensor that is no buffer, and might change unseen; keep "
                "it as a number of Python"
            )
        return func(*args, **(kwargs or {}))


def _reason(error: Exception) -> str:
    """Say where in a person's program the capture failed, and by what."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((*WITHIN, "<"))]
    if isinstance(error, Written) and not theirs:  # found when the run was over
        return str(error)
    last = theirs[-1] if theirs else frames[-1]
    what = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
    if isinstance(error, Written):
        what = str(error)
    if "DataDependent" in what or "_local_scalar_dense" in what:
        what = "it asks for the value of a tensor (if, float(), .item(), a mask as index), which differs by the batch"
    return f"{Path(last.filename).name}, line {last.lineno}, {last.line!r}: {what}"
