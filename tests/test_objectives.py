"""Laws over every bound, and exact gradients for discrete latents by summing over all draws."""

from functools import partial
from itertools import pairwise
from math import inf

import pytest
import torch
from given import Given
from small import DISCRETE, Bits, BitsGuide, PenalisedBits, all_bits

import ppl_vae as pv
from ppl_vae import objectives
from ppl_vae.estimation import estimate, weigh_for
from ppl_vae.objectives import Facts, every, facts, objective
from ppl_vae.particles import Path

# Every bound, and bounds whose options make them something else.
BOUNDS = every() | {
    "renyi(-1)": partial(objectives.renyi, alpha=-1.0),
    "renyi(0)": partial(objectives.renyi, alpha=0.0),
    "renyi(1)": partial(objectives.renyi, alpha=1.0),
    "renyi(2)": partial(objectives.renyi, alpha=2.0),
    "renyi(-inf)": partial(objectives.renyi, alpha=-inf),
    "cubo(3)": partial(objectives.cubo, n=3.0),
    "miwae(2)": partial(objectives.miwae, groups=2),
    "piwae(2)": partial(objectives.piwae, groups=2),
    "dreg(0.5)": partial(objectives.dreg, alpha=0.5),
    "stl(iwae)": partial(objectives.stl, bound=objectives.iwae),
    "beta_elbo(4)": partial(objectives.beta_elbo, beta=4.0),
    "ovis(0)": partial(objectives.ovis, gamma=0.0),
}
DOUBLE = torch.float64


def record(log_w, **fields):
    return pv.Particles(log_p={"x": log_w}, log_q={}, **fields)


def sizes(bound, most=4):
    """Return the numbers of particles, up to a most, that a bound is defined for."""
    step = bound.keywords.get("groups", 1) if isinstance(bound, partial) else 1
    return [k for k in range(1, most + 1) if k >= facts(bound).min_particles and k % step == 0]


@pytest.fixture(params=BOUNDS.values(), ids=BOUNDS)
def bound(request):
    return request.param


@pytest.mark.parametrize("found", [*every().values(), *objectives.estimators().values()], ids=lambda b: b.facts.name)
def test_facts_are_stated(found):
    assert found.facts.formula
    assert "|" not in found.facts.formula  # it stands in tables
    assert found.facts.reference
    for part in ("Reference:", "Example:", "::"):
        assert part in found.__doc__
    assert all(found.facts.exempt.values())


def test_a_constant_factor_shifts_the_bound(bound):
    log_w = torch.randn(4, 3, dtype=DOUBLE)
    torch.testing.assert_close(bound(record(log_w + 3.0)), bound(record(log_w)) + 3.0)


def test_the_order_of_particles_does_not_matter(bound):
    if reason := facts(bound).exempt.get("order"):
        pytest.skip(reason)
    log_w = torch.randn(4, 3, dtype=DOUBLE)
    torch.testing.assert_close(bound(record(log_w.flip(0))), bound(record(log_w)))


def test_one_particle_gives_its_weight(bound):
    if 1 not in sizes(bound):
        pytest.skip("needs more particles")
    log_w = torch.randn(1, 3, dtype=DOUBLE)
    torch.testing.assert_close(bound(record(log_w)), log_w[0])


def test_equal_weights_are_the_bound(bound):
    torch.testing.assert_close(bound(record(torch.full((6, 3), -7.0))), torch.full((3,), -7.0))


def test_weights_far_apart_give_no_nan(bound):
    log_w = torch.tensor([[-1e4], [1e4], [0.0], [3e3]], requires_grad=True)
    value = bound(record(log_w))
    value.sum().backward()
    assert value.isfinite().all()
    assert log_w.grad.isfinite().all()


def test_float32_agrees_with_float64(bound):
    """Within 1e-5 of the largest number involved, for weights spread over 200 nats."""
    log_w = 50 * torch.randn(8, 20, dtype=DOUBLE) - 500
    difference = bound(record(log_w.float())).double() - bound(record(log_w))
    # The jackknife takes the difference of numbers K times as large.
    assert difference.abs().max() < 1e-5 * 8 * log_w.abs().max()


def test_many_particles_in_one_step(bound):
    log_w = torch.randn(10_000, 2, dtype=DOUBLE, requires_grad=True)
    score = torch.randn(10_000, 2, dtype=DOUBLE, requires_grad=True)
    if facts(bound).name == "dreg":
        score = score.detach()
    value = bound(pv.Particles(log_p={"x": log_w}, log_q={}, score={"z": score} if score.requires_grad else {}))
    value.sum().backward()
    assert log_w.grad.isfinite().all()


