"""What a bound reports and what it teaches, against the formulas of its docstring written out by hand.

Unbiasedness alone cannot tell a good baseline from a bad one, or a gradient that is meant to be
biased from a wrong one; these do.
"""

from functools import partial
from math import log

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from given import Given
from small import DISCRETE, Bits, BitsGuide, Layers, LayersGuide, Mixed, MixedGuide

import ppl_vae as pv
from ppl_vae import objectives
from ppl_vae.estimation import estimate, weigh_for
from ppl_vae.objectives.relaxations import Binary

DOUBLE = torch.float64


def record(log_w, **fields):
    return pv.Particles(log_p={"x": log_w}, log_q={}, **fields)


def latents(sites=2, particles=4, rows=3):
    """Particles with divergences of both signs at each latent, and with scores."""
    names = [f"z{i}" for i in range(sites)]
    tensors = {role: {name: torch.randn(particles, rows, dtype=DOUBLE) for name in names} for role in ("p", "q")}
    x = {"x": torch.randn(particles, rows, dtype=DOUBLE)}
    return pv.Particles(log_p={**tensors["p"], **x}, log_q=tensors["q"], values=dict.fromkeys(names, x["x"]))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# Values.


def test_ciwae_weighs_the_elbo_by_beta():
    log_w = torch.randn(5, 3, dtype=DOUBLE)
    wanted = 0.2 * log_w.mean(0) + 0.8 * log_w.exp().mean(0).log()
    torch.testing.assert_close(objectives.ciwae(record(log_w), beta=0.2), wanted)


def test_beta_weighs_each_divergence():
    drawn = latents()
    divergence = sum(drawn.log_q[z] - drawn.log_p[z] for z in drawn.log_q)
    wanted = (drawn.log_p["x"] - 4 * divergence).mean(0)
    torch.testing.assert_close(objectives.beta_elbo(drawn, beta=4.0), wanted)


def test_free_bits_are_for_each_site_and_datum():
    drawn, floor = latents(), 0.3
    costs = [(drawn.log_q[z] - drawn.log_p[z]).mean(0) for z in drawn.log_q]
    assert any((cost < floor).any() and (cost > floor).any() for cost in costs)  # the floor matters, here and there
    wanted = drawn.log_p["x"].mean(0) - sum(torch.where(cost > floor, cost, floor) for cost in costs)
    torch.testing.assert_close(objectives.free_bits(drawn, floor=floor), wanted)


@pytest.mark.parametrize(
    "pair", [(Bits, BitsGuide), (Layers, LayersGuide), (Mixed, MixedGuide)], ids=lambda p: p[0].__name__
)
def test_both_textbook_forms_of_the_elbo_agree(pair):
    """Mean log-weight; reconstruction less divergences: on the same draws, and as ``beta_elbo(1)``."""
    model, guide = pair[0](), pair[1]()
    drawn = pv.weigh(model, guide, torch.ones(6, dtype=DOUBLE), particles=5)
    reconstruction, divergences = objectives.parts(drawn)
    assert len(divergences) == len(drawn.log_q)
    torch.testing.assert_close(reconstruction - sum(divergences.values()), drawn.log_w)
    torch.testing.assert_close(objectives.beta_elbo(drawn), objectives.elbo(drawn))


@pytest.mark.parametrize("alpha", [1 - 1e-6, 0.999, 1 + 1e-6])
def test_renyi_next_to_one_keeps_its_digits_in_float32(alpha):
    log_w = torch.randn(50, 200, dtype=DOUBLE) * 10 - 500
    found = objectives.renyi(record(log_w.float()), alpha=alpha)
    torch.testing.assert_close(found.double(), objectives.renyi(record(log_w), alpha=alpha), rtol=0, atol=1e-3)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("bound", [objectives.renyi, objectives.dreg], ids=lambda b: b.facts.name)
def test_an_order_on_a_schedule_is_the_same_order(bound, alpha):
    log_w = torch.randn(5, 3, dtype=DOUBLE)
    scheduled = objectives.Scheduled(bound, alpha=objectives.linear(alpha, alpha, steps=1))
    torch.testing.assert_close(scheduled(record(log_w)), bound(record(log_w), alpha=alpha), rtol=1e-6, atol=1e-6)


