"""Log densities of many data under a few distributions: whitened, as one matrix product."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

__all__ = ["log_density"]


def log_density(fn: Any, x: Tensor) -> Tensor:
    """Return ``fn.log_prob(x)``, quickly where a multivariate normal is the same for all data.

    With a Cholesky factor L of each covariance, and any c, which is here the mean of the data::

        log N(x; m, LL') = -|L^-1 (x - c) - L^-1 (m - c)|^2 / 2 - log|L| - D log(2 pi) / 2

    All L^-1 stand above one another in one matrix, so that one product serves all components. What is no such normal
    computes its own ``log_prob``.

    Args:
        fn: a distribution of batch shape ``(*components, N)``; any number of axes for components.
        x: data ``(N, *event)``.

    Returns:
        Nats, ``(*components, N)``.

    Example:
        >>> loc, covariance = torch.randn(3, 1, 2), torch.eye(2)  # of three components
        >>> fn, x = torch.distributions.MultivariateNormal(loc, covariance).expand((3, 5)), torch.randn(5, 2)
        >>> torch.allclose(log_density(fn, x), fn.log_prob(x), atol=1e-5)
        True
    """
    if not isinstance(fn, MultivariateNormal) or x.dim() != 2:
        return fn.log_prob(x)
    loc, tril = _of_one_datum(fn.loc, 2), _of_one_datum(fn._unbroadcasted_scale_tril, 3)
    if loc is None or tril is None:
        return fn.log_prob(x)
    return _whitened(loc, tril, x)


def _of_one_datum(parameter: Tensor, axis: int) -> Tensor | None:
    """Return a parameter without its axis of data, or None where it changes along that axis."""
    if parameter.dim() < axis:
        return parameter
    if parameter.shape[-axis] == 1 or parameter.stride(-axis) == 0:
        return parameter.select(-axis, 0)
    return None


def _whitened(loc: Tensor, tril: Tensor, x: Tensor) -> Tensor:
    dim, rows = x.shape[-1], len(x)
    components = torch.broadcast_shapes(loc.shape[:-1], tril.shape[:-2])
    x = x.to(tril.dtype)
    centre = x.detach().mean(0)  # far from the data's mean both products would be large, and cancel
    inverse = torch.linalg.solve_triangular(tril, torch.eye(dim).to(tril), upper=False)
    shift = (inverse @ (loc - centre).unsqueeze(-1)).expand(*components, dim, 1)
    stacked = inverse.expand(*components, dim, dim).reshape(-1, dim)
    # Data along the last axis: sums over D then run over whole rows of memory.
    y = torch.addmm(shift.reshape(-1, 1), stacked, (x - centre).mT, beta=-1)
    squares = y.square() if torch.is_grad_enabled() else y.square_()
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).unsqueeze(-1)
    return -0.5 * (squares.view(*components, dim, rows).sum(-2) + dim * math.log(2 * math.pi)) - log_det
