"""Gradients against exact ones: sums over discrete latents, quadrature over continuous ones."""

import itertools
from functools import partial
from math import log, pi

import every
import numpy as np
import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from given import Given
from pyro import poutine
from small import (
    DISCRETE,
    Bits,
    BitsGuide,
    Choice,
    ChoiceGuide,
    Layers,
    LayersGuide,
    Line,
    LineGuide,
    Mixed,
    MixedGuide,
    PenalisedBits,
    all_mixed_bits,
)

import ppl_vae as pv
from ppl_vae import objectives
from ppl_vae.estimation import estimate, weigh_for
from ppl_vae.objectives import facts
from ppl_vae.particles import Path

DOUBLE = torch.float64
X = 0.8


def parameters_of(*programs):
    return [p for program in programs for p in program.parameters()]


def flat(gradients):
    return torch.cat([g.reshape(-1) for g in gradients])


def gradients(objective, model, guide, particles, x=1.0, rows=1000, repeats=120):
    """Return independent draws of the gradient of the mean over rows, ``(repeats, P)``."""
    torch.manual_seed(3)
    parameters = parameters_of(model, guide)
    batch = torch.full((rows,), x, dtype=DOUBLE)
    found = []
    for _ in range(repeats):
        surrogate = estimate(objective, model, guide, batch, particles).surrogate
        slopes = torch.autograd.grad(surrogate.mean(), parameters, allow_unused=True)
        found.append(flat([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, slopes, strict=True)]))
    return torch.stack(found)


def exact_discrete(bound, name, particles, x=1.0):
    """Return the gradient of the expected bound, by the sum over all draws."""
    make_model, make_guide, outcomes = DISCRETE[name]
    model, guide, draws = make_model(), make_guide(), outcomes(particles)
    rows = next(iter(draws.values())).shape[1]
    with Given(draws):
        drawn = weigh_for(bound, model, guide, torch.full((rows,), x, dtype=DOUBLE), particles)
    chance = sum(drawn.log_q.values()).sum(0).exp()
    plain = bound(pv.Particles(log_p=drawn.log_p, log_q=drawn.log_q, values=drawn.values))
    return flat(torch.autograd.grad((chance * plain).sum(), parameters_of(model, guide))), model, guide


