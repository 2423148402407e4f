"""Nothing that a graph has frozen changes unseen."""

import copy
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import capturing
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree
from pyro import poutine
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import ppl_vae as pv
from ppl_vae import compiling

GLOBAL = GLOBALLY = 1.0
ACTIVATION = torch.tanh
SETTINGS = {"scale": 1.0}


@dataclass(slots=True)
class Slotted:
    beta: float = 1.0


class Namespace:
    beta = 1.0

    @staticmethod
    def scaled(x):
        return x


def made_with(options):
    return lambda x: options["scale"] * x


def helper(x):
    return GLOBAL * x


def other_helper(x):
    return 3.0 * x


class Model(nn.Module):
    """Scales its latent by everything that Python may hold."""

    of_class = 1.0

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 3)
        self.number, self.array, self.nothing = 1.0, np.float64(1.0), None
        self.inside, self.listed = {"a": {"b": 1.0}}, [1.0, (2.0,)]
        self.settings = SimpleNamespace(beta=1.0)
        self.few, self.slotted = np.ones(2), Slotted()
        self.options = {"scale": 1.0}
        self.closed = made_with(self.options)
        self.hidden = SimpleNamespace(a=SimpleNamespace(b=SimpleNamespace(c=SimpleNamespace(d=SimpleNamespace(e=1.0)))))
        self.prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        self.function = helper

    def scaled(self, z):
        scale = self.number * self.array * self.inside["a"]["b"] * self.listed[0] * self.settings.beta
        scale = scale * self.of_class * getattr(self, "later", 1.0) * SETTINGS["scale"]
        scale = scale * self.few[0] * self.slotted.beta * self.hidden.a.b.c.d.e * Namespace.beta * capturing.SCALE
        z = ACTIVATION(Namespace.scaled(self.closed(self.property_of(z))))
        return self.function(z) * float(scale) * (1.0 if self.nothing is None else self.nothing)

    def property_of(self, z):
        return sum(GLOBALLY * part for part in [z])

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(self.scaled(self.net(z)), 1.0).to_event(1), obs=x)


