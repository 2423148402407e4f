"""What a graph gives is held to eager runs with the same draws; a faulty compiler is told, and not believed."""

import pairs
import pytest
import torch
from capturing import step_on

import ppl_vae as pv
from ppl_vae import compiling
from ppl_vae.compiling import Compiled
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.programs import Programs
from ppl_vae.verifying import APART, POWER, TRIALS, differing, fault

WRONG = (
    "compile: it runs eagerly, since a graph's numbers are not those of an eager run with the same draws: a tensor of"
)
LIMIT = APART * torch.finfo(torch.float32).eps ** POWER


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


def test_to_look_changes_nothing(monkeypatch, uncompiled):
    found = []
    for patch in (lambda: None, lambda: monkeypatch.setattr(compiling, "fault", lambda *_: "")):
        patch()
        torch.manual_seed(0)
        found.append(trained(True))
        found[-1] += (torch.rand(1),)
    assert_same(*found)
    assert torch.equal(found[0][2], found[1][2])


def test_trials_of_an_evaluation_draw_anew(monkeypatch):
    """What it draws follows from keys, not from the random state."""
    log_w = []

    def spoil(outputs, inputs):
        log_w.append(outputs[0].clone())
        return [output + 1 for output in outputs]

    faulty(monkeypatch, spoil)
    pair = pairs.make("vae", "normal")
    with pytest.warns(UserWarning, match=WRONG):
        pv.evaluate(pair.model, pair.guide, pair.data(3), particles=4, compile=True, progress=False)
    assert len(log_w) == TRIALS
    assert len({tuple(drawn.flatten().tolist()) for drawn in log_w}) == TRIALS


def test_sizes_beyond_the_first_few_are_trusted(monkeypatch, uncompiled):
    looked = []
    monkeypatch.setattr(
        compiling, "fault", lambda graph, function, programs, batch, redraw: looked.append(len(batch[0])) or ""
    )
    function = graph_of(torch.nn.Linear(2, 1))
    for rows in (*range(2, 20), 2, 3):
        function((torch.ones(rows, 2),))
    assert looked == [*range(2, 2 + compiling.MOST_SIZES)]


def graph_of(net):
    """Return the sum of what a network makes of a batch, as a graph."""
    return Compiled(lambda _, batch: net(batch[0]).sum(), Programs(net, net), compile=True)


def noisy(x, by):
    return x + by * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def far_below():
    """Return log densities of which one lies far below the others."""
    return torch.cat([noisy(torch.full((999,), -90.0), 3.0), torch.tensor([-1e8])])


def gradient():
    return noisy(torch.zeros(784, 100), 0.01)


WRONGS = {
    "log-weights by 0.15 nats": (
        noisy(torch.full((50, 64), -89.85), 3.0),
        noisy(torch.full((50, 64), -90.0), 3.0),
    ),
    "hidden by one of great size": (far_below() + torch.tensor([100.0] * 999 + [0.0]), far_below()),
    "the end of a loop": (torch.cat([gradient()[:-1], torch.zeros(1, 100)]), gradient()),
    "a gradient by a hundredth": (gradient() * 1.01, gradient()),
    "no number": (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0])),
    "another infinity": (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, -torch.inf])),
    "a whole number": (torch.tensor([1, 2]), torch.tensor([1, 3])),
    "fewer axes": (torch.zeros(1), torch.zeros(5)),
}


@pytest.mark.parametrize(("found", "expected"), WRONGS.values(), ids=WRONGS)
def test_what_is_wrong_is_found(found, expected):
    assert differing([found], [expected], LIMIT)
    assert differing([torch.tensor(-90.0), found], [torch.tensor(-90.0), expected], LIMIT)


ALIKE = {
    "rounding": (noisy(gradient(), 1e-7), gradient()),
    "zero but for rounding, beside others": (noisy(torch.zeros(5), 1e-7), torch.zeros(5)),
    "infinities and no numbers": 2 * (torch.tensor([1.0, torch.nan, torch.inf, -torch.inf]),),
    "nothing": (torch.zeros(0), torch.zeros(0)),
}


@pytest.mark.parametrize(("found", "expected"), ALIKE.values(), ids=ALIKE)
def test_what_rounding_does_is_not(found, expected):
    assert not differing([found, gradient()], [expected, gradient()], LIMIT)