def normals(count):
    """Return nodes and weights of a Gauss-Hermite rule for ``count`` standard normals, ``(n, count)`` and ``(n,)``."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24 if count < 4 else 16)
    grid = torch.tensor(list(itertools.product(nodes, repeat=count)), dtype=DOUBLE)
    mass = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=count)), dtype=DOUBLE).prod(-1)
    return grid, mass


def exact_mixed(bound, particles):
    """Return the gradient of the expected bound of the mixed model: bits by a sum, z by quadrature."""
    model, guide = Mixed(), MixedGuide()
    bits = list(itertools.product(all_mixed_bits(), repeat=particles))
    noise, mass = normals(particles)
    y = torch.stack([torch.stack(b) for b in bits]).repeat_interleave(len(noise), 0).transpose(0, 1)
    eps = noise.repeat(len(bits), 1).T
    x = torch.full(y.shape[1:2], X, dtype=DOUBLE)
    z = y @ guide.slope + 0.3 * x + guide.log_scale.exp() * eps
    with Given({"y": y, "z": z}):
        drawn = pv.weigh(model, guide, x, particles)
    chance = drawn.log_q["y"].sum(0).exp() * mass.repeat(len(bits))
    torch.testing.assert_close(chance.sum().item(), 1.0)
    plain = bound(pv.Particles(log_p=drawn.log_p, log_q=drawn.log_q))
    return flat(torch.autograd.grad((chance * plain).sum(), parameters_of(model, guide))), model, guide


def exact_line(bound, particles):
    """Return the gradient of the expected bound of the two continuous layers, by quadrature."""
    model, guide = Line(), LineGuide()
    noise, mass = normals(2 * particles)
    x = torch.full((len(noise),), X, dtype=DOUBLE)
    with Given(guide.at(noise.unflatten(-1, (particles, 2)).transpose(0, 1), x)):
        drawn = pv.weigh(model, guide, x, particles)
    plain = bound(pv.Particles(log_p=drawn.log_p, log_q=drawn.log_q))
    return flat(torch.autograd.grad((mass * plain).sum(), parameters_of(model, guide))), model, guide


UNBIASED = {
    "ARM": objectives.ARM,
    "DisARM": objectives.DisARM,
    "MuProp": objectives.MuProp,
    "REBAR": partial(objectives.REBAR, temperature=0.6, scale=0.7),
    "RELAX": partial(objectives.RELAX, 0.6, 0.7),
    "NVIL": lambda: objectives.NVIL(x_dim=1, hidden=4, normalise=False),
}
BIASED = {
    "Concrete": partial(objectives.Concrete, 1.0),
    "StraightThrough": objectives.StraightThrough,
    "StraightThroughGumbel": partial(objectives.StraightThroughGumbel, 1.0),
}


def make(name, guide=None):
    torch.manual_seed(0)
    options = every.networks(guide, torch.ones(2, dtype=DOUBLE)) if name == "RELAX" else {}
    return {**UNBIASED, **BIASED}[name](**options).double()


@pytest.mark.parametrize("model", DISCRETE)
@pytest.mark.parametrize("name", UNBIASED)
def test_estimators_of_discrete_latents_are_unbiased(name, model):
    if "ARM" in name and model == "one-hot":
        pytest.skip("refused, see below")
    exact, *pair = exact_discrete(objectives.elbo, model, 1)
    odds.assert_mean(gradients(make(name, pair[1]), *pair, particles=2), exact)


@pytest.mark.parametrize("model", DISCRETE)
@pytest.mark.parametrize("name", BIASED)
def test_relaxed_estimators_are_biased_and_the_same_test_sees_it(name, model):
    exact, *pair = exact_discrete(objectives.elbo, model, 1)
    with pytest.raises(AssertionError, match="standard errors off"):
        odds.assert_mean(gradients(make(name), *pair, particles=2), exact)


def test_nvils_normalisation_rescales_the_score_alone():
    """With a running variance of 4, the guide's gradient is that of the plain one, halved; the model's is untouched."""
    exact, *pair = exact_discrete(objectives.elbo, "bernoulli", 1)
    nvil = objectives.NVIL(x_dim=1, hidden=4).double().eval()
    nvil.variance.fill_(4.0)
    guide = len(exact) - 2
    halved = torch.cat([exact[:guide], exact[guide:] / 2])
    drawn = gradients(nvil, *pair, particles=2)
    odds.assert_mean(drawn, halved)
    with pytest.raises(AssertionError, match="standard errors off"):
        odds.assert_mean(drawn, exact)


@pytest.mark.parametrize("name", UNBIASED)
def test_penalties_are_part_of_what_estimators_train(name):
    model, guide = PenalisedBits(), BitsGuide()
    x = torch.ones(2, dtype=DOUBLE)
    exact, without = (flat(pv.exact_gradient(m, guide, x).values()) for m in (model, Bits()))
    assert (exact - without).abs().max() > 0.1
    odds.assert_mean(gradients(make(name, guide), model, guide, particles=2), exact)
    value, _ = found = estimate(make(name, guide), model, guide, x, 2)
    assert found.penalties["penalty_z"].shape == value.shape


class Barred(Bits):
    """Both bits on is impossible."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)
            pyro.factor("bar", torch.where(z.prod(-1) > 0.9, -torch.inf, 0.0))


@pytest.mark.parametrize("name", [*UNBIASED, *BIASED])
def test_impossible_draws_leave_gradients_finite(name):
    model, guide = Barred(), BitsGuide()
    torch.manual_seed(0)
    value, surrogate = estimate(make(name, guide), model, guide, torch.ones(50, dtype=DOUBLE), 2)
    assert value.isneginf().any()
    assert value.isfinite().any()
    found = torch.autograd.grad(surrogate.sum(), parameters_of(model, guide))
    assert all(slope.isfinite().all() for slope in found)


def test_the_penalties_of_wake_sleep_have_the_score_of_its_draws():
    guide, x = BitsGuide(), torch.ones(4, dtype=DOUBLE)
    found = []
    for model in (PenalisedBits(), Bits()):
        torch.manual_seed(1)
        surrogate = estimate(objectives.WakeSleep(), model, guide, x, 5).surrogate
        found.append(torch.autograd.grad(surrogate.sum(), guide.logits)[0])
    torch.manual_seed(1)
    drawn = pv.weigh(PenalisedBits(), guide, x, 5, path=Path.NONE)
    signal = drawn.penalties["penalty_z"] * drawn.log_q["z"]
    wanted = torch.autograd.grad(signal.mean(0).sum(), guide.logits)[0]
    torch.testing.assert_close(found[0] - found[1], wanted)


