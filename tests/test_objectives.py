"""Laws over every bound, and gradients for discrete latents against enumeration."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from given import Given
from torch import nn

import ppl_vae as pv
from ppl_vae.objectives import Facts, every, facts, objective

BOUNDS = every()


def record(log_w):
    return pv.Particles(log_p={"x": log_w}, log_q={})


@pytest.fixture(params=BOUNDS.values(), ids=BOUNDS)
def bound(request):
    return request.param


def test_facts_are_stated(bound):
    assert bound.facts.formula
    assert bound.facts.reference
    for part in ("Reference:", "Example:", "Returns:"):
        assert part in bound.__doc__


def test_a_constant_factor_shifts_the_bound(bound):
    log_w = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(bound(record(log_w + 3.0)), bound(record(log_w)) + 3.0)


def test_the_order_of_particles_does_not_matter(bound):
    log_w = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(bound(record(log_w.flip(0))), bound(record(log_w)))


def test_one_particle_gives_its_weight(bound):
    log_w = torch.randn(1, 4, dtype=torch.float64)
    torch.testing.assert_close(bound(record(log_w)), log_w[0])


def test_equal_weights_are_the_bound(bound):
    torch.testing.assert_close(bound(record(torch.full((6, 3), -7.0))), torch.full((3,), -7.0))


def test_weights_far_apart_give_no_nan(bound):
    log_w = torch.tensor([[-1e4], [1e4], [0.0]], requires_grad=True)
    value = bound(record(log_w))
    value.sum().backward()
    assert value.isfinite().all()
    assert log_w.grad.isfinite().all()


def test_elbo_is_the_mean_and_iwae_the_log_mean_of_weights():
    log_w = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(pv.objectives.elbo(record(log_w)), log_w.mean(0))
    torch.testing.assert_close(pv.objectives.iwae(record(log_w)), log_w.exp().mean(0).log())


def test_facts_come_through_partial_and_default_for_plain_functions():
    from functools import partial

    @objective(formula="a", reference="b", min_particles=3, linear=True)
    def scaled(particles, factor):
        return factor * particles.log_w[0]

    assert facts(partial(scaled, factor=2)) == Facts("a", "b", 3, True, "scaled")
    assert facts(lambda particles: particles.log_w[0]) == Facts(name="<lambda>")


class Bits(nn.Module):
    """Two latent bits, one observed: every expectation is a sum over few terms."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Parameter(torch.tensor([0.3, -0.5], dtype=torch.float64))
        self.weight = nn.Parameter(torch.tensor([1.2, -0.7], dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)


class BitsGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.4, 0.9], dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.logits + x.unsqueeze(-1)).to_event(1))


def all_draws(particles):
    """Every outcome of K draws of two bits, one along the batch: ``(K, outcomes, 2)``."""
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2 * particles)), dtype=torch.float64)
    return bits.reshape(len(bits), particles, 2).transpose(0, 1)


@pytest.mark.parametrize("particles", [1, 2, 3])
def test_gradients_of_discrete_latents_are_unbiased(bound, particles):
    """Expectation of the surrogate's gradient = gradient of the expected bound, summed over all draws."""
    model, guide = Bits(), BitsGuide()
    draws = all_draws(particles)
    x = torch.ones(draws.shape[1], dtype=torch.float64)
    with Given({"z": draws}):
        drawn = pv.weigh(model, guide, x, particles=particles)
    chance = drawn.log_q["z"].sum(0).exp()
    parameters = [*model.parameters(), *guide.parameters()]
    # The value as a plain function of the weights, without any surrogate: detached score.
    plain = bound(pv.Particles(log_p=drawn.log_p, log_q=drawn.log_q))
    exact = torch.autograd.grad((chance * plain).sum(), parameters, retain_graph=True)
    estimate = torch.autograd.grad((chance.detach() * bound(drawn)).sum(), parameters)
    for ours, wanted in zip(estimate, exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(chance.sum().item(), 1.0)


class PenalisedBits(Bits):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)
            pyro.factor("penalty_z", 3 * z.sum(-1))


def test_penalties_train_discrete_guides_without_bias():
    model, guide = PenalisedBits(), BitsGuide()
    draws = all_draws(2)
    with Given({"z": draws}):
        drawn = pv.weigh(model, guide, torch.ones(draws.shape[1], dtype=torch.float64), particles=2)
    chance = drawn.log_q["z"].sum(0).exp()
    plain = drawn.penalties["penalty_z"].mean(0)
    (exact,) = torch.autograd.grad((chance * plain).sum(), guide.parameters(), retain_graph=True)
    surrogate = pv.objectives.mean_penalty(drawn.penalties["penalty_z"], drawn)
    (estimate,) = torch.autograd.grad((chance.detach() * surrogate).sum(), guide.parameters())
    torch.testing.assert_close(estimate, exact)
    assert exact.abs().max() > 0.1


def test_impossible_draws_stay_impossible():
    score = torch.randn(2, 1, requires_grad=True)
    log_w = torch.tensor([[0.0], [-torch.inf]])
    some = pv.Particles(log_p={"x": log_w}, log_q={}, log_q_score=score)
    none = pv.Particles(log_p={"x": torch.full((2, 1), -torch.inf)}, log_q={}, log_q_score=score)
    assert pv.objectives.elbo(some).isneginf()
    assert pv.objectives.iwae(some).isfinite()
    assert pv.objectives.iwae(none).isneginf()


def test_a_forgotten_score_is_caught_by_the_same_sum(bound):
    """The same sum tells apart an estimator without its score term: the test can fail."""
    model, guide = Bits(), BitsGuide()
    draws = all_draws(2)
    with Given({"z": draws}):
        drawn = pv.weigh(model, guide, torch.ones(draws.shape[1], dtype=torch.float64), particles=2)
    chance = drawn.log_q["z"].sum(0).exp()
    plain = bound(pv.Particles(log_p=drawn.log_p, log_q=drawn.log_q))
    (exact,) = torch.autograd.grad((chance * plain).sum(), guide.parameters(), retain_graph=True)
    (biased,) = torch.autograd.grad((chance.detach() * plain).sum(), guide.parameters())
    assert (exact - biased).abs().max() > 1e-3