class Average(torch.nn.Module):
    """A layer that keeps a running mean where torch has no name for it: in a frozen parameter, or under two names."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = torch.nn.Linear(2, 1), kind
        self.frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("old", torch.zeros(1))
        self.register_buffer("new", torch.ones(1))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        y = self.net(x).detach()
        if self.kind == "frozen":
            with torch.no_grad():
                self.frozen.mul_(0.9).add_(0.1)
        elif self.kind == "aliased":
            self.old = self.new
        else:
            self.steps += 1
        return y + self.frozen + self.old


@pytest.mark.parametrize("kind", ["frozen", "aliased", "counted"])
def test_what_programs_write_is_as_after_one_run(kind, uncompiled):
    x, eager, captured = (torch.ones(3, 2),), Average(kind), Average(kind)
    captured.load_state_dict(eager.state_dict())
    function = graph_of(captured)
    assert torch.equal(function(x), eager(x[0]).sum())
    assert function.count == 1
    for name, tensor in eager.state_dict().items():
        assert torch.equal(captured.state_dict()[name], tensor), name


def test_a_counter_that_a_graph_gets_wrong_is_found(monkeypatch):
    def spoil(outputs, inputs):
        next(t for t in inputs if not t.is_floating_point()).add_(100)
        return outputs

    faulty(monkeypatch, spoil)
    net = Average("counted")
    with pytest.warns(UserWarning, match="has other whole numbers"):
        graph_of(net)((torch.ones(3, 2),))
    assert net.steps == 1


def test_what_only_a_graph_can_do_is_done_and_told(uncompiled, monkeypatch):
    net = torch.nn.Linear(2, 1)
    function, x = graph_of(net), (torch.ones(3, 2),)
    function._graph(x)  # made
    monkeypatch.setattr(function, "function", lambda tensors, batch: torch.zeros(1).expand(2, 3).view(7))
    with pytest.warns(UserWarning, match="a graph is not held to an eager run, which failed: RuntimeError"):
        assert torch.equal(function(x), net(x[0]).sum())


def test_batches_of_which_nothing_is_finite_tell_nothing(uncompiled):
    net = torch.nn.Linear(2, 1)
    function, x = graph_of(net), torch.ones(3, 2)
    function((x * torch.nan,))
    assert [graph.held for graphs in function.graphs.values() for graph in graphs] == [set()]
    function((x,))
    assert [graph.held for graphs in function.graphs.values() for graph in graphs] == [{3}]
    assert fault(lambda batch: batch[0], lambda batch: batch[0], Programs(net, net), (x * torch.nan,)) is None


def test_a_run_that_goes_on_elsewhere_knows_what_was_found(monkeypatch):
    net, x = torch.nn.Linear(2, 1), (torch.ones(3, 2),)
    monkeypatch.setattr(compiling, "lower", lambda graph: None)
    right, again = graph_of(net), graph_of(net)
    right(x)
    again.load_state_dict(right.state_dict())
    monkeypatch.setattr(compiling, "fault", None)  # not asked again
    assert torch.equal(again(x), right(x))
    monkeypatch.undo()
    faulty(monkeypatch, lambda outputs, inputs: [output + 1 for output in outputs])
    wrong, again = graph_of(net), graph_of(net)
    for begin in (lambda: wrong(x), lambda: again.load_state_dict(wrong.state_dict())):
        with pytest.warns(UserWarning, match=WRONG):
            begin()
    assert again(x) == net(x[0]).sum()
    assert again.count == 0


class Averaging(VAE):
    """A model that keeps an average in a frozen parameter."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.average = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x):
        with torch.no_grad():
            self.average.mul_(0.9).add_(0.1)
        return super().forward(x)


LOOKS = {
    "check": lambda step, x: pv.check(step.model, step.guide, x),
    "bound": lambda step, x: step.bound(x),
    "evaluate": lambda step, x: pv.evaluate(step.model, step.guide, x, particles=3, progress=False),
}


@pytest.mark.parametrize("look", LOOKS)
def test_who_only_looks_leaves_frozen_parameters(look):
    sizes, x = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}, torch.ones(4, 6)
    step = step_on(Averaging(**sizes), Normal(**sizes), x)
    before = step.model.average.item()
    LOOKS[look](step, x)
    assert step.model.average.item() == before
    step(x)
    assert step.model.average.item() != before
