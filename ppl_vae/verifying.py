"""Hold a compiled graph to an eager run of what it was made of: compilers have faults, and tell nobody."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vae.batches import Batch
from ppl_vae.programs import Programs, undisturbed

__all__ = ["differing", "fault"]

# Rounding may turn a discrete draw over, and with it a gradient, but not with any of several draws.
TRIALS = 5
# Of log-weights, one that a draw was turned over for moves alone: so many of them may.
SHARE = 0.01
# Of the numbers that a GPU multiplies, where ten bits are as many as it may be asked for (TF32).
EPS_ON_GPU = 2.0**-10


def fault(graph: Callable[[Batch], Any], function: Callable[[Batch], Any], programs: Programs, batch: Batch) -> str:
    """Return in what a graph differs from a function by more than rounding, if in anything; changes nothing.

    Both run on the batch with the same draws, five times with others if they differ.

    Args:
        graph: made of the function, and compiled.
        function: of a batch, to tensors in tuples, lists and dicts.
        programs: what both use; buffers that they write are compared too.
        batch: data.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> fault(lambda batch: net(batch[0]), lambda batch: net(batch[0]), Programs(net, net), (torch.ones(3, 2),))
        ''
    """
    for seed in range(TRIALS):
        expected, found = (_outcome(run, programs, batch, seed) for run in (function, graph))
        if not (reason := differing(found, expected, _tolerance(programs, batch))):
            break
    return reason


def _outcome(run: Callable[[Batch], Any], programs: Programs, batch: Batch, seed: int) -> list[Tensor]:
    """Return all numbers that a run gives, and those that it leaves in buffers."""
    with undisturbed(programs, seed):
        result = run(batch)
        kept = [tensor for tensor in programs.tensors().values() if not tensor.requires_grad]
        parts = [part.detach() for part in (*tree_leaves(result), *kept) if isinstance(part, Tensor)]
        return [part.to_dense() if part.is_sparse else part.clone() for part in parts]


def _tolerance(programs: Programs, batch: Batch) -> float:
    """Return the root of the coarsest rounding: half of a number's digits."""
    kind = batch[0].device.type
    types = {tensor.dtype for tensor in programs.tensors().values() if tensor.is_floating_point()}
    types |= {torch.get_autocast_dtype(kind)} if torch.is_autocast_enabled(kind) else set()
    coarsest = max(torch.finfo(dtype).eps for dtype in types or {torch.get_default_dtype()})
    return (coarsest if kind == "cpu" else max(coarsest, EPS_ON_GPU)) ** 0.5


def differing(found: list[Tensor], expected: list[Tensor], tolerance: float) -> str:
    """Return why numbers are not those that were expected, "" if they are, to a share of their size and of their mean.

    Example:
        >>> differing([torch.tensor([-90.0, -91.0])], [torch.tensor([-90.0, -92.0])], 1e-3)
        'in 50 % of 2 numbers it differs from an eager run with the same draws, by up to 1, a fault of the compiler'
    """
    return next(_faults(found, expected, tolerance), "")


def _faults(found: list[Tensor], expected: list[Tensor], tolerance: float) -> Iterator[str]:
    for one, other in zip(found, expected, strict=True):
        if not other.numel() or not (other.is_floating_point() or other.is_complex()):
            continue
        size = other[other.isfinite()].abs().double().square().mean().sqrt().nan_to_num()
        alike = torch.isclose(one, other, rtol=tolerance, atol=tolerance * max(1.0, float(size)), equal_nan=True)
        if (share := float((~alike).double().mean())) > SHARE:
            most = float((one - other)[~alike].abs().max())
            yield (
                f"in {share:.0%} of {other.numel()} numbers it differs from an eager run with the same draws, by up to "
                f"{most:.2g}, a fault of the compiler"
            ).replace("%", " %")
