"""Mean-field updates and bounds as textbooks have them, written out model by model."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, digamma, lgamma


def kl_gamma(a, b, a0, b0):
    """Return the divergence of Gamma(a, b) from Gamma(a0, b0), rates."""
    return (a - a0) * digamma(a) - lgamma(a) + lgamma(a0) + a0 * (b.log() - b0.log()) + a * (b0 - b) / b


def kl_dirichlet(alpha, alpha0):
    """Return the divergence of one Dirichlet from another."""
    total, total0 = alpha.sum(-1), alpha0.sum(-1)
    logs = digamma(alpha) - digamma(total).unsqueeze(-1)
    normalisers = lgamma(total) - lgamma(alpha).sum(-1) - lgamma(total0) + lgamma(alpha0).sum(-1)
    return normalisers + ((alpha - alpha0) * logs).sum(-1)


def kl_normal(loc, variance, loc0, variance0):
    """Return the divergence of one normal from another."""
    return ((variance + (loc - loc0) ** 2) / variance0 - 1 + variance0.log() - variance.log()) / 2


def digamma_of(half_df: Tensor, size: int) -> Tensor:
    """Return the multivariate digamma function."""
    return sum(digamma(half_df - i / 2) for i in range(size))


@dataclass
class NormalWisharts:
    """C. M. Bishop, "Pattern Recognition and Machine Learning", equations 10.60 to 10.67."""

    model: object

    def fit(self, x, r):
        m, held = self.model, r.sum(0)
        self.kappa, self.df = m.mean_precision + held, m.degrees_of_freedom + held
        centre = r.mT @ x / held.unsqueeze(1)
        self.loc = (m.mean_precision * m.prior_mean + held.unsqueeze(1) * centre) / self.kappa.unsqueeze(1)
        apart = x.unsqueeze(1) - centre
        scatter = torch.einsum("nk,nki,nkj->kij", r, apart, apart)
        away = centre - m.prior_mean
        pull = (m.mean_precision * held / self.kappa)[:, None, None] * away.unsqueeze(2) * away.unsqueeze(1)
        self.scatter = m.scatter + scatter + pull
        self.scale = torch.linalg.inv(self.scatter)

    def table(self, x):
        size = x.shape[1]
        log_det = digamma_of(self.df / 2, size) + size * math.log(2) + torch.logdet(self.scale)
        apart = x.unsqueeze(1) - self.loc
        distance = self.df * torch.einsum("nki,kij,nkj->nk", apart, self.scale, apart)
        return (log_det - size * math.log(2 * math.pi) - size / self.kappa - distance) / 2

    def divergence(self):
        m, size = self.model, self.loc.shape[1]
        kappa0, df0 = m.mean_precision, m.degrees_of_freedom
        away = self.loc - m.prior_mean
        far = self.df * torch.einsum("ki,kij,kj->k", away, self.scale, away)
        of_mean = size * kappa0 / self.kappa + kappa0 * far - size + size * (self.kappa / kappa0).log()
        ratio = torch.einsum("ij,kji->k", m.scatter, self.scale)
        of_precision = (
            df0 * (torch.logdet(self.scatter) - torch.logdet(m.scatter)) / 2
            + self.df * (ratio - size) / 2
            + torch.mvlgamma(df0 / 2, size)
            - torch.mvlgamma(self.df / 2, size)
            + (self.df - df0) / 2 * digamma_of(self.df / 2, size)
        )
        return (of_mean / 2 + of_precision).sum()


@dataclass
class NormalGammas:
    """The same for each dimension by itself."""

    model: object

    def fit(self, x, r):
        m, held = self.model, r.sum(0).unsqueeze(1)
        self.kappa, self.shape = m.mean_precision + held, m.shape + held / 2
        self.loc = (m.mean_precision * m.prior_mean + r.mT @ x) / self.kappa
        squares = m.mean_precision * m.prior_mean**2 + r.mT @ x**2 - self.kappa * self.loc**2
        self.rate = m.rate + squares / 2

    def table(self, x):
        log_precision, precision = digamma(self.shape) - self.rate.log(), self.shape / self.rate
        distance = precision * (x.unsqueeze(1) - self.loc) ** 2
        return ((log_precision - math.log(2 * math.pi) - 1 / self.kappa - distance) / 2).sum(-1)

    def divergence(self):
        m, precision = self.model, self.shape / self.rate
        far = m.mean_precision * (1 / self.kappa + precision * (self.loc - m.prior_mean) ** 2)
        of_mean = (far - 1 + (self.kappa / m.mean_precision).log()) / 2
        return (of_mean + kl_gamma(self.shape, self.rate, m.shape, m.rate)).sum()


@dataclass
class Betas:
    """Bernoulli pixels."""

    model: object

    def fit(self, x, r):
        self.on, self.off = self.model.on + r.mT @ x, self.model.off + r.mT @ (1 - x)

    def table(self, x):
        both = digamma(self.on + self.off)
        return x @ (digamma(self.on) - both).mT + (1 - x) @ (digamma(self.off) - both).mT

    def divergence(self):
        m = self.model
        prior = torch.stack([m.on, m.off], -1).expand(*self.on.shape, 2)
        return kl_dirichlet(torch.stack([self.on, self.off], -1), prior).sum()


@dataclass
class Gammas:
    """Poisson counts whose rate is Gamma(shape, rate) for each component."""

    shape0: Tensor
    rate0: Tensor

    def fit(self, x, r):
        self.shape, self.rate = self.shape0 + r.mT @ x, self.rate0 + r.sum(0)

    def table(self, x):
        logs = digamma(self.shape) - self.rate.log()
        return x.unsqueeze(1) * logs - self.shape / self.rate - lgamma(x + 1).unsqueeze(1)

    def divergence(self):
        return kl_gamma(self.shape, self.rate, self.shape0, self.rate0).sum()


def mixture(components, x, r, concentration, iterations):
    """Iterate a mixture of components with Dirichlet weights; return r, the concentrations and the bounds per datum."""
    history = []
    for _ in range(iterations + 1):
        components.fit(x, r)
        alpha = concentration + r.sum(0)
        table = components.table(x) + digamma(alpha) - digamma(alpha.sum())
        r = table.softmax(1)
        bound = (
            (r * (table - table.log_softmax(1))).sum() - components.divergence() - kl_dirichlet(alpha, concentration)
        )
        history.append(float(bound) / len(x))
    return r, alpha, history
