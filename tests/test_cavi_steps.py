"""Coordinate ascent as a step: the same numbers as the verb, driven by the loop, with a state to go on from."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.cavi_steps import datum_bounds
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture

N = 60


def data():
    torch.manual_seed(0)
    return torch.randn(N, 2).double() + 4 * torch.eye(3).double()[torch.arange(N) % 3][:, :2]


def mixture():
    return BayesianGaussianMixture(2, 3).double()


def noisy_mixture(x):
    """A continuous latent that follows a discrete one."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3).to(x)))
    with pyro.plate("components", 3, dim=-1):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2).to(x), 10.0).to_event(1))
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Categorical(weights))
        z = pyro.sample("z", dist.Normal(mean[y], 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


@pytest.mark.parametrize("model", [mixture(), noisy_mixture], ids=["one local factor", "two"])
def test_the_mean_over_data_is_the_bound_of_all(model):
    found = pv.cavi(model, data(), iterations=3)
    bounds = datum_bounds(found.factorised)
    assert bounds.shape == (N,)
    assert float(bounds.mean()) == pytest.approx(found.history["elbo"][-1], abs=1e-12)


def test_a_point_has_no_entropy_in_the_bounds_of_data():
    found = pv.cavi(noisy_mixture, data(), point=["mean"], iterations=3)
    assert float(datum_bounds(found.factorised).mean()) == pytest.approx(found.history["elbo"][-1], abs=1e-12)
    assert pv.cavi_step(noisy_mixture, point=["mean"]).bound(data()).shape == (N,)


def test_steps_on_all_data_are_iterations():
    step = pv.cavi_step(mixture())
    bounds = [float(step(data()).bound) for _ in range(6)]
    assert bounds == pytest.approx(pv.cavi(mixture(), data(), iterations=5, tol=0).history["elbo"], abs=1e-10)


def test_minibatches_come_near_the_bound_of_all_data():
    best = pv.cavi(mixture(), data(), tol=1e-9, iterations=500).history["elbo"][-1]
    step = pv.cavi_step(mixture(), data_size=N)
    pv.fit(step=step, data=data(), batch_size=20, epochs=40)
    found = float(step.bound(data()).mean())
    assert best - 0.05 < found < best + 1e-9


def test_a_step_goes_on_from_its_state():
    whole, first, second = (pv.cavi_step(mixture(), data_size=N) for _ in range(3))
    batches = data().split(20)
    bounds = [whole(batch).bound for batch in batches]
    first(batches[0])
    second.load_state_dict(first.state_dict())
    assert [second(batch).bound for batch in batches[1:]] == bounds[1:]
    for name, eta in whole.eta.items():
        assert all(map(torch.equal, eta, second.eta[name]))


def test_the_callers_draws_go_on():
    x = data()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pv.cavi_step(mixture())(x)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": torch.ones(N, 3) / 3}, TypeError, "start: expected a function"),
        ({"data_size": N, "rate": lambda t: 2.0}, ValueError, "rate: expected numbers in"),
        ({"point": ["nothing"]}, pv.ContractError, "point: 'nothing' is no continuous latent"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        pv.cavi_step(mixture(), **options)(data())


def no_start(x, components, seed):
    """Forget to return responsibilities."""


def test_a_start_that_gives_nothing_is_refused():
    for verb in (pv.cavi, lambda model, x, start: pv.cavi_step(model, start=start)(x)):
        with pytest.raises(TypeError, match=r"start: expected responsibilities \(N, C\), or a function .* found None"):
            verb(mixture(), data(), start=no_start)