def test_elbo_is_the_mean_and_iwae_the_log_mean_of_weights():
    log_w = torch.randn(7, 3, dtype=DOUBLE)
    torch.testing.assert_close(objectives.elbo(record(log_w)), log_w.mean(0))
    torch.testing.assert_close(objectives.iwae(record(log_w)), log_w.exp().mean(0).log())


@pytest.mark.parametrize("alpha", [-2.0, -1.0, 0.0, 0.3, 1.0, 2.5])
def test_renyi_is_its_formula_and_continuous_in_alpha(alpha):
    log_w = torch.randn(7, 3, dtype=DOUBLE)
    near = objectives.renyi(record(log_w), alpha=alpha + 1e-7)
    torch.testing.assert_close(objectives.renyi(record(log_w), alpha=alpha), near, rtol=1e-5, atol=1e-5)
    if alpha != 1:
        formula = (log_w * (1 - alpha)).exp().mean(0).log() / (1 - alpha)
        torch.testing.assert_close(objectives.renyi(record(log_w), alpha=alpha), formula)


def test_renyi_falls_in_alpha_and_ends_in_the_largest_weight():
    log_w = torch.randn(7, 3, dtype=DOUBLE)
    values = [objectives.renyi(record(log_w), alpha=a) for a in (-inf, -50.0, -2.0, 0.0, 0.5, 1.0, 2.0, 50.0, inf)]
    for larger, smaller in pairwise(values):
        assert (larger >= smaller).all()
    assert torch.equal(values[0], log_w.max(0).values)
    assert torch.equal(values[-1], log_w.min(0).values)


def test_cubo_is_renyi_of_a_negative_order():
    log_w = torch.randn(7, 3, dtype=DOUBLE)
    torch.testing.assert_close(objectives.cubo(record(log_w), n=2.0), objectives.renyi(record(log_w), alpha=-1.0))


def test_thermodynamic_sums_enclose_iwae_on_any_particles():
    """The integral over all beta is iwae itself; finer partitions come closer from both sides."""
    log_w = 3 * torch.randn(7, 50, dtype=DOUBLE)
    exact = objectives.iwae(record(log_w))
    gaps = []
    for n in (4, 40, 400):
        betas = torch.linspace(0, 1, n + 1, dtype=DOUBLE).tolist()
        lower, upper = objectives.tvo(record(log_w), betas), objectives.tvo_upper(record(log_w), betas)
        assert (lower <= exact + 1e-12).all()
        assert (upper >= exact - 1e-12).all()
        gaps.append((upper - lower).mean())
    assert gaps[2] < gaps[1] / 5 < gaps[0] / 25


def test_jackknife_is_its_formula():
    log_w = torch.randn(5, 3, dtype=DOUBLE)
    without = [objectives.iwae(record(torch.cat([log_w[:k], log_w[k + 1 :]]))) for k in range(5)]
    formula = 5 * objectives.iwae(record(log_w)) - 4 * torch.stack(without).mean(0)
    torch.testing.assert_close(objectives.jackknife(record(log_w)), formula)


def test_miwae_is_the_mean_over_groups():
    log_w = torch.randn(6, 3, dtype=DOUBLE)
    groups = [objectives.iwae(record(log_w[i : i + 2])) for i in (0, 2, 4)]
    torch.testing.assert_close(objectives.miwae(record(log_w), groups=3), torch.stack(groups).mean(0))
    with pytest.raises(ValueError, match="groups: 6 particles cannot be split evenly into 4"):
        objectives.miwae(record(log_w), groups=4)


def test_facts_come_through_partial_and_default_for_plain_functions():
    @objective(formula="a", reference="b", min_particles=3, linear=True)
    def scaled(particles, factor):
        return factor * particles.log_w[0]

    assert facts(partial(scaled, factor=2)) == Facts("a", "b", 3, True, name="scaled")
    assert facts(lambda particles: particles.log_w[0]) == Facts(name="<lambda>")


def all_draws_of(name, particles, bound):
    """Weigh every outcome of K draws; return with them the chance of each, ``(outcomes,)``."""
    make_model, make_guide, outcomes = DISCRETE[name]
    model, guide, draws = make_model(), make_guide(), outcomes(particles)
    x = torch.ones(next(iter(draws.values())).shape[1], dtype=DOUBLE)
    with Given(draws):
        drawn = weigh_for(bound, model, guide, x, particles)
    chance = sum(drawn.log_q.values()).sum(0).exp()
    torch.testing.assert_close(chance.sum().item(), 1.0)
    return drawn, chance, [*model.parameters(), *guide.parameters()]


