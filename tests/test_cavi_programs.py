"""Coordinate ascent on programs that are not in the zoo, against updates written out by hand."""

import math

import mean_field_by_hand as by_hand
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import close, pca, poisson_mixture, responsibilities, steps, tensor, zero
from exact_models import F64, clusters
from torch import digamma, lgamma

import ppl_vae as pv


def test_a_poisson_mixture_is_that_by_hand():
    x = torch.poisson(torch.repeat_interleave(tensor(1.0, 6.0, 20.0), 20), torch.Generator().manual_seed(0))
    shares, components = responsibilities(60), by_hand.Gammas(tensor(1.5).squeeze(), tensor(0.4).squeeze())
    r, alpha, history = by_hand.mixture(components, x, shares, torch.full((3,), 0.5, dtype=F64), 20)
    found = pv.cavi(poisson_mixture, x, start=shares, iterations=20, tol=0)
    close(found.history["elbo"], history, atol=1e-10)
    close(found.responsibilities, r)
    close(found.q["weights"].concentration, alpha)
    close(found.q["rate"].concentration, components.shape)
    close(found.q["rate"].rate, components.rate)


def second(q):
    return q.covariance_matrix + q.loc.unsqueeze(-1) * q.loc.unsqueeze(-2)


def test_bayesian_pca_is_that_by_hand():
    """C. M. Bishop, "Variational Principal Components", ICANN 1999, without its prior of relevance."""
    torch.manual_seed(0)
    x = torch.randn(30, 2, dtype=F64) @ torch.randn(2, 4, dtype=F64) + 0.3 * torch.randn(30, 4, dtype=F64)
    found, again = (pv.cavi(pca, x, iterations=i, tol=0, seed=1) for i in (6, 7))
    assert min(np.diff(again.history["elbo"])) > -1e-11
    q, eye = again.q, torch.eye(2, dtype=F64)
    tau = found.q["tau"].mean
    precision = eye + tau * second(found.q["z"]).sum(0)
    close(q["w"].loc, torch.linalg.solve(precision, tau * found.q["z"].loc.mT @ x).mT, atol=1e-9)
    close(q["w"].covariance_matrix, torch.linalg.inv(precision).expand(4, 2, 2), atol=1e-9)
    inner = torch.einsum("nij,dij->", second(found.q["z"]), second(q["w"]))
    misfit = x.square().sum() - 2 * (x * (found.q["z"].loc @ q["w"].loc.mT)).sum() + inner
    close(q["tau"].concentration, 2 + 60.0, atol=1e-9)
    close(q["tau"].rate, 1 + misfit / 2, atol=1e-8)
    precision = eye + q["tau"].mean * second(q["w"]).sum(0)
    close(q["z"].loc, torch.linalg.solve(precision, q["tau"].mean * q["w"].loc.mT @ x.mT).mT, atol=1e-9)
    close(q["z"].covariance_matrix, torch.linalg.inv(precision).expand(30, 2, 2), atol=1e-9)
    close(again.elbo, pca_bound(q, x), atol=1e-8)


def pca_bound(q, x):
    inner = torch.einsum("nij,dij->", second(q["z"]), second(q["w"]))
    misfit = x.square().sum() - 2 * (x * (q["z"].loc @ q["w"].loc.mT)).sum() + inner
    log = digamma(q["tau"].concentration) - q["tau"].rate.log()
    fit = x.numel() / 2 * (log - math.log(2 * math.pi)) - q["tau"].mean * misfit / 2
    standard = dist.MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    far = sum(torch.distributions.kl_divergence(q[name], standard.expand(q[name].batch_shape)).sum() for name in "zw")
    return fit - far - by_hand.kl_gamma(q["tau"].concentration, q["tau"].rate, tensor(2.0), tensor(1.0)).sum()


TABLE = torch.tensor([[-2.0, 0.5, 3.0], [0.0, 1.5, -4.0]], dtype=F64)