# Learning signals: what multiplies each draw's score.


def signals(bound, log_w):
    score = torch.randn_like(log_w).requires_grad_()
    return torch.autograd.grad(bound(record(log_w, score={"z": score})).sum(), score)[0]


def vimco(log_w, k):
    others = torch.cat([log_w[:k], log_w[k + 1 :]])
    return torch.cat([others, others.mean(0, keepdim=True)]).exp().mean(0).log()


def arithmetic(log_w, k):
    return torch.cat([log_w[:k], log_w[k + 1 :]]).exp().mean(0).log()


# In log w there is -log q, whose own gradient is part of the signal in the docstring: that of ovis is stated with it.
BASELINES = {
    "iwae": (objectives.iwae, lambda log_w, k: 0.0),
    "vimco": (objectives.vimco, vimco),
    "vimco_arithmetic": (objectives.vimco_arithmetic, arithmetic),
    "ovis": (objectives.ovis, lambda log_w, k: arithmetic(log_w, k) + log(1 - 1 / len(log_w))),
    "ovis(0.3)": (
        partial(objectives.ovis, gamma=0.3),
        lambda log_w, k: arithmetic(log_w, k) + 0.3 * log(1 - 1 / len(log_w)),
    ),
}


@pytest.mark.parametrize("particles", [2, 3])
@pytest.mark.parametrize("name", BASELINES)
def test_signals_of_importance_weighted_bounds(name, particles):
    bound, baseline = BASELINES[name]
    log_w = torch.randn(particles, 4, dtype=DOUBLE)
    whole = log_w.exp().mean(0).log()
    wanted = torch.stack([whole - baseline(log_w, k) for k in range(particles)])
    torch.testing.assert_close(signals(bound, log_w), wanted)


@pytest.mark.parametrize("particles", [2, 3])
def test_signals_of_bounds_that_are_linear(particles):
    log_w = torch.randn(particles, 4, dtype=DOUBLE)
    mean_of_others = torch.stack([torch.cat([log_w[:k], log_w[k + 1 :]]).mean(0) for k in range(particles)])
    for bound, wanted in (
        (objectives.reinforce, log_w),
        (objectives.elbo, log_w + 1),  # one more cancels the gradient of -log q in log w
        (objectives.rloo, log_w - mean_of_others + 1),
    ):
        torch.testing.assert_close(signals(bound, log_w), wanted / particles)


# Gradients that are no derivative of the value.


def given(bound, particles, name="bernoulli"):
    """Weigh all outcomes of K draws, each as a datum; return them with parameters of model and of guide."""
    make_model, make_guide, outcomes = DISCRETE[name]
    model, guide, draws = make_model(), make_guide(), outcomes(particles)
    with Given(draws):
        drawn = weigh_for(bound, model, guide, torch.ones(next(iter(draws.values())).shape[1], dtype=DOUBLE), particles)
    return drawn, list(model.parameters()), list(guide.parameters())


