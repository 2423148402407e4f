"""Schedules at each of their steps, and when they have come to their ends."""

import inspect
from math import exp, inf

import pytest
import torch
from torch import nn

from ppl_vae import objectives
from ppl_vae.objectives.schedules import Temperature


def values(schedule, steps):
    return [float(schedule(torch.tensor(step))) for step in range(steps)]


def settles(schedule, most):
    """Return the first step after which a scheduled bound says that it has settled."""
    bound = objectives.Scheduled(objectives.beta_elbo, beta=schedule)
    for step in range(most):
        if bound.settled():
            return step
        bound.advance()
    return None


def test_a_linear_schedule_step_by_step():
    wanted = [2.0, 1.75, 1.5, 1.25, 1.0, 1.0, 1.0]
    schedule = objectives.linear(2.0, 1.0, 4)
    assert values(schedule, 7) == pytest.approx(wanted)
    assert settles(schedule, 9) == 4
    assert settles(objectives.linear(1.0, 1.0, 4), 9) == 0


def test_a_cyclical_schedule_step_by_step():
    schedule = objectives.cyclical(1.0, 3.0, period=4, cycles=2, rise=0.5)
    assert values(schedule, 10) == pytest.approx([1, 2, 3, 3, 1, 2, 3, 3, 3, 3])
    assert settles(schedule, 12) == 6
    whole = objectives.cyclical(1.0, 3.0, period=2, cycles=1, rise=1)
    assert values(whole, 4) == pytest.approx([1, 2, 3, 3])
    assert settles(whole, 12) == 2
    assert settles(objectives.cyclical(1.0, 1.0, 4), 9) == 0


def test_an_exponential_schedule_step_by_step():
    schedule = objectives.exponential(2.0, 1.0, rate=0.25)
    assert values(schedule, 5) == pytest.approx([2 * max(exp(-0.25 * step), 0.5) for step in range(5)])
    assert settles(schedule, 9) == 3  # 2 exp(-3/4) is below 1
    assert values(objectives.exponential(1.0, 1.0, rate=0.0), 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "make", "allowed", "refused"),
    [
        ("start", lambda v: objectives.linear(v, 1.0, 4), [-7, 0], [inf, -inf]),
        ("end", lambda v: objectives.linear(1.0, v, 4), [-7, 0], [inf, -inf]),
        ("steps", lambda v: objectives.linear(0.0, 1.0, v), [1, 7], [0, -1]),
        ("rise", lambda v: objectives.cyclical(0.0, 1.0, 4, rise=v), [1e-6, 1], [0, -0.5, 1 + 1e-6, 2]),
        ("cycles", lambda v: objectives.cyclical(0.0, 1.0, 4, cycles=v), [1, 7], [0, -1]),
        ("start", lambda v: objectives.exponential(v, 1.0, rate=0.1), [1, 7], [1 - 1e-6, 0]),
        ("rate", lambda v: objectives.exponential(2.0, 1.0, rate=v), [0, 7], [-1e-6, -0.5, inf]),
        ("temperature", Temperature, [1e-6, 7, torch.tensor(0.5)], [0, -0.5, inf, torch.tensor(0.0)]),
        ("temperature", lambda v: Temperature(objectives.linear(1.0, v, 4)), [1e-6, 7], [0, -0.5]),
        ("temperature", lambda v: Temperature(objectives.linear(v, 1.0, 4)), [1e-6, 7], [0, -0.5]),
    ],
)
def test_where_options_of_schedules_end(name, make, allowed, refused):
    for value in allowed:
        make(value)
    for value in refused:
        with pytest.raises(ValueError, match=name):
            make(value)


def test_a_schedule_without_a_number_of_steps_has_settled_where_it_ends():
    halves = Temperature(lambda step: 0.5 + (step < 2) * 0.5)
    found = []
    for _ in range(4):
        found.append((float(halves()), halves.settled()))
        halves.advance()
    assert found == [(1.0, False), (1.0, False), (0.5, True), (0.5, True)]
    assert Temperature(0.5).settled()


def test_an_objective_has_settled_when_every_part_has():
    def scheduled(steps):
        return objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0.0, 1.0, steps))

    both = nn.ModuleList([scheduled(1), scheduled(2)])
    assert not objectives.settled(both)
    for _ in range(2):
        assert not objectives.settled(both)
        for part in both:
            part.advance()
    assert objectives.settled(both)
    assert objectives.settled(objectives.elbo)
    two = {"beta": objectives.linear(0.0, 1.0, 2)}
    assert not objectives.Scheduled(objectives.ciwae, **two).settled()


def test_what_schedules_do_if_not_told():
    told = inspect.signature(objectives.cyclical).parameters
    assert (told["cycles"].default, told["rise"].default) == (4, 0.5)