def test_penalties_come_after_the_sign_of_an_upper_bound():
    """Dreams and posterior draws heed penalties too: they are added to what is maximised."""
    model, guide, x = PenalisedBits(), BitsGuide(), torch.ones(4, dtype=DOUBLE)
    for objective in (objectives.EUBO(BitsGuide()), objectives.WakeSleep()):
        torch.manual_seed(1)
        with_it = estimate(objective, model, guide, x, 5)
        torch.manual_seed(1)
        without = estimate(objective, Bits(), guide, x, 5)
        torch.testing.assert_close(with_it.value, without.value)
        assert with_it.penalties["penalty_z"].min() >= 0
        gain = (with_it.surrogate - without.surrogate).detach()
        torch.testing.assert_close(gain, with_it.penalties["penalty_z"])


def test_a_scale_inside_a_log_sum_exp_is_refused_whatever_stands_around_it():
    pair = poutine.scale(Line(), 0.5), poutine.scale(LineGuide(), 0.5)
    x = torch.ones(3, dtype=DOUBLE)
    estimate(objectives.stl, *pair, x, 3)
    with pytest.raises(pv.ContractError, match="scale of its own"):
        estimate(partial(objectives.stl, bound=objectives.iwae), *pair, x, 3)


ELBOS = ("elbo", "elbo_kl", "reinforce", "rloo", "score_function", "stl")


@pytest.mark.parametrize("name", [*UNBIASED, *ELBOS])
def test_mixed_models_get_the_right_estimator_at_each_site(name):
    exact, *pair = exact_mixed(objectives.elbo, 1)
    objective = make(name, pair[1]) if name in UNBIASED else objectives.every()[name]
    odds.assert_mean(gradients(objective, *pair, particles=2, x=X), exact)


@pytest.mark.parametrize("name", ["iwae", "vimco", "vimco_arithmetic", "ovis", "renyi", "jackknife", "cubo", "ciwae"])
def test_importance_weighted_bounds_of_mixed_models(name):
    bound = objectives.every()[name]
    exact, *pair = exact_mixed(bound, 2)
    sign = -1 if facts(bound).upper else 1
    odds.assert_mean(gradients(bound, *pair, particles=2, x=X), sign * exact)


PATHS = {
    "elbo": (objectives.elbo, objectives.elbo),
    "stl": (objectives.stl, objectives.elbo),
    "score_function": (objectives.score_function, objectives.elbo),
    "iwae": (objectives.iwae, objectives.iwae),
    "dreg": (objectives.dreg, objectives.iwae),
    "dreg(0.5)": (partial(objectives.dreg, alpha=0.5), objectives.renyi),
    "dreg(1)": (partial(objectives.dreg, alpha=1.0), objectives.elbo),
    "dreg(-1)": (partial(objectives.dreg, alpha=-1.0), partial(objectives.renyi, alpha=-1.0)),
    "jackknife": (objectives.jackknife, objectives.jackknife),
}


@pytest.mark.parametrize("name", PATHS)
def test_continuous_latents_in_two_layers(name):
    """A guide from the data upward, whose second layer has parameters made of the first's draw."""
    objective, bound = PATHS[name]
    exact, *pair = exact_line(bound, 2)
    odds.assert_mean(gradients(objective, *pair, particles=2, x=X, repeats=200), exact)


def test_sticking_the_landing_is_biased_for_iwae():
    exact, *pair = exact_line(objectives.iwae, 2)
    with pytest.raises(AssertionError, match="standard errors off"):
        odds.assert_mean(gradients(partial(objectives.stl, bound=objectives.iwae), *pair, particles=2, x=X), exact)


def test_piwae_gives_each_program_its_own_bound():
    tight, model, guide = exact_line(objectives.iwae, 2)
    loose, *_ = exact_line(objectives.elbo, 2)
    split = sum(p.numel() for p in model.parameters())
    wanted = torch.cat([tight[:split], loose[split:]])
    drawn = gradients(partial(objectives.piwae, groups=2), model, guide, particles=2, x=X, repeats=200)
    odds.assert_mean(drawn, wanted)
    with pytest.raises(AssertionError, match="standard errors off"):
        odds.assert_mean(drawn, tight)


@pytest.mark.parametrize("objective", [objectives.stl, objectives.dreg], ids=lambda o: o.facts.name)
def test_at_the_exact_posterior_the_path_has_no_variance(objective):
    """Log-weights do not change along z, so what is left of the guide's gradient is rounding."""
    drawn = gradients(objective, FlatModel(), Posterior(), particles=3, rows=5, repeats=4)
    assert drawn[:, -2:].abs().max() < 1e-12
    noisy = gradients(objectives.elbo, FlatModel(), Posterior(), particles=3, rows=5, repeats=4)
    assert noisy[:, -2:].abs().max() > 1e-3


