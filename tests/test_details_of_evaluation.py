"""Defaults, seeds and refusals of evaluation, one by one."""

import inspect
import math
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import importance
from ppl_vae.evaluation import standard_error
from ppl_vae.guides.normal import Normal
from ppl_vae.importance import Weights, can_be_keyed, probe
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.noise import Keyed, datum_keys
from ppl_vae.programs import Programs
from ppl_vae.recording import read_record

SIZES = {"x_dim": 6, "z_dim": 2}


def pair():
    torch.manual_seed(0)
    return LinearGaussian(**SIZES).double(), Normal(**SIZES, hidden=(8,)).double()


def data(n=3):
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def weights(model, guide, **options):
    return Weights(model, guide, Programs(model, guide), compile=False, **options)


def test_what_evaluate_does_if_not_told():
    told = {
        n: p.default for n, p in inspect.signature(pv.evaluate).parameters.items() if p.default is not inspect._empty
    }
    drawn = {"particles": 5000, "seed": 0, "batch_size": 100, "chunk": 50}
    said = {"curve": False, "out": None, "subject": None, "progress": None, "compile": "auto"}
    assert told == drawn | said


def test_what_is_said_and_kept_of_an_evaluation(tmp_path):
    (model, guide), x = pair(), data()
    found = pv.evaluate(model, guide, x, particles=2, subject="mine", out=tmp_path / "e.pt")
    assert found.subject == "mine"
    assert pv.evaluate(model, guide, x, particles=2).subject == "LinearGaussian (guide Normal)"
    assert found.curve == {}
    assert not found.log_px.requires_grad
    settings = read_record(tmp_path / "e.pt")["settings"]
    assert settings["probe"] == probe(model, guide, (x,))
    assert settings["first"] == int(datum_keys((x,))[0])
    assert inspect.signature(found.to_arviz).parameters["rows"].default == 100


def test_data_of_unknown_number(monkeypatch):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data())

    (model, guide), totals = pair(), []
    shown = pv.evaluating.progress_bar
    monkeypatch.setattr(
        pv.evaluating, "progress_bar", lambda name, total, show: totals.append(total) or shown(name, total, show)
    )
    found = pv.evaluate(model, guide, torch.utils.data.DataLoader(Stream(), batch_size=2), particles=3)
    torch.testing.assert_close(found.log_px, pv.evaluate(model, guide, data(), particles=3).log_px)
    assert totals == [None, 1]


def test_two_data_have_a_standard_error():
    assert standard_error(torch.tensor([1.0, 3.0])) == pytest.approx(1.0)
    assert math.isnan(standard_error(torch.tensor([1.0])))


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


def test_independence_is_tried_on_two_data_by_64_draws_at_once_and_three_alone(monkeypatch):
    tried, weigh = [], importance.weigh
    monkeypatch.setattr(
        importance, "weigh", lambda m, g, rows, k, **o: tried.append((len(rows[0]), k)) or weigh(m, g, rows, k, **o)
    )
    assert can_be_keyed(*pair(), (data(),))
    assert tried == [(2, 64), (1, 1), (1, 1), (1, 1)]


class Joined(nn.Module):
    """A cluster that is summed out stands between the latent and the datum."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            loc = torch.tensor([-1.0, 1.0])[y].unsqueeze(-1)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc * z, 1.0).to_event(1), obs=x)


class OfOne(nn.Module):
    """A latent of one number, from the prior's middle."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.5).to_event(1))


def test_a_distortion_that_cannot_be_told_is_no_number():
    found = pv.evaluate(Joined(), OfOne(), torch.randn(4, 1), particles=20)
    assert found.distortion.isnan().all()
    assert found.rate.isnan().all()
    assert found.elbo.isfinite().all()
    assert found.to_dict()["distortion"] is None


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