class BySteps(nn.Module):
    """Bound methods, as in Pyro's tutorials."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Model(), Guide()])

    def model(self, x):
        return self.parts[0](x * GLOBAL)

    def guide(self, x):
        return self.parts[1](x)


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(3, 2)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.loc(x), 1.0).to_event(1))


def set_in(container, key, value):
    container[key] = value


def change_global(model, value=3.0, name="GLOBAL"):
    globals()[name] = value


CHANGES = {
    "a number": lambda m: setattr(m, "number", 3.0),
    "a number of numpy": lambda m: setattr(m, "array", np.float64(3.0)),
    "nothing": lambda m: setattr(m, "nothing", 3.0),
    "an attribute that comes": lambda m: setattr(m, "later", 3.0),
    "a dict": lambda m: set_in(m.inside["a"], "b", 3.0),
    "a list": lambda m: set_in(m.listed, 0, 3.0),
    "settings": lambda m: setattr(m.settings, "beta", 3.0),
    "a distribution": lambda m: setattr(m, "prior", dist.Normal(torch.ones(2), 1.0).to_event(1)),
    "a function": lambda m: setattr(m, "function", other_helper),
    "a class": lambda m: setattr(Model, "of_class", 3.0),
    "a global of a helper": change_global,
    "a small array": lambda m: set_in(m.few, 0, 3.0),
    "an object of slots": lambda m: setattr(m.slotted, "beta", 3.0),
    "what a function in an attribute closes over": lambda m: set_in(m.options, "scale", 3.0),
    "deep inside": lambda m: setattr(m.hidden.a.b.c.d, "e", 3.0),
    "a class that is a namespace": lambda m: setattr(Namespace, "beta", 3.0),
    "a function of a class": lambda m: setattr(Namespace, "scaled", staticmethod(other_helper)),
    "a method of the class": lambda m: setattr(Model, "property_of", lambda self, z: 3.0 * z),
    "another module of code": lambda m: setattr(capturing, "SCALE", 3.0),
    "a function of a library under a global name": lambda m: change_global(m, torch.relu, "ACTIVATION"),
    "a global in a generator": lambda m: change_global(m, 3.0, "GLOBALLY"),
    "a dict of the module": lambda m: set_in(SETTINGS, "scale", 3.0),
    "a hook": lambda m: m.net.register_forward_hook(lambda net, given, found: 3.0 * found),
    "a method put in place": lambda m: setattr(m, "scaled", lambda z: 3.0 * z),
}


@pytest.fixture
def restored():
    method = Model.property_of
    yield
    Model.of_class, SETTINGS["scale"], Namespace.beta, capturing.SCALE = 1.0, 1.0, 1.0, 1.0
    Model.property_of, Namespace.scaled = method, staticmethod(lambda x: x)
    for name, value in {"GLOBAL": 1.0, "GLOBALLY": 1.0, "ACTIVATION": torch.tanh}.items():
        change_global(None, value, name)


def steps_of(make):
    pairs = []
    for mode in (False, True):
        torch.manual_seed(0)
        model, guide = make()
        owner = getattr(model, "__self__", model)
        parameters = {
            id(p): p for program in (owner, guide) if hasattr(program, "parameters") for p in program.parameters()
        }
        optimizer = torch.optim.SGD(list(parameters.values()), lr=1e-3)
        pairs.append(pv.svi_step(model, guide, optimizer=optimizer, compile=mode))
    return pairs


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, uncompiled, restored):
    eager, captured = steps_of(lambda: (Model(), Guide()))
    assert_steps_agree(eager, captured, [X, X])
    for step in (eager, captured):
        torch.manual_seed(0)
        CHANGES[change](step.model)
    assert_steps_agree(eager, captured, [X, X, X])
    assert captured.ascent.count == 2


def methods():
    both = BySteps()
    return both.model, both.guide


class CallableObject:
    def __init__(self):
        self.net, self.number = nn.Linear(2, 3), 1.0

    def __call__(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.number * self.net(z), 1.0).to_event(1), obs=x)


def model_with_option(net, x, number=1.0):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(number * net(z), 1.0).to_event(1), obs=x)


OWNERS = {
    "a global in a bound method": (methods, change_global),
    "an attribute of an object that is called": (
        lambda: (CallableObject(), Guide()),
        lambda model: setattr(model, "number", 3.0),
    ),
    "an option of a partial": (
        lambda: (partial(model_with_option, nn.Linear(2, 3), number=1.0), Guide()),
        lambda model: set_in(model.keywords, "number", 3.0),
    ),
}


@pytest.mark.parametrize("case", OWNERS)
def test_a_change_around_the_program_is_seen(case, uncompiled, restored):
    make, change = OWNERS[case]
    eager, captured = steps_of(make)
    assert_bounds_agree(eager, captured)
    change(eager.model)
    if case != "a global in a bound method":
        change(captured.model)
    before = captured.ascent.count
    assert_bounds_agree(eager, captured)
    assert captured.ascent.count == before + 1


def assert_bounds_agree(eager, captured):
    for i in range(3):
        bounds = []
        for step in (eager, captured):
            torch.manual_seed(i)
            bounds.append(step(X).bound)
        torch.testing.assert_close(bounds[1], bounds[0])


def test_a_handler_around_the_step_is_obeyed(uncompiled):
    eager, captured = steps_of(lambda: (Model(), Guide()))
    assert_bounds_agree(eager, captured)
    with poutine.scale(scale=0.1), pytest.warns(UserWarning, match="it runs eagerly, since a Pyro handler is open"):
        assert_bounds_agree(eager, captured)
    assert_bounds_agree(eager, captured)
    assert captured.ascent.count == 1


def test_numbers_may_become_anything(uncompiled):
    values = {"a": [5.0], "b": {"a": 5.0}, "c": np.ones(1), "d": torch.tensor([1.0, 2.0, 3.0])}
    eager, captured = steps_of(lambda: (Model(), Guide()))
    assert_bounds_agree(eager, captured)
    for step in (eager, captured):
        vars(step.model).update(dict.fromkeys(values, 1.0))
    assert_bounds_agree(eager, captured)
    for name, value in values.items():
        for step in (eager, captured):
            setattr(step.model, name, value)
        assert_bounds_agree(eager, captured)


def test_batches_of_any_strides(uncompiled):
    eager, captured = steps_of(lambda: (Model(), Guide()))
    batches = [
        X,
        torch.randn(3, 4).t(),
        torch.randn(8, 3)[::2],
        torch.randn(4, 6)[:, ::2],
        torch.randn(1, 3).expand(4, 3),
    ]
    assert_steps_agree(eager, captured, batches)
    assert captured.ascent.count == 1
    fitted = steps_of(lambda: (Model(), Guide()))[1]
    pv.fit(step=fitted, data=torch.randn(50, 3), valid=torch.randn(3, 50).t(), epochs=2, batch_size=16)


def test_programs_of_no_module(uncompiled):
    """Code in a string, as notebooks and documents run it."""
    namespace = {"pyro": pyro, "dist": dist, "torch": torch, "net": nn.Linear(2, 3)}
    lines = ["def model(x):", "  with pyro.plate('data', x.shape[0], dim=-1):"]
    lines += ["    z = pyro.sample('z', dist.Normal(torch.zeros(2), 1.0).to_event(1))"]
    lines += ["    pyro.sample('x', dist.Normal(net(z), 1.0).to_event(1), obs=x)"]
    exec("\n".join(lines), namespace)
    eager, captured = steps_of(lambda: (namespace["model"], Guide()))
    assert_bounds_agree(eager, captured)
    assert captured.ascent.count == 1


@pytest.mark.parametrize("chunk", [None, 2])
def test_steps_with_graphs_can_be_copied(chunk, uncompiled):
    torch.manual_seed(0)
    model, guide = Model(), Guide()
    optimizer = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=1e-3)
    captured = pv.svi_step(model, guide, particles=4, optimizer=optimizer, compile=True, chunk=chunk)
    captured(X)
    twin = copy.deepcopy(captured)
    assert twin.ascent.count == 0
    assert_bounds_agree(captured, twin)


class Keeps(Model):
    """Keeps draws, as people do to look at them."""

    def __init__(self):
        super().__init__()
        self.log, self.mean = {}, dist.Normal(torch.zeros(2), 1.0)
        self.wide = dist.MultivariateNormal(torch.zeros(2), precision_matrix=torch.eye(2))

    def scaled(self, z):
        self.last, self.log["mean"] = z.detach(), z.detach().mean()
        self.rows = z.shape[0]
        return super().scaled(z) + self.wide.covariance_matrix.sum()  # which is kept where it is first computed


def test_nothing_of_a_capture_stays_in_the_programs(uncompiled):
    eager, captured = steps_of(lambda: (Keeps(), Guide()))
    assert_bounds_agree(eager, captured)
    assert captured.ascent.count == 1
    kept = [captured.model.last, captured.model.log["mean"], captured.model.wide.covariance_matrix]
    assert not any(isinstance(tensor, FakeTensor) for tensor in kept)
    assert isinstance(captured.model.rows, int)
    copy.deepcopy(captured.model)
    assert_steps_agree(eager, captured, [X[:2]])
    captured.model(X)  # keeps another draw
    assert_bounds_agree(eager, captured)
    assert captured.ascent.count == 1  # and nothing is read of it


CHANGES_ALL_THE_TIME = {
    "a number that became a list": (lambda m, i: setattr(m, "unused", [float(i)]), "unused of Model"),
    "beside one that went": (
        lambda m, i: (vars(m).pop("unused", None), setattr(m, "number", float(i))),
        "unused, which",
    ),
    "a number": (lambda m, i: setattr(m, "number", float(i)), "number of Model"),
}


@pytest.mark.parametrize("case", CHANGES_ALL_THE_TIME)
def test_what_changes_all_the_time_is_named(case, uncompiled):
    change, name = CHANGES_ALL_THE_TIME[case]
    step = steps_of(lambda: (Model(), Guide()))[1]
    step.model.unused = 1.0
    step(X)
    with pytest.warns(UserWarning, match=f"20 batches in a row ran eagerly.*has changed: .*{name}"):
        [(change(step.model, i), step(X)) for i in range(40)]
    assert step.graphs == 1


def test_misses_among_batches_that_the_graph_serves_are_not_in_a_row(uncompiled, recwarn):
    step = steps_of(lambda: (Model(), Guide()))[1]
    step.model.unused = 1.0
    for i in range(30):
        for value in (1.0, 2.0 + i):
            step.model.unused = value
            step(X)
            step(X[:2])
    assert step.graphs == 1
    assert not [warning for warning in recwarn if "in a row" in str(warning.message)]


def test_draws_that_are_kept_do_not_put_off_a_graph(uncompiled, monkeypatch):
    """Without a plan, a graph comes once so many steps have run that it would have paid."""
    monkeypatch.setattr(compiling, "SECONDS_TO_COMPILE", 5 * compiling.SECONDS_SAVED)
    torch.manual_seed(0)
    model, guide = Keeps(), Guide()
    optimizer = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=1e-3)
    step = pv.svi_step(model, guide, optimizer=optimizer, compile="auto")
    for _ in range(12):
        step(X)
    assert step.graphs == 1


class Counts(Model):
    runs = 0

    def scaled(self, z):
        self.runs = self.runs + 1
        return super().scaled(z) + 0 * self.runs


class Averages(Model):
    average = torch.zeros(3)

    def scaled(self, z):
        self.average = 0.9 * self.average + z.detach().reshape(-1, 3).mean(0)
        return super().scaled(z) + 0 * self.average


class Lists(Model):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def scaled(self, z):
        self.sizes.append(1.0)
        return super().scaled(z) + 0 * len(self.sizes)


class Reads(Model):
    def __init__(self):
        super().__init__()
        self.scale = torch.tensor(1.0)

    def scaled(self, z):
        return super().scaled(z) * self.scale.item()


class Jitters(Model):
    def scaled(self, z):
        return super().scaled(z) + 1e-9 * np.random.randn()  # noqa: NPY002 - as people write it


class JittersByItself(Model):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def scaled(self, z):
        return super().scaled(z) + 1e-9 * self.generator.normal()


class Shuffles(Model):
    def scaled(self, z):
        return super().scaled(z) + 1e-9 * random.random()


def hooked():
    model = Model()
    model.net.weight.register_hook(torch.zeros_like)
    return model


STATE_OF_PYTHON = {
    "a count": (Counts, "runs of Counts changes in every run"),
    "an average": (Averages, r"a tensor of shape \(3,\) is read and then another one put in its place"),
    "a list": (Lists, "sizes of Lists changes in every run"),
    "a number in a tensor": (Reads, r"test_stale.py, line \d+, .*scale.item.*off a tensor that is no buffer"),
    "noise of NumPy": (Jitters, "a random number of Python or NumPy is drawn in every run"),
    "noise of a generator": (JittersByItself, "a random number of Python or NumPy is drawn in every run"),
    "noise of Python": (Shuffles, "a random number of Python or NumPy is drawn in every run"),
    "a hook on a gradient": (hooked, "model.net.weight has a hook on its gradient"),
}


@pytest.mark.parametrize("case", STATE_OF_PYTHON)
def test_state_that_no_graph_holds_keeps_a_step_eager(case, uncompiled):
    make, reason = STATE_OF_PYTHON[case]
    eager, captured = steps_of(lambda: (make(), Guide()))
    with pytest.warns(UserWarning, match=reason) as caught:
        assert_steps_agree(eager, captured, [X, X, X])
    assert captured.ascent.count == 0
    assert {Path(warning.filename).name for warning in caught} == {"capturing.py"}  # where the step was called


@pytest.mark.filterwarnings("ignore:compile. 20 batches in a row")
def test_what_is_known_by_identity_is_not_mistaken_for_another(uncompiled):
    """Python gives the identity of what has been freed to something new."""
    eager, captured = steps_of(lambda: (Model(), Guide()))
    for value in range(30):
        for step in (eager, captured):
            step.model.function = partial(torch.mul, torch.full((3,), 1.0 + value))
        assert_bounds_agree(eager, captured)
