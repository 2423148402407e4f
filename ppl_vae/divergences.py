"""Divergences KL(q || p) in closed form: torch's, Pyro's, and that of any normal from independent ones."""

from math import log, pi

from torch import Tensor, broadcast_shapes
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

__all__ = ["closed_kl"]


def closed_kl(q: Distribution, p: Distribution) -> Tensor | None:
    """Return KL(q || p) in nats, of the batch shape; None where nobody knows it in closed form.

    Torch has it for pairs of a kind, Pyro for independent normals from a correlated one. For any normal q with
    mean mu and covariance S, from independent ones::

        KL(q || N(m, diag(s^2))) = sum_i [log s_i + log(2 pi) / 2 + ((mu_i - m_i)^2 + S_ii) / (2 s_i^2)] - H(q)

    Nothing is registered with torch, whose table is everybody's.

    Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, exercise 2.13.

    Example:
        >>> import pyro.distributions as dist
        >>> q = dist.MultivariateNormal(torch.ones(2), torch.eye(2))
        >>> closed_kl(q, dist.Normal(torch.zeros(2), 1.0).to_event(1))
        tensor(1.)
    """
    if q.batch_shape != p.batch_shape:  # one of them has an axis of enumerated values; torch's Bernoulli needs both to
        shape = broadcast_shapes(q.batch_shape, p.batch_shape)
        q, p = q.expand(shape), p.expand(shape)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        pass
    correlated = isinstance(q, MultivariateNormal | LowRankMultivariateNormal)
    independent = isinstance(p, Independent) and isinstance(p.base_dist, Normal) and p.reinterpreted_batch_ndims == 1
    return _from_independent(q, p.base_dist) if correlated and independent else None


def _from_independent(q: MultivariateNormal | LowRankMultivariateNormal, p: Normal) -> Tensor:
    squares = ((q.mean - p.loc).square() + q.variance) / p.scale.square()
    return (p.scale.log() + (log(2 * pi) + squares) / 2).sum(-1) - q.entropy()
