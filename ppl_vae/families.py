"""Conjugate exponential families: what a factor of a mean-field posterior may be.

Each has a density ``log q(v) = <eta, t(v)> - A(eta)`` with natural parameters eta and statistics t. A family
here knows

* ``mean``: the expected statistics under eta,
* ``points``: a few values, all of one weight, whose statistics average to given ones.

The points stand for the factor wherever a program computes with its latent: a log density that is linear in the
statistics, as conjugacy means, has the same average over them as over q. They are sigma points, for more
families than the normal.

Parameters, statistics and points are tensors with the batch axes first. A scalar normal is a vector of one, a
gamma a Wishart of one, a beta a Dirichlet of two.

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, sections 2.4 and 10.4; sigma
points as in S. Julier, J. Uhlmann, "Unscented Filtering and Nonlinear Estimation", Proceedings of the IEEE 2004.
"""

import math

import pyro.distributions as dist
import torch
from torch import Size, Tensor

__all__ = ["Dirichlet", "Family", "Gaussian", "Natural", "NormalWishart", "Wishart"]

Natural = tuple[Tensor, ...]
# Below it exp(2 l) is no number any more, and no probability that anything could notice.
LOWEST_LOG = -300.0


class Family:
    """What the four families have in common; ``size`` is D, the length of a value."""

    def __init__(self, batch: Size, size: int, like: Tensor):
        self.batch, self.size = batch, size
        self.eye = torch.eye(size, dtype=like.dtype, device=like.device)
        self.zeros = like.new_zeros(*batch, size)

    def sample(self, eta: Natural, n: int) -> tuple[Tensor, ...]:
        """Draw values, ``(n, ...)``."""
        return (self.distribution(eta).sample((n,)),)

    def matrices(self, scale: float) -> Tensor:
        """Return a multiple of the identity for each factor."""
        return scale * self.eye.expand(*self.batch, self.size, self.size)


class Gaussian(Family):
    """Normal vectors: ``t = (v, v v')``, ``eta = (L m, -L / 2)`` with mean m and precision L."""

    def natural(self, fn: dist.MultivariateNormal) -> Natural:
        """Return the natural parameters of a distribution of the family."""
        precision = torch.cholesky_inverse(fn.scale_tril)
        return (precision @ fn.loc.unsqueeze(-1)).squeeze(-1), -precision / 2

    def reference(self, k: int) -> Natural:
        """Return one of several parameters that have nothing in common but being harmless."""
        return self.zeros + 0.3 * k, self.matrices(-0.5 - 0.2 * k)

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
        """Return the expected statistics."""
        fn = self.distribution(eta)
        return fn.loc, fn.covariance_matrix + outer(fn.loc)

    def entropy(self, eta: Natural) -> Tensor:
        """Return the entropy of each factor, in nats."""
        return self.distribution(eta).entropy()

    def points(self, mean: Natural) -> tuple[Tensor, ...]:
        """Return ``m +- sqrt(D) L e_i``, ``(2 D, ..., D)``."""
        loc, second = mean
        spread = self.size**0.5 * torch.linalg.cholesky(second - outer(loc)).mT
        steps = spread.movedim(-2, 0)  # a column of the factor each
        return (torch.cat([loc + steps, loc - steps]),)

    def mode(self, eta: Natural) -> tuple[Tensor, ...]:
        """Return the value of highest density."""
        return (self.distribution(eta).loc,)


class Wishart(Family):
    """Positive definite matrices: ``t = (log|V|, V)``, ``eta = ((nu - D - 1) / 2, -S^-1 / 2)``."""

    def natural(self, fn: dist.Wishart) -> Natural:
        """Return the natural parameters of a distribution of the family."""
        return (fn.df - self.size - 1) / 2, -fn.precision_matrix / 2

    def reference(self, k: int) -> Natural:
        """Return one of several parameters that have nothing in common but being harmless."""
        return self.zeros.sum(-1) + 1.0 + k, self.matrices(-0.5 - 0.3 * k)

    def distribution(self, eta: Natural) -> dist.Wishart:
        """Return the distribution that natural parameters stand for."""
        df, scale_tril = self._degrees_and_scale(eta)
        return dist.Wishart(df, scale_tril=scale_tril)

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
        (factors,) = (scale_factors(mean[0], mean[1], self.size),)
        return (factors[..., None, None] * mean[1],)

    def mode(self, eta: Natural) -> tuple[Tensor, ...]:
        """Return the value of highest density."""
        return (eta[0][..., None, None] * torch.linalg.inv(-symmetric(eta[1])),)


