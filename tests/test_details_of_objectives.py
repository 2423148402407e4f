"""What objectives state of themselves, where their options end, and the ends of their formulas.

Laws read an objective's facts to know what to hold it to; here the facts themselves are held, by a table.
"""

import inspect
from functools import partial
from math import inf

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from small import Bits, BitsGuide, PenalisedBits
from torch import nn

import ppl_vae as pv
from ppl_vae import objectives
from ppl_vae.estimation import estimate
from ppl_vae.objectives.bounds import power_mean
from ppl_vae.objectives.drawing import estimate_elbo
from ppl_vae.particles import Path

DOUBLE = torch.float64


def record(log_w, **fields):
    return pv.Particles(log_p={"x": log_w}, log_q={}, **fields)


# Besides one particle, weights in a log-sum-exp, the total derivative and no claim on discrete sites.
LINEAR, DISCRETE, UPPER, TWO = {"linear": True}, {"discrete": True}, {"upper": True}, {"min_particles": 2}
STOPPED, NONE = {"path": Path.STOPPED}, {"path": Path.NONE}
FACTS = {
    "ciwae": {},
    "cubo": UPPER,
    "elbo": LINEAR,
    "iwae": {},
    "jackknife": TWO,
    "miwae": {},
    "renyi": {},
    "ovis": TWO | DISCRETE,
    "reinforce": LINEAR | DISCRETE,
    "rloo": TWO | LINEAR | DISCRETE,
    "vimco": TWO | DISCRETE,
    "vimco_arithmetic": TWO | DISCRETE,
    "beta_elbo": LINEAR,
    "elbo_kl": LINEAR | {"kl": True},
    "free_bits": {},
    "dreg": STOPPED,
    "piwae": {},
    "score_function": LINEAR | NONE,
    "stl": LINEAR | STOPPED,
    "rws": TWO | NONE,
    "tvo": TWO | NONE,
    "tvo_upper": TWO | NONE | UPPER,
    "ARM": LINEAR | DISCRETE,
    "DisARM": LINEAR | DISCRETE,
    "EUBO": LINEAR | UPPER,
    "WakeSleep": NONE,
    "MuProp": LINEAR | DISCRETE,
    "NVIL": LINEAR | DISCRETE,
    "REBAR": LINEAR | DISCRETE,
    "RELAX": LINEAR | DISCRETE,
    "Concrete": DISCRETE,
    "StraightThrough": DISCRETE,
    "StraightThroughGumbel": DISCRETE,
}
PLAIN = {"min_particles": 1, "linear": False, "path": Path.TOTAL, "kl": False, "upper": False, "discrete": False}


def test_facts_are_those_of_the_papers():
    known = {name: found.facts for name, found in (objectives.every() | objectives.estimators()).items()}
    assert {name: {key: getattr(fact, key) for key in PLAIN} for name, fact in known.items()} == {
        name: PLAIN | apart for name, apart in FACTS.items()
    }
    assert all(fact.formula and fact.reference and fact.name == name for name, fact in known.items())


X = torch.ones(5, dtype=DOUBLE)
MADE = {
    "NVIL": lambda: objectives.NVIL(x_dim=1).double(),
    "EUBO": lambda: objectives.EUBO(BitsGuide()),
    "RELAX": lambda: objectives.RELAX(z=torch.nn.Linear(2, 1)).double(),
}


def estimated(name, pair, *particles):
    """Return an estimate by a new objective from the same random numbers."""
    torch.manual_seed(0)
    objective = MADE.get(name, objectives.estimators()[name])()
    return estimate(objective, *pair, X, *particles) if particles else objective.estimate(*pair, X)


@pytest.mark.parametrize("name", ["ARM", "DisARM", "MuProp", "NVIL", "REBAR", "RELAX", "EUBO"])
def test_estimators_of_the_elbo_take_scales_of_sites(name):
    """Which has a meaning in what is linear in the densities: half of each is half of the bound."""
    half = poutine.scale(Bits(), 0.5), poutine.scale(BitsGuide(), 0.5)
    torch.testing.assert_close(estimated(name, half, 3).value, estimated(name, (Bits(), BitsGuide()), 3).value / 2)


