"""Log densities of data in their natural form, where one matrix product serves all data and components.

If the parameters of ``p(x | theta)`` do not change along the data, its log density is ``<eta(theta), t(x)> - A``:
expectations over theta need those of eta alone, and sums over data need those of the statistics t alone. Data and
locations are measured from an origin among the data, since squares of numbers far from zero lose their digits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Size, Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal

from ppl_vae.contract import Site
from ppl_vae.densities import in_parts, of_one_datum, slices_of, whitened

__all__ = ["Form", "Linear", "Quadratic", "log_density", "natural", "natural_form"]

Coefficients = tuple[Tensor, ...]


class Linear:
    """``<w, f(x)> + c`` with features f of the data."""

    def __init__(self, features: Callable[[Tensor], Tensor]):
        self.features = features

    def table(self, x: Tensor, coefficients: Coefficients) -> Tensor:
        """Return the log density of each datum under each row of coefficients, ``(C, N)``."""
        weight, constant = coefficients

        def of_rows(rows: slice) -> Tensor:
            return torch.addmm(constant.unsqueeze(1), weight, self.features(x[rows]).mT)

        return in_parts(of_rows, len(x), sum(weight.shape))

    def moments(self, x: Tensor, weights: Tensor) -> Coefficients:
        """Return what `total` needs of data with weights ``(C, N)``."""
        width = self.features(x[:1]).shape[1]
        return sum(weights[:, rows] @ self.features(x[rows]) for rows in slices_of(len(x), width)), weights.sum(1)

    def total(self, moments: Coefficients, coefficients: Coefficients) -> Tensor:
        """Return the weighted sum of log densities over data and components."""
        return sum((a * b).sum() for a, b in zip(moments, coefficients, strict=True))


class Quadratic:
    """``-(x - m)' L (x - m) / 2`` and a constant, given as ``-u' L u / 2 + h' u + c`` with u = x - origin."""

    def __init__(self, origin: Tensor):
        self.origin = origin

    def table(self, x: Tensor, coefficients: Coefficients) -> Tensor:
        """Return the log density of each datum under each row of coefficients, ``(C, N)``."""
        precision, linear, constant = coefficients
        factor = torch.linalg.cholesky(precision)
        loc = torch.cholesky_solve(linear.unsqueeze(-1), factor).squeeze(-1)
        return whitened(x, factor.mT, loc, constant + (linear * loc).sum(-1) / 2, self.origin)

    def moments(self, x: Tensor, weights: Tensor) -> Coefficients:
        """Return what `total` needs of data with weights ``(C, N)``."""
        second, first = 0.0, 0.0
        for rows in slices_of(len(x), x.shape[1] ** 2):
            apart = x[rows] - self.origin
            second, first = second + weights[:, rows] @ products(apart), first + weights[:, rows] @ apart
        return second.unflatten(1, (x.shape[1], -1)), first, weights.sum(1)

    def total(self, moments: Coefficients, coefficients: Coefficients) -> Tensor:
        """Return the weighted sum of log densities over data and components."""
        second, first, counts = moments
        precision, linear, constant = coefficients
        return (first * linear).sum() + (counts * constant).sum() - (second * precision).sum() / 2


Form = Linear | Quadratic


def natural_form(fn: Any, origin: Tensor | None = None) -> tuple[Form, Coefficients] | None:
    """Return the form and the coefficients of a distribution; None if it has none, or they change along the data.

    Args:
        fn: batch shape ``(..., N)``, event shape at most ``(D,)``.
        origin: event shape; zero when left out. Normal distributions measure data from it.

    Returns:
        Coefficients with the axes ``(...)`` in front, and the axis of data left out.

    Example:
        >>> form, coefficients = natural_form(Normal(torch.tensor([0.0, 1.0]).unsqueeze(1), 1.0).expand((2, 5)))
        >>> form.table(torch.zeros(5), coefficients)[:, 0]
        tensor([-0.9189, -1.4189])
    """
    base = fn.base_dist if isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1 else fn
    event = base is not fn
    make = {MultivariateNormal: _multivariate, Normal: _normal, Bernoulli: _bernoulli}.get(_kind(base))
    if make is None or not fn.batch_shape or (event and base.event_shape):
        return None
    return make(base, event, torch.zeros(()) if origin is None else origin)


