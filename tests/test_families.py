"""Families of mean-field factors, and log densities in natural form: against torch, closed forms and gradients."""

import math
from functools import partial

import odds
import pyro.distributions as dist
import pytest
import torch

from ppl_vae import densities, natural_forms
from ppl_vae.factors import factor_of, joint_factor_of
from ppl_vae.families import Dirichlet, Gaussian, NormalWishart, Wishart
from ppl_vae.matrices import expected_log_det

F64 = torch.float64
LIKE = torch.zeros((), dtype=F64)


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def matrices(*batch, size):
    """Draw positive definite matrices, and one that is nearly singular."""
    root = torch.randn(*batch, size, size + 1, dtype=F64)
    return root @ root.mT + 1e-3 * torch.eye(size, dtype=F64)


def close(found, wanted, rtol=1e-11, atol=1e-12):
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)


def gaussians(*batch, size, scale=1.0, loc=0.0):
    return dist.MultivariateNormal(torch.randn(*batch, size, dtype=F64) + loc, scale**2 * matrices(*batch, size=size))


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(("scale", "loc"), [(1.0, 0.0), (1e-8, 3.0), (1e8, 0.0), (1e-3, 1e6)])
def test_points_of_normals_have_their_moments(size, scale, loc):
    fn = gaussians(3, 2, size=size, scale=scale, loc=loc)
    family = Gaussian(fn.batch_shape, size, LIKE)
    eta = family.natural(fn)
    (points,) = family.points(family.mean(eta))
    assert points.shape == (size + 1, 3, 2, size)
    apart = points - fn.loc
    assert (apart.mean(0).abs() <= 1e-9 * (scale + fn.loc.abs())).all()
    close((apart.unsqueeze(-1) * apart.unsqueeze(-2)).mean(0) / scale**2, fn.covariance_matrix / scale**2, 1e-5, 1e-6)
    close(family.entropy(eta), fn.entropy(), rtol=1e-9)
    back = family.distribution(eta)
    close(back.loc, fn.loc, rtol=1e-9, atol=1e-7 * scale)
    close(back.covariance_matrix / scale**2, fn.covariance_matrix / scale**2, rtol=1e-7, atol=1e-9)
    assert family.valid(eta).all()


WISHARTS = {
    "moderate": [(2, 5.0), (3, 4.5)],
    "near its limit": [(1, 2e-2), (2, 1.01), (3, 2.02), (5, 4.01)],
    "nearly certain": [(1, 2e6), (2, 1e8), (4, 1e5)],
}


@pytest.mark.parametrize(("size", "df"), [case for cases in WISHARTS.values() for case in cases])
def test_points_of_wisharts_have_their_statistics(size, df):
    scale = matrices(4, size=size)
    fn = dist.Wishart(torch.full((4,), df, dtype=F64), covariance_matrix=scale)
    family = Wishart(fn.batch_shape, size, LIKE)
    eta = family.natural(fn)
    mean = family.mean(eta)
    close(mean[1], df * scale, rtol=1e-8)
    wanted = torch.digamma((df - torch.arange(size, dtype=F64)) / 2).sum() + size * math.log(2) + scale.logdet()
    close(mean[0], wanted, rtol=1e-9)
    (points,) = family.points(mean)
    assert torch.linalg.eigvalsh(points).min() > 0
    close(points.mean(0), mean[1])
    close(2 * torch.linalg.cholesky(points).diagonal(dim1=-2, dim2=-1).log().sum(-1).mean(0), mean[0], rtol=1e-9)
    back = family.distribution(eta)
    close(back.df, fn.df)
    close(back.covariance_matrix, scale, rtol=1e-8)


