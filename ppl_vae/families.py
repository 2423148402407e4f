"""Conjugate exponential families: what a factor of a mean-field posterior may be.

Each has a density ``log q(v) = <eta, t(v)> - A(eta)`` with natural parameters eta and statistics t. A family
here knows

* ``mean``: the expected statistics under its parameters,
* ``points``: a few values, all of one weight, whose statistics average to given ones,
* ``optimum``: its parameters, from the slopes of an expected log density in the expected statistics.

The points stand for the factor wherever a program computes with its latent: a log density that is linear in the
statistics, as conjugacy means, has the same average over them as over q. They are sigma points, for more
families than the normal.

Parameters, statistics and points are tensors with the batch axes first. A scalar normal is a vector of one, a
gamma a Wishart of one, a beta a Dirichlet of two. Second moments are taken about the mean, so that factors far from
zero keep their digits: with m the mean and S the covariance, ``<eta, E t>`` of a normal is a function of m and S.

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, sections 2.4 and 10.4; sigma
points at the corners of a simplex as in S. Julier, J. Uhlmann, "Reduced Sigma Point Filters for the Propagation of
Means and Covariances through Nonlinear Transformations", American Control Conference 2002.
"""

import math

import pyro.distributions as dist
import torch
from torch import Size, Tensor

from ppl_vae import conjugate_priors
from ppl_vae.matrices import expected_log_det, log_diagonal, outer, positive, simplex, symmetric, uneven

__all__ = ["Dirichlet", "Family", "Gaussian", "Natural", "NormalWishart", "Wishart"]

Natural = tuple[Tensor, ...]


class Family:
    """What the four families have in common; ``size`` is D, the length of a value."""

    def __init__(self, batch: Size, size: int, like: Tensor):
        self.batch, self.size = batch, size
        self.eye = torch.eye(size, dtype=like.dtype, device=like.device)
        self.zeros = like.new_zeros(*batch, size)

    def sample(self, eta: Natural, n: int) -> tuple[Tensor, ...]:
        """Draw values, ``(n, ...)``."""
        return (self.distribution(eta).sample((n,)),)

    def peaked(self, eta: Natural) -> Tensor:
        """Tell which densities have a highest point."""
        return self.valid(eta)

    def optimum(self, slopes: Natural, mean: Natural) -> Natural:
        """Return the parameters of the optimal factor, from slopes of the expected log density in the statistics."""
        return slopes

    def blend(self, old: Natural, new: Natural, rate: float) -> Natural:
        """Return what is a share of the way from one to another in natural parameters."""
        return tuple((1 - rate) * a + rate * b for a, b in zip(old, new, strict=True))


class Gaussian(Family):
    """Normal vectors: ``t = (v, v v')``, ``eta = (L m, -L / 2)`` with mean m and precision L; E t by m and ``L^-1``."""

    def natural(self, fn: dist.MultivariateNormal) -> Natural:
        """Return the natural parameters of a distribution of the family."""
        precision = torch.cholesky_inverse(fn.scale_tril)
        return (precision @ fn.loc.unsqueeze(-1)).squeeze(-1), -precision / 2

    def near(self, eta: Natural, k: int) -> Natural:
        """Return parameters of the same order of size, which differ with k."""
        q, by = self.distribution(eta), uneven(self.zeros, k)
        loc, half = q.loc + (by - 1) * q.stddev, eta[1] * outer(by)
        return -2 * (half @ loc.unsqueeze(-1)).squeeze(-1), half

    def optimum(self, slopes: Natural, mean: Natural) -> Natural:
        """Return the parameters of the optimal factor; slopes are in mean and covariance."""
        half = symmetric(slopes[1])
        return slopes[0] - 2 * (half @ mean[0].unsqueeze(-1)).squeeze(-1), half

    def distribution(self, eta: Natural) -> dist.MultivariateNormal:
        """Return the distribution that natural parameters stand for."""
        precision = -2 * symmetric(eta[1])
        factor = torch.linalg.cholesky(precision)
        loc = torch.cholesky_solve(eta[0].unsqueeze(-1), factor).squeeze(-1)
        return dist.MultivariateNormal(loc, covariance_matrix=torch.cholesky_inverse(factor))

    def valid(self, eta: Natural) -> Tensor:
        """Tell which parameters belong to a distribution."""
        return positive(-symmetric(eta[1]))

    def mean(self, eta: Natural) -> Natural:
        """Return mean and covariance, which say the expected statistics."""
        fn = self.distribution(eta)
        return fn.loc, fn.covariance_matrix

    def entropy(self, eta: Natural) -> Tensor:
        """Return the entropy of each factor, in nats."""
        return self.distribution(eta).entropy()

    def points(self, mean: Natural) -> tuple[Tensor, ...]:
        """Return ``m + L s_i`` with the corners s of a simplex, ``(D + 1, ..., D)``: as few as have the moments."""
        loc, covariance = mean
        spread = simplex(self.eye) @ torch.linalg.cholesky(covariance).mT
        return (loc + spread.movedim(-2, 0),)

    def mode(self, eta: Natural) -> tuple[Tensor, ...]:
        """Return the value of highest density."""
        return (self.distribution(eta).loc,)