class FlatModel(torch.nn.Module):
    """Prior N(0, 1), likelihood N(z, 1): the posterior is N(x / 2, 1 / 2)."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc.expand_as(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Posterior(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.5, dtype=DOUBLE))
        self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=DOUBLE).sqrt())

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x, self.scale))


GAP = 0.4
# q = N(m, 1) against p = N(m + GAP, 1), e = z - m:  log w = GAP e - GAP^2 / 2 - log(2 pi) / 2 =: GAP e + b.
# The total derivative in m is GAP - e, the path's alone GAP, the score's (GAP e + b) e.
VARIANCES = {
    "elbo": 1.0,
    "stl": 0.0,
    "score_function": 2 * GAP**2 + (GAP**2 / 2 + log(2 * pi) / 2) ** 2,
}


@pytest.mark.parametrize("name", VARIANCES)
def test_variances_have_their_closed_form(name):
    rows, m = 200_000, 0.3
    model, guide = Quadratic(m + GAP), Location(m)
    torch.manual_seed(0)
    surrogate = estimate(objectives.every()[name], model, guide, torch.zeros(rows, dtype=DOUBLE), 1).surrogate
    (slopes,) = torch.autograd.grad(surrogate.sum(), guide.rowwise)
    odds.assert_mean(slopes, torch.tensor(GAP, dtype=DOUBLE))
    odds.assert_mean((slopes - GAP).square(), torch.tensor(VARIANCES[name], dtype=DOUBLE))


class Quadratic(torch.nn.Module):
    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.full_like(x, self.a), 1.0))
            pyro.sample("x", dist.Normal(torch.zeros_like(z), 1.0), obs=x)


class Location(torch.nn.Module):
    def __init__(self, m):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(m, dtype=DOUBLE))

    def forward(self, x):
        self.rowwise = self.loc.expand_as(x)  # the gradient of each row by itself
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.rowwise, 1.0))


WRONG = {
    "dreg on bits": (objectives.dreg, Bits, BitsGuide, r"site 'z' is drawn without reparameterisation.*vimco"),
    "elbo_kl upward": (objectives.elbo_kl, Layers, LayersGuide, r"draws 'z1', 'z2', the model 'z2', 'z1'.*elbo"),
    "DisARM on a one-hot": (objectives.DisARM(), Choice, ChoiceGuide, r"site 'c' is one-hot.*MuProp"),
    "EUBO of another posterior": (objectives.EUBO(ChoiceGuide()), Choice, BitsGuide, r"draws no site 'z'.*draws c"),
    "RELAX without network": (objectives.RELAX(), Bits, BitsGuide, r"no network for site 'z'.*RELAX\(z=nets.MLP\(2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_uses_name_the_site_and_the_repair(case):
    objective, model, guide, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        estimate(objective, model(), guide(), torch.ones(3, dtype=DOUBLE), 2)


class Counts(torch.nn.Module):
    """A Poisson latent, for which there is no relaxation."""

    def __init__(self, role):
        super().__init__()
        self.role, self.rate = role, torch.nn.Parameter(torch.tensor(0.3, dtype=DOUBLE))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            n = pyro.sample("n", dist.Poisson(self.rate.exp().expand_as(x)))
            if self.role == "model":
                pyro.sample("x", dist.Normal(n, 1.0), obs=x)


@pytest.mark.parametrize("name", ["Concrete", "MuProp", "REBAR", "StraightThrough", "ARM"])
def test_sites_without_a_relaxation_are_named(name):
    with pytest.raises(ValueError, match=r"site 'n' is a Poisson.*OneHotCategorical.*vimco"):
        estimate(make(name), Counts("model"), Counts("guide"), torch.ones(3, dtype=DOUBLE), 2)
    for objective in (objectives.vimco, objectives.rloo, make("NVIL")):
        estimate(objective, Counts("model"), Counts("guide"), torch.ones(3, dtype=DOUBLE), 2)


@pytest.mark.parametrize("objective", [objectives.vimco, objectives.rloo, objectives.jackknife, objectives.ovis])
def test_one_particle_is_too_few_for_the_others(objective):
    pair = Bits(), BitsGuide()
    optimizer = torch.optim.Adam(parameters_of(*pair))
    with pytest.raises(ValueError, match=f"particles: {objective.facts.name} needs at least 2, found 1"):
        pv.svi_step(*pair, objective, particles=1, optimizer=optimizer)
