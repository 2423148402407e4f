"""What chains meet on their way: step sizes, temperatures, densities and slopes, captured or not."""

import math
import weakref

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.coordinates import coordinates
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.tempering import Point, Steps, densities, ends, evaluator, sigmoid_schedule


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LinearGaussian(x_dim=6, z_dim=2).double()


def data(model, n):
    return pv.sample(model, shape=(6,), n=n, seed=11)["x"]


def summed(x):
    """A latent whose prior hangs together with a bit that is summed out."""
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Bernoulli(torch.full_like(x, 0.3)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(2 * y, 1.0))
        pyro.sample("x", dist.Normal(z.sin(), 0.5), obs=x)


def test_step_sizes_follow_the_scale_of_each_posterior(uncompiled):
    """The noise of data, and so the width of posteriors, differs by datum."""

    def model(x, scale):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(20), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale.unsqueeze(-1)).to_event(1), obs=x)

    scale = torch.tensor([0.02, 0.2, 2.0]).double()
    x = torch.randn(3, 20).double()
    annealing = pv.ais(model, (x, scale), distributions=100, chains=4, leapfrog=2, compile=True)
    width = (1 / (1 + 1 / scale**2)).sqrt()
    ratio = annealing.step_size / width
    assert (ratio / ratio.mean()).log().abs().max() < 0.5  # of widths that differ by a factor of 45
    assert (annealing.acceptance - 0.65).abs().max() < 0.15


def test_step_sizes_between_the_pilots_temperatures():
    steps = Steps([0.1, 0.5, 1.0], torch.tensor([[0.0], [-1.0], [-3.0]]))
    for temperature, log_step in ((0.01, 0.0), (0.1, 0.0), (0.3, -0.5), (0.5, -1.0), (0.75, -2.0), (1.0, -3.0)):
        assert steps.at(temperature).log().item() == pytest.approx(log_step, abs=1e-6)


def test_the_sigmoid_schedule():
    found = sigmoid_schedule(1001)
    assert found[0] == 0
    assert found[-1] == 1
    assert (found.diff() > 0).all()
    torch.testing.assert_close(found + found.flip(0), torch.ones(1001).double())
    s = [1 / (1 + math.exp(-t)) for t in (-4, -2, 4)]
    assert found[250].item() == pytest.approx((s[1] - s[0]) / (s[2] - s[0]))


def test_slopes_are_gradients_of_both_ends():
    pair = pairs.make("vae", "normal")
    batch = (pair.data(3),)
    space = coordinates(pair.model, batch)
    position = torch.randn(2, 3, 2).double()
    for guide in (None, pair.guide):
        point = evaluator(lambda inputs, g=guide: densities(pair.model, g, space)({}, inputs), batch)(position)
        assert isinstance(point, Point)
        for i, slope in enumerate((point.base_slope, point.target_slope)):
            u = position.clone().requires_grad_()
            (expected,) = torch.autograd.grad(ends(pair.model, guide, space, batch, u)[2 + i].sum(), u)
            torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("case", ["prior", "guide", "sum"])
def test_captured_runs_agree_with_eager_ones(case, uncompiled):
    pair = pairs.make("vae", "normal")
    x = pair.data(7)  # a short last batch
    guide = pair.guide if case == "guide" else None
    model, x = (summed, x[:, 0]) if case == "sum" else (pair.model, x)
    options = {"distributions": 4, "chains": 3, "leapfrog": 1, "batch_size": 4}
    eager, captured = (pv.ais(model, x, guide, compile=mode, **options) for mode in (False, True))
    for name in ("log_px", "log_px_error", "ess", "acceptance", "step_size"):
        torch.testing.assert_close(getattr(captured, name), getattr(eager, name), msg=name)


def test_a_gpu_that_overwrites_its_outputs_changes_nothing(model, replayed):
    x = data(model, 5)
    options = {"distributions": 5, "chains": 3, "leapfrog": 1, "batch_size": 5}
    eager, replaying = (pv.ais(model, x, compile=mode, **options) for mode in (False, True))
    torch.testing.assert_close(replaying.log_px, eager.log_px)


def test_memory_does_not_grow_with_the_path(model):
    """The most draws that are alive when the decoder runs."""
    alive, most = weakref.WeakSet(), []

    def watched(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            alive.add(z)
            most[-1] = max(most[-1], len(alive))
            pyro.sample("x", dist.Normal(z @ model.weight.mT, 1.0).to_event(1), obs=x)

    for distributions in (5, 20):
        most.append(0)
        pv.ais(watched, data(model, 2), distributions=distributions, chains=2, leapfrog=1, compile=False)
    assert 0 < most[0] == most[1] < 10
