"""Products over elements, some of which are missing from the data."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import transform_to

__all__ = ["PartlyObserved", "partly_observed", "zero_where_missing"]


class PartlyObserved(dist.MaskedDistribution):
    """A distribution whose density leaves missing values out and never reads them, so that they may be NaN.

    (A mask alone multiplies the gradient of a missing value's density by zero, and zero times NaN is NaN.)

    Args:
        base_dist: distribution of each value.
        mask: True where a value is observed, broadcast to the batch shape.

    Example:
        >>> import pyro.distributions as dist
        >>> likelihood = PartlyObserved(dist.Normal(0.0, 1.0), torch.tensor([True, False]))
        >>> likelihood.log_prob(torch.tensor([0.0, torch.nan]))
        tensor([-0.9189,  0.0000])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, zero where a value is missing."""
        return super().log_prob(torch.where(self._mask, value, self._possible(value)))

    def _possible(self, value: Tensor) -> Tensor | float:
        """Return a value that has a density."""
        support = self.base_dist.support
        return getattr(support, "lower_bound", 0) if support.is_discrete else transform_to(support)(value.new_zeros(()))


def partly_observed(fn: dist.TorchDistribution, observed: Tensor) -> dist.TorchDistribution:
    """Return a product over elements of which only some are observed: the missing ones integrated out.

    ::

        log p(x_observed | z) = sum_(d observed) log p(x_d | z)

    Args:
        fn: independent elements, such as ``Normal(...).to_event(1)``.
        observed: True where an element is observed, in the shape of the event or with axes of a batch.

    Returns:
        A distribution with the batch and event shape of ``fn``. Its draws are whole.

    Raises:
        TypeError: ``observed`` is not boolean.
        ValueError: the elements of the distribution depend on each other; ``observed`` has another shape.

    Reference: R. J. A. Little, D. B. Rubin, "Statistical Analysis with Missing Data", Wiley 2002, section 6.2.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = partly_observed(dist.Normal(torch.zeros(3), 1.0).to_event(1), torch.tensor([True, False, True]))
        >>> fn.log_prob(torch.tensor([0.0, torch.nan, 0.0])), fn.event_shape
        (tensor(-1.8379), torch.Size([3]))
    """
    _check_boolean(observed)
    if isinstance(fn, dist.Independent):
        return dist.Independent(partly_observed(fn.base_dist, observed), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return partly_observed(fn.base_dist, observed).mask(fn._mask)
    if fn.event_shape:
        raise ValueError(
            f"fn: a {type(fn).__name__} with event shape {tuple(fn.event_shape)} is no product over elements, so that "
            "none of them can be left out; give independent elements, .to_event(1)"
        )
    _check_shapes(fn.batch_shape, observed.shape)
    return PartlyObserved(fn, observed)


def _check_shapes(elements: torch.Size, observed: torch.Size) -> None:
    try:
        torch.broadcast_shapes(elements, observed)
    except RuntimeError as error:
        raise ValueError(
            f"observed: expected one value for each element of shape {tuple(elements)}, found shape {tuple(observed)}; "
            "give it the shape of the event, or that of the data"
        ) from error


def zero_where_missing(x: Tensor, observed: Tensor) -> Tensor:
    """Return data as a network can read them: zeros in place of missing values, which may be NaN.

    Args:
        x: data.
        observed: True where a value is observed, broadcast to the shape of x.

    Raises:
        TypeError: ``observed`` is not boolean.

    Example:
        >>> zero_where_missing(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    _check_boolean(observed)
    return torch.where(observed, x, 0)


def _check_boolean(observed: Tensor) -> None:
    if observed.dtype != torch.bool:
        raise TypeError(
            f"observed: expected a boolean tensor, True where x is present, found {observed.dtype}; use .bool()"
        )
