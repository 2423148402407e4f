"""Log densities of many data under a few normal distributions: whitened, as one matrix product."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

__all__ = ["fast_log_prob", "in_parts", "is_shared", "normalised", "of_one_datum", "slices_of", "whitened"]

# Numbers computed at a time, which then stay in the processor's cache.
IN_CACHE = 2**17


def fast_log_prob(fn: Any, x: Tensor) -> Tensor:
    """Return ``fn.log_prob(x)``, quickly where a multivariate normal is the same for all data.

    What is no such normal computes its own ``log_prob``.

    Args:
        fn: a distribution of batch shape ``(*components, N)``; any number of axes for components.
        x: data ``(N, *event)``.

    Returns:
        Nats, ``(*components, N)``.

    Example:
        >>> loc, covariance = torch.randn(3, 1, 2), torch.eye(2)  # of three components
        >>> fn, x = torch.distributions.MultivariateNormal(loc, covariance).expand((3, 5)), torch.randn(5, 2)
        >>> torch.allclose(fast_log_prob(fn, x), fn.log_prob(x), atol=1e-5)
        True
    """
    if not is_shared(fn) or x.dim() != 2:
        return fn.log_prob(x)
    loc, tril = of_one_datum(fn.loc, 2), of_one_datum(fn._unbroadcasted_scale_tril, 3)
    components, dim = torch.broadcast_shapes(loc.shape[:-1], tril.shape[:-2]), x.shape[-1]
    inverse = torch.linalg.solve_triangular(tril, torch.eye(dim).to(tril), upper=False)
    level = -tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - dim / 2 * math.log(2 * math.pi)
    count = math.prod(components)
    x = x.to(tril.dtype)
    origin = x.detach().mean(0)
    found = whitened(
        x,
        inverse.expand(*components, dim, dim).reshape(count, dim, dim),
        (loc - origin).expand(*components, dim).reshape(count, dim),
        level.expand(components).reshape(count),
        origin,
    )
    return found.reshape(*components, len(x))


def is_shared(fn: Any) -> bool:
    """Tell whether a distribution is a multivariate normal that is the same for all data.

    Example:
        >>> fn = MultivariateNormal(torch.zeros(3, 1, 2), torch.eye(2)).expand((3, 5))
        >>> is_shared(fn), is_shared(MultivariateNormal(torch.zeros(5, 2), torch.eye(2)))
        (True, False)
    """
    if not isinstance(fn, MultivariateNormal):
        return False
    return of_one_datum(fn.loc, 2) is not None and of_one_datum(fn._unbroadcasted_scale_tril, 3) is not None


def of_one_datum(parameter: Tensor, axis: int) -> Tensor | None:
    """Return a parameter without its axis of data, or None where it changes along that axis.

    Args:
        parameter: of a distribution.
        axis: which one it is, counted from the right.

    Example:
        >>> of_one_datum(torch.zeros(3, 1, 2).expand(3, 5, 2), 2).shape
        torch.Size([3, 2])
    """
    if parameter.dim() < axis:
        return parameter
    if parameter.shape[-axis] == 1 or parameter.stride(-axis) == 0:
        return parameter.select(-axis, 0)
    return None


def whitened(x: Tensor, whitening: Tensor, loc: Tensor, level: Tensor, origin: Tensor) -> Tensor:
    """Return quadratic log densities of data, as one matrix product for all components.

    ::

        level_k - |W_k (x - origin) - W_k m_k|^2 / 2

    The square of a small difference keeps digits that an expanded square would lose.

    Args:
        x: data ``(N, D)``.
        whitening: W, ``(C, D, D)``, with ``W'W`` the precision.
        loc: m, the mode less the origin, ``(C, D)``.
        level: log density there, ``(C,)``.
        origin: ``(D,)``, among the data: far from it both products would be large, and cancel.

    Returns:
        Nats, ``(C, N)``.

    Example:
        >>> zero = torch.zeros(1)
        >>> whitened(torch.tensor([[0.0], [2.0]]), torch.ones(1, 1, 1), torch.zeros(1, 1), zero, zero)
        tensor([[ 0., -2.]])
    """
    # A column of ones carries the shift through the product, which saves a pass over all of its result.
    weight = torch.cat([whitening, -whitening @ loc.unsqueeze(-1)], -1).reshape(-1, x.shape[1] + 1)
    one = x.new_ones(len(x), 1)

    def of_rows(rows: slice) -> Tensor:
        # Data along the last axis: sums over D then run over whole rows of memory.
        y = (weight @ torch.cat([x[rows] - origin, one[rows]], 1).mT).unflatten(0, whitening.shape[:2])
        squares = (y.square() if y.requires_grad else y.square_()).sum(1)
        return torch.sub(level.unsqueeze(1), squares, alpha=0.5)

    return in_parts(of_rows, len(x), len(weight))


def in_parts(of_rows: Callable[[slice], Tensor], rows: int, width: int) -> Tensor:
    """Return what a function of a few rows gives for all of them, side by side.

    Args:
        of_rows: from a slice of rows to ``(..., few)``.
        rows: of the data.
        width: how many numbers it computes of a row.

    Example:
        >>> in_parts(lambda rows: torch.arange(5)[rows], 5, width=2**16)
        tensor([0, 1, 2, 3, 4])
    """
    slices = slices_of(rows, width)
    first = of_rows(slices[0])
    if first.requires_grad:
        return torch.cat([first, *map(of_rows, slices[1:])], -1)
    # Joined at the end, small tensors would be held twice and leave holes in memory.
    out = first.new_empty(*first.shape[:-1], rows)
    out[..., slices[0]] = first
    for few in slices[1:]:
        out[..., few] = of_rows(few)
    return out


def normalised(log_p: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return probabilities proportional to ``exp(log_p)`` along an axis, and the logarithm of the sum they had.

    Args:
        log_p: nats; one of them is finite.
        dim: the axis, which the sum has no more.

    Example:
        >>> normalised(torch.tensor([-4.0, -4.0]), 0)
        (tensor([0.5000, 0.5000]), tensor(-3.3069))
    """
    shares = log_p.softmax(dim)
    # Of the most probable value, log p less log share: maxima cost less than another pass of exponentials.
    log_total = log_p.amax(dim) - shares.amax(dim).log()
    # Arithmetic with numbers this close to zero takes a hundred times as long.
    number = torch.finfo(shares.dtype)
    return torch.nn.functional.threshold_(shares, number.tiny / number.eps, 0.0), log_total


def slices_of(rows: int, width: int) -> list[slice]:
    """Return slices that cover so many rows, a few at a time.

    Args:
        rows: of the data.
        width: how many numbers are computed of a row.

    Example:
        >>> slices_of(5, width=2**16)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    size = max(1, IN_CACHE // width)
    return [slice(start, start + size) for start in range(0, rows, size)]