def plain(bound, drawn):
    """Return the value as a function of the weights alone, without any surrogate."""
    return bound(pv.Particles(log_p=drawn.log_p, log_q=drawn.log_q, values=drawn.values, path=drawn.path, kl=drawn.kl))


@pytest.mark.parametrize("name", DISCRETE)
def test_gradients_of_discrete_latents_are_unbiased(bound, name):
    """Expectation of the surrogate's gradient = gradient of the expected bound, summed over all draws."""
    if reason := facts(bound).exempt.get("unbiased"):
        pytest.skip(reason)
    if facts(bound).name == "dreg" or (facts(bound).kl and name == "two layers"):
        pytest.skip("refused, see test_estimators")
    for particles in sizes(bound, most=2 if name == "two layers" else 3):
        drawn, chance, parameters = all_draws_of(name, particles, bound)
        exact = torch.autograd.grad((chance * plain(bound, drawn)).sum(), parameters, retain_graph=True)
        found = torch.autograd.grad((chance.detach() * bound(drawn)).sum(), parameters)
        for ours, wanted in zip(found, exact, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("biased", ["rws", "tvo", "tvo_upper"])
def test_exempt_bounds_are_biased_indeed(biased):
    """The same sum tells: an exemption that is not needed would go unnoticed otherwise."""
    bound = every()[biased]
    drawn, chance, parameters = all_draws_of("bernoulli", 2, bound)
    exact = torch.autograd.grad((chance * plain(bound, drawn)).sum(), parameters, retain_graph=True)
    found = torch.autograd.grad((chance.detach() * bound(drawn)).sum(), parameters)
    assert max(float((a - b).abs().max()) for a, b in zip(exact, found, strict=True)) > 1e-3


def test_a_forgotten_score_is_caught_by_the_same_sum(bound):
    """The same sum tells apart an estimator without its score term: the test can fail."""
    if facts(bound).exempt.get("unbiased") or facts(bound).name == "dreg":
        pytest.skip("no score term, or another objective for the guide")
    drawn, chance, parameters = all_draws_of("bernoulli", 2, bound)
    forgotten = plain(bound, drawn)
    exact = torch.autograd.grad((chance * forgotten).sum(), parameters, retain_graph=True)
    biased = torch.autograd.grad((chance.detach() * forgotten).sum(), parameters, allow_unused=True)
    assert (exact[-1] - (0 if biased[-1] is None else biased[-1])).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["vimco", "vimco_arithmetic", "ovis"])
def test_leaving_one_out_lowers_the_variance(name):
    """Exactly, over all draws: the sum of squared gradients about the same mean."""
    bound, spread = every()[name], {}
    for candidate in (bound, objectives.iwae):
        drawn, chance, parameters = all_draws_of("bernoulli", 3, candidate)
        value = candidate(drawn)
        rows = [torch.autograd.grad(value[i], parameters[-1], retain_graph=True)[0] for i in range(len(chance))]
        gradients = torch.stack(rows)
        mean = (chance.detach() @ gradients).detach()
        spread[candidate] = float(chance.detach() @ (gradients - mean).square().sum(-1))
    assert spread[bound] < 0.5 * spread[objectives.iwae]


def test_log_sum_of_others_is_the_sum_over_the_others():
    log_f = 30 * torch.randn(6, 4, dtype=DOUBLE)
    by_hand = torch.stack([torch.cat([log_f[:k], log_f[k + 1 :]]).logsumexp(0) for k in range(6)])
    torch.testing.assert_close(objectives.discrete.log_sum_of_others(log_f), by_hand)


def test_penalties_train_discrete_guides_without_bias():
    model, guide = PenalisedBits(), BitsGuide()
    draws = all_bits(2)
    with Given(draws):
        drawn = pv.weigh(model, guide, torch.ones(draws["z"].shape[1], dtype=DOUBLE), particles=2)
    chance = drawn.log_q["z"].sum(0).exp()
    penalty = drawn.penalties["penalty_z"]
    (exact,) = torch.autograd.grad((chance * penalty.mean(0)).sum(), guide.parameters(), retain_graph=True)
    surrogate = objectives.mean_penalty(penalty, drawn)
    (found,) = torch.autograd.grad((chance.detach() * surrogate).sum(), guide.parameters())
    torch.testing.assert_close(found, exact)
    assert exact.abs().max() > 0.1


