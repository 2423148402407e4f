"""Options that follow the step: the un-annealed bound beside the annealed one, and when schedules have settled."""

import math

import pairs
import pytest
import torch
from capturing import assert_steps_agree, step_on, twins
from small import Bits, BitsGuide, PenalisedBits

import ppl_vae as pv
from ppl_vae.batches import as_batch
from ppl_vae.chunking import FIELDS, joined
from ppl_vae.objectives import Scheduled, beta_elbo, cyclical, exponential, linear, settled
from ppl_vae.objectives.schedules import Temperature

# Bounds with an option, and where it starts and ends.
OPTIONS = {
    "beta_elbo": ("beta", 0.1, 1.5),
    "free_bits": ("floor", 3.0, 0.5),
    "renyi": ("alpha", 0.9, 0.2),
    "dreg": ("alpha", 0.9, 0.2),
    "cubo": ("n", 1.0, 2.0),
    "ciwae": ("beta", 1.0, 0.3),
    "ovis": ("gamma", 0.0, 1.0),
}
STEPS = 4


def capacity(particles, nats=0.0, gamma=10.0):
    """Burgess et al. 2018: the divergence is drawn to a capacity that grows; a bound of a person's own."""
    reconstruction, divergences = pv.objectives.parts(particles)
    apart = (particles.mean(sum(divergences.values())) - nats).abs()
    return particles.mean(reconstruction) - gamma * apart


def scheduled(name):
    option, start, end = OPTIONS[name]
    bound = pv.objectives.every()[name]
    return Scheduled(bound, **{option: linear(start, end, STEPS)}).double(), bound, {option: (start, end)}


def advanced(objective, steps):
    for _ in range(steps):
        objective.advance()
    return objective


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_reports_both_bounds_of_one_weighing(name):
    """They are those of the very draws, computed here by hand; and training is what it is without a report."""
    pair = pairs.make("vae", "normal")
    objective, bound, options = scheduled(name)
    advanced(objective, 1)
    x = pair.data()
    step = step_on(pair.model, pair.guide, x, objective, particles=5)
    step.prepare(x)
    torch.manual_seed(7)
    record = pv.estimation.weigh_for(objective, pair.model, pair.guide, as_batch(x), 5)
    ((option, (start, end)),) = options.items()
    wanted = [bound(record, **{option: value}).mean() for value in (end, start + (end - start) / STEPS)]
    after = torch.get_rng_state()
    torch.manual_seed(7)
    info = step(x)
    assert torch.equal(torch.get_rng_state(), after)  # nothing was weighed a second time
    torch.testing.assert_close([info.bound, info.annealed], [part.detach() for part in wanted], rtol=1e-6, atol=1e-6)
    assert not info.bound.requires_grad
    assert objective.training


def test_a_bound_of_a_persons_own_takes_a_capacity_that_grows():
    pair = pairs.make("vae", "normal")
    objective = Scheduled(capacity, nats=linear(0.0, 25.0, steps=3))
    step = step_on(pair.model, pair.guide, pair.data(), objective, particles=3)
    gaps = [float(info.bound - info.annealed) for info in (step(pair.data()) for _ in range(5))]
    assert min(map(abs, gaps[:3])) > 1
    assert gaps[3:] == [0.0, 0.0]
    assert settled(objective)


def test_training_and_validation_curves_have_one_bound():
    """With nothing that moves, and a guide that draws what the seed says, they are one number."""
    pair = pairs.make("vae", "normal")
    objective, _, _ = scheduled("beta_elbo")
    step = pv.svi_step(
        pair.model, pair.guide, objective, 5, optimizer=torch.optim.SGD(pair.parameters().values(), lr=0.0)
    )
    step.prepare(pair.data())
    torch.manual_seed(0)
    validated = step.bound(pair.data()).mean()
    torch.manual_seed(0)
    torch.testing.assert_close(step(pair.data()).bound, validated, rtol=1e-12, atol=0)