class Wishart(Family):
    """Positive definite matrices: ``t = (log|V|, V)``, ``eta = ((nu - D - 1) / 2, -S^-1 / 2)``."""

    def natural(self, fn: dist.Wishart) -> Natural:
        """Return the natural parameters of a distribution of the family."""
        return (fn.df - self.size - 1) / 2, -fn.precision_matrix / 2

    def near(self, eta: Natural, k: int) -> Natural:
        """Return parameters of the same order of size and a moderate spread, which differ with k."""
        df = self.size + 3.0 + 2 * k
        scaled = df / (2 * eta[0] + self.size + 1)
        half = eta[1] * scaled[..., None, None] * outer(uneven(self.zeros, k))
        return torch.full_like(eta[0], (df - self.size - 1) / 2), half

    def optimum(self, slopes: Natural, mean: Natural) -> Natural:
        """Return the parameters of the optimal factor."""
        return slopes[0], symmetric(slopes[1])

    def distribution(self, eta: Natural) -> conjugate_priors.Wishart:
        """Return the distribution that natural parameters stand for."""
        df, scale_tril = self._degrees_and_scale(eta)
        return conjugate_priors.Wishart(df, scale_tril=scale_tril)

    def _degrees_and_scale(self, eta: Natural) -> tuple[Tensor, Tensor]:
        scale = torch.cholesky_inverse(torch.linalg.cholesky(-2 * symmetric(eta[1])))
        return 2 * eta[0] + self.size + 1, torch.linalg.cholesky(scale)

    def valid(self, eta: Natural) -> Tensor:
        """Tell which parameters belong to a distribution."""
        return positive(-symmetric(eta[1])) & (2 * eta[0] + 2 > 0)

    def mean(self, eta: Natural) -> Natural:
        """Return the expected statistics."""
        df, factor = self._degrees_and_scale(eta)
        return expected_log_det(df, factor), df[..., None, None] * (factor @ factor.mT)

    def entropy(self, eta: Natural) -> Tensor:
        """Return the entropy of each factor, in nats."""
        mean = self.mean(eta)
        return self.log_normalizer(eta) - inner(eta, mean, (0, 2))

    def log_normalizer(self, eta: Natural) -> Tensor:
        """Return A(eta)."""
        df, factor = self._degrees_and_scale(eta)
        half = df / 2
        return half * self.size * math.log(2) + df * log_diagonal(factor) + torch.mvlgamma(half, self.size)

    def points(self, mean: Natural) -> tuple[Tensor, ...]:
        """Return ``(1 +- d) E[V]``, ``(2, ..., D, D)``."""
        return (scale_factors(mean[0], mean[1], self.size)[..., None, None] * mean[1],)

    def peaked(self, eta: Natural) -> Tensor:
        """Tell which densities have a highest point."""
        return eta[0] > 0

    def mode(self, eta: Natural) -> tuple[Tensor, ...]:
        """Return the value of highest density."""
        return (eta[0][..., None, None] * torch.linalg.inv(-symmetric(eta[1])),)


