"""Defaults, words and reports of evaluation, one by one."""

import inspect
import math
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluated import OfOne, data, pair, weights
from torch import nn

import ppl_vae as pv
from ppl_vae.evaluation import standard_error
from ppl_vae.importance import probe
from ppl_vae.noise import datum_keys
from ppl_vae.recording import read_record


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
    torch.testing.assert_close(found.rate, -found.elbo - found.distortion)
    assert found.rate.min() > -5  # nats; a divergence but for its error
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


class Joined(nn.Module):
    """A cluster that is summed out stands between the latent and the datum."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            loc = torch.tensor([-1.0, 1.0])[y].unsqueeze(-1)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc * z, 1.0).to_event(1), obs=x)


def test_a_distortion_that_cannot_be_told_is_no_number():
    found = pv.evaluate(Joined(), OfOne(), torch.randn(4, 1), particles=20)
    assert found.distortion.isnan().all()
    assert found.rate.isnan().all()
    assert found.elbo.isfinite().all()
    assert found.to_dict()["distortion"] is None


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