class Halved(torch.nn.Module):
    """A module of a person's own with a schedule inside, and layers that evaluation changes."""

    def __init__(self):
        super().__init__()
        self.inner = Scheduled(beta_elbo, beta=linear(0.0, 1.0, STEPS))
        self.dropout = torch.nn.Dropout(0.5)
        self.dropout.eval()

    def forward(self, particles):
        return 0.5 * self.inner(particles)

    def advance(self):
        self.inner.advance()


def test_schedules_inside_modules_are_found_and_modes_are_put_back():
    pair, objective = pairs.make("vae", "normal"), Halved()
    step = step_on(pair.model, pair.guide, pair.data(), objective, particles=3)
    step.prepare(pair.data())
    torch.manual_seed(1)
    record = pv.weigh(pair.model, pair.guide, pair.data(), 3)
    torch.manual_seed(1)
    info = step(pair.data())
    torch.testing.assert_close(info.bound, 0.5 * pv.objectives.elbo(record).mean().detach())
    torch.testing.assert_close(info.annealed, 0.5 * beta_elbo(record, beta=0.0).mean().detach())
    assert [m.training for m in objective.modules()] == [True, True, False]
    assert not settled(objective)
    assert settled(advanced(objective, STEPS))


@pytest.mark.parametrize("name", ["Concrete", "StraightThrough", "StraightThroughGumbel"])
def test_estimators_report_both_of_a_schedule_inside(name):
    inner = Scheduled(beta_elbo, beta=linear(0.25, 1.0, STEPS))
    estimator = getattr(pv.objectives, name)(bound=inner).double()
    x, (model, guide) = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), (Bits(), BitsGuide())
    found = []
    for bound in (estimator, getattr(pv.objectives, name)(bound=pv.objectives.elbo).double()):
        torch.manual_seed(0)
        found.append(pv.estimation.estimate(bound, model, guide, x, 4))
    torch.testing.assert_close(found[0].value, found[1].value)
    assert (found[0].annealed > found[0].value).any()
    assert found[1].annealed is None
    assert found[1].trained is found[1].value


def test_a_temperature_has_no_part_in_what_is_reported():
    x, (model, guide), values = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), (Bits(), BitsGuide()), []
    for temperature in (linear(2.0, 0.1, STEPS), 0.1):
        torch.manual_seed(0)
        values.append(pv.estimation.estimate(pv.objectives.Concrete(temperature).double(), model, guide, x, 4))
    torch.testing.assert_close(values[0].value, values[1].value)
    assert not torch.equal(values[0].surrogate, values[1].surrogate)
    assert values[0].annealed is None


@pytest.mark.parametrize("name", ["beta_elbo", "free_bits"])
def test_captured(name, uncompiled):
    def make():
        pair, (objective, _, _) = pairs.make("vae", "normal"), scheduled(name)
        return pair, objective

    (pair, objective), (twin, other) = twins(make)
    eager = step_on(pair.model, pair.guide, pair.data(), objective, 3)
    captured = step_on(twin.model, twin.guide, pair.data(), other, 3, compile=True)
    assert_steps_agree(eager, captured, [pair.data(), pair.data(7), pair.data()])
    assert captured.ascent.count == 1  # one graph, at every step of the schedule
    infos = []
    for step in (eager, captured):
        torch.manual_seed(5)
        infos.append(step(pair.data()))
    torch.testing.assert_close(infos[1].annealed, infos[0].annealed)
    assert infos[1].annealed != infos[1].bound