def assert_gradients(found, wanted, parameters):
    for ours, exact in zip(
        torch.autograd.grad(found, parameters, retain_graph=True, materialize_grads=True),
        torch.autograd.grad(wanted, parameters, retain_graph=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact)
        assert exact.abs().max() > 1e-3


def shares(log_w, power=1.0):
    return (power * log_w).detach().softmax(0)


@pytest.mark.parametrize("name", DISCRETE)
def test_both_wake_phases_are_their_sums(name):
    drawn, theta, phi = given(objectives.rws, 3, name) if name != "two layers" else given(objectives.rws, 2, name)
    v = shares(drawn.log_w)
    joint, posterior = sum(drawn.log_p.values()), sum(drawn.log_q.values())
    chance = torch.rand(v.shape[1], dtype=DOUBLE)  # any weights: the formula holds for each datum
    found = (chance * objectives.rws(drawn)).sum()
    assert_gradients(found, (chance * (v * joint).sum(0)).sum(), theta)
    assert_gradients(found, (chance * (v * posterior).sum(0)).sum(), phi)


@pytest.mark.parametrize("bound", [objectives.tvo, objectives.tvo_upper], ids=lambda b: b.facts.name)
def test_the_thermodynamic_gradient_is_its_covariance(bound):
    """E_b[grad log w] + Cov_b(log w, grad (b log p + (1 - b) log q)), each node by itself."""
    betas = (0.0, 0.3, 1.0)
    drawn, theta, phi = given(bound, 3)
    nodes = betas[:-1] if bound is objectives.tvo else betas[1:]
    joint, posterior, chance = drawn.log_p["z"] + drawn.log_p["x"], drawn.log_q["z"], torch.rand(64, dtype=DOUBLE)
    wanted, value = 0.0, 0.0
    for width, b in zip((0.3, 0.7), nodes, strict=True):
        v, fixed = shares(drawn.log_w, b), drawn.log_w.detach()
        tempered = b * joint + (1 - b) * posterior
        covariance = (v * fixed * tempered).sum(0) - (v * fixed).sum(0) * (v * tempered).sum(0)
        wanted = wanted + width * ((v * drawn.log_w).sum(0) + covariance)
        value = value + width * (v * fixed).sum(0)
    found = bound(drawn, betas=betas)
    torch.testing.assert_close(found, value)
    assert_gradients((chance * found).sum(), (chance * wanted).sum(), [*theta, *phi])


def test_the_sleep_phase_raises_the_density_of_dreams():
    """In the mean over dreams: the gradient of E_p(z, x)[log q(z | x)], summed over all z and x."""
    model, guide = Bits(), BitsGuide()
    torch.manual_seed(1)
    asleep, x = objectives.WakeSleep(wake=0.0, sleep=2.0), torch.ones(2000, dtype=DOUBLE)
    surrogates = [estimate(asleep, model, guide, x, 2).surrogate.mean() for _ in range(100)]
    found = torch.stack([torch.autograd.grad(surrogate, guide.logits)[0] for surrogate in surrogates])
    wanted = 0.0
    for bits in torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=DOUBLE)] * 2):
        for x in (0.0, 1.0):
            p_z = torch.distributions.Bernoulli(logits=model.prior).log_prob(bits).sum()
            p_x = torch.distributions.Bernoulli(logits=bits @ model.weight).log_prob(torch.tensor(x, dtype=DOUBLE))
            log_q = torch.distributions.Bernoulli(logits=guide.logits + x).log_prob(bits).sum()
            wanted = wanted + (p_z + p_x).exp().detach() * log_q
    exact = 2 * torch.autograd.grad(wanted, guide.logits)[0]
    odds.assert_mean(found, exact)
    assert exact.abs().min() > 0.1


class Straight(Bits):
    """A log density that is linear in the bits."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros(2, dtype=DOUBLE)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=torch.zeros_like(x)), obs=x)
            pyro.factor("linear", z @ self.weight)


def slope_of_mean(site, latent):
    return site.mean * (1 - site.mean)


def slope_of_relaxation(site, latent):
    relaxed = site.relaxed(latent, 0.7)
    return relaxed * (1 - relaxed) / 0.7


@pytest.mark.parametrize(
    ("objective", "slope"),
    [
        (objectives.StraightThrough(), slope_of_mean),
        (objectives.StraightThroughGumbel(0.7), slope_of_relaxation),
    ],
    ids=["mean", "relaxation"],
)
def test_going_straight_through_follows_the_stand_in(objective, slope):
    """log w is linear in the bits, with slopes weight - logits: draw by draw the gradient is known."""
    model, guide, x = Straight(), BitsGuide(), torch.ones(5, dtype=DOUBLE)
    torch.manual_seed(7)
    surrogate = estimate(objective, model, guide, x, 1).surrogate.mean()
    (found,) = torch.autograd.grad(surrogate, [*guide.parameters()])
    torch.manual_seed(7)
    site = Binary(torch.distributions.Bernoulli(logits=(guide.logits + 1).detach().expand(1, 5, 2)))
    latent = site.latent(site.noise())
    direct = -(site.hard(latent) - site.mean)  # of -log q at the draw
    wanted = (model.weight - site.logits) * slope(site, latent) + direct
    torch.testing.assert_close(found, wanted.detach().mean((0, 1)))