def pairs_of_choices(x):
    first = pyro.sample("first", dist.Dirichlet(tensor(1.0, 2.0)))
    second = pyro.sample("second", dist.Dirichlet(tensor(1.0, 1.0, 0.5)))
    with pyro.plate("data", x.shape[0], dim=-1):
        a = pyro.sample("a", dist.Categorical(first), infer={"enumerate": "parallel"})
        b = pyro.sample("b", dist.Categorical(second), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(TABLE[a, b], 0.7), obs=x)


def test_two_choices_of_each_datum_are_those_by_hand():
    x = 2 * torch.randn(15, dtype=F64)
    likelihood = dist.Normal(TABLE, 0.7).log_prob(x[:, None, None])
    a, b = torch.full((15, 2), 1 / 2, dtype=F64), torch.full((15, 3), 1 / 3, dtype=F64)
    found = pv.cavi(pairs_of_choices, x, iterations=10, tol=0)
    start = tensor(1.0, 2.0), tensor(1.0, 1.0, 1.0)  # near the prior, and not sparse
    for step in range(11):
        first, second = start if step == 0 else (tensor(1.0, 2.0) + a.sum(0), tensor(1.0, 1.0, 0.5) + b.sum(0))
        logs = [digamma(alpha) - digamma(alpha.sum()) for alpha in (first, second)]
        a = (logs[0] + torch.einsum("nab,nb->na", likelihood, b)).softmax(1)
        b = (logs[1] + torch.einsum("nab,na->nb", likelihood, a)).softmax(1)
        bound = torch.einsum("nab,na,nb->", likelihood, a, b) + (a * (logs[0] - a.log())).sum()
        bound += (b * (logs[1] - b.log())).sum() - by_hand.kl_dirichlet(first, tensor(1.0, 2.0))
        bound -= by_hand.kl_dirichlet(second, tensor(1.0, 1.0, 0.5))
        assert found.history["elbo"][step] == pytest.approx(float(bound) / 15, abs=1e-10), step
    close(found.discrete["a"], a)
    close(found.discrete["b"], b)
    close(found.q["first"].concentration, first)
    with pytest.raises(ValueError, match="2 discrete latents"):
        found.labels  # noqa: B018


CHAIN = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 4.0]], dtype=F64)

LEVELS = tensor(-2.0, 0.0, 3.0)


def a_choice_after_a_choice(x):
    first = pyro.sample("first", dist.Dirichlet(tensor(1.0, 2.0)))
    with pyro.plate("rows", 2, dim=-1):
        rows = pyro.sample("rows_of", dist.Dirichlet(CHAIN))
    with pyro.plate("data", x.shape[0], dim=-1):
        a = pyro.sample("a", dist.Categorical(first))
        b = pyro.sample("b", dist.Categorical(rows[a]))
        pyro.sample("x", dist.Normal(LEVELS[b], 1.0), obs=x)


def test_a_choice_after_a_choice_is_that_by_hand():
    x = 2 * torch.randn(12, dtype=F64)
    found = pv.cavi(a_choice_after_a_choice, x, iterations=10, tol=0)
    likelihood = dist.Normal(LEVELS, 1.0).log_prob(x.unsqueeze(1))
    a, b = torch.full((12, 2), 1 / 2, dtype=F64), torch.full((12, 3), 1 / 3, dtype=F64)
    alpha, rows = tensor(1.0, 2.0), CHAIN
    for step in range(11):
        if step:
            alpha, rows = tensor(1.0, 2.0) + a.sum(0), CHAIN + a.mT @ b
        first = torch.digamma(alpha) - torch.digamma(alpha.sum())
        table = torch.digamma(rows) - torch.digamma(rows.sum(1, keepdim=True))
        a = (first + b @ table.mT).softmax(1)
        b = (a @ table + likelihood).softmax(1)
        bound = (a * (first - a.log())).sum() + (b * (likelihood - b.log())).sum() + (a * (b @ table.mT)).sum()
        bound -= by_hand.kl_dirichlet(alpha, tensor(1.0, 2.0)) + by_hand.kl_dirichlet(rows, CHAIN).sum()
        assert found.history["elbo"][step] == pytest.approx(float(bound) / 12, abs=1e-10), step
    close(found.discrete["a"], a)
    close(found.discrete["b"], b)
    close(found.q["rows_of"].concentration, rows)


