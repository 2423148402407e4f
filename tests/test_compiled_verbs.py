"""fit and evaluate with captured programs; data that reach them fast."""

import copy

import pairs
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import ppl_vae as pv
from ppl_vae import batches
from ppl_vae.batches import InMemory, source


def bits(n):
    return torch.bernoulli(torch.full((n, 6), 0.4), generator=torch.Generator().manual_seed(n)).double()


@pytest.mark.parametrize("programs", pairs.with_every_program(), ids="-".join)
def test_evaluations_agree_to_rounding(programs, uncompiled):
    pair = pairs.make(*programs)
    x = pair.data(7)  # a short last batch, and a rest of particles
    eager, captured = (
        pv.evaluate(pair.model, pair.guide, x, particles=11, batch_size=3, chunk=4, compile=mode)
        for mode in (False, True)
    )
    for name in ("log_px", "elbo", "ess", "log_px_error"):
        torch.testing.assert_close(getattr(captured, name), getattr(eager, name), msg=name)


def test_a_faulty_compiler_is_told_and_not_believed(monkeypatch):
    """Its numbers are held to those of the programs, for the first run of each size."""

    def lower(graph):
        graph.run = lambda *inputs: [output + 1 for output in graph.module(*inputs)]

    pair = pairs.make("vae", "normal")
    numbers = {"particles": 11, "batch_size": 3, "chunk": 4, "progress": False}
    eager = pv.evaluate(pair.model, pair.guide, pair.data(7), compile=False, **numbers)
    monkeypatch.setattr("ppl_vae.compiling.lower", lower)
    with pytest.warns(UserWarning, match="a graph's numbers are not those of an eager run") as told:
        found = pv.evaluate(pair.model, pair.guide, pair.data(7), compile=True, **numbers)
    assert len(told) == 1
    assert torch.equal(found.log_px, eager.log_px)


@pytest.mark.parametrize("objective", [pv.objectives.elbo, pv.objectives.NVIL(x_dim=6, hidden=4).double()])
def test_fits_agree_to_rounding(objective, uncompiled):
    found = {}
    for mode in (False, True):
        pair, own = pairs.make("sigmoid_belief_network", "bernoulli"), copy.deepcopy(objective)
        options = {"epochs": 3, "batch_size": 8, "clip_norm": 1.0, "compile": mode}
        result = pv.fit(pair.model, pair.guide, bits(20), own, 3, valid=bits(10), **options)
        found[mode] = result, pair.parameters()
    assert found[False][0].graphs == 0
    assert found[True][0].graphs == 2  # training and validation
    assert "(2 compiled graphs)" in str(found[True][0])
    for name in ("train_bound", "valid_bound"):
        assert found[True][0].history[name] == pytest.approx(found[False][0].history[name], rel=1e-6)
    for name, parameter in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], parameter, msg=name)


def test_sets_of_tensors_are_sliced_in_memory():
    found = source(TensorDataset(torch.ones(5, 2), torch.zeros(5)), 2)
    assert isinstance(found, InMemory)
    assert [len(x) for x, _ in found] == [2, 2, 1]


class Squares(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, i):
        return torch.tensor([float(i * i)])


def test_large_sets_are_read_by_workers_in_the_same_order(monkeypatch):
    def read(rows):
        monkeypatch.setattr(batches, "MANY_ROWS", rows)
        stream = source(Squares(), 16)
        order = torch.Generator().manual_seed(3)
        return torch.cat([x for (x,) in stream]), torch.cat([x for (x,) in stream.shuffled(order)])

    for alone, by_workers in zip(read(61), read(60), strict=True):
        assert torch.equal(alone, by_workers)


def test_binarized_pixels_have_their_probabilities():
    torch.manual_seed(0)
    p = torch.tensor([0.0, 0.25, 1 / 255, 1.0]).expand(200_000, 4)
    mean = pv.data.binarize(p).mean(0)
    error = (p[0] * (1 - p[0]) / len(p)).sqrt()
    assert ((mean - p[0]).abs() <= 5 * error).all()