# What averages log-weights is minus infinity with one impossible draw; what sums weights needs all of them to be.
AVERAGING = {
    *("elbo", "elbo_kl", "beta_elbo", "free_bits", "reinforce", "rloo", "score_function", "stl", "ciwae", "tvo"),
    *("renyi(1)", "renyi(2)", "beta_elbo(4)", "ciwae(1)", "dreg(1)", "dreg(2)"),
}
EDGES = {
    "ciwae(0)": partial(objectives.ciwae, beta=0.0),
    "ciwae(1)": partial(objectives.ciwae, beta=1.0),
    "dreg(1)": partial(objectives.dreg, alpha=1.0),
    "dreg(2)": partial(objectives.dreg, alpha=2.0),
}


@pytest.mark.parametrize("impossible", [[0], [2, 3], [0, 1, 2], [0, 1, 2, 3]], ids=len)
@pytest.mark.parametrize("name", [*BOUNDS, *EDGES])
def test_impossible_draws_make_no_nan(name, impossible):
    """For one datum of two; the other learns what it learns alone."""
    bound = {**BOUNDS, **EDGES}[name]
    scored = facts(bound).name != "dreg"
    finite, score = (torch.randn(4, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    none = torch.zeros(4, 2, dtype=DOUBLE)
    none[impossible, 0] = -torch.inf
    leaves = [finite, score] if scored else [finite]
    value = bound(record(finite + none, **({"score": {"z": score}} if scored else {})))
    if len(impossible) == 4 or name in AVERAGING:
        assert value[0].isneginf()
    elif ("miwae" not in name and name != "jackknife") or len(impossible) == 1:
        assert value[0].isfinite()
    assert not value.isnan().any()
    assert not value.isposinf().any()
    found = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
    assert all(slope.isfinite().all() for slope in found)
    whole = bound(record(finite, **({"score": {"z": score}} if scored else {})))
    torch.testing.assert_close(value[1], whole[1])
    for slope, alone in zip(found, torch.autograd.grad(whole.sum(), leaves, materialize_grads=True), strict=True):
        torch.testing.assert_close(slope[:, 1], alone[:, 1])


def test_warm_up_starts_where_the_prior_has_no_mass():
    """Divergences that are infinite and weigh nothing."""
    z, x = {"z": torch.full((3, 2), -torch.inf)}, {"x": torch.randn(3, 2)}
    drawn = pv.Particles(log_p={**z, **x}, log_q={"z": torch.zeros(3, 2)}, values=x)
    torch.testing.assert_close(objectives.beta_elbo(drawn, beta=0.0), x["x"].mean(0))


def test_objectives_refuse_particles_weighed_for_another():
    drawn = pv.weigh(Bits(), BitsGuide(), torch.ones(3, dtype=DOUBLE), particles=2)
    for wrong in (objectives.stl, objectives.dreg, objectives.rws, objectives.tvo, objectives.score_function):
        with pytest.raises(ValueError, match=rf"path=Path\.{wrong.facts.path.name}, found Path\.TOTAL"):
            wrong(drawn)


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (partial(objectives.cubo, n=0.5), "n: expected a finite number of at least 1"),
        (partial(objectives.ciwae, beta=1.5), "beta: expected a weight from 0 to 1"),
        (partial(objectives.renyi, alpha=float("nan")), "alpha: expected a number"),
        (partial(objectives.dreg, alpha=inf), "alpha: expected a finite number"),
        (partial(objectives.beta_elbo, beta=-1.0), "beta: expected a finite number of at least 0"),
        (partial(objectives.free_bits, floor=float("nan")), "floor: expected a finite number of at least 0"),
        (partial(objectives.ovis, gamma=2.0), "gamma: expected a number from 0 to 1"),
        (partial(objectives.tvo, betas=(0.0, float("nan"), 1.0)), "betas: expected numbers that rise"),
        (partial(objectives.miwae, groups=2.0), r"groups: 4 particles cannot be split evenly into 2.0"),
        (partial(objectives.tvo, betas=(0.0, 0.5)), "betas: expected numbers that rise from 0 to 1"),
        (partial(objectives.tvo, betas=(0.0, 0.7, 0.5, 1.0)), "betas: expected numbers that rise from 0 to 1"),
        (partial(objectives.piwae, groups=3), "groups: 4 particles cannot be split evenly"),
    ],
)
def test_options_that_mean_nothing_are_refused(bound, message):
    with pytest.raises(ValueError, match=message):
        bound(record(torch.zeros(4, 2)))


def test_an_upper_bound_turns_the_sign_of_its_surrogate():
    value, surrogate = estimate(objectives.cubo, Bits(), BitsGuide(), torch.ones(3, dtype=DOUBLE), 4)
    torch.testing.assert_close(surrogate.detach(), -value)
    assert Path.TOTAL is objectives.cubo.facts.path
