"""Evaluation: unbiased whatever the chunks, repeatable, without side effects, and honest about itself."""

import math
import warnings
from itertools import pairwise

import arviz
import odds
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.diagnostics import effective_sample_size, pareto_khat
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian

CUTS = [
    {"particles": 10},
    {"particles": 10, "chunk": 3},
    {"particles": 1, "batch_size": 4},
    {"particles": 7, "batch_size": 3, "chunk": 2},
    {"particles": 5, "batch_size": 100, "chunk": 5000},
]


@pytest.fixture
def pair():
    return pairs.make("linear_gaussian", "normal")


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_with_the_exact_guide_no_cut_changes_the_result(pair, cut):
    x = pair.data(10)
    exact = pair.model.log_px(x).detach()
    evaluation = pv.evaluate(pair.model, Exact(pair.model), x, **cut)
    torch.testing.assert_close(evaluation.log_px, exact)
    torch.testing.assert_close(evaluation.elbo, exact)
    assert evaluation.mean == pytest.approx(exact.mean().item())  # sum over data / N, short last batch or not
    assert evaluation.particles == cut["particles"]
    torch.testing.assert_close(evaluation.ess, torch.full_like(exact, cut["particles"]))


class Wide(nn.Module):
    """A guide that is the prior."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))


@pytest.mark.parametrize("cut", [{"chunk": 7}, {"batch_size": 3}, {"batch_size": 4, "chunk": 130}], ids=str)
def test_with_a_learned_guide_no_cut_biases_the_weights(pair, cut):
    """w / p(x) has mean one: over seeds and copies of data, for a particle count that the chunk does not divide."""
    x = pair.data(5)
    exact = pair.model.log_px(x).detach()
    guide, copies = Wide(), x.repeat(25, 1)  # wider than any posterior, so that the weights have a variance
    runs = [pv.evaluate(pair.model, guide, copies, particles=200, seed=seed, **cut).log_px for seed in range(4)]
    odds.assert_mean((torch.cat(runs).unflatten(0, (-1, 5)) - exact).exp(), torch.ones(5).double())


def test_the_number_of_particles_raises_the_bound_to_log_px(pair):
    x = pair.data(1).expand(500, -1)
    results = [pv.evaluate(pair.model, pair.guide, x, particles=k) for k in (1, 4, 64)]
    for smaller, larger in pairwise(results):
        odds.assert_at_most(smaller.log_px, larger.log_px)
    odds.assert_at_most(results[-1].log_px, pair.model.log_px(x).detach())
    # The ELBO has the same expectation whatever K.
    gap = results[0].elbo - results[-1].elbo
    odds.assert_mean(gap.unsqueeze(-1), torch.zeros(1).double())


def test_two_calls_with_one_seed_agree_exactly(pair):
    x = pair.data(10)
    first, again = (pv.evaluate(pair.model, pair.guide, x, particles=20, seed=3) for _ in range(2))
    other = pv.evaluate(pair.model, pair.guide, x, particles=20, seed=4)
    for name in ("log_px", "elbo", "ess", "khat", "log_px_error"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.log_px, other.log_px)


def test_nothing_is_changed():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2)
    guide = Normal(x_dim=6, z_dim=2, hidden=(8,))
    guide.encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), guide.encoder)
    x = torch.randn(10, 6)
    before = {n: t.clone() for m in (model, guide) for n, t in m.state_dict().items()}
    state = torch.get_rng_state()
    first, again = (pv.evaluate(model, guide, x, particles=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for m in (model, guide) for n, t in m.state_dict().items())
    assert model.training
    assert guide.training
    assert all(p.grad is None for m in (model, guide) for p in m.parameters())
    assert torch.equal(first.log_px, again.log_px)  # evaluation mode: no dropout, no batch statistics


def test_evaluation_mode_makes_rows_independent():
    model = LinearGaussian(x_dim=6, z_dim=2)
    guide = Normal(x_dim=6, z_dim=2, hidden=(8,))
    guide.encoder = nn.Sequential(nn.BatchNorm1d(6), guide.encoder)
    x = torch.randn(1, 6)
    alone = pv.evaluate(model, guide, x, particles=1)
    beside = pv.evaluate(model, guide, torch.cat([x, 100 * torch.randn(1, 6)]), particles=1)
    # The first row's noise is the same, since draws fill row by row.
    assert alone.log_px[0] == pytest.approx(beside.log_px[0].item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["tuple", "dataset", "loader"])
def test_data_come_in_every_form(pair, kind):
    x = pair.data(10)
    dataset = torch.utils.data.TensorDataset(x)
    forms = {"tuple": (x,), "dataset": dataset, "loader": torch.utils.data.DataLoader(dataset, batch_size=4)}
    evaluation = pv.evaluate(pair.model, Exact(pair.model), forms[kind], particles=3, batch_size=3)
    torch.testing.assert_close(evaluation.log_px, pair.model.log_px(x).detach())


def test_the_sentence_for_a_paper():
    digits = pv.data.load("digits", binarize="static")
    model, guide = pairs.digits_vae()
    text = str(pv.evaluate(model, guide, digits, particles=200))
    assert "VAE (guide Normal) on digits (test, static binarization)" in text
    for part in (
        "nats per datum",
        "±",
        "standard error over N = 360 data",
        "K = 200 draws per datum",
        "k-hat above 0.7",
    ):
        assert part in text
    assert "Monte Carlo error unknown" in str(pv.evaluate(model, guide, digits.test, particles=1))
    assert "± unknown" in str(pv.evaluate(model, guide, digits.test[:1], particles=3))
    few = str(pv.evaluate(model, guide, digits.test, particles=3))
    assert "too small for a Pareto k-hat" in few
    assert "on digits" not in few


def test_standard_errors():
    log_px = torch.tensor([-1.0, -2.0, -4.0, -5.0], dtype=torch.float64)
    error = torch.full((4,), 0.2, dtype=torch.float64)
    evaluation = pv.Evaluation(log_px, log_px, log_px, torch.tensor([0.1, 0.8, 0.2, 0.3]), error, 10, 0)
    assert len(evaluation) == 4
    assert evaluation.mean == -3.0
    assert evaluation.se == pytest.approx(math.sqrt(10 / 3) / 2)
    assert evaluation.mc_se == pytest.approx(0.1)
    assert evaluation.untrusted == 0.25
    assert evaluation.to_dict()["log_px"] == -3.0


class BrokenScale(nn.Module):
    """A guide whose scale overflows for one datum."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            scale = self.scale * torch.where(x[:, :1] > 1e3, torch.inf, 1.0)
            pyro.sample("z", dist.Normal(torch.zeros_like(scale), scale).to_event(1))


