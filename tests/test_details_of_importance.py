"""Importance weights of a batch: seeds, chunks, keys, refusals, and what is computed once."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluated import OfOne, data, pair, weights
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ppl_vae as pv
from ppl_vae import importance
from ppl_vae.importance import can_be_keyed, probe
from ppl_vae.noise import Keyed, datum_keys


def test_draws_without_keys_of_their_own_follow_the_first_key_and_the_place():
    (model, guide), x, keys = pair(), data(), torch.tensor([11, 12, 13])
    found, means = weights(model, guide, particles=5, chunk=5, keyed=False)((x,), keys, start=7)
    torch.manual_seed(18)
    guide(x)  # what it computes of the data alone is found first, by a run
    wanted = pv.weigh(model, guide, x, 5)
    torch.testing.assert_close(found, wanted.log_w, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(means["elbo"], wanted.log_w.mean(0), rtol=1e-12, atol=1e-12)


def test_means_over_chunks_are_those_over_all_draws():
    (model, guide), x, keys, calls = pair(), data(), torch.tensor([11, 12, 13]), []
    found, means = weights(model, guide, particles=5, chunk=2)((x,), keys, advance=lambda: calls.append(1))
    wanted = pv.weigh(model, guide, x, 5, draw=Keyed(keys, torch.arange(5).expand(3, 5)))
    torch.testing.assert_close(found, wanted.log_w, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(means["elbo"], wanted.log_w.mean(0))
    torch.testing.assert_close(means["distortion"], -wanted.log_p["x"].mean(0))
    assert found.dtype is torch.float64
    assert not found.requires_grad
    assert len(calls) == 3


def test_programs_are_known_again_by_three_draws_for_the_first_datum():
    (model, guide), x = pair(), data()
    wanted = pv.weigh(model, guide, x[:1], 3, draw=Keyed(datum_keys((x[:1],)), torch.arange(3).expand(1, 3)))
    assert probe(model, guide, (x,)) == pytest.approx(wanted.log_w.sum().item(), rel=1e-12)


class Shared(nn.Module):
    """A guide whose draws hang together: each is moved by the mean of those beside it."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            loc = x.new_zeros(x.shape[0], 2)
            a = pyro.sample("a", dist.Normal(loc, 1.0).to_event(1), infer={"is_auxiliary": True})
            beside = self.share(a)
            pyro.sample("z", dist.Normal(beside.expand_as(a), 1.0).to_event(1))


ALONE = {"by itself": lambda a: a, "the first datum's": lambda a: a[..., :1, :], "the first draw's": lambda a: a[:1]}


@pytest.mark.parametrize("name", ALONE)
def test_draws_that_hang_together_are_found(name, recwarn):
    model, _ = pair()
    alone = can_be_keyed(model, Shared(ALONE[name]), (data(),))
    assert alone == (name == "by itself")
    said = [str(warning.message) for warning in recwarn]
    assert said == [] if alone else "depends on what is drawn beside it, so that results depend on batch" in said[0]


class Computing(nn.Module):
    """A guide that computes things of the data, of its parameters, and of both."""

    def __init__(self):
        super().__init__()
        self.encoder, self.scale = nn.Linear(6, 2).double(), nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))

    def forward(self, x):
        loc = self.encoder(x) + x.mean()  # of all data: it has no rows of its own
        scale = self.scale.exp()  # of no data, though as long as them
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(loc, scale[: x.shape[0]]).to_event(1))


def test_what_is_computed_of_the_data_alone_is_computed_once():
    class Products(TorchDispatchMode):
        of_data = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.of_data += func is torch.ops.aten.addmm.default and args[1].shape == (3, 6)
            return func(*args, **(kwargs or {}))

    (model, _), guide = pair(), Computing()
    held = weights(model, guide, particles=6, chunk=2)
    encoded = held._encode((data(),))
    assert encoded
    assert all(len(tensor) == 3 and tensor.shape != (3, 1) for tensor in encoded)
    with Products() as products:
        held((data(),), torch.tensor([11, 12, 13]))
    assert products.of_data == 1  # of three chunks


class Counted(nn.Module):
    """A guide that draws a count, which nobody can key."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Poisson(x.new_full((len(x),), 2.0)))


class Counts(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Poisson(1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_draws_that_cannot_be_keyed_are_named_once_in_a_line():
    with pytest.warns(UserWarning, match="evaluate: site 'z' draws by") as said:
        found = pv.evaluate(Counts(), Counted(), torch.randn(3), particles=30, batch_size=2)
    (text,) = {str(warning.message) for warning in said}
    assert "\n" not in text
    assert text.endswith("so that results depend on batch_size, chunk and the order of the data")
    assert found.redraw is None
    assert found.log_px.isfinite().all()


def test_independence_is_tried_on_two_data_by_64_draws_at_once_and_three_alone(monkeypatch):
    tried, weigh = [], importance.weigh
    monkeypatch.setattr(
        importance, "weigh", lambda m, g, rows, k, **o: tried.append((len(rows[0]), k)) or weigh(m, g, rows, k, **o)
    )
    assert can_be_keyed(*pair(), (data(),))
    assert tried == [(2, 64), (1, 1), (1, 1), (1, 1)]


class Cut(nn.Module):
    """A density that is zero below, and a guide that draws there."""

    def __init__(self, least=0.0):
        super().__init__()
        self.least = least

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.factor("cut", torch.where(z[..., 0] > self.least, 0.0, -math.inf))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_draws_without_density_under_the_model_have_no_weight_but_some_must_have():
    found, _ = weights(Cut(), OfOne(), particles=50, chunk=50)((torch.zeros(2, 1),), torch.tensor([1, 2]))
    assert 0 < found.isneginf().double().mean() < 1
    with pytest.raises(FloatingPointError, match="datum 5: all 4 draws of the guide have zero density"):
        weights(Cut(least=99.0), OfOne(), particles=4, chunk=2)((torch.zeros(2, 1),), torch.tensor([1, 2]), start=5)
    with pytest.raises(FloatingPointError, match="datum 0"):
        weights(Cut(least=99.0), OfOne(), particles=4, chunk=2)((torch.zeros(2, 1),), torch.tensor([1, 2]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_densities_of_the_model_that_are_no_numbers_are_named(bad):
    class Broken(Cut):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
                pyro.factor("odd", torch.where(x[:, 0] > 1, bad, 0.0).expand(z.shape[:-1]))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.tensor([[0.0], [0.5], [2.0], [2.0]])
    with pytest.raises(FloatingPointError, match="site 'odd': log density is NaN or infinite for datum 6"):
        weights(Broken(), OfOne(), particles=4, chunk=2)((x,), torch.tensor([1, 2, 3, 4]), start=4)
