"""Likelihoods of intensities and grey levels, against quadrature, sums over all levels and exact arithmetic."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from odds import assert_mean
from torch.distributions import Bernoulli
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli

from ppl_vae.distributions import ContinuousBernoulli, DiscretisedLogistic, GreyLevels

ETA = [0.0, 1e-6, 1e-3, 0.0041, 0.0099, 0.0101, 0.1, 0.3999, 0.4001, 1.0, 5.0, 15.0, 20.0, 60.0, 300.0]
LOGITS = torch.tensor([sign * eta for eta in ETA for sign in (1.0, -1.0)], dtype=torch.float64)


def integrate(function, panels=400):
    """Integrate over [0, 1] by Gauss and Legendre on many panels."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(8))
    starts = torch.arange(panels, dtype=torch.float64).unsqueeze(-1)
    x = ((starts + (nodes + 1) / 2) / panels).flatten()
    return (function(x.unsqueeze(-1)) * (weights / 2 / panels).repeat(panels).unsqueeze(-1)).sum(0)


class TestContinuousBernoulli:
    def test_density_and_mean_by_quadrature(self):
        d = ContinuousBernoulli(LOGITS)
        assert integrate(lambda x: d.log_prob(x).exp()).sub(1).abs().max() < 1e-12
        mean = integrate(lambda x: x * d.log_prob(x).exp())
        torch.testing.assert_close(d.mean, mean, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("x", [0.0, 1e-3, 0.5, 0.7, 1.0])
    def test_single_precision_has_its_digits(self, x):
        """Torch's is off by more than a nat at 60, and its gradient by a hundredth at 15."""
        logits = LOGITS.float().requires_grad_()
        exact = ContinuousBernoulli(logits.detach().double())
        found = ContinuousBernoulli(logits)
        x = torch.tensor(x)
        log_prob = found.log_prob(x)
        torch.testing.assert_close(log_prob.double(), exact.log_prob(x.double()), rtol=2e-6, atol=1e-6)
        (slope,) = torch.autograd.grad(log_prob.sum(), logits)
        # The derivative of an exponential family's log density: statistic minus mean.
        torch.testing.assert_close(slope.double(), x - exact.mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.mean.double(), exact.mean, rtol=0, atol=1e-6)

    def test_it_is_torchs_where_torch_is_right(self):
        logits = torch.tensor([-8.0, -1.0, 0.5, 3.0], dtype=torch.float64)
        x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
        ours, theirs = ContinuousBernoulli(logits), TorchContinuousBernoulli(logits=logits)
        torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_draws_follow_the_inverse_distribution_function(self, dtype, monkeypatch):
        """At evenly spread uniform numbers the mean of draws is the mean, and its slope the variance."""
        n = 4000
        grid = ((torch.arange(n, dtype=dtype) + 0.5) / n).unsqueeze(-1)
        monkeypatch.setattr(torch, "rand", lambda shape, **_: grid.expand(shape))
        logits = LOGITS[LOGITS.abs() < 100].to(dtype).requires_grad_()
        d = ContinuousBernoulli(logits)
        drawn = d.rsample((n,))
        assert ((drawn >= 0) & (drawn <= 1)).all()
        torch.testing.assert_close(drawn.mean(0), d.mean, rtol=0, atol=1e-5)
        (slope,) = torch.autograd.grad(drawn.mean(0).sum(), logits)
        (variance,) = torch.autograd.grad(d.mean.sum(), logits)
        torch.testing.assert_close(slope, variance, rtol=5e-3, atol=1e-4)

    def test_the_ends_of_the_uniform_numbers(self, monkeypatch):
        for end in (0.0, 1.0):
            monkeypatch.setattr(torch, "rand", lambda shape, end=end, **_: torch.full(shape, end))
            logits = LOGITS.float().requires_grad_()
            drawn = ContinuousBernoulli(logits).rsample()
            assert ((drawn >= 0) & (drawn <= 1)).all()
            assert torch.autograd.grad(drawn.sum(), logits)[0].isfinite().all()

    def test_values_outside_are_refused(self):
        with pytest.raises(ValueError, match="support"):
            ContinuousBernoulli(torch.zeros(2), validate_args=True).log_prob(torch.tensor([0.5, 1.5]))


LOC = torch.tensor([-3.0, -0.2, 0.0, 0.1234, 0.5, 0.999, 1.0, 7.0], dtype=torch.float64)
SCALE = torch.tensor([1e-4, 1e-3, 0.004, 0.05, 0.5, 3.0, 1e3], dtype=torch.float64)


def grid(levels=256, dtype=torch.float64):
    loc, scale = (part.to(dtype) for part in torch.meshgrid(LOC, SCALE, indexing="ij"))
    return DiscretisedLogistic(loc, scale, levels)


def exact_log_mass(loc, scale, level, levels):
    """Subtract two logistic distribution functions with a thousand digits."""
    with localcontext(prec=1000):
        loc, scale, whole = Decimal(loc), Decimal(scale), Decimal(levels - 1)

        def below(edge):
            return 1 / (1 + (-(Decimal(edge) / whole - loc) / scale).exp())

        low = below(level - 0.5) if level > 0 else Decimal(0)
        high = below(level + 0.5) if level < levels - 1 else Decimal(1)
        return float((high - low).ln())


class TestDiscretisedLogistic:
    @pytest.mark.parametrize("levels", [2, 3, 16, 256, 1024])
    @pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
    def test_masses_sum_to_one(self, levels, dtype, rounding):
        d = grid(levels, dtype)
        assert d.log_prob(d.enumerate_support()).logsumexp(0).abs().max() < rounding

    @pytest.mark.parametrize(("loc", "scale"), [(0.5, 0.1), (0.3, 0.01), (-3.0, 0.05), (0.1, 1e-3), (0.7, 50.0)])
    @pytest.mark.parametrize("level", [0, 1, 77, 254, 255])
    def test_masses_far_in_the_tails(self, loc, scale, level):
        exact = exact_log_mass(loc, scale, level, 256)
        for dtype, rounding in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            d = DiscretisedLogistic(torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype))
            assert d.log_prob(torch.tensor(level, dtype=dtype) / 255).item() == pytest.approx(exact, rounding, rounding)

    def test_gradients_are_finite_and_right_in_single_precision(self):
        slopes = {}
        for dtype in (torch.float32, torch.float64):
            loc, scale = (part.to(dtype).requires_grad_() for part in torch.meshgrid(LOC, SCALE, indexing="ij"))
            d = DiscretisedLogistic(loc, scale)
            densities = d.log_prob(d.enumerate_support().detach())
            each = [torch.autograd.grad(row.sum(), [loc, scale], retain_graph=True) for row in densities[::17]]
            slopes[dtype] = torch.stack([torch.stack(row) for row in each]).double()
        assert slopes[torch.float32].isfinite().all()
        size = slopes[torch.float64].abs() + 1 / SCALE  # what terms of a slope are large as
        assert ((slopes[torch.float32] - slopes[torch.float64]).abs() / size).max() < 5e-3

    def test_two_levels_are_a_bernoulli(self):
        d, x = grid(2), torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)
        bernoulli = Bernoulli(logits=(d.loc - 0.5) / d.scale)
        torch.testing.assert_close(d.log_prob(x), bernoulli.log_prob(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(d.mean, bernoulli.mean, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("levels", [3, 256])
    def test_the_mean_is_the_sum_over_levels(self, levels):
        d = grid(levels)
        x = d.enumerate_support()
        torch.testing.assert_close(d.mean, (x * d.log_prob(x).exp()).sum(0), rtol=1e-10, atol=1e-12)

    def test_draws_have_the_masses(self):
        torch.manual_seed(0)
        loc = torch.tensor([-0.1, 0.3, 0.9], dtype=torch.float64)
        d = DiscretisedLogistic(loc, torch.tensor([0.2, 0.05, 0.4], dtype=torch.float64), levels=5)
        drawn, levels = d.sample((20000,)), d.enumerate_support()
        assert d.support.check(drawn).all()
        assert_mean((drawn.unsqueeze(1) - levels).abs().lt(1e-9).double(), d.log_prob(levels).exp())

    @pytest.mark.parametrize("end", [0.0, 1 - 2**-24])
    def test_the_ends_of_the_uniform_numbers(self, end, monkeypatch):
        monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, end))
        assert grid(256, torch.float32).support.check(grid(256, torch.float32).sample()).all()

    def test_levels_may_be_off_by_rounding(self):
        x = torch.arange(256, dtype=torch.float32)
        forms = [
            x / 255,
            x * (1 / 255),
            (x / 255).nextafter(torch.tensor(9.0)),
            (x / 255).nextafter(torch.tensor(-9.0)),
        ]
        d = DiscretisedLogistic(torch.tensor(0.4), torch.tensor(0.01), validate_args=True)
        for form in forms:
            assert torch.equal(d.log_prob(form), d.log_prob(forms[0]))
        half = (x / 255).half()
        assert GreyLevels(256).check(half).all()
        assert torch.equal((half.float() * 255).round(), x)

    @pytest.mark.parametrize("x", [0.3, -1 / 255, 256 / 255, 0.502, float("nan")])
    def test_what_is_no_level_is_refused(self, x):
        d = DiscretisedLogistic(torch.zeros(2), torch.ones(2), validate_args=True)
        with pytest.raises(ValueError, match="multiples of 1/255 from 0 to 1"):
            d.log_prob(torch.tensor([0.0, x]))

    @pytest.mark.parametrize("levels", [1, 2.0, "many"])
    def test_fewer_than_two_levels_are_refused(self, levels):
        with pytest.raises(ValueError, match="levels: expected a whole number of at least 2"):
            DiscretisedLogistic(torch.zeros(()), torch.ones(()), levels)


@pytest.mark.parametrize("make", [ContinuousBernoulli, lambda p: DiscretisedLogistic(p, p.exp(), levels=4)])
def test_batches_expand_and_masks_leave_out(make):
    d = make(torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64))
    x = d.sample((4,))
    wide = d.expand((4, 3))
    assert wide.batch_shape == (4, 3)
    assert torch.equal(wide.log_prob(x), d.log_prob(x))
    assert wide.sample((2,)).shape == (2, 4, 3)
    assert torch.equal(wide.mean, d.mean.expand(4, 3))
    counted = torch.tensor([True, False, True])
    masked = d.to_event(1).base_dist.mask(counted).to_event(1)
    torch.testing.assert_close(masked.log_prob(x), d.log_prob(x)[:, counted].sum(-1))
    assert torch.equal(d.expand_by((5,)).log_prob(x[0]), d.log_prob(x[0]).expand(5, 3))