class NormalWishart(Family):
    """A normal mean u with its precision V: ``t = (log|V|, V, V u, u' V u)``.

    In the usual parameters, ``u | V ~ N(m, (kappa V)^-1)``, ``V ~ Wishart(nu, S)``::

        eta = ((nu - D) / 2, -(S^-1 + kappa m m') / 2, kappa m, -kappa / 2)
    """

    def natural(self, kappa: Tensor, loc: Tensor, df: Tensor, scale_inverse: Tensor) -> Natural:
        """Return the natural parameters that belong to the usual ones."""
        second = scale_inverse + kappa[..., None, None] * outer(loc)
        return (df - self.size) / 2, -second / 2, kappa.unsqueeze(-1) * loc, -kappa / 2

    def reference(self, k: int) -> Natural:
        """Return one of several parameters that have nothing in common but being harmless."""
        one = self.zeros.sum(-1) + 1.0
        return self.natural(one + 0.5 * k, self.zeros + 0.3 * k, one * (self.size + 2 + k), self.matrices(1 + 0.4 * k))

    def usual(self, eta: Natural) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return kappa, m, nu and the inverse of S."""
        kappa = -2 * eta[3]
        loc = eta[2] / kappa.unsqueeze(-1)
        return kappa, loc, 2 * eta[0] + self.size, -2 * symmetric(eta[1]) - kappa[..., None, None] * outer(loc)

    def _wishart(self, eta: Natural) -> tuple["Wishart", Natural]:
        _, _, df, scale_inverse = self.usual(eta)
        return Wishart(self.batch, self.size, eta[0]), ((df - self.size - 1) / 2, -scale_inverse / 2)

    def distribution(self, eta: Natural) -> tuple[Tensor, Tensor, dist.Wishart]:
        """Return kappa, m and the distribution of the precision."""
        kappa, loc, _, _ = self.usual(eta)
        wishart, of_precision = self._wishart(eta)
        return kappa, loc, wishart.distribution(of_precision)

    def sample(self, eta: Natural, n: int) -> tuple[Tensor, ...]:
        """Draw means, ``(n, ..., D)``, and their precisions, ``(n, ..., D, D)``."""
        kappa, loc, wishart = self.distribution(eta)
        precision = wishart.sample((n,))
        return dist.MultivariateNormal(loc, precision_matrix=kappa[..., None, None] * precision).sample(), precision

    def valid(self, eta: Natural) -> Tensor:
        """Tell which parameters belong to a distribution."""
        wishart, of_precision = self._wishart(eta)
        return (eta[3] < 0) & wishart.valid(of_precision)

    def mean(self, eta: Natural) -> Natural:
        """Return the expected statistics."""
        kappa, loc, _, _ = self.usual(eta)
        wishart, of_precision = self._wishart(eta)
        log_det, precision = wishart.mean(of_precision)
        linear = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        return log_det, precision, linear, self.size / kappa + (loc * linear).sum(-1)

    def entropy(self, eta: Natural) -> Tensor:
        """Return the entropy of each factor, in nats."""
        wishart, of_precision = self._wishart(eta)
        log_det, _ = wishart.mean(of_precision)
        of_mean = self.size * (1 + math.log(2 * math.pi) - (-2 * eta[3]).log()) - log_det
        return wishart.entropy(of_precision) + of_mean / 2

    def points(self, mean: Natural) -> tuple[Tensor, ...]:
        """Return two means, ``(2, ..., D)``, and two precisions, ``(2, ..., D, D)``.

        The precision is ``(1 +- d) E[V]``; the means stand away from the centre on either side, and nearer for the
        larger precision, so that ``V u`` averages right.
        """
        log_det, precision, linear, quadratic = mean
        factors = scale_factors(log_det, precision, self.size)
        loc = torch.linalg.solve(precision, linear.unsqueeze(-1)).squeeze(-1)
        beyond = quadratic - (loc * linear).sum(-1)
        step = (beyond * factors.prod(0) / precision[..., 0, 0]).sqrt()
        signed = torch.stack([step, -step]) / factors
        return loc + signed.unsqueeze(-1) * self.eye[0], factors[..., None, None] * precision

    def mode(self, eta: Natural) -> tuple[Tensor, ...]:
        """Return mean and precision of highest joint density."""
        _, loc, df, scale_inverse = self.usual(eta)
        return loc, (df - self.size)[..., None, None] * torch.linalg.inv(scale_inverse)


class Dirichlet(Family):
    """Probabilities: ``t = log v``, ``eta = alpha - 1``."""

    def natural(self, fn: dist.Dirichlet) -> Natural:
        """Return the natural parameters of a distribution of the family."""
        return (fn.concentration - 1,)

    def reference(self, k: int) -> Natural:
        """Return one of several parameters that have nothing in common but being harmless."""
        return (self.zeros + 1.0 + k,)

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
        log = log.clamp_min(LOWEST_LOG)
        largest = torch.nn.functional.one_hot(log.argmax(-1), self.size).bool()
        share = log.exp()
        one = (share * largest).sum(-1, keepdim=True)
        rest = (share * ~largest).sum(-1, keepdim=True)
        middle = 1 + (one - rest) * (one + rest)
        root = ((1 - one - rest) * (1 - one + rest) * (1 + one + rest) * (1 + one - rest)).clamp_min(0).sqrt()
        for_one = 2 * one / (middle + root)  # the smaller root, without cancellation
        ratio = torch.where(largest, for_one, (1 - one * for_one) / rest)
        return (torch.stack([share * ratio, share / ratio]),)

    def mode(self, eta: Natural) -> tuple[Tensor, ...]:
        """Return the value of highest density, for concentrations of at least one."""
        return (eta[0] / eta[0].sum(-1, keepdim=True),)


def scale_factors(log_det: Tensor, mean: Tensor, size: int) -> Tensor:
    """Return ``1 +- d`` such that ``(1 +- d) E[V]`` have ``E log|V|`` as their average log determinant."""
    gap = log_det - 2 * log_diagonal(torch.linalg.cholesky(mean))
    d = (-torch.expm1(2 * gap / size)).clamp_min(0).sqrt()
    return torch.stack([1 + d, 1 - d])


def expected_log_det(df: Tensor, scale_tril: Tensor) -> Tensor:
    """Return ``E log|V|`` of a Wishart.

    Example:
        >>> expected_log_det(torch.tensor(4.0), torch.eye(2))
        tensor(0.8456)
    """
    size = scale_tril.shape[-1]
    halves = (df.unsqueeze(-1) - torch.arange(size, dtype=df.dtype, device=df.device)) / 2
    return torch.digamma(halves).sum(-1) + size * math.log(2) + 2 * log_diagonal(scale_tril)


def log_diagonal(factor: Tensor) -> Tensor:
    """Return the sum of the logarithms on the diagonal: half the log determinant, of a Cholesky factor."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def inner(eta: Natural, mean: Natural, axes: tuple[int, ...]) -> Tensor:
    """Return ``<eta, E t>`` of each factor; ``axes`` says how many axes each statistic has."""
    terms = ((a * b).flatten(a.dim() - n).sum(-1) if n else a * b for a, b, n in zip(eta, mean, axes, strict=True))
    return sum(terms)


def symmetric(matrix: Tensor) -> Tensor:
    """Return the symmetric part.

    Example:
        >>> symmetric(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        tensor([[0., 1.],
                [1., 0.]])
    """
    return (matrix + matrix.mT) / 2


def outer(vector: Tensor) -> Tensor:
    """Return ``v v'``."""
    return vector.unsqueeze(-1) * vector.unsqueeze(-2)


def positive(matrix: Tensor) -> Tensor:
    """Tell which matrices are positive definite."""
    return torch.linalg.cholesky_ex(matrix)[1] == 0
