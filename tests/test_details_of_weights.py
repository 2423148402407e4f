"""Where the rules of evaluation begin and end: estimates of a datum, what is said of them, divergences."""

import math

import pyro.distributions as dist
import pytest
import torch
from splitmix import finaliser

import ppl_vae as pv
from ppl_vae import estimates as ours
from ppl_vae.diagnostics import effective_sample_size, log_mean_error, pareto_khat
from ppl_vae.divergences import closed_kl
from ppl_vae.estimates import curve_sizes, estimates, pooled

DOUBLE = torch.float64


# Estimates of a datum.


def test_the_sizes_of_a_curve():
    assert curve_sizes(1) == [1]
    assert curve_sizes(2) == [1, 2]
    assert curve_sizes(10) == [1, 2, 5, 10]
    assert curve_sizes(101) == [1, 2, 5, 10, 20, 50, 100, 101]


def test_bounds_on_fewer_particles_leave_the_odd_ones_out():
    log_w = torch.randn(7, 2, dtype=DOUBLE)
    wanted = torch.stack([log_w[i : i + 3].exp().mean(0).log() for i in (0, 3)]).mean(0)
    torch.testing.assert_close(pooled(log_w, 3), wanted)


@pytest.mark.parametrize(("at_a_time", "sizes"), [(14, [2, 2, 1]), (20, [2, 2, 1]), (3, [1] * 5), (99, [5])])
def test_data_are_taken_some_at_a_time(at_a_time, sizes, monkeypatch):
    log_w, keys = torch.randn(7, 5, dtype=DOUBLE), torch.arange(5)
    wanted, whole, taken = estimates(log_w, keys, curve=True), ours._block, []
    monkeypatch.setattr(ours, "AT_A_TIME", at_a_time)
    monkeypatch.setattr(ours, "_block", lambda block, *rest: taken.append(block.shape[1]) or whole(block, *rest))
    for name, column in estimates(log_w, keys, curve=True).items():
        torch.testing.assert_close(column, wanted[name], equal_nan=True)
    assert taken == sizes


def test_the_rise_is_of_both_halves():
    log_w = torch.randn(7, 2, dtype=DOUBLE)
    halves = torch.stack([log_w[i : i + 3].exp().mean(0).log() for i in (0, 3)]).mean(0)
    columns = estimates(log_w, torch.arange(2), curve=False)
    torch.testing.assert_close(columns["rise"], log_w[:6].exp().mean(0).log() - halves)


@pytest.mark.parametrize("particles", [1, 2])
def test_what_one_particle_cannot_tell_is_no_number(particles):
    columns = estimates(torch.randn(particles, 3, dtype=DOUBLE), torch.arange(3), curve=False)
    for name in ("debiased", "rise", "log_px_error"):
        assert columns[name].isnan().all() == (particles == 1), name


