"""Gradients in two passes over chunks of particles are those of one pass over all of them."""

import warnings

import every
import pairs
import pytest
import torch
from capturing import step_on
from test_enumeration import PAIRS
from torch.utils._python_dispatch import TorchDispatchMode

import ppl_vae as pv
from ppl_vae.chunking import FIELDS, joined
from ppl_vae.estimation import weigh_for
from ppl_vae.objectives import facts
from ppl_vae.objectives.vocabulary import mean_penalties

CHUNK, CHUNKS = 2, 3
BOUNDS = [name for name in pv.objectives.every() if name not in ("dreg", "piwae")]


def one_pass(model, guide, x, objective, parameters):
    """Bound and gradients from all chunks at once, drawn in the same order."""
    records = [weigh_for(objective, model, guide, x, CHUNK) for _ in range(CHUNKS)]
    record = joined([{field: getattr(r, field) for field in FIELDS} for r in records], records[0])
    value, (added, _) = objective(record), mean_penalties(record)
    loss = -((-1.0 if facts(objective).upper else 1.0) * value + added).mean()
    return value.mean(), torch.autograd.grad(loss, parameters, allow_unused=True)


def assert_two_passes_are_one(model, guide, x, objective, compile=False):  # noqa: A002
    step = step_on(model, guide, x, objective, CHUNK * CHUNKS, compile=compile, chunk=CHUNK)
    step.prepare(x)
    step.follow_optimizer()
    moved = list(step._moved.values())
    torch.manual_seed(3)
    wanted, gradients = one_pass(model, guide, x, objective, moved)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    found, _, _, _, slopes = step.ascent((x,))
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(found, wanted.detach())
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert (gradient is None) == (slope is None)
        if slope is not None:
            torch.testing.assert_close(slope, gradient)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("programs", [("vae", "normal"), ("sigmoid_belief_network", "bernoulli")], ids="-".join)
def test_every_bound(programs, name):
    pair = pairs.make(*programs)
    assert_two_passes_are_one(pair.model, pair.guide, pair.data(), every.make(name, pair))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("objective", [pv.objectives.elbo, pv.objectives.rloo])
def test_enumerated_sites(name, objective):
    model, guide = (program() for program in PAIRS[name])
    x = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_two_passes_are_one(model, guide, x, objective)


def test_captured(uncompiled):
    pair = pairs.make("vae", "normal")
    assert_two_passes_are_one(pair.model, pair.guide, pair.data(), pv.objectives.iwae, compile=True)


def test_steps_train_and_draw_on():
    pair = pairs.make("vae", "normal")
    step = step_on(pair.model, pair.guide, pair.data(), pv.objectives.iwae, 6, chunk=2)
    bounds = [float(step(pair.data(20)).bound) for _ in range(40)]
    assert sum(bounds[-5:]) > sum(bounds[:5])
    assert len(set(bounds)) == 40


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor of numbers that is made; a random state is bytes, 5 KB a chunk."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.size = max(self.size, result.numel())
        return result


def test_validation_takes_the_same_bound(uncompiled):
    pair = pairs.make("vae", "normal")
    step = step_on(pair.model, pair.guide, pair.data(), pv.objectives.iwae, 6, compile=True, chunk=2)
    torch.manual_seed(0)
    found = step.bound(pair.data())
    torch.manual_seed(0)
    records = [pv.weigh(pair.model, pair.guide, pair.data(), 2).log_w for _ in range(3)]
    torch.testing.assert_close(found, torch.cat(records).logsumexp(0).detach() - torch.tensor(6.0).double().log())


def test_memory_does_not_grow_with_the_particles():
    pair, sizes = pairs.make("vae", "normal"), []
    x = pair.data()
    for particles in (20, 200):
        step = step_on(pair.model, pair.guide, x, pv.objectives.iwae, particles, chunk=10)
        step.prepare(x)
        with Largest() as largest:
            step(x)
        sizes.append(largest.size)
    # A chunk of hidden units at first; at last, the densities alone have one number for each particle.
    assert sizes[0] == 10 * 5 * 8
    assert sizes[1] <= 200 * 5


def test_particles_are_counted_over_all_chunks():
    pair = pairs.make("linear_gaussian", "exact")  # all weights are one: the effective sample size is K
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_on(pair.model, pair.guide, pair.data(), pv.objectives.cubo, 40, chunk=2).prepare(pair.data())
    with pytest.warns(UserWarning, match="with 6 particles"):
        step_on(pair.model, pair.guide, pair.data(), pv.objectives.cubo, 6, chunk=2).prepare(pair.data())


REFUSED = {
    "a rule of its own": ({"objective": pv.objectives.Concrete(), "chunk": 2}, "Concrete draws particles by a rule"),
    "no divisor": ({"chunk": 4}, "chunk: 6 particles do not split into chunks of 4"),
    "nothing": ({"chunk": 0}, "chunk: expected a whole number of at least 1, or None, found 0"),
    "Pyro's": (
        {"objective": pv.pyro_step.RenyiELBO(num_particles=6), "particles": 1, "chunk": 2},
        "chunk: steps on Pyro's",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_chunked_is_refused(case):
    pair = pairs.make("vae", "normal")
    options, message = REFUSED[case]
    optimizer = torch.optim.SGD(pair.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        pv.svi_step(pair.model, pair.guide, **{"particles": 6} | options, optimizer=optimizer)


@pytest.mark.parametrize("name", ["dreg", "piwae"])
def test_bounds_that_tell_draws_apart_are_refused_before_anything_moves(name):
    pair = pairs.make("vae", "normal")
    before = {name: p.clone() for name, p in pair.parameters().items()}
    step = step_on(pair.model, pair.guide, pair.data(), pv.objectives.every()[name], 6, chunk=2)
    with pytest.raises(ValueError, match=f"chunk: {name} weighs the way through each draw apart"):
        step(pair.data())
    assert all(torch.equal(p, before[name]) for name, p in pair.parameters().items())