@pytest.mark.parametrize("name", objectives.estimators())
def test_estimators_draw_one_particle_if_not_told(name):
    pair = Bits(), BitsGuide()
    torch.testing.assert_close(estimated(name, pair).value, estimated(name, pair, 1).value)


def test_inside_a_log_weight_given_draws_teach_the_guide_nothing():
    """Their part has mean zero, and stays out: what is left to the guide is the estimator's own."""
    guide = BitsGuide()
    found = estimate_elbo(Bits(), guide, X, 3, lambda drawn, record, earned: torch.zeros_like(earned))
    (slope,) = torch.autograd.grad(found.surrogate.sum(), guide.logits, materialize_grads=True)
    torch.testing.assert_close(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("bound", [objectives.elbo, objectives.iwae, objectives.cubo, objectives.EUBO(BitsGuide())])
def test_penalties_are_added_to_what_is_maximised(bound):
    """Whichever way the bound goes: value and sign of it stay, and the penalty, 3 for each bit, is reported."""
    found = []
    for model in (PenalisedBits(), Bits()):
        torch.manual_seed(0)
        found.append(estimate(bound, model, BitsGuide(), X, 3))
    paid, plain = found
    sign = -1 if objectives.facts(bound).upper else 1
    torch.testing.assert_close(plain.surrogate, sign * plain.value)
    torch.testing.assert_close(paid.value, plain.value)
    torch.testing.assert_close(paid.surrogate, plain.surrogate + paid.penalties["penalty_z"])
    assert paid.penalties["penalty_z"].min() >= 0
    assert paid.penalties["penalty_z"].max() > 0


class Chained(nn.Module):
    """A bit after one that is enumerated."""

    def __init__(self, mark):
        super().__init__()
        self.mark, self.logits = mark, nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.logits.expand(x.shape)), infer=self.mark)
            pyro.sample("z", dist.Bernoulli(logits=self.logits + y).expand(y.shape))


class ChainedModel(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=torch.zeros_like(x)))
            z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros_like(x)))
            pyro.sample("x", dist.Bernoulli(logits=y + z), obs=x)


@pytest.mark.parametrize("name", ["ARM", "MuProp", "REBAR"])
def test_draws_for_each_value_of_an_enumerated_site_are_refused(name):
    with pytest.raises(ValueError, match="site 'z' is drawn for each value of an enumerated site"):
        estimated(name, (ChainedModel(), Chained({"enumerate": "parallel"})), 2)


def test_the_renyi_bound_of_order_one_teaches_as_the_elbo():
    """Each draw by its own weight, not by the whole bound."""
    log_w, score = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    drawn = record(log_w, score={"z": score})
    slopes = [torch.autograd.grad(bound(drawn).sum(), score)[0] for bound in (objectives.elbo, RENYI_AT_ONE)]
    torch.testing.assert_close(*slopes)


RENYI_AT_ONE = partial(objectives.renyi, alpha=1.0)


def drawn(**fields):
    """Three draws of a latent with a prior, seen through x."""
    log_p = {"z": torch.randn(3, 4, dtype=DOUBLE), "x": torch.randn(3, 4, dtype=DOUBLE)}
    log_q = {"z": torch.randn(3, 4, dtype=DOUBLE)}
    return pv.Particles(log_p=log_p, log_q=log_q, values={"z": torch.zeros(3, 4)}, **fields)


def test_divergences_by_monte_carlo_have_a_baseline_and_exact_ones_none():
    """One of as much as the divergence weighs cancels the mean-zero gradient of its -log q."""
    score, kl = torch.randn(3, 4, dtype=DOUBLE, requires_grad=True), torch.rand(3, 4, dtype=DOUBLE)
    by_chance, exact = drawn(score={"z": score}), drawn(score={"z": score}, kl={"z": kl})
    divergence = by_chance.log_q["z"] - by_chance.log_p["z"]
    for bound, particles, wanted in (
        (objectives.elbo_kl, by_chance, by_chance.log_p["x"] - divergence + 1),
        (objectives.elbo_kl, exact, exact.log_p["x"] - kl),
        (partial(objectives.beta_elbo, beta=3.0), by_chance, by_chance.log_p["x"] - 3 * divergence + 3),
    ):
        (found,) = torch.autograd.grad(bound(particles).sum(), score)
        torch.testing.assert_close(found, wanted / 3)