@pytest.mark.parametrize("particles", [3, 250])
def test_replicates_are_bootstraps_of_groups(particles):
    log_w, keys = torch.randn(particles, 2, dtype=DOUBLE), torch.tensor([11, -12])
    columns = estimates(log_w, keys, curve=False)
    size = math.ceil(particles / 100)
    groups = log_w[: particles // size * size].unflatten(0, (-1, size)).exp().mean(1)
    count, n = len(groups), min(particles, 100)
    for column, key in enumerate(keys.tolist()):
        picked = [finaliser(finaliser(key + 1) + i) >> 11 for i in range(1, n * count + 1)]
        means = (
            torch.tensor([float(groups[p % count, column]) for p in picked]).unflatten(0, (n, count)).double().mean(1)
        )
        found = columns["replicates"][column]
        torch.testing.assert_close(found - found[0], (means / means[0]).log())
        harmonic = -((-found).exp().mean().log())
        torch.testing.assert_close(harmonic, columns["log_px"][column])


@pytest.mark.parametrize("particles", [3, 250])
def test_resampled_particles_are_systematic(particles):
    log_w, keys = torch.randn(particles, 6, dtype=DOUBLE), torch.arange(-3, 3)
    found, n = estimates(log_w, keys, curve=False)["resampled"], min(particles, 100)
    for column, key in enumerate(keys.tolist()):
        start = (finaliser(key) >> 11) * 2.0**-53
        bounds = log_w[:, column].softmax(0).cumsum(0)
        wanted = [int((bounds <= (start + i) / n).sum()) for i in range(n)]
        assert found[column].tolist() == wanted


def test_effective_sizes_and_errors_by_hand():
    log_w = torch.randn(6, 4, dtype=DOUBLE)
    w = log_w.exp()
    torch.testing.assert_close(effective_sample_size(log_w), w.sum(0).square() / w.square().sum(0))
    torch.testing.assert_close(log_mean_error(log_w), w.std(0) / (math.sqrt(6) * w.mean(0)))
    assert log_mean_error(log_w[:1]).isnan().all()
    torch.testing.assert_close(log_mean_error(log_w[:2]), w[:2].std(0) / (math.sqrt(2) * w[:2].mean(0)))


def shape_of_tail(log_w):
    """k-hat of one column as Zhang and Stephens have it, in loops."""
    draws = len(log_w)
    tail = math.ceil(min(draws / 5, 3 * math.sqrt(draws)))
    ordered = sorted(float(v) for v in (log_w - log_w.max()).exp())
    x = [value - ordered[-tail - 1] for value in ordered[-tail:]]
    n, grid = len(x), 30 + int(math.sqrt(len(x)))
    quartile = x[int(n / 4 + 0.5) - 1]
    b = [1 / x[-1] + (1 - math.sqrt(grid / (i + 0.5))) / (3 * quartile) for i in range(grid)]
    k = [sum(math.log1p(-row * value) for value in x) / n for row in b]
    logs = [n * (math.log(-row / shape) - shape - 1) for row, shape in zip(b, k, strict=True)]
    weight = [1 / sum(math.exp(other - own) for other in logs) for own in logs]
    mean = sum(w * row for w, row in zip(weight, b, strict=True))
    shape = sum(math.log1p(-mean * value) for value in x) / n
    return (n * shape + 5) / (n + 10)


@pytest.mark.parametrize("draws", [21, 25, 26, 100, 225, 400])
def test_khat_by_hand(draws):
    log_w = 2 * torch.randn(draws, 3, dtype=DOUBLE)
    wanted = torch.tensor([shape_of_tail(column) for column in log_w.unbind(1)], dtype=DOUBLE)
    torch.testing.assert_close(pareto_khat(log_w), wanted)


def test_khat_takes_five_draws_in_the_tail():
    assert pareto_khat(torch.randn(20, 2)).isposinf().all()
    assert pareto_khat(torch.randn(21, 2)).isfinite().all()
    # Four above the cutoff in one datum, which is tied with the fifth, and five in another.
    four = torch.cat([torch.linspace(0.1, 0.8, 4), torch.zeros(21)])
    five = torch.cat([torch.linspace(0.1, 0.8, 5), torch.zeros(20)])
    found = pareto_khat(torch.stack([four, five], 1))
    assert found[0].isposinf()
    assert found[1].isfinite()


def test_tails_within_one_per_cent_say_nothing():
    log_w = torch.randn(100, 1, dtype=DOUBLE) - 10
    level = log_w.clone()
    level[:21] = torch.linspace(0, 0.009, 21).unsqueeze(1)
    assert pareto_khat(level).isneginf().all()
    level[:21] = torch.linspace(0, 0.02, 21).unsqueeze(1)
    assert pareto_khat(level).isfinite().all()


# What is said of estimates over data.


def evaluation(n=100, particles=100, **columns):
    plain = {"log_px": torch.zeros(n), "elbo": torch.zeros(n), "ess": torch.full((n,), 50.0)}
    plain |= {"khat": torch.zeros(n), "log_px_error": torch.zeros(n), "rise": torch.zeros(n)}
    return pv.Evaluation(**{**plain, **columns}, particles=particles, seed=0)


def some(n, number, there, others):
    return torch.where(torch.arange(n) < number, there, others)


def test_one_per_cent_of_bad_tails_is_told():
    assert evaluation(200, khat=some(200, 1, 0.9, 0.1)).warnings == ()
    (told,) = evaluation(200, khat=some(200, 2, 0.9, 0.1)).warnings
    assert told.startswith("1.0% of the data have a Pareto k-hat above 0.7")
    assert evaluation(khat=torch.full((100,), 0.7, dtype=DOUBLE)).untrusted == 0
    assert "unknown" in evaluation(khat=torch.full((100,), math.inf)).verdict


def test_one_per_cent_of_few_draws_is_told():
    assert evaluation(200, ess=some(200, 1, 9.9, 10.0)).warnings == ()
    (told,) = evaluation(200, ess=some(200, 2, 9.9, 10.0)).warnings
    assert told.startswith("1.0% of the data have an effective sample size below 10")
    assert evaluation(200, 9, ess=torch.ones(200)).warnings == ()
    assert evaluation(200, 10, ess=torch.ones(200)).warnings != ()


def test_a_rise_is_told_beyond_its_error_and_a_hundredth():
    spread = torch.tensor([-1.0, 1.0]).repeat(50).double()
    error = float(spread.std()) / 10
    assert evaluation(rise=torch.full((100,), 0.009)).warnings == ()
    assert "still rising" in evaluation(rise=torch.full((100,), 0.011)).warnings[0]
    assert evaluation(rise=spread + 1.99 * error).warnings == ()
    assert "still rising" in evaluation(rise=spread + 2.01 * error).warnings[0]
    # A tenth of the standard error over data matters to nobody.
    assert evaluation(log_px=spread * 10, rise=torch.full((100,), 0.099)).warnings == ()
    assert "still rising" in evaluation(log_px=spread * 10, rise=torch.full((100,), 0.101)).warnings[0]
    assert "still rising" in evaluation(1, rise=torch.full((1,), 0.011)).warnings[0]


def test_reports_have_what_is_known():
    found = evaluation(ess=some(100, 5, 9.0, 10.0), khat=some(100, 3, 0.8, 0.1)).to_dict()
    assert (found["ess_below_10"], found["khat_above_0.7"]) == (0.05, 0.03)
    assert found["bits_per_dim"] is None
    assert evaluation(khat=torch.full((100,), math.inf)).to_dict()["khat_above_0.7"] is None
    assert evaluation(dims=4, mass=True).to_dict()["bits_per_dim"] == 0
    assert evaluation(dims=4).to_dict()["bits_per_dim"] is None
    assert "K = 1 draw per" in str(evaluation(particles=1))
    assert "K = 2 draws per" in str(evaluation(particles=2))


def test_bits_of_two_levels_are_the_least():
    halves = evaluation(log_px=torch.full((100,), 4 * math.log(2), dtype=DOUBLE), dims=4)
    assert halves.bits_per_dim(2) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="levels"):
        halves.bits_per_dim(1)


