"""Hold a graph to an eager run of what it was made of: compilers have faults, and tell nobody."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vae.batches import Batch
from ppl_vae.programs import Programs, undisturbed

__all__ = ["Redraw", "differing", "fault"]

Run = Callable[[Batch], Any]
# From a batch and a number to one by which other draws are made, for functions whose draws follow from their inputs.
Redraw = Callable[[Batch, int], Batch]

# Rounding may turn a discrete draw over, and gradients with it, but hardly with each of several draws.
TRIALS = 5
# How far tensors may lie apart, as a part of their size, for a unit of rounding: 0.0008 where numbers have 24 bits, of
# which rounding has been seen to take a twentieth, and 0.65 where they have eight, of which it takes a third.
APART, POWER = 12.0, 0.6
# Some gradients are zero but for rounding: a tensor's size is taken to be at least so much of the largest one's.
LEAST = 0.01
# What a GPU may round the factors of products to.
TF32 = 2.0**-10


def fault(
    graph: Run, function: Run, programs: Programs, batch: Batch, redraw: Redraw = lambda batch, trial: batch
) -> str | None:
    """Return in what a graph differs from a function by more than rounding, "" if in nothing; changes nothing.

    Both run on the batch with the same draws; up to five times, with others, as long as they differ. The answer is None
    where no number is finite.

    Args:
        graph: made of the function, and compiled.
        function: of a batch, to tensors in tuples, lists and dicts.
        programs: what both use; buffers that they write are compared too.
        batch: data.
        redraw: gives a batch with other draws.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> fault(lambda batch: net(batch[0]), lambda batch: net(batch[0]), Programs(net, net), (torch.ones(3, 2),))
        ''
    """
    limit = APART * _unit(programs, batch) ** POWER
    for trial in range(TRIALS):
        again = redraw(batch, trial)
        (expected, kept), (found, written) = (_outcome(run, programs, again, trial) for run in (function, graph))
        names = [name for name, tensor in _buffers(programs).items() if _written(name, tensor, kept, written)]
        ours, theirs = ([of[name] for name in names] for of in (written, kept))
        reason = differing(found, expected, limit) or differing(ours, theirs, limit)
        if not reason:
            return "" if not expected or any(part.isfinite().any() for part in expected) else None
    return reason


def _outcome(run: Run, programs: Programs, batch: Batch, seed: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the tensors that a run gives, and the buffers that it leaves."""
    with undisturbed(programs, seed):
        parts = [part.detach() for part in tree_leaves(run(batch)) if isinstance(part, Tensor)]
        left = {name: tensor.detach().clone() for name, tensor in _buffers(programs).items()}
        return [part.to_dense() if part.is_sparse else part.clone() for part in parts], left


def _written(name: str, before: Tensor, *runs: Mapping[str, Tensor]) -> bool:
    """Tell whether a run wrote a buffer: by its numbers, as batch norm and compiled code give it no new version."""
    return all(name in left for left in runs) and not all(torch.equal(left[name], before) for left in runs)


def _buffers(programs: Programs) -> dict[str, Tensor]:
    """Return buffers, and frozen parameters, by each of their names."""
    return {
        f"{owner}.{name}": tensor
        for owner, module in programs.modules.items()
        for named in (module.named_buffers, module.named_parameters)
        for name, tensor in named(remove_duplicate=False)
        if named == module.named_buffers or not tensor.requires_grad
    }


def _unit(programs: Programs, batch: Batch) -> float:
    """Return the coarsest unit of rounding there is."""
    kind, tensors = batch[0].device.type, programs.tensors().values()
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} or {torch.get_default_dtype()}
    types |= {torch.get_autocast_dtype(kind)} if torch.is_autocast_enabled(kind) else set()
    unit = max(torch.finfo(dtype).eps for dtype in types)
    convolves = any(tensor.dim() > 2 for tensor in tensors)
    if kind == "cuda" and torch.float32 in types and (convolves or torch.get_float32_matmul_precision() != "highest"):
        return max(unit, TF32)
    return unit


def differing(found: Sequence[Tensor], expected: Sequence[Tensor], limit: float) -> str:
    """Return in what tensors lie further apart than rounding, "" if in nothing.

    Args:
        found: tensors.
        expected: as many.
        limit: how far they may lie apart, as a part of their size, the root of the sum of squares.

    Example:
        >>> differing([torch.tensor([-90.0, -91.0])], [torch.tensor([-90.0, -92.0])], 1e-3)
        'a tensor of shape (2,) is off by 0.0078 of its size, where rounding explains 0.001'
    """
    if [part.shape for part in found] != [part.shape for part in expected]:
        return "shapes are others"
    least = LEAST * max([1.0, *(_size(part) for part in expected if part.dim())])
    for one, other in zip(found, expected, strict=True):
        if reason := _difference(one, other, limit, least):
            return f"a tensor of shape {tuple(other.shape)} {reason}"
    return ""


def _difference(one: Tensor, other: Tensor, limit: float, least: float) -> str:
    if not (other.is_floating_point() or other.is_complex()):
        return "" if torch.equal(one, other) else "has other whole numbers"
    # Infinities of one sign are alike, and so are two that are no numbers; what is left of others is not finite.
    gap = (one - other).masked_fill((one == other) | (one.isnan() & other.isnan()), 0).abs()
    size = _size(other)
    off = float(torch.linalg.vector_norm(gap, dtype=torch.float64)) / max(size, least)
    if not off <= limit:
        return f"is off by {off:.2g} of its size, where rounding explains {limit:.2g}"
    # Few numbers of great size might hide that all others are wrong.
    floor = limit**2 * size / max(other.numel(), 1) ** 0.5
    if size > least and 2 * int((gap > limit * other.abs() + floor).sum()) > other.numel():
        return f"has more than half of its numbers off by {limit:.2g} of their own size"
    return ""


def _size(tensor: Tensor) -> float:
    """Return the root of the sum of squares of the finite numbers."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return float(torch.linalg.vector_norm(tensor.nan_to_num(0.0, 0.0, 0.0).to(torch.float64)))