def test_a_power_mean_of_power_zero_has_the_gradient_of_the_mean():
    log_w = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    slope = torch.autograd.grad(power_mean(record(log_w), torch.tensor(0.0)).sum(), log_w)[0]
    torch.testing.assert_close(slope, torch.full_like(log_w, 0.25))


# What each option may be at most and at least, and what just outside.
OPTIONS = {
    "ciwae beta": (lambda v: objectives.ciwae(record(torch.zeros(2, 1)), beta=v), [0, 0.5, 1], [-1e-6, 1 + 1e-6, -0.5]),
    "cubo n": (lambda v: objectives.cubo(record(torch.zeros(2, 1)), n=v), [1, 2.5], [1 - 1e-6, 0.5, 0, inf]),
    "ovis gamma": (lambda v: objectives.ovis(record(torch.zeros(2, 1)), gamma=v), [0, 0.5, 1], [-1e-6, 1 + 1e-6, -0.5]),
    "beta_elbo beta": (lambda v: objectives.beta_elbo(drawn(), beta=v), [0, 7], [-1e-6, -0.5, inf]),
    "free_bits floor": (lambda v: objectives.free_bits(drawn(), floor=v), [0, 7], [-1e-6, -0.5, inf]),
    "WakeSleep wake": (lambda v: objectives.WakeSleep(wake=v), [0, 7], [-1e-6, -0.5, inf]),
    "WakeSleep sleep": (lambda v: objectives.WakeSleep(sleep=v), [0, 7], [-1e-6, -0.5, inf]),
    "REBAR temperature": (lambda v: objectives.REBAR(temperature=v), [1e-6, 7], [0, -0.5, inf]),
    "REBAR scale": (lambda v: objectives.REBAR(scale=v), [-7, 0, 7], [inf, -inf]),
    "Concrete temperature": (lambda v: objectives.Concrete(temperature=v), [1e-6, 7], [0, -0.5, inf]),
    "NVIL decay": (lambda v: objectives.NVIL(decay=v), [0, 0.5, 1 - 1e-6], [-1e-6, -0.5, 1, 2]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_end_where_they_say(name):
    use, allowed, refused = OPTIONS[name]
    for value in allowed:
        use(value)
    for value in refused:
        with pytest.raises(ValueError, match=name.split()[1]):
            use(value)


@pytest.mark.parametrize("value", [True, "half", None])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_numbers(name, value):
    with pytest.raises(TypeError, match=name.split()[1]):
        OPTIONS[name][0](value)


# Results that are reported without their options rest on these.
DEFAULTS = {
    "ciwae": {"beta": 0.5},
    "cubo": {"n": 2.0},
    "miwae": {"groups": 1},
    "renyi": {"alpha": 0.5},
    "ovis": {"gamma": 1.0},
    "beta_elbo": {"beta": 1.0},
    "free_bits": {"floor": 0.0},
    "dreg": {"alpha": 0.0},
    "piwae": {"groups": 1},
    "tvo": {"betas": (0.0, 0.02, 0.1, 0.3, 1.0)},
    "tvo_upper": {"betas": (0.0, 0.02, 0.1, 0.3, 1.0)},
    "WakeSleep": {"wake": 0.5, "sleep": 0.5},
    "NVIL": {"x_dim": 784, "hidden": 100, "decay": 0.8, "normalise": True},
    "REBAR": {"temperature": 0.5, "scale": 1.0},
    "RELAX": {"temperature": 0.5, "scale": 1.0},
    "Concrete": {"temperature": 0.5},
    "StraightThroughGumbel": {"temperature": 0.5},
}


@pytest.mark.parametrize("name", objectives.every() | objectives.estimators())
def test_defaults_stay(name):
    known = inspect.signature((objectives.every() | objectives.estimators())[name]).parameters.items()
    found = {key: option.default for key, option in known if isinstance(option.default, (int, float, tuple))}
    assert found == DEFAULTS.get(name, {})