def natural(site: Site, origin: Tensor | None = None) -> tuple[Form, Coefficients, Size] | None:
    """Return the form of an observed site with its coefficients, and the batch shape left of data.

    Coefficients have the batch as their first axis. None if the site has no such form.
    """
    if site["mask"] is not None or (found := natural_form(site["fn"], origin)) is None:
        return None
    form, coefficients = found
    batch = site["fn"].batch_shape[:-1]
    return form, tuple(c.reshape(batch.numel(), *c.shape[len(batch) :]) for c in coefficients), batch


def log_density(site: Site) -> Tensor:
    """Return a site's log density with its mask; that of categories as they were given.

    Torch's log probabilities stop at the machine's smallest step from zero.
    """
    fn, values = site["fn"], site["value"]
    if isinstance(fn, Categorical) and not site["is_observed"] and "probs" in fn.__dict__:
        values, log = torch.broadcast_tensors(values.unsqueeze(-1), _once(fn.probs).log())
        return log.gather(-1, values[..., :1]).squeeze(-1)
    return scale_and_mask(fn.log_prob(values), 1.0, site["mask"])


def _once(probs: Tensor) -> Tensor:
    """Return probabilities that are the same for all data with one row."""
    return probs.narrow(-2, 0, 1) if probs.dim() > 1 and probs.stride(-2) == 0 else probs


def products(x: Tensor) -> Tensor:
    """Return the products of all pairs of entries, ``(N, D * D)``.

    Example:
        >>> products(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2., 2., 4.]])
    """
    return (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1)


def _kind(fn: Any) -> type | None:
    """Return which of torch's distributions this is, Pyro's wrapper of it included."""
    known = (MultivariateNormal, Normal, Bernoulli)
    return next((kind for kind in known if isinstance(fn, kind) and type(fn).__name__ == kind.__name__), None)


def _multivariate(fn: MultivariateNormal, event: bool, origin: Tensor) -> tuple[Form, Coefficients] | None:
    tril, loc = of_one_datum(fn._unbroadcasted_scale_tril, 3), of_one_datum(fn.loc, 2)
    if tril is None or loc is None:
        return None
    given = fn.__dict__.get("precision_matrix")
    precision = torch.cholesky_inverse(tril) if given is None else of_one_datum(given, 3)
    origin = origin.to(loc)
    loc = loc - origin
    half_log_det = -tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    linear = (precision @ loc.unsqueeze(-1)).squeeze(-1)
    constant = half_log_det - (linear * loc).sum(-1) / 2 - loc.shape[-1] / 2 * math.log(2 * math.pi)
    batch = fn.batch_shape[:-1]
    size = loc.shape[-1:]
    return Quadratic(origin), (
        precision.expand(batch + size + size),
        linear.expand(batch + size),
        constant.expand(batch),
    )


def _normal(fn: Normal, event: bool, origin: Tensor) -> tuple[Form, Coefficients] | None:
    axis = 2 if event else 1
    loc, scale = of_one_datum(fn.loc, axis), of_one_datum(fn.scale, axis)
    if loc is None or scale is None:
        return None
    origin = origin.to(loc)
    loc = loc - origin
    loc, scale = (loc, scale) if event else (loc.unsqueeze(-1), scale.unsqueeze(-1))
    precision = scale**-2
    constant = -((precision * loc.square() + math.log(2 * math.pi)) / 2 + scale.log()).sum(-1)
    return Linear(partial(_and_squares if event else _scalar_and_square, origin)), (
        torch.cat([precision * loc, -precision / 2], -1),
        constant,
    )


def _bernoulli(fn: Bernoulli, event: bool, origin: Tensor) -> tuple[Form, Coefficients] | None:
    axis = 2 if event else 1
    # Probabilities as they were given: torch's logits of them stop at the machine's smallest step from 0 and 1.
    name = "probs" if "probs" in fn.__dict__ else "logits"
    given = of_one_datum(getattr(fn, name), axis)
    if given is None:
        return None
    given = given if event else given.unsqueeze(-1)
    if name == "probs":
        log, log_not = given.log(), torch.log1p(-given)
    else:
        log, log_not = torch.nn.functional.logsigmoid(given), torch.nn.functional.logsigmoid(-given)
    return Linear(_itself if event else _scalar), (log - log_not, log_not.sum(-1))


def _itself(x: Tensor) -> Tensor:
    return x


def _scalar(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


def _and_squares(origin: Tensor, x: Tensor) -> Tensor:
    apart = x - origin
    return torch.cat([apart, apart.square()], -1)


def _scalar_and_square(origin: Tensor, x: Tensor) -> Tensor:
    apart = x - origin
    return torch.stack([apart, apart.square()], -1)
