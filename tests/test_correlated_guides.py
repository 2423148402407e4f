"""Gaussian guides with correlations: densities, divergences, and the posterior of a linear model without a gap."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from odds import assert_mean
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae import nets
from ppl_vae.distributions import LowRankNormal, TriangularNormal
from ppl_vae.divergences import closed_kl
from ppl_vae.estimation import estimate
from ppl_vae.guides.full_covariance import FullCovariance
from ppl_vae.guides.low_rank import LowRank
from ppl_vae.models.linear_gaussian import LinearGaussian

X_DIM, Z_DIM, F64 = 6, 3, torch.float64
HEADS = {
    "triangle": nets.ToMultivariateNormal(Z_DIM),
    "rank 1": nets.ToLowRankNormal(Z_DIM, rank=1),
    "rank 3": nets.ToLowRankNormal(Z_DIM, rank=3),
    "rank 5": nets.ToLowRankNormal(Z_DIM, rank=5),
}


@pytest.fixture(params=HEADS, ids=lambda name: name.replace(" ", "-"))
def q(request):
    """Return some normals with a batch of four, from each kind of head."""
    torch.manual_seed(0)
    head = HEADS[request.param]
    return head(torch.randn(4, head.in_dim, dtype=F64))


def independent():
    torch.manual_seed(1)
    return dist.Normal(torch.randn(Z_DIM, dtype=F64), torch.rand(Z_DIM, dtype=F64) + 0.3).to_event(1)


class TestDensities:
    def test_they_are_scipys(self, q):
        z = q.sample((5,))
        for i in range(4):
            exact = multivariate_normal(q.loc[i].numpy(), q.covariance_matrix[i].numpy())
            np.testing.assert_allclose(q.log_prob(z)[:, i], exact.logpdf(z[:, i].numpy()), rtol=1e-9)
            assert float(q.entropy()[i]) == pytest.approx(exact.entropy(), rel=1e-9)

    def test_means_and_variances(self, q):
        assert torch.equal(q.mean, q.loc)
        torch.testing.assert_close(q.variance, q.covariance_matrix.diagonal(dim1=-2, dim2=-1))

    def test_draws_have_the_covariance(self, q):
        torch.manual_seed(2)
        z = q.sample((10000,)) - q.loc
        assert_mean(z.unsqueeze(-1) * z.unsqueeze(-2), q.covariance_matrix)

    def test_gradients_are_those_of_a_dense_normal(self, q):
        z = q.sample()
        name = "scale_tril" if isinstance(q, TriangularNormal) else "cov_factor"
        part = getattr(q, name).clone().requires_grad_()
        if name == "scale_tril":
            found, covariance = TriangularNormal(q.loc, scale_tril=part), part @ part.mT
        else:
            found = LowRankNormal(q.loc, part, q.cov_diag)
            covariance = part @ part.mT + q.cov_diag.diag_embed()
        dense = dist.MultivariateNormal(q.loc, covariance_matrix=covariance)
        ours, theirs = (torch.autograd.grad(d.log_prob(z).sum(), part, retain_graph=True)[0] for d in (found, dense))
        ours, theirs = (part.tril() if name == "scale_tril" else part for part in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)

    def test_batches_expand(self, q):
        wide, z = q.expand((5, 4)), q.sample((5,))
        assert type(wide) is type(q)
        assert (wide.batch_shape, wide.event_shape) == ((5, 4), (Z_DIM,))
        torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
        assert wide.rsample((2,)).shape == (2, 5, 4, Z_DIM)
        torch.testing.assert_close(wide.entropy(), q.entropy().expand(5, 4))


class TestPrecision:
    @pytest.mark.parametrize("scale", [1.0, 1e-1, 1e-2, 1e-3, 1e-4])
    def test_narrow_directions_keep_their_digits(self, scale):
        """Torch's low-rank density is off by 6000 nats at the last."""
        torch.manual_seed(0)
        loc, factor, d = torch.randn(20), torch.randn(20, 4), torch.full((20,), scale**2)
        q = LowRankNormal(loc, factor, d)
        z = q.sample((100,))
        covariance = factor.double() @ factor.double().mT + d.double().diag()
        exact = dist.MultivariateNormal(loc.double(), covariance_matrix=covariance).log_prob(z.double())
        assert (q.log_prob(z) - exact).abs().max() < 2e-5 / scale

    def test_directions_may_coincide(self):
        """What single precision finds indefinite is not: each column of W is the same."""
        torch.manual_seed(0)
        factor = 3 * torch.randn(20, 1)
        q = LowRankNormal(torch.zeros(20), factor.expand(20, 4).clone().requires_grad_(), torch.full((20,), 1e-8))
        one = LowRankNormal(torch.zeros(20).double(), 2 * factor.double(), torch.full((20,), 1e-8).double())
        z = q.sample((50,))
        assert (q.log_prob(z) - one.log_prob(z.double())).abs().max() < 0.2
        assert torch.autograd.grad(q.log_prob(z).sum(), q._unbroadcasted_cov_factor)[0].isfinite().all()

    def test_autocast_changes_nothing(self, q):
        loc = q.loc.float()
        found = []
        for enabled in (False, True):
            torch.manual_seed(0)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                if isinstance(q, TriangularNormal):
                    fn = TriangularNormal(loc, scale_tril=q.scale_tril.float())
                else:
                    fn = LowRankNormal(loc, q.cov_factor.float(), q.cov_diag.float())
                z = fn.rsample((7,))
                found.append((z, fn.log_prob(z), fn.entropy()))
        for plain, cast in zip(*found, strict=True):
            assert torch.equal(plain, cast)

    def test_what_cannot_be_factorised_is_no_number(self):
        q = LowRankNormal(torch.zeros(2), torch.full((2, 2), 1e9 / 3), torch.full((2,), 1e-6))
        assert q.log_prob(torch.zeros(2)).isnan()


