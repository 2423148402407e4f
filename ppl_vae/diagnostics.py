"""Whether an importance-sampling estimate can be believed: effective sample size and Pareto k-hat."""

import math

import torch
from torch import Tensor

__all__ = ["effective_sample_size", "log_mean_error", "pareto_khat"]


def effective_sample_size(log_w: Tensor) -> Tensor:
    """Return the effective number of draws of each datum, ``(B,)``, between 1 and K.

    ``(sum_k w_k)^2 / sum_k w_k^2`` of log-weights ``(K, B)``.

    Reference: A. Kong, "A Note on Importance Sampling using Standardized Weights", Technical
    Report 348, University of Chicago, 1992.

    Example:
        >>> effective_sample_size(torch.zeros(8, 1))
        tensor([8.])
    """
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def log_mean_error(log_w: Tensor) -> Tensor:
    """Return the standard error of the logarithm of each datum's mean weight, ``(B,)``; NaN for K = 1.

    By the delta method, with s^2 the unbiased variance of the weights::

        var(log mean_k w_k) ~ s^2 / (K mean(w)^2) = (K / ESS - 1) / (K - 1)

    Args:
        log_w: log-weights ``(K, B)``.

    Reference: A. Owen, "Monte Carlo theory, methods and examples", chapter 9, https://artowen.su.domains/mc/.

    Example:
        >>> log_mean_error(torch.tensor([[0.0], [0.0]]))
        tensor([0.])
    """
    k = len(log_w)
    variance = (k / effective_sample_size(log_w) - 1).clamp_min(0) / max(k - 1, 1)
    return variance.sqrt() if k > 1 else torch.full_like(variance, math.nan)


def pareto_khat(log_w: Tensor) -> Tensor:
    """Return the shape of the weights' tail for each datum, ``(B,)``: their Pareto k-hat.

    Above 0.7 the estimate and its error are not to be trusted at any practical K; below 0.5 the
    variance of the weights is finite. The generalised Pareto distribution is fitted to the
    ``min(K / 5, 3 sqrt(K))`` largest weights, over the largest weight below them. Infinite where
    there are fewer than five such draws; minus infinity where the largest weights lie within one
    per cent of one another, as all do under the exact posterior: a tail of rounding errors says nothing.

    Args:
        log_w: log-weights ``(K, B)``.

    Reference: A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto Smoothed Importance
    Sampling", JMLR 2024, https://arxiv.org/abs/1507.02646; J. Zhang, M. Stephens, "A New and
    Efficient Estimation Method for the Generalized Pareto Distribution", Technometrics 2009,
    https://doi.org/10.1198/tech.2009.08017.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator ...>
        >>> pareto_khat(torch.randn(2000, 1)) < 0.7
        tensor([True])
    """
    draws = log_w.shape[0]
    tail = math.ceil(min(0.2 * draws, 3 * math.sqrt(draws)))
    if tail < 5:
        return log_w.new_full(log_w.shape[1:], math.inf)
    largest = (log_w - log_w.amax(0)).topk(tail + 1, dim=0).values.flip(0)
    # As in the reference implementations: weights below the smallest float count as that float.
    cutoff = largest[0].clamp_min(math.log(torch.finfo(log_w.dtype).tiny)).exp()
    excess = largest[1:].exp() - cutoff
    # Weights tied with the cutoff are no part of the tail, whose length then differs by datum.
    if (excess > 0).all():
        khat = _generalised_pareto_shape(excess)
    else:
        khat = torch.stack([_shape_of_tail(column[column > 0]) for column in excess.unbind(1)])
    return torch.where(largest[-1] - largest[0] < 0.01, -math.inf, khat)


def _shape_of_tail(excess: Tensor) -> Tensor:
    if len(excess) < 5:
        return excess.new_tensor(math.inf)
    return _generalised_pareto_shape(excess.unsqueeze(-1)).squeeze(-1)


def _generalised_pareto_shape(x: Tensor) -> Tensor:
    """Fit the shape k of a generalised Pareto distribution to ascending positive draws ``(n, B)``.

    The posterior mean of the profile likelihood over a grid of Zhang and Stephens, with the weak
    prior of Vehtari et al. that draws k towards 0.5 as if by ten more draws.
    """
    n = x.shape[0]
    grid = 30 + int(math.sqrt(n))
    steps = torch.arange(1, grid + 1, dtype=x.dtype, device=x.device).unsqueeze(-1)  # (grid, 1)
    quartile = x[int(n / 4 + 0.5) - 1].clamp_min(torch.finfo(x.dtype).tiny)
    b = 1 / x[-1] + (1 - (grid / (steps - 0.5)).sqrt()) / (3 * quartile)  # (grid, B)
    k = torch.stack([torch.log1p(-row * x).mean(0) for row in b])  # (grid, B)
    log_likelihood = n * ((-b / k).log() - k - 1)
    weight = log_likelihood.softmax(0)
    b_mean = (weight * b).sum(0)
    k_mean = torch.log1p(-b_mean * x).mean(0)
    return (n * k_mean + 10 * 0.5) / (n + 10)