class Sites(nn.Module):
    """Data of several kinds."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            normal = dist.Normal(z, 1.0)
            if self.kind == "two":
                pyro.sample("x", normal.expand_by([]).to_event(1), obs=x[:, :1])
                pyro.sample("u", dist.Normal(z[..., 0], 1.0), obs=x[:, 1])
            elif self.kind == "bits":
                pyro.sample("x", dist.Bernoulli(logits=z.expand(*z.shape[:-1], 3)).to_event(1), obs=x)
            elif self.kind == "handler":
                with pyro.poutine.mask(mask=torch.ones(len(x), dtype=torch.bool)):
                    pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)
            elif self.kind == "factor":
                pyro.factor("f", 0.0 * z[..., 0])
                pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).to_event(1), obs=x)
            else:
                inner = dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).mask(torch.tensor([True, False, True])).to_event(1)
                pyro.sample("x", inner, obs=x)


@pytest.mark.parametrize(
    ("kind", "columns", "dims", "mass"),
    [
        ("bits", 3, 3, True),
        ("factor", 3, 3, False),
        ("two", 2, None, False),
        ("masked", 3, None, False),
        ("handler", 3, None, False),
    ],
)
def test_numbers_in_a_datum(kind, columns, dims, mass):
    x = torch.ones(4, columns)
    found = pv.evaluate(Sites(kind), OfOne(), x, particles=30)
    assert (found.dims, found.mass) == (dims, mass)
    if dims is None:
        with pytest.raises(ValueError, match="bits_per_dim: the data have no fixed number of dimensions"):
            found.bits_per_dim()
    else:
        bits = -found.mean / (3 * math.log(2)) + (0 if mass else 8)
        assert found.bits_per_dim(None if mass else 256) == pytest.approx(bits)


def test_numbers_of_a_report():
    found = pv.evaluate(*pair(), data(), particles=30).to_dict()
    assert found["n"] == 3
    assert found["particles"] == 30
    assert found["seed"] == 0
    assert set(found) == {
        *("subject", "n", "particles", "seed", "log_px", "elbo", "debiased", "rate", "distortion", "ess", "rise"),
        *("se", "mc_se", "bits_per_dim", "khat_above_0.7", "ess_below_10", "curve", "warnings"),
    }


def test_data_of_each_process_keep_their_numbers(monkeypatch):
    """Messages count from the first datum of all: what was met, what was done before, what others have."""
    starts, x = [], data(6)

    class Met:
        met, times, settings, note = 10, Counter(), {"seed": 0}, None

        def meet(self, keys):
            return 2

        def add(self, keys, columns):
            assert torch.equal(keys, datum_keys((x,))[2:])

    class Second:
        rank = 1

        def part(self, batch):
            return tuple(part[2:] for part in batch)

        def gathered(self, column):
            return column

    (model, guide), whole = pair(), pv.evaluating._columns
    monkeypatch.setattr(
        pv.evaluating, "_columns", lambda w, batch, start, *rest: starts.append(start) or whole(w, batch, start, *rest)
    )
    held = weights(model, guide, particles=3, chunk=3)
    for together in (Second(), None):
        pv.evaluating._take(Met(), held, (x,), False, together, Quiet())
    assert starts == [14, 12]


class Quiet:
    def advance(self, note=None, by=1):
        pass


def test_shares_of_bars(monkeypatch, tmp_path):
    """A batch counts its chunks, one that had been finished too."""
    steps, (model, guide) = [], pair()

    class Bar:
        def advance(self, note=None, by=1):
            steps.append(by)

    class Shown:
        def __init__(self, name, total, show):
            steps.append((name, total))

        def __enter__(self):
            return Bar()

        def __exit__(self, *args):
            return None

    monkeypatch.setattr(pv.evaluating, "progress_bar", Shown)
    options = {"particles": 7, "chunk": 3, "batch_size": 2, "out": tmp_path / "e.pt"}
    for wanted in ([1] * 6, [3, 3]):
        pv.evaluate(model, guide, data(), **options)
        assert steps == [("Evaluating", 6), *wanted]
        steps.clear()
