"""Expectation maximisation, a step at a time."""

import exact_models
import numpy as np
import pytest
import torch
from exact_models import F64, clusters
from unchanged import assert_same, tensors

import ppl_vae as pv


def test_steps_are_iterations():
    x = clusters(100)
    found = pv.em(exact_models.GaussianMixture(), x, iterations=5, tol=0)
    model = exact_models.GaussianMixture()
    step = pv.em_step(model)
    fit = pv.fit(step=step, data=x, batch_size=100, epochs=6)
    np.testing.assert_allclose(fit.history["train_bound"], found.history["log_likelihood"], atol=1e-9)
    torch.testing.assert_close(step.bound(x), model.log_px(x).detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [exact_models.GaussianMixture, exact_models.MixtureWithPriors])
def test_a_step_goes_on_from_its_state(make):
    x = clusters(100) if make is exact_models.GaussianMixture else 3 * clusters(100, 1)[:, 0]
    whole = pv.em_step(make())
    bounds = [whole(x).bound for _ in range(4)]
    first = pv.em_step(make())
    early = [first(x).bound for _ in range(2)]
    other = pv.em_step(make())
    other.load_state_dict(first.state_dict())
    assert [*early, *(other(x).bound for _ in range(2))] == bounds
    assert torch.equal(other.bound(x), whole.bound(x))


def test_a_step_tells_its_prior_apart():
    info = pv.em_step(exact_models.MixtureWithPriors())(clusters(40)[:, 0])
    assert info.penalties.keys() == {"log_prior"}


def test_a_step_refuses_parts_of_the_data():
    step, x = pv.em_step(exact_models.GaussianMixture()), clusters(100)
    step(x)
    step(x.flip(0))
    for other in (x[:50], x + 1):
        with pytest.raises(ValueError, match="batch_size=len"):
            step(other)
    with pytest.raises(TypeError, match="shuffled"):
        pv.em_step(exact_models.GaussianMixture(), start=torch.ones(100, 3) / 3)


def test_a_failing_step_changes_nothing():
    model = exact_models.Strict()
    before, step = tensors(model), pv.em_step(model)
    with pytest.raises(ValueError, match="component"):
        step(torch.cat([clusters(50), torch.full((10, 2), 100.0, dtype=F64)]))
    assert_same(model, before)
    step(clusters(50))  # other data, from the start
    assert step.state_dict()["begun"]
