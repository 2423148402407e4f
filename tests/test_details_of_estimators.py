"""Gradient estimators by hand: what they add up draw by draw, what trains their own parameters, what they leave out."""

from dataclasses import FrozenInstanceError
from math import inf

import pyro
import pyro.distributions as dist
import pytest
import torch
from small import Bits, BitsGuide, PenalisedBits
from torch import nn

import ppl_vae as pv
from ppl_vae import objectives
from ppl_vae.estimation import estimate
from ppl_vae.objectives.drawing import Hard
from ppl_vae.objectives.nvil import _mean_and_variance
from ppl_vae.objectives.paths import miwae_signal
from ppl_vae.objectives.vocabulary import Estimate, Facts, around, check_slopes, facts
from ppl_vae.objectives.weighted import normalised
from ppl_vae.particles import Path

DOUBLE = torch.float64
X = torch.ones(5, dtype=DOUBLE)
NETWORK = nn.Linear(2, 1).double()
RELAXED = {"REBAR": lambda: objectives.REBAR(0.6, 0.7), "RELAX": lambda: objectives.RELAX(0.6, 0.7, z=NETWORK)}
MADE = {**RELAXED, "MuProp": objectives.MuProp, "ARM": objectives.ARM, "DisARM": objectives.DisARM}


def log_weight(model, guide, z):
    """log p(x, z) - log q(z | x) of the bits, extended to what lies between them."""

    def bernoulli(logits, value):
        return value * logits - nn.functional.softplus(logits)

    joint = bernoulli(model.prior, z).sum(-1) + bernoulli(z @ model.weight, X)
    return joint - bernoulli(guide.logits + X.unsqueeze(-1), z).sum(-1)


def test_muprop_expands_the_log_weight_around_the_means():
    """Draw by draw: (f(z) - f(m) - f'(m) (z - m)) grad log q(z) + f'(m) grad m."""
    model, guide = Bits(), BitsGuide()
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(estimate(objectives.MuProp(), model, guide, X, 3).surrogate.sum(), guide.logits)
    torch.manual_seed(0)
    z = pv.weigh(model, guide, X, 3, linear=True, draw=Hard()).values["z"]
    m = (guide.logits + X.unsqueeze(-1)).sigmoid().detach().expand_as(z).clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_weight(model, guide, m).sum(), m)
    linear = (slope * (z - m)).sum(-1)
    signal = log_weight(model, guide, z) - log_weight(model, guide, m) - linear
    wanted = signal.unsqueeze(-1) * (z - m) + slope * m * (1 - m)  # the score of a logit is z - m
    torch.testing.assert_close(found, wanted.detach().mean(0).sum(0))


def test_nvils_signal_is_all_that_multiplies_a_score():
    """Draw by draw: ((log w - c) / s - C(x)) grad log q."""
    model, guide = Bits(), BitsGuide()
    nvil = objectives.NVIL(x_dim=1).double().eval()
    nvil.mean.fill_(-0.7)
    nvil.variance.fill_(6.25)
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(estimate(nvil, model, guide, X, 3).surrogate.sum(), guide.logits)
    torch.manual_seed(0)
    z = pv.weigh(model, guide, X, 3).values["z"]
    signal = (log_weight(model, guide, z) + 0.7) / 2.5 - nvil.baseline(X).squeeze(-1)
    score = z - (guide.logits + X.unsqueeze(-1)).sigmoid()
    torch.testing.assert_close(found, (signal.unsqueeze(-1) * score).detach().mean(0).sum(0))


@pytest.mark.parametrize("variance", [0.25, 6.25])
def test_nvils_baseline_learns_to_predict_the_signal(variance):
    """It goes down the squares of what it leaves: (log w - c) / s - C(x), with s no less than one."""
    model, guide = Bits(), BitsGuide()
    nvil = objectives.NVIL(x_dim=1).double()
    nvil.mean.fill_(-0.7)
    nvil.variance.fill_(variance)
    nvil.started.fill_(True)
    x = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=DOUBLE)
    held = [*nvil.baseline.parameters()]
    torch.manual_seed(0)
    found = torch.autograd.grad(estimate(nvil, model, guide, x, 3).surrogate.sum(), held)
    torch.manual_seed(0)
    log_w = pv.weigh(model, guide, x, 3).log_w.detach()
    left = (log_w + 0.7) / max(1.0, variance**0.5) - nvil.baseline(x).squeeze(-1)
    wanted = torch.autograd.grad(-left.square().mean(0).sum(), held)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