DIRECTIONS = torch.tensor([[1.0, 0.5], [-0.5, 2.0], [0.0, -1.0]], dtype=F64)


def a_choice_beside_a_number(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Categorical(tensor(0.5, 0.3, 0.2)))
        z = pyro.sample("z", dist.Normal(zero(), 1.0))
        pyro.sample("x", dist.Normal(DIRECTIONS[y] * z.unsqueeze(-1), 0.5).to_event(1), obs=x)


def test_a_choice_beside_a_number_is_that_by_hand():
    """No latent is shared; the optimum of each given the other, and the bound, datum by datum."""
    x = clusters(20)
    found = pv.cavi(a_choice_beside_a_number, x, iterations=100, tol=0)
    assert steps(found).min() > -1e-10
    r, loc, variance = found.responsibilities, found.q["z"].loc, found.q["z"].scale ** 2
    close(variance, 1 / (1 + 4 * r @ DIRECTIONS.square().sum(1)), atol=1e-8)
    close(loc, variance * 4 * ((r @ DIRECTIONS) * x).sum(1), atol=1e-8)
    apart = (x.unsqueeze(1) - DIRECTIONS * loc[:, None, None]).square().sum(-1)
    spread = variance.unsqueeze(1) * DIRECTIONS.square().sum(1)
    table = tensor(0.5, 0.3, 0.2).log() - math.log(2 * math.pi * 0.25) - 2 * (apart + spread)
    close(r, table.softmax(1), atol=1e-8)
    far = by_hand.kl_normal(loc, variance, zero(), zero() + 1).sum()
    close(found.elbo, (r * table).sum() + torch.special.entr(r).sum() - far, atol=1e-8)
    close(found.predict(x).sum(1), torch.ones(20), atol=1e-12)


def hierarchy(x):
    rate = pyro.sample("rate", dist.Gamma(tensor(2.0).squeeze(), tensor(3.0).squeeze()))
    with pyro.plate("groups", 4, dim=-1):
        level = pyro.sample("level", dist.Gamma(tensor(1.5).squeeze(), rate))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Poisson(level).to_event(1), obs=x)


def test_a_prior_of_a_prior_is_that_by_hand():
    x = torch.poisson(tensor(0.5, 2.0, 4.0, 9.0).expand(12, 4), torch.Generator().manual_seed(0))
    found = pv.cavi(hierarchy, x, iterations=60, tol=0)
    shape = 1.5 + x.sum(0)
    a, b = 2 + 4 * 1.5, tensor(3.0).squeeze()
    for _ in range(400):
        level = shape / (12 + a / b)
        b = 3 + level.sum()
    close(found.q["level"].concentration, shape, atol=1e-9)
    close(found.q["level"].rate, (12 + a / b).expand(4), atol=1e-8)
    close(found.q["rate"].concentration, a, atol=1e-9)
    close(found.q["rate"].rate, b, atol=1e-8)
    mean, log = a / b, math.log(1) + digamma(tensor(a)) - b.log()
    rates = 12 + a / b
    logs = digamma(shape) - rates.log()
    fit = (x * logs - shape / rates - lgamma(x + 1)).sum()
    prior = (1.5 * log - math.lgamma(1.5) + 0.5 * logs - mean * shape / rates).sum()
    entropy = (shape - rates.log() + lgamma(shape) + (1 - shape) * digamma(shape)).sum()
    bound = fit + prior + entropy - by_hand.kl_gamma(tensor(a), b, tensor(2.0), tensor(3.0))
    close(found.elbo, bound.squeeze(), atol=1e-8)


