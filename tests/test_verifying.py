"""What a graph gives is held to eager runs with the same draws; a faulty compiler is told, and not believed."""

import pairs
import pytest
import torch

import ppl_vae as pv
from ppl_vae import compiling
from ppl_vae.verifying import TRIALS

WRONG = r"compile: it runs eagerly, since a graph was compiled wrongly: in .* numbers it differs from an eager run"


def faulty(monkeypatch, spoil):
    """Put in place of compiled graphs what ``spoil`` makes of their outputs and inputs."""

    def lower(graph):
        graph.run = lambda *inputs: spoil(list(graph.module(*inputs)), inputs)

    monkeypatch.setattr(compiling, "lower", lower)


def trained(compile, rows=20, objective=None):  # noqa: A002 - the public name
    """Return a fit of bits with three batches an epoch, and the parameters."""
    pair = pairs.make("sigmoid_belief_network", "bernoulli")
    x = torch.bernoulli(torch.full((rows, 6), 0.4), generator=torch.Generator().manual_seed(1)).double()
    objective = objective or pv.objectives.NVIL(x_dim=6, hidden=4).double()
    result = pv.fit(pair.model, pair.guide, x, objective, 3, epochs=2, batch_size=8, compile=compile, progress=False)
    return result.history["train_bound"], pair.parameters()


def assert_same(found, expected):
    assert found[0] == expected[0]
    for name, parameter in expected[1].items():
        assert torch.equal(found[1][name], parameter), name


def one_gradient_wrong(outputs, inputs):
    outputs[-1] = outputs[-1] * 1.01
    return outputs


def a_buffer_wrong(outputs, inputs):
    next(t for t in inputs[:-1] if t.is_floating_point() and not t.requires_grad).add_(1)
    return outputs


def nothing_but_nan(outputs, inputs):
    return [output * torch.nan for output in outputs]


def wrong_for_short_batches(outputs, inputs):
    return outputs if len(inputs[-1]) == 8 else one_gradient_wrong(outputs, inputs)


SPOILT = [one_gradient_wrong, a_buffer_wrong, nothing_but_nan]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_training_goes_on_eagerly_where_a_graph_is_wrong(spoil, monkeypatch):
    torch.manual_seed(0)
    objective = pv.objectives.NVIL(x_dim=6, hidden=4).double().state_dict()

    def again():
        fresh = pv.objectives.NVIL(x_dim=6, hidden=4).double()
        fresh.load_state_dict(objective)
        return fresh

    eager = trained(False, objective=again())
    faulty(monkeypatch, spoil)
    with pytest.warns(UserWarning, match=WRONG) as told:
        found = trained(True, objective=again())
    assert len(told) == 1
    assert_same(found, eager)


def test_every_size_is_held_to_an_eager_run(monkeypatch):
    """The last batch of an epoch is shorter, and loops over it may end where others do not."""
    faulty(monkeypatch, wrong_for_short_batches)
    with pytest.warns(UserWarning, match=WRONG):
        trained(True)


def test_a_draw_that_rounding_turns_over_is_no_fault(monkeypatch):
    """It changes gradients for some draws, not for all."""
    runs = []

    def spoil(outputs, inputs):
        runs.append(1)
        return one_gradient_wrong(outputs, inputs) if len(runs) < TRIALS else outputs

    faulty(monkeypatch, spoil)
    trained(True, rows=8)  # whatever is compiled wrongly is an error in this suite
    assert len(runs) == TRIALS + 2


@pytest.mark.parametrize("names", [("vae", "normal"), ("sigmoid_belief_network", "bernoulli")], ids="-".join)
def test_to_look_changes_nothing(names, monkeypatch, uncompiled):
    found = []
    for patch in (lambda: None, lambda: monkeypatch.setattr(compiling, "fault", lambda *_: "")):
        patch()
        torch.manual_seed(0)
        found.append(trained(True))
        found[-1] += (torch.rand(1),)
    assert_same(*found)
    assert torch.equal(found[0][2], found[1][2])


def test_sizes_beyond_the_first_few_are_trusted(monkeypatch, uncompiled):
    looked = []
    monkeypatch.setattr(compiling, "fault", lambda graph, function, programs, batch: looked.append(len(batch[0])) or "")
    net = torch.nn.Linear(2, 1)
    function = compiling.Compiled(lambda _, batch: net(batch[0]).sum(), pv.programs.Programs(net, net), compile=True)
    for rows in (*range(2, 20), 2, 3):
        function((torch.ones(rows, 2),))
    assert looked == [*range(2, 2 + compiling.MOST_SIZES)]