class NormalWishart(Family):
    """A normal mean u with its precision V: ``t = (log|V|, V, V u, u' V u)``.

    Parameters are the usual ones, kappa, m, nu and ``S^-1``: ``u | V ~ N(m, (kappa V)^-1)``, ``V ~ Wishart(nu, S)``.
    Expected statistics are said by ``E log|V|``, ``E V``, m and ``D / kappa``, the mean of ``(u - m)' V (u - m)``.
    """

    def near(self, eta: Natural, k: int) -> Natural:
        """Return parameters of the same order of size and a moderate spread, which differ with k."""
        _, loc, df, scatter = eta
        new, one = self.size + 3.0 + 2 * k, torch.ones_like(df)
        by = uneven(self.zeros, k)
        scatter = scatter * (new / df)[..., None, None] * outer(by)
        spread = (scatter.diagonal(dim1=-2, dim2=-1) / new).sqrt()
        return one + 0.5 * k, loc + (by - 1) * spread, new * one, scatter

    def optimum(self, slopes: Natural, mean: Natural) -> Natural:
        """Return the parameters of the optimal factor; slopes are in what `mean` returns."""
        kappa, df = -2 * slopes[3], 2 * slopes[0] + self.size
        step = torch.linalg.solve(mean[1], slopes[2].unsqueeze(-1)).squeeze(-1) / kappa.unsqueeze(-1)
        scatter = -2 * symmetric(slopes[1]) - kappa[..., None, None] * outer(step)
        return kappa, mean[2] + step, df, scatter

    def blend(self, old: Natural, new: Natural, rate: float) -> Natural:
        """Return what is a share of the way from one to another in natural parameters."""
        one, other = (1 - rate) * old[0], rate * new[0]
        kappa, df = one + other, (1 - rate) * old[2] + rate * new[2]
        loc = old[1] + (other / kappa).unsqueeze(-1) * (new[1] - old[1])
        apart = (one * other / kappa)[..., None, None] * outer(new[1] - old[1])
        return kappa, loc, df, (1 - rate) * old[3] + rate * new[3] + apart

    @property
    def of_precision(self) -> "Wishart":
        """The family of the precision alone."""
        return Wishart(self.batch, self.size, self.eye)

    def wishart(self, eta: Natural) -> Natural:
        """Return the natural parameters of the precision alone."""
        return (eta[2] - self.size - 1) / 2, -eta[3] / 2

    def sample(self, eta: Natural, n: int) -> tuple[Tensor, ...]:
        """Draw means, ``(n, ..., D)``, and their precisions, ``(n, ..., D, D)``."""
        kappa, loc, _, _ = eta
        (precision,) = self.of_precision.sample(self.wishart(eta), n)
        return dist.MultivariateNormal(loc, precision_matrix=kappa[..., None, None] * precision).sample(), precision

    def valid(self, eta: Natural) -> Tensor:
        """Tell which parameters belong to a distribution."""
        return (eta[0] > 0) & eta[1].isfinite().all(-1) & self.of_precision.valid(self.wishart(eta))

    def mean(self, eta: Natural) -> Natural:
        """Return what says the expected statistics."""
        kappa, loc, _, _ = eta
        return (*self.of_precision.mean(self.wishart(eta)), loc, self.size / kappa)

    def entropy(self, eta: Natural) -> Tensor:
        """Return the entropy of each factor, in nats.

        That of the mean has ``E log|V|`` as points can say it, as its prior has, which it then meets.
        """
        log_det, precision = self.of_precision.mean(self.wishart(eta))
        log_det = log_diagonal(torch.linalg.cholesky(precision)) * 2 + reachable(log_det, precision, self.size)
        of_mean = self.size * (1 + math.log(2 * math.pi) - eta[0].log()) - log_det
        return self.of_precision.entropy(self.wishart(eta)) + of_mean / 2

    def points(self, mean: Natural) -> tuple[Tensor, ...]:
        """Return two means, ``(2, ..., D)``, and two precisions, ``(2, ..., D, D)``.

        The precision is ``(1 +- d) E[V]``; the means stand away from the centre on either side, and nearer for the
        larger precision, so that ``V u`` averages right.
        """
        log_det, precision, loc, beyond = mean
        factors = scale_factors(log_det, precision, self.size)
        step = (beyond * factors.prod(0) / precision[..., 0, 0]).sqrt()
        signed = torch.stack([step, -step]) / factors
        return loc + signed.unsqueeze(-1) * self.eye[0], factors[..., None, None] * precision

    def peaked(self, eta: Natural) -> Tensor:
        """Tell which densities have a highest point."""
        return eta[2] > self.size

    def mode(self, eta: Natural) -> tuple[Tensor, ...]:
        """Return mean and precision of highest joint density."""
        return eta[1], (eta[2] - self.size)[..., None, None] * torch.linalg.inv(eta[3])