class TestDivergences:
    def test_torch_knows_none_from_independent_normals(self, q):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, independent())

    def test_from_independent_normals_it_is_that_of_dense_ones(self, q):
        p = independent()
        dense = dist.MultivariateNormal(q.loc, covariance_matrix=q.covariance_matrix)
        same = dist.MultivariateNormal(p.mean, scale_tril=p.base_dist.scale.diag())
        torch.testing.assert_close(closed_kl(q, p), kl_divergence(dense, same), rtol=1e-9, atol=1e-9)

    def test_between_correlated_ones_it_is_that_of_dense_ones(self, q):
        dense = dist.MultivariateNormal(q.loc, covariance_matrix=q.covariance_matrix)
        for other in (HEADS[name](torch.ones(4, HEADS[name].in_dim, dtype=F64)) for name in ("triangle", "rank 1")):
            same = dist.MultivariateNormal(other.loc, covariance_matrix=other.covariance_matrix)
            torch.testing.assert_close(closed_kl(q, other), kl_divergence(dense, same), rtol=1e-8, atol=1e-8)

    def test_by_monte_carlo(self, q):
        torch.manual_seed(3)
        p, z = independent(), q.sample((5000,))
        assert_mean(q.log_prob(z) - p.log_prob(z), closed_kl(q, p))

    def test_what_nobody_knows(self, q):
        assert closed_kl(q, dist.Laplace(torch.zeros(Z_DIM), 1.0).to_event(1)) is None
        assert closed_kl(q, dist.Normal(torch.zeros(4, Z_DIM), 1.0).to_event(2)) is None
        assert closed_kl(dist.StudentT(torch.full((Z_DIM,), 3.0)).to_event(1), independent()) is None

    def test_pyros_own_are_still_there(self):
        q, p = dist.Normal(torch.ones(2), 2.0).to_event(1), dist.Normal(torch.zeros(2), 1.0).to_event(1)
        assert float(closed_kl(q, p)) == pytest.approx(2 * (-math.log(2) + (4 + 1) / 2 - 0.5), rel=1e-6)


def set_encoder(guide, model, raw):
    """Make a linear encoder give the model's posterior mean, and the rest of its outputs as they are given."""
    linear, _ = guide.encoder[0][0], guide.encoder[1]
    with torch.no_grad():
        inputs = torch.cat([torch.zeros(1, X_DIM), torch.eye(X_DIM)]).to(F64)
        means = model.posterior(inputs).mean
        linear.weight.zero_()
        linear.weight[:Z_DIM] = (means[1:] - means[0]).mT
        linear.bias.copy_(torch.cat([means[0], *raw]))
    return guide


def inverse_softplus(value):
    return torch.log(torch.expm1(value))


def triangular(model, covariance):
    guide = FullCovariance(x_dim=X_DIM, z_dim=Z_DIM, hidden=()).double()
    factor = torch.linalg.cholesky(covariance)
    below = (factor / factor.diagonal().unsqueeze(-1))[tuple(torch.tril_indices(Z_DIM, Z_DIM, -1))]
    return set_encoder(guide, model, [inverse_softplus(factor.diagonal() - 1e-4), below])


def of_rank(rank):
    def make(model, covariance):
        guide = LowRank(x_dim=X_DIM, z_dim=Z_DIM, hidden=(), rank=rank).double()
        values, vectors = torch.linalg.eigh(covariance)
        factor = vectors[:, -rank:] * (values[-rank:] - values[0]).clamp_min(0).sqrt()
        scales = values[0].sqrt().expand(Z_DIM) - 1e-4
        return set_encoder(guide, model, [inverse_softplus(scales), factor.flatten()])

    return make