def test_chunks_report_what_all_particles_at_once_do():
    pair, (objective, bound, _) = pairs.make("vae", "normal"), scheduled("ciwae")
    step = step_on(pair.model, pair.guide, pair.data(), objective, 6, chunk=2)
    step.prepare(pair.data())
    torch.manual_seed(3)
    parts = [pv.weigh(pair.model, pair.guide, pair.data(), 2) for _ in range(3)]
    record = joined([{field: getattr(r, field) for field in FIELDS} for r in parts], parts[0])
    torch.manual_seed(3)
    info = step(pair.data())
    torch.testing.assert_close(info.bound, bound(record, beta=0.3).mean().detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(info.annealed, bound(record, beta=1.0).mean().detach(), rtol=1e-6, atol=1e-6)


def test_the_history_has_both_and_penalties_beside():
    x = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    objective = Scheduled(beta_elbo, beta=linear(0.0, 1.0, steps=6))
    fit = pv.fit(PenalisedBits(), BitsGuide(), x, objective, particles=20, epochs=5, batch_size=2, valid=x)
    annealed, bounds = fit.history["annealed_bound"], fit.history["train_bound"]
    gaps = [a - b for a, b in zip(annealed, bounds, strict=True)]
    assert min(gaps[:3]) > 1e-3
    assert gaps[3:] == [0.0, 0.0]
    assert len(fit.history["penalty_z"]) == 5
    plain = pv.fit(Bits(), BitsGuide(), x, epochs=1)
    assert "annealed_bound" not in plain.history


def test_pyros_svi_has_the_loss_that_is_trained():
    """``loss`` is what Pyro differentiates: with beta = 0, without divergences."""
    x = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    objective = Scheduled(beta_elbo, beta=linear(0.0, 1.0, STEPS))
    found = []
    for bound in (objective, lambda particles: beta_elbo(particles, beta=0.0)):
        torch.manual_seed(0)
        found.append(pv.ELBO(bound, 3).differentiable_loss(Bits(), BitsGuide(), x).detach())
    torch.testing.assert_close(*found)


# After how many steps each has settled, found by looking at every step up to 40.
SCHEDULES = {
    "linear": (linear(0.0, 1.0, steps=7), 7),
    "linear, of one value": (linear(1.0, 1.0, steps=7), 0),
    "cyclical": (cyclical(0.0, 1.0, period=8, cycles=3, rise=0.3), 19),  # after the last rise: 16 + 2.4
    "cyclical, all rise": (cyclical(0.0, 1.0, period=5, cycles=2, rise=1.0), 10),
    "exponential": (exponential(1.0, 0.5, rate=0.1), 7),  # log(2) / 0.1 = 6.93
    "exponential, at once": (exponential(0.5, 0.5, rate=0.1), 0),
    "a person's": (lambda step: (step / 5).clamp(max=1.0), 5),
    "a person's, numbers of Python": (lambda step: 0.5, 0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_know_when_they_stay(name):
    schedule, steps = SCHEDULES[name]
    objective, temperature = Scheduled(lambda particles, beta: beta, beta=schedule), Temperature(0.5)
    temperature.value = schedule
    found = []
    for _ in range(41):
        found.append((settled(objective), settled(temperature)))
        advanced(objective, 1)
        advanced(temperature, 1)
    assert found == [(step >= steps, step >= steps) for step in range(41)]
    values = [float(schedule(torch.tensor(step))) for step in range(steps, 60)]
    assert len(set(values)) == 1
    if steps:
        assert float(schedule(torch.tensor(steps - 1))) != values[0]


def test_objectives_have_settled_when_all_in_them_have():
    assert settled(pv.objectives.elbo)
    assert settled(None)
    assert settled(pv.objectives.NVIL(x_dim=1))
    assert settled(pv.objectives.Concrete(0.5))
    several = Scheduled(beta_elbo, beta=linear(0.0, 1.0, 2))
    both = pv.objectives.Concrete(linear(1.0, 0.5, 4), several)
    states = [settled(advanced(both, 1)) for _ in range(5)]
    assert states == [False, False, False, True, True]
    assert settled(several)


def test_two_options_settle_together():
    def bound(particles, a, b):
        return particles.log_w.mean(0) * a + b

    objective = Scheduled(bound, a=linear(0.0, 1.0, 2), b=exponential(1.0, 0.1, rate=0.5))
    assert [settled(advanced(objective, 1)) for _ in range(6)] == [False, False, False, False, True, True]
    assert math.isclose(float(objective.values()["b"]), 0.1, rel_tol=1e-6)
