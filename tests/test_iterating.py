"""Iterations, restarts, starts and ascent, without any program."""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

import ppl_vae as pv
from ppl_vae.ascent import ascend, gradients_of
from ppl_vae.clusters import nearly_empty
from ppl_vae.iterating import iterated

F64 = torch.float64


class Listed:
    """Gives the values of a list for each seed."""

    def __init__(self, *lists):
        self.lists, self.place = lists, ("found", 0)

    def begin(self, seed):
        assert self.place == ("found", 0)
        self.place = (seed, 0)
        return {"value": self.lists[seed][0]}

    def update(self):
        seed, i = self.place
        self.place = (seed, i + 1)
        return {"value": self.lists[seed][i + 1]}

    def state(self):
        return self.place

    def load(self, state):
        self.place = state


def test_iterations_end_at_the_tolerance_or_the_last():
    done = iterated(Listed([0.0, 1.0, 1.05, 9.0]), "value", iterations=3, tol=0.1)
    assert done.history == {"value": [0.0, 1.0, 1.05]}
    assert (done.converged, done.iterations, done.runs) == (True, 2, (1.05,))
    done = iterated(Listed([0.0, 1.0, 1.0, 1.0]), "value", iterations=3, tol=0)
    assert (done.converged, done.iterations) == (False, 3)


def test_a_large_fall_is_no_convergence():
    done = iterated(Listed([0.0, -1.0, 2.0]), "value", iterations=2, tol=0.1)
    assert done.history["value"] == [0.0, -1.0, 2.0]


def test_the_best_restart_is_kept():
    algorithm = Listed([0.0, 1.0], [0.0, 3.0], [0.0, 3.0], [0.0, 2.0])
    done = iterated(algorithm, "value", iterations=1, tol=0, restarts=4)
    assert done.runs == (1.0, 3.0, 3.0, 2.0)
    assert algorithm.place == (1, 1)


@pytest.mark.parametrize(
    ("values", "when"), [([math.nan, 0.0], "at the start"), ([0.0, math.inf], "after 1 iteration;")]
)
def test_what_is_no_number_puts_all_back(values, when):
    algorithm = Listed([0.0, 1.0], values)
    with pytest.raises(FloatingPointError, match=when):
        iterated(algorithm, "value", iterations=1, tol=0, restarts=2)
    assert algorithm.place == ("found", 0)


@pytest.mark.parametrize(("name", "start"), [("kmeans", pv.starts.kmeans), ("random", pv.starts.random)])
def test_starts_are_scikit_learns(name, start, monkeypatch):
    x, seen = torch.randn(50, 3, dtype=F64), []
    monkeypatch.setattr(GaussianMixture, "_initialize", lambda self, data, shares, *rest: seen.append(shares))
    mixture = GaussianMixture(4, init_params=name)
    mixture._initialize_parameters(x.numpy(), np.random.RandomState(7))
    torch.testing.assert_close(start(x, 4, 7), torch.as_tensor(seen[0], dtype=F64), rtol=0, atol=1e-15)


def test_starts_of_one_number_a_datum_and_of_pictures():
    assert pv.starts.kmeans(torch.randn(10), 2).shape == (10, 2)
    assert pv.starts.kmeans(torch.randn(10, 4, 4), 2).dtype == torch.float32
    assert pv.starts.random(torch.zeros(5, dtype=torch.int64), 2).dtype == torch.float32


def test_components_that_hold_little_are_named():
    tables = {"a": torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]]), "b": torch.ones(4, 2) / 2}
    (warning,) = nearly_empty(tables)
    assert warning.startswith("site 'a': fewer than two data are held by component 1 (0.10); take")
    (warning,) = nearly_empty({"a": torch.eye(7)})
    assert "component 4 (1.00) and 2 more" in warning


def test_ascent_reaches_a_maximum_of_several_tensors():
    x, y = torch.tensor([-1.0], dtype=F64, requires_grad=True), torch.tensor(2.0, dtype=F64, requires_grad=True)

    def function():
        value = -((1 - x) ** 2 + 100 * (y - x * x) ** 2).sum()
        return value, gradients_of(value, [x, y])

    assert ascend(function, [x, y], steps=200)
    assert x.item() == pytest.approx(1, abs=1e-5)
    assert y.item() == pytest.approx(1, abs=1e-5)
    assert x.grad is None


@pytest.mark.parametrize("lost", [math.nan, -math.inf, None])
def test_ascent_stays_where_the_function_is(lost):
    """Outside the unit interval there is no value, or no factor of a matrix."""
    x = torch.tensor([0.2], dtype=F64, requires_grad=True)

    def function():
        if not 0 < x.item() < 1:
            if lost is None:
                torch.linalg.cholesky(torch.zeros(2, 2))
            return torch.tensor(lost, dtype=F64), [torch.full_like(x, math.nan)]
        value = (30 * x.log() + (1 - x).log()).sum()
        return value, gradients_of(value, [x])

    assert ascend(function, [x], steps=30)
    assert x.item() == pytest.approx(30 / 31, abs=1e-6)


def test_ascent_that_finds_nothing_changes_nothing():
    x = torch.tensor([0.3], requires_grad=True)
    assert not ascend(lambda: (-(x - 0.3).square().sum(), [torch.zeros_like(x)]), [x])  # a maximum
    assert not ascend(lambda: (-(x - 0.3).abs().sum(), [torch.ones_like(x)]), [x])  # a slope that leads nowhere
    assert torch.equal(x.detach(), torch.tensor([0.3]))