@pytest.fixture
def linear():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=X_DIM, z_dim=Z_DIM).double()
    model.bias.data.normal_()
    model.log_scale.data.normal_(-0.5, 0.3)
    return model, torch.randn(4, X_DIM, dtype=F64)


@pytest.mark.parametrize("make", [triangular, of_rank(Z_DIM - 1), of_rank(Z_DIM)], ids=["full", "rank 2", "rank 3"])
def test_the_exact_posterior_leaves_no_gap(make, linear):
    model, x = linear
    exact = model.posterior(x)
    guide = make(model, exact.covariance_matrix[0])
    torch.testing.assert_close(guide.encoder(x).mean, exact.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(guide.encoder(x).covariance_matrix, exact.covariance_matrix, rtol=1e-9, atol=1e-9)
    particles = pv.weigh(model, guide, x, particles=3, kl=True)
    torch.testing.assert_close(particles.log_w, model.log_px(x).expand(3, 4), rtol=1e-9, atol=1e-9)
    prior = dist.MultivariateNormal(torch.zeros(Z_DIM, dtype=F64), torch.eye(Z_DIM, dtype=F64))
    torch.testing.assert_close(particles.kl["z"].expand(3, 4), kl_divergence(exact, prior).expand(3, 4))


def test_one_direction_leaves_the_gap_of_the_others(linear):
    """And mean field a larger one: its precision is the posterior's diagonal."""
    model, x = linear
    exact = model.posterior(x)
    guide = of_rank(1)(model, exact.covariance_matrix[0])
    bound = pv.weigh(model, guide, x, particles=4000).log_w
    gap = kl_divergence(guide.encoder(x), exact)
    assert gap.min() > 1e-3
    assert_mean(bound, model.log_px(x) - gap)


@pytest.mark.parametrize("make", [triangular, of_rank(Z_DIM - 1), of_rank(Z_DIM)], ids=["full", "rank 2", "rank 3"])
def test_at_the_exact_posterior_the_path_gradient_is_zero_in_every_draw(make, linear):
    """G. Roeder et al. 2017: what draws follow and what scores them is one distribution."""
    model, x = linear
    guide = make(model, model.posterior(x).covariance_matrix[0])
    estimate(pv.objectives.stl, model, guide, x, particles=2).surrogate.sum().backward()
    for parameter in guide.parameters():
        assert parameter.grad.abs().max() < 1e-8


class TestHeads:
    @pytest.mark.parametrize("name", HEADS)
    def test_leading_axes_are_rows(self, name):
        head = HEADS[name]
        h = torch.randn(2, 4, head.in_dim)
        q = head(h)
        assert (q.batch_shape, q.event_shape) == ((2, 4), (Z_DIM,))
        torch.testing.assert_close(q.covariance_matrix[1, 2], head(h[1, 2]).covariance_matrix)

    def test_the_triangle_is_filled_row_by_row(self):
        head = nets.ToMultivariateNormal(3, min_scale=0.5)
        h = torch.arange(1.0, 10.0)
        factor, scale = head(h).scale_tril, nn.functional.softplus(h[3:6]) + 0.5
        torch.testing.assert_close(factor.diagonal(), scale)
        unit = factor / scale.unsqueeze(-1)
        torch.testing.assert_close(unit.tril(-1), torch.tensor([[0, 0, 0], [7.0, 0, 0], [8, 9, 0]]))

    def test_a_triangle_that_narrows_is_scored_to_its_last_digits(self):
        """As in training on sharp data: every scale falls to a hundredth, what is below it stays as it was."""
        torch.manual_seed(0)
        head = nets.ToMultivariateNormal(20)
        h = torch.cat([torch.zeros(20), torch.full((20,), -4.6), 0.5 * torch.randn(190)]).expand(500, -1)
        q = head(h)
        exact = dist.MultivariateNormal(q.loc.double(), scale_tril=q.scale_tril.double())
        z = q.rsample()
        torch.testing.assert_close(q.log_prob(z).double(), exact.log_prob(z.double()), rtol=0, atol=1e-2)

    def test_one_dimension_is_a_normal(self):
        h = torch.tensor([0.3, -0.2])
        q, exact = nets.ToMultivariateNormal(1)(h), nets.ToNormal()(h)
        assert q.log_prob(torch.ones(1)).item() == pytest.approx(exact.log_prob(torch.ones(1)).item(), rel=1e-6)

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            (lambda: nets.ToMultivariateNormal(3)(torch.zeros(2, 6)), "expected a last axis of 9 for z_dim = 3"),
            (lambda: nets.ToLowRankNormal(3, 2)(torch.zeros(2, 9)), "last axis of 12 for z_dim = 3 and rank = 2"),
            (lambda: nets.ToLowRankNormal(3, 0), "rank: expected at least 1, found 0"),
        ],
    )
    def test_refusals(self, head, message):
        with pytest.raises(ValueError, match=message):
            head()
