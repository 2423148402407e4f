"""What was found stays as it was, wherever the model's parameters and buffers go next."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_models import F64, GaussianMixture, clusters
from torch import nn

import ppl_vae as pv
from ppl_vae.programs import Programs
from ppl_vae.snapshots import as_it_was, snapshot


class Spread(nn.Module):
    """A mixture whose noise is a trainable parameter, and whose origin is a buffer that no file keeps."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros((), dtype=F64))
        self.register_buffer("origin", torch.tensor(0.5, dtype=F64), persistent=False)

    def forward(self, x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=F64)))
        with pyro.plate("components", 3, dim=-1):
            loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 5.0))
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[y] + self.origin, self.log_scale.exp()), obs=x)


def by_param(x):
    """The same, its noise in Pyro's parameter store."""
    scale = pyro.param("scale", torch.tensor(1.0, dtype=F64), constraint=dist.constraints.positive)
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=F64)))
    with pyro.plate("components", 3, dim=-1):
        loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 5.0))
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[y], scale), obs=x)


def line(n=60, seed=0):
    return 3 * clusters(n, 1, seed)[:, 0]


def said(found):
    """Return what a result says of new data."""
    options = {"draws": 20} if isinstance(found, pv.MeanField) else {}
    return torch.cat([found.predict(line(9, 1)), found.log_density(line(9, 1), **options).unsqueeze(1)], 1)