class Cut(Bits):
    """A model under which a datum of one cannot be."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)
            pyro.factor("cut", torch.where(x > 0.5, -inf, 0.0).expand(z.shape[:-1]))


@pytest.mark.parametrize("name", MADE)
def test_impossible_draws_teach_nothing(name):
    model, guide, x = Cut(), BitsGuide(), torch.tensor([1.0, 0.0], dtype=DOUBLE)
    surrogate = estimate(MADE[name]().double(), model, guide, x, 20).surrogate
    (nothing,) = torch.autograd.grad(surrogate[0], guide.logits, retain_graph=True)
    (something,) = torch.autograd.grad(surrogate[1], guide.logits)
    assert torch.equal(nothing, torch.zeros_like(nothing))
    assert something.abs().min() > 0


class OneAtMost(Bits):
    """A model under which two bits at once cannot be."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)
            pyro.factor("cut", torch.where(z.sum(-1) > 1.99, -inf, 0.0))


@pytest.mark.parametrize("name", MADE)
def test_a_draw_that_is_impossible_where_its_relaxation_is_not_teaches_nothing(name):
    guide = BitsGuide()
    value, surrogate = estimate(MADE[name]().double(), OneAtMost(), guide, torch.ones(40, dtype=DOUBLE), 1)
    impossible = value.isneginf()
    assert 0 < impossible.sum() < 40
    (slope,) = torch.autograd.grad(surrogate[impossible].sum(), guide.logits)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_nvil_reads_whole_numbers_of_the_first_tensor():
    nvil, x = objectives.NVIL(x_dim=3).double(), torch.tensor([[1, 0, 2], [3, 1, 1]])
    torch.testing.assert_close(nvil.baseline(x), nvil.baseline(x.double()))
    with pytest.raises(ValueError, match="x_dim"):
        nvil.baseline(x[:, :2])
    assert not any("like" in name for name in nvil.state_dict())


def test_nvils_averages_leave_impossible_draws_out():
    log_w = torch.tensor([[1.0, -inf, 4.0], [-inf, -inf, 1.0]], dtype=DOUBLE)
    mean, variance = _mean_and_variance(log_w, log_w)
    assert (mean.item(), variance.item()) == (2.0, 2.0)
    assert [moment.item() for moment in _mean_and_variance(log_w - inf, log_w)] == [0.0, 0.0]