class Dirichlet(Family):
    """Probabilities: ``t = log v``, ``eta = alpha - 1``."""

    def natural(self, fn: dist.Dirichlet) -> Natural:
        """Return the natural parameters of a distribution of the family."""
        return (fn.concentration - 1,)

    def near(self, eta: Natural, k: int) -> Natural:
        """Return parameters of a moderate spread, which differ with k."""
        return ((2.0 + k) * uneven(self.zeros, k + 1) - 1,)

    def distribution(self, eta: Natural) -> dist.Dirichlet:
        """Return the distribution that natural parameters stand for."""
        return dist.Dirichlet(eta[0] + 1)

    def valid(self, eta: Natural) -> Tensor:
        """Tell which parameters belong to a distribution."""
        return (eta[0] > -1).all(-1)

    def mean(self, eta: Natural) -> Natural:
        """Return the expected statistics."""
        concentration = eta[0] + 1
        return (torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True)),)

    def entropy(self, eta: Natural) -> Tensor:
        """Return the entropy of each factor, in nats."""
        return self.distribution(eta).entropy()

    def points(self, mean: Natural) -> tuple[Tensor, ...]:
        """Return two probability vectors, ``(2, ..., D)``.

        With ``s = exp(E log v)``, which sums to less than one, they are ``s r`` and ``s / r``, where r has one value
        for the largest entry and another for the rest, such that both sum to one: a quadratic equation.
        """
        (log,) = mean
        if self.size == 1:
            return (torch.ones_like(log).unsqueeze(0),)
        log = log.clamp_min(lowest_log(log))
        largest = torch.nn.functional.one_hot(log.argmax(-1), self.size).bool()
        share = log.exp()
        one = (share * largest).sum(-1, keepdim=True)
        rest = (share * ~largest).sum(-1, keepdim=True)
        middle = 1 + (one - rest) * (one + rest)
        root = ((1 - one - rest) * (1 - one + rest) * (1 + one + rest) * (1 + one - rest)).clamp_min(0).sqrt()
        for_one = 2 * one / (middle + root)  # the smaller root, without cancellation
        ratio = torch.where(largest, for_one, (1 - one * for_one) / rest)
        return (torch.stack([share * ratio, share / ratio]),)

    def peaked(self, eta: Natural) -> Tensor:
        """Tell which densities have a highest point."""
        return (eta[0] >= -(torch.finfo(eta[0].dtype).eps ** 0.5)).all(-1)  # counts that are zero, but for rounding

    def mode(self, eta: Natural) -> tuple[Tensor, ...]:
        """Return the value of highest density; the middle if all are, and no zero, whose logarithm is no number."""
        excess = eta[0].clamp_min(0)
        total = excess.sum(-1, keepdim=True)
        mode = torch.where(total > 0, excess / total, 1 / self.size)
        return (mode.clamp_min(torch.finfo(mode.dtype).tiny),)


def scale_factors(log_det: Tensor, mean: Tensor, size: int) -> Tensor:
    """Return ``1 +- d`` such that ``(1 +- d) E[V]`` have ``E log|V|`` as their average log determinant."""
    product = 2 / size * reachable(log_det, mean, size)  # log(1 - d^2)
    above = 1 + (-torch.expm1(product)).clamp_min(0).sqrt()
    return torch.stack([above, product.exp() / above])  # the smaller one without cancellation


def reachable(log_det: Tensor, mean: Tensor, size: int) -> Tensor:
    """Return ``E log|V| - log|E V|``, as far down as two points in floating point can have it."""
    gap = log_det - 2 * log_diagonal(torch.linalg.cholesky(mean))
    return gap.clamp_min(size / 2 * lowest_log(gap))


def lowest_log(like: Tensor) -> float:
    """Return a number l such that exp(2 l) is a number still, and exp(l) so small that nothing notices.

    Example:
        >>> lowest_log(torch.zeros(1)), lowest_log(torch.zeros(1).double())
        (-40.0, -300.0)
    """
    return -300.0 if like.dtype == torch.float64 else -40.0


def inner(eta: Natural, mean: Natural, axes: tuple[int, ...]) -> Tensor:
    """Return ``<eta, E t>`` of each factor; ``axes`` says how many axes each statistic has."""
    terms = ((a * b).flatten(a.dim() - n).sum(-1) if n else a * b for a, b, n in zip(eta, mean, axes, strict=True))
    return sum(terms)
