"""Two steps on equal programs, one eager and one captured, held against each other."""

import copy

import pytest
import torch

import ppl_vae as pv
from ppl_vae.indexing import alike
from ppl_vae.programs import Programs

SCALE = 1.0  # read by programs as an attribute of a module of code


def step_on(model, guide, x, objective=pv.objectives.elbo, particles=2, compile=False, **options):  # noqa: A002
    """Return a step with an optimizer over all parameters that the objective may train."""
    parameters = Programs(model, guide, objective).run_once(*alike(model, guide), pv.batches.as_batch(x)).parameters()
    if pv.objectives.facts(objective).upper:
        parameters = {name: p for name, p in parameters.items() if not name.startswith("model")}
        if not parameters:
            pytest.skip("an upper bound trains the guide, which has no parameters")
    # Plain steps: Adam's divide by the gradient's size, and so make much of one that is zero to rounding.
    optimizer = torch.optim.SGD(list(parameters.values()), lr=1e-2, momentum=0.9)
    return pv.svi_step(model, guide, objective, particles, optimizer=optimizer, compile=compile, **options)


def assert_steps_agree(eager, captured, batches, **tolerance):
    """Assert that two steps report and do the same on the same noise, to rounding."""
    for i, x in enumerate(batches):
        infos = []
        for step in (eager, captured):
            torch.manual_seed(i)
            infos.append(step(x))
        torch.testing.assert_close(infos[1].bound, infos[0].bound, **tolerance)
        for name, penalty in infos[0].penalties.items():
            torch.testing.assert_close(infos[1].penalties[name], penalty, **tolerance)
        wanted, found = eager.programs.tensors(), captured.programs.tensors()
        assert wanted.keys() == found.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
            if tensor.grad is not None:
                torch.testing.assert_close(found[name].grad, tensor.grad, **tolerance)


def twins(make):
    """Make programs twice, alike."""
    first = make()
    return first, copy.deepcopy(first)