def with_holes(x, present):
    with pyro.plate("dimensions", 3, dim=-1):
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 2.0))
    tau = pyro.sample("tau", dist.Gamma(tensor(2.0).squeeze(), tensor(1.0).squeeze()))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(loc, tau.rsqrt()).mask(present).to_event(1), obs=x)


def test_what_is_masked_has_no_say():
    torch.manual_seed(0)
    x, present = torch.randn(25, 3, dtype=F64) + 1, torch.rand(25, 3) < 0.7
    found = pv.cavi(with_holes, (x, present), iterations=40, tol=0)
    other = pv.cavi(with_holes, (torch.where(present, x, 100.0), present), iterations=40, tol=0)
    assert other.history == found.history
    seen = present.to(F64)
    held, tau = seen.sum(0), tensor(2.0).squeeze()
    for _ in range(200):
        precision = 0.25 + tau * held
        loc = tau * (seen * x).sum(0) / precision
        rate = 1 + ((seen * (x - loc) ** 2).sum() + (held / precision).sum()) / 2
        tau = (2 + held.sum() / 2) / rate
    close(found.q["loc"].loc, loc, atol=1e-9)
    close(found.q["loc"].scale, precision.rsqrt(), atol=1e-9)
    close(found.q["tau"].mean, tau, atol=1e-9)


def test_the_bound_of_a_tiny_program_is_below_its_evidence_by_quadrature():
    """A normal mean and a gamma precision, integrated on a grid."""
    x = tensor(0.3, -1.2, 2.0, 0.7)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(tensor(0.5).squeeze(), 1.5))
        tau = pyro.sample("tau", dist.Gamma(tensor(2.0).squeeze(), 1.0))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(mean, tau.rsqrt()), obs=x)

    found = pv.cavi(model, x, iterations=60, tol=0)
    mean, log_tau = torch.linspace(-8, 9, 801, dtype=F64), torch.linspace(-9, 4, 801, dtype=F64)
    tau = log_tau.exp()
    joint = (
        dist.Normal(tensor(0.5), 1.5).log_prob(mean).unsqueeze(1)
        + dist.Gamma(tensor(2.0), 1.0).log_prob(tau)
        + log_tau
        + dist.Normal(mean[:, None, None], tau.rsqrt()[:, None]).log_prob(x).sum(-1)
    )
    cell = (mean[1] - mean[0]) * (log_tau[1] - log_tau[0])
    evidence = (joint.flatten().logsumexp(0) + cell.log()).item()
    log_q = found.q["mean"].log_prob(mean).unsqueeze(1) + found.q["tau"].log_prob(tau) + log_tau
    bound = (log_q.exp() * (joint - log_q)).sum() * cell
    assert found.elbo == pytest.approx(float(bound), abs=1e-8)
    assert evidence - 0.2 < found.elbo < evidence - 1e-3


def test_a_precision_alone_has_its_wishart_posterior():
    """x ~ N(0, W^-1) with W ~ Wishart(df, V) is conjugate: W has df + N and (V^-1 + x^T x)^-1, and p(x) is known."""
    x = torch.randn(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=F64)

    def model(x):
        precision = pyro.sample("precision", dist.Wishart(tensor(4.0).squeeze(), scale))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2, dtype=F64), precision_matrix=precision), obs=x)

    found = pv.cavi(model, x)
    prior, exact = (
        dist.Wishart(tensor(4.0 + n).squeeze(), torch.linalg.inv(torch.linalg.inv(scale) + part.mT @ part))
        for n, part in ((0, x[:0]), (20, x))
    )
    close(found.q["precision"].df, exact.df)
    close(found.q["precision"].covariance_matrix, exact.covariance_matrix, atol=1e-10)
    w = torch.tensor([[1.0, 0.2], [0.2, 0.5]], dtype=F64)
    likelihood = dist.MultivariateNormal(torch.zeros(2, dtype=F64), precision_matrix=w).log_prob(x).sum()
    assert found.elbo == pytest.approx(float(likelihood + prior.log_prob(w) - exact.log_prob(w)), abs=1e-9)