def trained(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    (model.log_scale - 2).square().backward()
    optimizer.step()


def overwritten(model):
    with torch.no_grad():
        model.log_scale.fill_(-1.0)
        model.origin.add_(3.0)


def replaced(model):
    model.log_scale, model.origin = nn.Parameter(torch.ones((), dtype=F64)), torch.zeros((), dtype=F64)


def diverged(model):
    with torch.no_grad():
        model.log_scale.fill_(math.nan)
        model.origin.fill_(math.inf)


CHANGES = {
    "by an optimizer": trained,
    "by expectation maximisation": lambda model: pv.em(model, line(), iterations=3),
    "by hand": overwritten,
    "by other tensors": replaced,
    "without a bound": diverged,
    "to another type": lambda model: model.float(),
}
VERBS = {"cavi": pv.cavi, "em": pv.em}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("how", CHANGES)
def test_a_result_stays_when_its_model_changes(verb, how):
    model = Spread()
    found = VERBS[verb](model, line(), iterations=5)
    before = said(found)
    CHANGES[how](model)
    live = Programs(model, model).tensors()
    kept = {name: tensor.detach().clone() for name, tensor in live.items()}
    state = torch.get_rng_state()
    torch.testing.assert_close(said(found), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    now = Programs(model, model).tensors()
    assert now.keys() == kept.keys()
    assert all(now[name] is live[name] for name in live)
    torch.testing.assert_close(now, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("verb", VERBS)
def test_the_change_would_be_seen(verb):
    """In results that are made after it."""
    model = Spread()
    before = said(VERBS[verb](model, line(), iterations=5))
    overwritten(model)
    assert not torch.allclose(said(pv.cavi(model, line(), iterations=5)), before, atol=1e-3)


def poured_into(name, value):
    with torch.no_grad():
        pyro.param(name).unconstrained().fill_(value)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("how", [lambda: poured_into("scale", 2.0), lambda: poured_into("scale", math.nan)])
def test_a_result_stays_when_pyros_parameters_change(verb, how):
    found = VERBS[verb](by_param, line(), iterations=5)
    before = said(found)
    how()
    kept, tensor = pyro.param("scale").detach().clone(), pyro.param("scale").unconstrained()
    torch.testing.assert_close(said(found), before, rtol=0, atol=0)
    torch.testing.assert_close(pyro.param("scale").detach(), kept, rtol=0, atol=0, equal_nan=True)
    assert pyro.param("scale").unconstrained() is tensor


@pytest.mark.parametrize("verb", VERBS)
def test_a_result_stays_when_pyros_store_is_cleared(verb):
    pyro.param("scale", torch.tensor(1.7, dtype=F64), constraint=dist.constraints.positive)
    found = VERBS[verb](by_param, line(), iterations=5)
    before, kept = said(found), pickle.dumps(found)
    pyro.clear_param_store()
    torch.testing.assert_close(said(found), before, rtol=0, atol=0)
    torch.testing.assert_close(said(pickle.loads(kept)), before, rtol=0, atol=0)
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("verb", VERBS)
def test_a_kept_result_stays_too(verb):
    model = Spread()
    found = VERBS[verb](model, line(), iterations=5)
    before = said(found)
    overwritten(model)
    torch.testing.assert_close(said(pickle.loads(pickle.dumps(found))), before, rtol=0, atol=0)


class Counting(Spread):
    """One that writes to a parameter whenever it runs."""

    def __init__(self):
        super().__init__()
        self.runs = nn.Parameter(torch.zeros((), dtype=F64), requires_grad=False)

    def forward(self, x):
        with torch.no_grad():
            self.runs.add_(1)
        super().forward(x)


@pytest.mark.parametrize("verb", VERBS)
def test_asking_changes_no_answer(verb):
    found = VERBS[verb](Counting(), line())
    kept = found.tensors if verb == "cavi" else found.point.tensors
    before = {name: tensor.clone() for name, tensor in kept.items()}
    said(found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())


@pytest.mark.parametrize("verb", VERBS)
def test_a_copy_says_the_same(verb):
    found = VERBS[verb](Spread(), line())
    assert torch.equal(said(copy.deepcopy(found)), said(found))


def test_a_copy_goes_on_where_the_posterior_is():
    found = pv.cavi(Spread(), line()).factorised
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        for name in found.factors:
            for one, two in zip(other.optimal(name), found.optimal(name), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_of_other_parameters_is_refused(verb):
    model = Spread()
    found = VERBS[verb](model, line())
    model.shift = nn.Parameter(torch.zeros((), dtype=F64))
    with pytest.raises(ValueError, match=r"model\.shift is new, gone, tied or untied"):
        said(found)


@pytest.mark.parametrize("verb", VERBS)
def test_errors_leave_the_changed_model_as_it_is(verb):
    model = Spread()
    found = VERBS[verb](model, line(), iterations=2)
    overwritten(model)
    for ask in (found.predict, found.log_density):
        with pytest.raises(ValueError, match="NaN"):
            ask(torch.full((3,), math.nan, dtype=F64))
        with pytest.raises((RuntimeError, pv.ContractError), match=r"must match the size|site 'x': data of shape"):
            ask(torch.zeros(3, 2, dtype=F64))
    assert (model.log_scale.item(), model.origin.item()) == (-1.0, 3.5)
    assert model.training


@pytest.mark.parametrize("verb", VERBS)
def test_gradients_under_way_go_on(verb):
    """A result may be asked between a loss and its gradients."""
    model = Spread()
    found = VERBS[verb](model, line(), iterations=2)
    overwritten(model)
    loss = (model.log_scale * model.log_scale).exp()
    said(found)
    loss.backward()
    assert model.log_scale.grad.item() == pytest.approx(-2 * math.e)


def test_a_program_runs_as_it_was():
    model = GaussianMixture()
    before = model.log_px(clusters(5)).detach()
    kept = snapshot(model, (clusters(5),))
    assert set(kept) == {"model.logits", "model.mean", "model.tril"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with as_it_was(model, kept):
        assert not model.training
        torch.testing.assert_close(model.log_px(clusters(5)).detach(), before, rtol=0, atol=0)
    assert model.training
    assert not any(parameter.any() for parameter in model.parameters())


def test_other_programs_keep_their_parameters():
    pyro.param("other", torch.tensor(3.0))
    found = pv.cavi(by_param, line(), iterations=2)
    assert set(found.tensors) == {"param.scale"}
    said(found)
    assert pyro.param("other").item() == 3.0


@pytest.fixture(autouse=True)
def empty_store():
    """Begin and leave without parameters of other tests."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