@pytest.mark.parametrize("shape", [1e-2, 0.5, 3.0, 1e6])
def test_a_gamma_is_a_wishart_of_one(shape):
    fn = dist.Gamma(tensor(shape, shape), tensor(0.3, 1e4))
    factor = factor_of("rate", fn, local=False)
    eta = fn.concentration - 1, -fn.rate[..., None, None]
    close(factor.family.entropy(eta), fn.entropy(), rtol=1e-8, atol=1e-8)
    points = factor.points(factor.family.mean(eta))["rate"]
    close(points.mean(0), fn.mean)
    close(points.log().mean(0), torch.digamma(fn.concentration) - fn.rate.log(), rtol=1e-9)
    assert (points > 0).all()
    back = factor.distributions(eta)["rate"]
    close(torch.stack([back.concentration, back.rate]), torch.stack([fn.concentration, fn.rate]))


@pytest.mark.parametrize(("size", "df"), [(1, 3.0), (2, 5.0), (3, 2.5), (3, 1e4)])
def test_entropies_of_wisharts(size, df):
    """Torch's own takes no care of a batch of degrees of freedom, but knows one."""
    fn = dist.Wishart(tensor(df).squeeze(), covariance_matrix=matrices(size=size))
    family = Wishart(fn.batch_shape, size, LIKE)
    close(family.entropy(family.natural(fn)), fn.entropy(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_wisharts_are_as_wide_as_their_draws(size):
    """Their entropy is a mean of log densities, their expected log determinant one of log determinants."""
    fn = dist.Wishart(tensor(size + 1.5).squeeze(), covariance_matrix=matrices(size=size))
    family, eta = Wishart(fn.batch_shape, size, LIKE), None
    eta = family.natural(fn)
    draws = family.sample(eta, 4000)[0]
    odds.assert_mean(-fn.log_prob(draws), family.entropy(eta))
    odds.assert_mean(draws.logdet(), family.mean(eta)[0])
    odds.assert_mean(draws, family.mean(eta)[1])


def usual(size, kappa=0.7, df=None, loc=0.0):
    """Return parameters of a batch of three normal-Wisharts."""
    df = size + 1.5 if df is None else df
    one = torch.ones(3, dtype=F64)
    return kappa * one, torch.randn(3, size, dtype=F64) + loc, df * one, matrices(3, size=size)


CASES = [(1, 0.7, None, 0.0), (3, 2.0, None, 1.0), (2, 1e6, 1e6, 0.0), (2, 1e-4, 1.02, 0.0), (2, 50.0, 60.0, 1e7)]


@pytest.mark.parametrize(("size", "kappa", "df", "loc"), CASES)
def test_points_of_normal_wisharts_have_their_statistics(size, kappa, df, loc):
    eta = usual(size, kappa, df, loc)
    family = NormalWishart(torch.Size([3]), size, LIKE)
    u, v = family.points(family.mean(eta))
    scale = torch.linalg.inv(eta[3])
    expected = eta[2][:, None, None] * scale
    apart = u - eta[1]
    log_det = 2 * torch.linalg.cholesky(v).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    close(v.mean(0), expected, rtol=1e-7)
    close(log_det.mean(0), expected_log_det(eta[2], torch.linalg.cholesky(scale)), rtol=1e-7)
    weighed = (v @ apart.unsqueeze(-1)).squeeze(-1)
    assert weighed.mean(0).abs().max() <= 1e-9 * (1 + loc) * weighed.abs().max() + 1e-15
    close((weighed * apart).sum(-1).mean(0), torch.full((3,), size / kappa, dtype=F64), rtol=1e-8 * (1 + loc))
    assert family.valid(eta).all()


@pytest.mark.parametrize(("size", "kappa", "df", "loc"), CASES[:3])
def test_normal_wisharts_are_as_wide_as_their_draws(size, kappa, df, loc):
    eta = usual(size, kappa, df, loc)
    family = NormalWishart(torch.Size([3]), size, LIKE)
    u, v = family.sample(eta, 4000)
    normal = dist.MultivariateNormal(eta[1], precision_matrix=kappa * v)
    wishart = dist.Wishart(eta[2], precision_matrix=eta[3])
    odds.assert_mean(-normal.log_prob(u) - wishart.log_prob(v), family.entropy(eta))
    odds.assert_mean((v @ u.unsqueeze(-1)).squeeze(-1), (family.mean(eta)[1] @ eta[1].unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("size", [1, 2])
def test_marginals_of_normal_wisharts_are_those_of_their_draws(size):
    eta = usual(size, df=size + 6.0)
    if size == 1:
        mean, precision = dist.Normal(torch.zeros(3, dtype=F64), 1.0), dist.Gamma(torch.ones(3, dtype=F64), 1.0)
    else:
        mean = dist.MultivariateNormal(torch.zeros(3, 2, dtype=F64), torch.eye(2, dtype=F64))
        precision = dist.Wishart(torch.full((3,), 4.0, dtype=F64), torch.eye(2, dtype=F64).expand(3, 2, 2))
    factor = joint_factor_of("m", mean, "v", precision)
    marginals = factor.distributions(eta)
    draws = factor.sample(eta, 4000)
    odds.assert_mean(draws["v"], marginals["v"].mean)
    odds.assert_mean(draws["m"], eta[1].squeeze(-1) if size == 1 else eta[1])
    odds.assert_mean((draws["m"] - marginals["m"].mean).square(), marginals["m"].variance)


CONCENTRATIONS = [
    tensor(1.0, 1.0),
    tensor(2.0, 5.0, 0.5),
    tensor(1e-2, 1e-2, 1e-2),
    tensor(1e-2, 30.0),
    tensor(1e6, 2e6, 1e-2, 5.0),
    tensor(1e10, 1e10),
    torch.full((200,), 0.1, dtype=F64),
]


@pytest.mark.parametrize("concentration", CONCENTRATIONS, ids=lambda c: f"{len(c)} of {float(c[0]):g}")
def test_points_of_dirichlets_have_their_logarithms(concentration):
    fn = dist.Dirichlet(torch.stack([concentration, concentration.flip(0)]))
    family = Dirichlet(fn.batch_shape, len(concentration), LIKE)
    eta = family.natural(fn)
    (points,) = family.points(family.mean(eta))
    close(points.sum(-1), torch.ones(2, 2, dtype=F64), atol=1e-7)
    assert (points > 0).all()
    wanted = torch.digamma(fn.concentration) - torch.digamma(fn.concentration.sum(-1, keepdim=True))
    close(points.log().mean(0), wanted, rtol=1e-9, atol=1e-12)
    close(family.entropy(eta), fn.entropy(), rtol=1e-9)
    close(family.distribution(eta).concentration, fn.concentration)


def test_a_dirichlet_of_one_category_is_certain():
    family = Dirichlet(torch.Size([]), 1, LIKE)
    mean = family.mean((tensor(2.0),))
    close(mean[0], tensor(0.0))
    close(family.points(mean)[0], tensor([1.0]))
    close(family.mode((tensor(2.0),))[0], tensor(1.0))


@pytest.mark.parametrize("type_", [torch.float32, F64])
def test_what_is_nearly_zero_keeps_its_points_above_it(type_):
    """Logarithms are as low as the type has them, and never infinite."""
    shape = torch.tensor([1e-3, 1e-4], dtype=type_)
    for fn in (dist.Gamma(shape, torch.ones(2, dtype=type_)), dist.Beta(shape, torch.ones(2, dtype=type_))):
        factor = factor_of("v", fn, local=False)
        (eta,) = [factor.start([{"fn": fn, "value": fn.mean}])]
        eta = (shape - 1, *eta[1:]) if len(eta) == 2 else (torch.stack([shape, torch.ones_like(shape)], -1) - 1,)
        points = factor.points(factor.family.mean(eta))["v"]
        assert points.log().isfinite().all()
        assert points.min() > 0
        assert factor.family.entropy(eta).isfinite().all()


def slope(log_prob, values):
    values = tuple(value.clone().requires_grad_() for value in values)
    return torch.autograd.grad(log_prob(*values).sum(), values)


def test_modes_have_no_slope():
    fn = gaussians(3, size=2)
    family = Gaussian(fn.batch_shape, 2, LIKE)
    assert max(g.abs().max() for g in slope(fn.log_prob, family.mode(family.natural(fn)))) < 1e-9

    wishart = dist.Wishart(tensor(5.5, 7.0), covariance_matrix=matrices(2, size=3))
    family = Wishart(wishart.batch_shape, 3, LIKE)
    (mode,) = family.mode(family.natural(wishart))
    # Torch's own asks its values to be symmetric while they move.
    steep = slope(lambda v: (wishart.df - 4) / 2 * torch.linalg.slogdet(v)[1] - trace(wishart, v) / 2, (mode,))
    assert max(g.abs().max() for g in steep) < 1e-9

    dirichlet = dist.Dirichlet(tensor(2.0, 3.5, 1.5))
    family = Dirichlet(dirichlet.batch_shape, 3, LIKE)
    (mode,) = family.mode(family.natural(dirichlet))
    (along,) = slope(lambda v: ((dirichlet.concentration - 1) * v.log()).sum(-1), (mode,))
    close(along, along.mean().expand(3))  # what is left is across the simplex
    close(mode.sum(), tensor(1.0).squeeze())


def trace(wishart, v):
    return (wishart.precision_matrix @ v).diagonal(dim1=-2, dim2=-1).sum(-1)


def test_the_mode_of_a_normal_wishart_has_no_slope():
    kappa, loc, df, scatter = eta = usual(2)
    u, v = NormalWishart(torch.Size([3]), 2, LIKE).mode(eta)

    def log_density(u, v):
        apart = (u - loc).unsqueeze(-1)
        quadratic = kappa * (apart.mT @ v @ apart)[..., 0, 0] + (scatter @ v).diagonal(dim1=-2, dim2=-1).sum(-1)
        return (df - 2) / 2 * torch.linalg.slogdet(v)[1] - quadratic / 2

    assert max(g.abs().max() for g in slope(log_density, (u, v))) < 1e-9


FAMILIES = {
    "gaussian": lambda: (Gaussian(torch.Size([3]), 2, LIKE), Gaussian((), 2, LIKE).natural(gaussians(3, size=2))),
    "wishart": lambda: (Wishart(torch.Size([3]), 2, LIKE), (torch.rand(3, dtype=F64), -matrices(3, size=2))),
    "normal-wishart": lambda: (NormalWishart(torch.Size([3]), 2, LIKE), usual(2)),
    "dirichlet": lambda: (Dirichlet(torch.Size([3]), 4, LIKE), (torch.rand(3, 4, dtype=F64),)),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


def test_a_factors_own_log_density_has_it_as_its_optimum(family):
    """Slopes of E[log q] in the statistics, wherever they are taken, say the parameters of q."""
    family, eta = family
    for k in (0, 1):
        mean = tuple(m.clone().requires_grad_() for m in family.mean(family.near(eta, k)))
        slopes = torch.autograd.grad(expected(family, eta, mean), mean)
        for found, wanted in zip(family.optimum(slopes, mean), eta, strict=True):
            close(found.detach(), wanted, rtol=1e-9, atol=1e-9)


def expected(family, eta, mean):
    """Return E[log q] up to a constant, by points."""
    values = family.points(mean)
    if isinstance(family, NormalWishart):
        kappa, loc, df, scatter = eta
        u, v = values
        apart = (u - loc).unsqueeze(-1)
        quadratic = kappa * (apart.mT @ v @ apart)[..., 0, 0] + (scatter @ v).diagonal(dim1=-2, dim2=-1).sum(-1)
        return ((df - family.size) / 2 * v.logdet() - quadratic / 2).mean(0).sum()
    if isinstance(family, Wishart):
        return (eta[0] * values[0].logdet() + (eta[1] * values[0]).sum((-1, -2))).mean(0).sum()
    if isinstance(family, Dirichlet):
        return (eta[0] * values[0].log()).sum(-1).mean(0).sum()
    return family.distribution(eta).log_prob(values[0]).mean(0).sum()


def test_blends_are_shares_of_the_way_in_natural_parameters(family):
    family, eta = family
    other = family.near(eta, 1)
    found, values = family.blend(eta, other, 0.3), family.points(family.mean(family.near(eta, 0)))
    parts = [log_q(family, parameters, values) for parameters in (eta, other, found)]
    gap = parts[2] - 0.7 * parts[0] - 0.3 * parts[1]  # a constant: the normalisers
    close(gap, gap[:1].expand_as(gap), rtol=1e-9, atol=1e-9)
    assert family.valid(found).all()


def log_q(family, eta, values):
    if isinstance(family, NormalWishart):
        normal = dist.MultivariateNormal(eta[1], precision_matrix=eta[0][..., None, None] * values[1])
        return normal.log_prob(values[0]) + dist.Wishart(eta[2], precision_matrix=eta[3]).log_prob(values[1])
    return family.distribution(eta).log_prob(values[0])


def test_places_differ_and_are_valid(family):
    family, eta = family
    one, other = family.near(eta, 0), family.near(eta, 1)
    assert family.valid(one).all()
    assert family.valid(other).all()
    assert not any(torch.equal(a, b) for a, b in zip(family.mean(one), family.mean(other), strict=True))


def test_what_is_no_distribution_is_not_valid():
    nan = torch.full((1,), math.nan, dtype=F64)
    eye = torch.eye(2, dtype=F64).unsqueeze(0)
    one = torch.ones(1, dtype=F64)
    assert not Gaussian(torch.Size([1]), 2, LIKE).valid((torch.zeros(1, 2, dtype=F64), eye)).any()
    assert not Wishart(torch.Size([1]), 2, LIKE).valid((-one, -eye)).any()
    assert not Wishart(torch.Size([1]), 2, LIKE).valid((nan, -eye)).any()
    wishart = NormalWishart(torch.Size([1]), 2, LIKE)
    for kappa, loc, df, scatter in [(-one, 0 * eye[0, :1], 5 * one, eye), (one, nan * eye[0, :1], 5 * one, eye)]:
        assert not wishart.valid((kappa, loc, df, scatter)).any()
    assert not wishart.valid((one, 0 * eye[0, :1], one, eye)).any()
    assert not wishart.valid((one, 0 * eye[0, :1], 5 * one, math.nan * eye)).any()
    assert not Dirichlet(torch.Size([1]), 2, LIKE).valid((tensor([0.0, -1.0]),)).any()


def multivariate(batch, size, how):
    loc, matrix = torch.randn(*batch, 1, size, dtype=F64), matrices(*batch, 1, size=size)
    given = torch.linalg.cholesky(matrix) if how == "scale_tril" else matrix
    fn = dist.MultivariateNormal(loc, **{how: given})
    return fn.expand([*batch, 7]), torch.randn(7, size, dtype=F64)


def normal(batch, size):
    loc, scale = torch.randn(2, *batch, 1, size, dtype=F64)
    return dist.Normal(loc, scale.exp()).expand([*batch, 7, size]).to_event(1), torch.randn(7, size, dtype=F64)


def number(batch):
    loc, scale = torch.randn(2, *batch, 1, dtype=F64)
    return dist.Normal(loc, scale.exp()).expand([*batch, 7]), torch.randn(7, dtype=F64)


def bernoulli(batch, size, how):
    given = torch.randn(*batch, 1, size, dtype=F64)
    fn = dist.Bernoulli(**{how: given.sigmoid() if how == "probs" else given})
    return fn.expand([*batch, 7, size]).to_event(1), torch.randint(2, (7, size)).to(F64)


def bit(batch):
    fn = dist.Bernoulli(torch.rand(*batch, 1, dtype=F64)).expand([*batch, 7])
    return fn, torch.randint(2, (7,)).to(F64)


FORMS = {
    **{how: partial(multivariate, size=3, how=how) for how in ("scale_tril", "precision_matrix", "covariance_matrix")},
    "one dimension": partial(multivariate, size=1, how="precision_matrix"),
    "diagonal": partial(normal, size=3),
    "number": number,
    "probs": partial(bernoulli, size=4, how="probs"),
    "logits": partial(bernoulli, size=4, how="logits"),
    "bit": bit,
}


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_natural_forms_are_log_densities(form, batch):
    fn, x = FORMS[form](batch)
    wanted = fn.log_prob(x)
    for origin in (None, x.mean(0)):
        found, coefficients, shape = natural_forms.natural({"fn": fn, "mask": None}, origin)
        assert shape == torch.Size(batch)
        table = found.table(x, coefficients)
        close(table.reshape(*batch, 7), wanted, rtol=1e-9, atol=1e-9)
        weights = torch.rand(table.shape, dtype=F64)
        total = found.total(found.moments(x, weights), coefficients)
        close(total, (weights * table).sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_taken_at_a_time_are_nobodys_business(form, monkeypatch):
    fn, x = FORMS[form]((3,))
    found, coefficients, _ = natural_forms.natural({"fn": fn, "mask": None}, x.mean(0))
    weights = torch.rand(3, 7, dtype=F64)
    whole = found.table(x, coefficients), *found.moments(x, weights)
    for numbers in (1, 30, 100):
        monkeypatch.setattr(densities, "IN_CACHE", numbers)
        for one, other in zip((found.table(x, coefficients), *found.moments(x, weights)), whole, strict=True):
            close(one, other)


def test_log_densities_far_from_zero_keep_their_digits():
    loc = torch.tensor([[1e7, -1e7]], dtype=F64)
    x = loc + torch.randn(7, 2, dtype=F64)
    for fn in (
        dist.MultivariateNormal(loc, matrices(1, size=2)).expand([7]),
        dist.Normal(loc, 0.5).expand([7, 2]).to_event(1),
    ):
        form, coefficients, _ = natural_forms.natural({"fn": fn, "mask": None}, x.mean(0))
        close(form.table(x, coefficients)[0], fn.log_prob(x), rtol=1e-7, atol=1e-7)


FOLLOWING = {
    "locations": dist.MultivariateNormal(torch.randn(7, 2, dtype=F64), torch.eye(2, dtype=F64)),
    "scales": dist.Normal(torch.zeros(7, 2, dtype=F64), torch.rand(7, 2, dtype=F64)).to_event(1),
    "probabilities": dist.Bernoulli(torch.rand(7, 2, dtype=F64)).to_event(1),
    "numbers": dist.Normal(torch.randn(7, dtype=F64), 1.0),
    "another family": dist.Poisson(torch.ones(1, dtype=F64)).expand([7]),
    "two axes of events": dist.Normal(torch.zeros(1, 2, 2, dtype=F64), 1.0).expand([7, 2, 2]).to_event(2),
    "half of an axis": dist.MultivariateNormal(torch.zeros(1, 2, 3, dtype=F64), torch.eye(3).double()).to_event(1),
    "no axis of data": dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1),
    "no plain normal": dist.LogNormal(torch.zeros(1, dtype=F64), 1.0).expand([7]),
}


@pytest.mark.parametrize("fn", FOLLOWING.values(), ids=FOLLOWING.keys())
def test_there_is_no_natural_form_where_parameters_follow_the_data(fn):
    assert natural_forms.natural({"fn": fn, "mask": None}) is None


def test_there_is_none_under_a_mask():
    fn, _ = number(())
    assert natural_forms.natural({"fn": fn, "mask": torch.ones(7).bool()}) is None
    assert natural_forms.natural_form(fn.mask(torch.ones(7).bool())) is None