@pytest.mark.parametrize("compile", [True, False])
def test_weights_that_are_not_numbers_name_the_site_and_the_datum(compile, uncompiled):  # noqa: A002
    x = torch.zeros(9, 6)
    x[7] = 1e4
    with pytest.raises(FloatingPointError, match="site 'z': log density is NaN or infinite for datum 7"):
        pv.evaluate(LinearGaussian(x_dim=6, z_dim=2), BrokenScale(), x, particles=3, batch_size=4, compile=compile)


@pytest.mark.parametrize("name", ["particles", "chunk"])
def test_counts_below_one_are_refused(pair, name):
    with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least 1, found 0"):
        pv.evaluate(pair.model, pair.guide, pair.data(), **{name: 0})


def test_draws_without_any_weight_count_as_zero():
    log_w = torch.tensor([[0.0], [-torch.inf]], dtype=torch.float64)
    assert effective_sample_size(log_w) == pytest.approx(1.0)


# Numbers of draws whose tail has a whole length, since versions of ArviZ round it differently.
@pytest.mark.parametrize("draws", [30, 200, 4900])
def test_khat_is_arvizs(draws):
    generator = torch.Generator().manual_seed(draws)
    scales = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    log_w = torch.randn(draws, 5, generator=generator, dtype=torch.float64) * scales
    ours = pareto_khat(log_w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.as_tensor(_arviz_khat(log_w))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def _arviz_khat(log_w):
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.psislw(log_w.numpy().T)[1]
    from arviz_stats.base import array_stats

    return array_stats.psislw(-log_w.numpy(), axis=0)[1]  # it takes log-likelihoods, whose negatives are weights


def test_khat_tells_light_tails_from_heavy_ones():
    torch.manual_seed(0)
    light = 0.3 * torch.randn(5000, 3, dtype=torch.float64)
    heavy = torch.distributions.Pareto(1.0, 1 / 1.5).sample((5000, 3)).log().double()  # tail index 1.5
    assert (pareto_khat(light) < 0.5).all()
    assert (pareto_khat(heavy) > 1).all()


def test_an_exact_guide_is_trusted_in_single_precision():
    """Its weights differ by rounding alone, whose tail says nothing."""
    torch.manual_seed(0)
    model, x = LinearGaussian(x_dim=64, z_dim=20), torch.randn(50, 64)
    evaluation = pv.evaluate(model, Exact(model), x, particles=1000)
    assert evaluation.untrusted == 0
    assert evaluation.mc_se < 1e-4


def test_khat_of_tied_weights_is_arvizs():
    """A discrete latent gives few distinct weights; those tied with the cutoff are no tail."""
    torch.manual_seed(0)
    values = torch.tensor([0.0, 0.5, 1.0, 1.2, 1.5, 1.7, 2.0, 2.5, 2.7, 3.0], dtype=torch.float64)
    tied = values[torch.randint(0, 10, (1000, 4))]
    few = torch.full((200, 1), -torch.inf, dtype=torch.float64)
    few[:20, 0] = torch.randn(20, dtype=torch.float64)
    assert (pareto_khat(tied) < 0.7).all()
    assert not pareto_khat(few).isnan().any()


def test_a_datum_without_any_weight_is_refused():
    class Nowhere(LinearGaussian):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.factor("nowhere", torch.full_like(z[..., 0], -torch.inf))
                super_loc = z @ self.weight.mT + self.bias
                pyro.sample("x", dist.Normal(super_loc, self.log_scale.exp()).to_event(1), obs=x)

    with pytest.raises(FloatingPointError, match="datum 0: all 3 draws of the guide have zero density"):
        pv.evaluate(Nowhere(x_dim=6, z_dim=2), Normal(x_dim=6, z_dim=2, hidden=(8,)), torch.zeros(4, 6), particles=3)


def test_a_khat_that_is_no_number_is_not_trusted():
    one = torch.ones(2, dtype=torch.float64)
    evaluation = pv.Evaluation(one, one, one, torch.tensor([0.1, math.nan]), one, 10, 0)
    assert evaluation.untrusted == 0.5


def test_a_loader_that_drops_data_is_refused(pair):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pair.data(8)), batch_size=3, drop_last=True)
    with pytest.raises(ValueError, match="drops its last batch"):
        pv.evaluate(pair.model, pair.guide, loader)


def test_khat_of_few_or_equal_weights():
    assert pareto_khat(torch.randn(10, 2)).isposinf().all()
    assert pareto_khat(torch.zeros(1000, 2)).isneginf().all()