# Divergences.


@pytest.mark.parametrize("low_rank", [False, True])
def test_divergences_of_correlated_normals_from_independent_ones(low_rank):
    factor, loc, scale = torch.randn(2, 3, 3).double(), torch.randn(2, 3).double(), torch.rand(2, 3).double() + 0.5
    covariance = factor @ factor.mT + torch.eye(3)
    correlated = dist.MultivariateNormal(loc, covariance)
    q = dist.LowRankMultivariateNormal(loc, factor, torch.ones(2, 3).double()) if low_rank else correlated
    p = dist.MultivariateNormal(loc + 1, torch.diag_embed(scale.square()))
    wanted = torch.distributions.kl_divergence(correlated, p)
    torch.testing.assert_close(closed_kl(q, dist.Normal(loc + 1, scale).to_event(1)), wanted)


def test_divergences_of_values_that_one_of_two_enumerates():
    p, q = torch.tensor([[0.2], [0.7], [0.4]]).double(), torch.tensor([0.1, 0.6]).double()
    wanted = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    torch.testing.assert_close(closed_kl(dist.Bernoulli(q), dist.Bernoulli(p)), wanted)


def test_divergences_that_nobody_knows_are_none():
    q = dist.MultivariateNormal(torch.zeros(2, 3), torch.eye(3))
    loc, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert closed_kl(q, dist.Laplace(loc, one).to_event(1)) is None
    assert closed_kl(q, dist.Normal(loc, one).to_event(2)) is None
    assert closed_kl(q, dist.MultivariateStudentT(3.0, torch.zeros(3), torch.eye(3))) is None
    assert closed_kl(dist.StudentT(3.0, loc, one).to_event(1), dist.Normal(loc, one).to_event(1)) is None
    assert closed_kl(q, dist.Normal(loc, one).to_event(1)) is not None