def test_arm_weighs_a_difference_by_its_noise_around_a_half():
    u, logits = torch.tensor([0.1, 0.9], dtype=DOUBLE), torch.tensor([-2.0, 0.5], dtype=DOUBLE)
    one, other = torch.tensor([0.0, 1.0], dtype=DOUBLE), torch.tensor([1.0, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(objectives.ARM.coefficient(u, logits, one, other), torch.tensor([-0.4, 0.4]).double())
    wanted = torch.tensor([-0.5 / (1 + torch.tensor(-2.0).double().exp()), 0.0]).double()
    torch.testing.assert_close(objectives.DisARM.coefficient(u, logits, one, other), wanted)


def test_nvil_learns_from_a_batch_of_one():
    nvil = objectives.NVIL(x_dim=1, decay=0.0).double()
    value, _ = estimate(nvil, Bits(), BitsGuide(), X[:1], 1)
    torch.testing.assert_close(nvil.mean, value.squeeze())


@pytest.mark.parametrize("name", RELAXED)
def test_parameters_of_control_variates_go_down_the_square_of_the_gradient(name):
    """Of one draw for one datum; beside the slope of the square by differences."""
    objective, guide = RELAXED[name]().double(), BitsGuide()

    def surrogate():
        torch.manual_seed(0)
        return estimate(objective, Bits(), guide, X[:1], 1).surrogate.sum()

    def square():
        return torch.autograd.grad(surrogate(), guide.logits)[0].square().sum().item()

    own = [p for p in objective.parameters() if p is not NETWORK.bias]  # which moves no gradient
    for parameter, slope in zip(own, torch.autograd.grad(surrogate(), own), strict=True):
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            ends = []
            for step in (1e-5, -2e-5):
                flat[i] += step
                ends.append(square())
            flat[i] += 1e-5
            assert slope.view(-1)[i].item() == pytest.approx(-(ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_control_variates_by_hand():
    latent, earned = torch.randn(3, 4, 2, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    rebar, relax = (RELAXED[name]().double() for name in RELAXED)
    torch.testing.assert_close(rebar.control("z", latent, earned), 0.7 * earned)
    torch.testing.assert_close(relax.control("z", latent, earned), 0.7 * earned + NETWORK(latent).squeeze(-1))


def test_sites_after_one_that_is_given_are_taught():
    class Both(BitsGuide):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("fixed", dist.Bernoulli(logits=torch.zeros(2)).to_event(1), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Bernoulli(logits=self.logits + x.unsqueeze(-1)).to_event(1))

    guide = Both()
    surrogate = estimate(objectives.REBAR().double(), Bits(), guide, X, 20).surrogate.sum()
    (slope,) = torch.autograd.grad(surrogate, guide.logits)
    assert slope.abs().min() > 0


def test_shares_of_draws_in_bounds_of_their_own():
    log_w = torch.randn(6, 2, dtype=DOUBLE)
    found = miwae_signal(pv.Particles(log_p={"x": log_w}, log_q={}), groups=2)
    bounds = [log_w[i : i + 3].exp().mean(0).log() / 2 for i in (0, 3)]
    torch.testing.assert_close(found, torch.stack(bounds).repeat_interleave(3, 0))


def test_normalised_weights_take_masses_of_enumerated_values():
    mass = torch.tensor([0.25, 0.75], dtype=DOUBLE).log().reshape(2, 1, 1)
    log_p = torch.randn(2, 3, 4, dtype=DOUBLE)
    record = pv.Particles(log_p={"x": log_p}, log_q={"y": mass}, enumerated=("y",))
    for power in (1.0, 0.3, 0.0):
        wanted = mass.exp() * (power * (log_p - mass)).exp()
        torch.testing.assert_close(normalised(record, power), wanted / wanted.sum((0, 1)))


def test_impossible_values_of_an_enumerated_site_keep_a_finite_mass():
    class Certain(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                certain = dist.Categorical(logits=torch.tensor([0.0, -inf]).double())
                pyro.sample("y", certain, infer={"enumerate": "parallel"})

    class Two(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7]).double()))
                pyro.sample("x", dist.Normal(y.double(), 1.0), obs=x)

    record = pv.weigh(Two(), Certain(), X, 1)
    assert record.log_q["y"].flatten(0, -2)[1].eq(-1000).all()
    # The mass cancels in the sum over values, which stays that over all of the model's.
    wanted = sum(p * dist.Normal(X.new_tensor(y), 1.0).log_prob(X).exp() for y, p in ((0.0, 0.3), (1.0, 0.7)))
    torch.testing.assert_close(objectives.iwae(record), wanted.log())


def test_draws_that_move_under_a_density_that_does_not_are_refused():
    z = torch.zeros(2, 1, requires_grad=True)
    with pytest.raises(ValueError, match=r"site 'z' has a gradient straight through its draws.*which dreg needs"):
        check_slopes(pv.Particles({"x": z * 1}, {"z": torch.zeros(2, 1)}, values={"z": z}), "dreg")


def test_facts_of_an_estimator_around_a_bound_are_those_of_either():
    stl, closed, upper = facts(objectives.stl), objectives.elbo_kl, objectives.cubo
    assert around(stl, closed).kl
    assert around(facts(closed), objectives.elbo).kl
    assert not around(stl, objectives.elbo).kl
    assert around(stl, upper).upper
    assert not around(stl, objectives.elbo).upper
    assert around(stl, upper).linear is False


@pytest.mark.parametrize("name", ["Concrete", "StraightThrough", "StraightThroughGumbel"])
def test_relaxations_are_paid_penalties(name):
    guide, slopes = BitsGuide(), []
    for model in (Bits(), PenalisedBits()):
        torch.manual_seed(0)
        surrogate = estimate(getattr(objectives, name)(), model, guide, X, 50).surrogate.mean()
        slopes.append(torch.autograd.grad(surrogate, guide.logits)[0])
    assert (slopes[1] > slopes[0] + 0.1).all()  # three nats for each bit


@pytest.mark.parametrize(
    "thing",
    [pv.Particles({}, {}), facts(objectives.elbo), pv.Evaluation(*[torch.zeros(1)] * 5, particles=1, seed=0)],
    ids=["particles", "facts", "evaluation"],
)
def test_results_are_not_written_to(thing):
    with pytest.raises(FrozenInstanceError):
        thing.scale = 2.0


@pytest.mark.parametrize("bound", [objectives.NVIL, objectives.NVIL(x_dim=1), pv.Particles])
def test_schedules_are_of_functions_with_options(bound):
    with pytest.raises(TypeError, match="bound: expected a function of Particles with options"):
        objectives.Scheduled(bound, beta=objectives.linear(0.0, 1.0, 5))


def test_results_without_much():
    assert (pv.Particles({}, {}).scale, pv.Particles({}, {}).path) == (1.0, Path.TOTAL)
    assert Estimate(torch.zeros(1), torch.zeros(1)).scale == 1.0
    plain = {"min_particles": 1, "linear": False, "path": Path.TOTAL, "kl": False, "upper": False, "discrete": False}
    assert {name: getattr(Facts(), name) for name in plain} == plain
    found = pv.Evaluation(*[torch.zeros(3)] * 5, particles=1, seed=0)
    assert [getattr(found, name).shape for name in ("keys", "resampled", "replicates")] == [(0,), (0, 0), (0, 0)]
    assert found == found
    assert found != pv.Evaluation(*[torch.zeros(3)] * 5, particles=1, seed=0)
