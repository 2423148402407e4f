"""Replays, as far as a machine without a GPU can show them: the bookkeeping around a recording."""

import copy

import pairs
import pytest
import torch
from capturing import step_on

import ppl_vae as pv
from ppl_vae.replaying import Replayed, record


def loss_and_gradient(weight, x):
    return (weight * x).sum(), x * torch.ones_like(weight)


def test_new_batches_and_updated_parameters_are_seen(recorder):
    weight = torch.ones(2, 3)
    replayed = Replayed(loss_and_gradient, 1, recorder)
    first, _ = replayed(weight, torch.ones(2, 3))
    weight += 1.0
    second, gradient = replayed(weight, 3 * torch.ones(2, 3))
    assert (first, second) == (6.0, 36.0)
    assert torch.equal(gradient, 3 * torch.ones(2, 3))
    assert recorder.recordings == 1


def test_a_parameter_that_moved_is_recorded_anew(recorder):
    weight = torch.nn.Parameter(torch.ones(2, 3))
    replayed = Replayed(loss_and_gradient, 1, recorder)
    replayed(weight.detach(), torch.ones(2, 3))
    weight.data = torch.full((2, 3), 2.0)
    assert replayed(weight.detach(), torch.ones(2, 3))[0] == 12.0
    assert recorder.recordings == 2


OPTIONS = {
    "plain": {},
    "accumulated and clipped": {"accumulate": 2, "clip_norm": 1.0},
    "in chunks": {"chunk": 2},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_replayed_steps_are_the_eager_ones(case, replayed):
    """Recording runs a function once more, so programs here have no buffers and the noise is compared by the bound."""
    pair, x = pairs.make("vae", "normal"), pairs.make("vae", "normal").data(8)
    other = copy.deepcopy(pair)
    eager = step_on(pair.model, pair.guide, x, pv.objectives.iwae, 6, **OPTIONS[case])
    step = step_on(other.model, other.guide, x, pv.objectives.iwae, 6, compile=True, **OPTIONS[case])
    for each in (eager, step):
        each(x)  # records
    state = copy.deepcopy(eager.state_dict())
    step.load_state_dict(state)
    infos = []
    for i in range(4):
        for each in (eager, step):
            torch.manual_seed(i)
            infos.append(each(x).bound)
    torch.testing.assert_close(infos[1::2], infos[::2])
    for one, two in zip(pair.parameters().values(), other.parameters().values(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_what_it_recorded():
    weight, seen = torch.ones(2, 3, device="cuda"), torch.zeros((), device="cuda")

    def run(weight, seen, x):
        seen += 1
        return (weight * x).sum(), torch.rand((), device="cuda")

    replayed = Replayed(run, 2, record)
    torch.manual_seed(0)
    draws = [replayed(weight, seen, torch.full((2, 3), float(i), device="cuda")) for i in range(3)]
    assert [float(total) for total, _ in draws] == [0.0, 6.0, 12.0]
    assert seen == 3
    assert len({float(draw) for _, draw in draws}) == 3
