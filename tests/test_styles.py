"""The three styles in which people write Pyro programs, each through fit and evaluate."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

import ppl_vae as pv
from ppl_vae.programs import Programs, modules_of

D = 6


def data(n=200):
    """Rows that are mostly ones or mostly zeros."""
    torch.manual_seed(9)
    side = torch.bernoulli(torch.full((n, 1), 0.5))
    return torch.bernoulli((0.1 + 0.8 * side).expand(n, D))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.loc, self.scale = nn.Linear(D, 8), nn.Linear(8, 2), nn.Linear(8, 2)
        self.softplus = nn.Softplus()

    def forward(self, x):
        hidden = self.softplus(self.hidden(x.reshape(-1, D)))
        return self.loc(hidden), torch.exp(self.scale(hidden))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(2, 8), nn.Linear(8, D)
        self.softplus, self.sigmoid = nn.Softplus(), nn.Sigmoid()

    def forward(self, z):
        return self.sigmoid(self.out(self.softplus(self.hidden(z))))


class TutorialVAE(nn.Module):
    """The form of Pyro's VAE tutorial: two methods, pyro.module, sites "latent" and "obs"."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], 2)))
            z_scale = x.new_ones(torch.Size((x.shape[0], 2)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x.reshape(-1, D))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


def bound_methods():
    vae = TutorialVAE()
    return vae.model, vae.guide


def functions_with_modules():
    encoder, decoder = Encoder(), Decoder()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return model, guide


def functions_with_params():
    def model(x):
        weight = pyro.param("weight", lambda: 0.5 * torch.randn(2, D))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: 0.3 * torch.randn(D, 2))
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x @ loc, scale).to_event(1))

    return model, guide


class ModulePyro(PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = Decoder()

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)


class GuidePyro(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(D, 2)
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.loc(x), self.scale).to_event(1))


def pyro_modules():
    return ModulePyro(), GuidePyro()


def partials():
    model, guide = bound_methods()
    return partial(model), partial(guide)


class WithNets:
    """Methods of an object that is no module, as in scripts."""

    def __init__(self):
        self.encoder, self.decoder = Encoder(), Decoder()

    model, guide = TutorialVAE.model, TutorialVAE.guide


def methods_of_a_plain_object():
    programs = WithNets()
    return programs.model, programs.guide


def nets_in_a_list():
    """Only pyro.module tells of these."""
    nets = [Encoder(), Decoder()]

    def model(x):
        pyro.module("decoder", nets[1])
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(nets[1](z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", nets[0])
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(*nets[0](x)).to_event(1))

    return model, guide


STYLES = {
    f.__name__: f
    for f in (
        bound_methods,
        functions_with_modules,
        functions_with_params,
        pyro_modules,
        partials,
        methods_of_a_plain_object,
        nets_in_a_list,
    )
}


@pytest.fixture(params=STYLES.values(), ids=STYLES)
def pair(request):
    torch.manual_seed(0)
    return request.param()


def parameters(pair, x):
    return Programs(*pair).run_once(*pair, (x,)).parameters()


def test_every_style_trains_and_evaluates_and_pyro_runs_what_was_trained(pair):
    x = data()
    pv.check(*pair, x)
    before = {name: p.detach().clone() for name, p in parameters(pair, x).items()}
    assert before
    result = pv.fit(*pair, x, valid=x, epochs=20, batch_size=10, optimizer=partial(torch.optim.Adam, lr=1e-2))
    after = parameters(pair, x)
    assert before.keys() == after.keys()
    for name, parameter in after.items():
        assert not torch.equal(parameter, before[name]), f"{name} did not move"
    assert result.best["bound"] > result.history["valid_bound"][0] + 0.1
    evaluation = pv.evaluate(*pair, x, particles=500)
    assert evaluation.mean > result.best["bound"] - 0.1  # the best epoch was chosen on noisy bounds
    # What Trace_ELBO says of the programs afterwards is what evaluate said.
    theirs = -Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1).loss(*pair, x) / len(x)
    assert evaluation.elbo.mean().item() == pytest.approx(theirs, abs=0.05)
    assert pv.sample(pair[0], like=x, n=3)


@pytest.mark.parametrize("style", [s for s in STYLES if s != "functions_with_params"])
def test_two_pairs_in_one_process_never_disturb_each_other(style):
    x = data()
    first, second = STYLES[style](), STYLES[style]()
    pv.fit(*first, x, epochs=2, batch_size=10)
    before = {name: p.detach().clone() for name, p in parameters(first, x).items()}
    untrained = {name: p.detach().clone() for name, p in parameters(second, x).items()}
    pv.fit(*second, x, epochs=2, batch_size=10)
    assert all(torch.equal(p, before[name]) for name, p in parameters(first, x).items())
    assert not any(torch.equal(p, untrained[name]) for name, p in parameters(second, x).items())
    assert not list(pyro.get_param_store().keys())


def test_plain_params_live_in_pyros_store_where_their_author_put_them():
    pair = functions_with_params()
    pv.fit(*pair, data(), epochs=5, batch_size=10)
    assert set(pyro.get_param_store().keys()) == {"weight", "loc", "scale"}
    assert not torch.equal(pyro.param("scale"), torch.ones(2))
    assert (pyro.param("scale") > 0).all()


def test_a_store_in_use_stays_as_it_was():
    net = nn.Linear(2, 2)
    pyro.module("decoder", net)  # the very name that the tutorial's program uses
    kept = pyro.param("kept", torch.ones(3))
    before = {name: pyro.get_param_store()._params[name] for name in pyro.get_param_store().keys()}  # noqa: SIM118
    pair = bound_methods()
    pv.fit(*pair, data(), epochs=1)
    pv.evaluate(*pair, data(), particles=3)
    after = pyro.get_param_store()._params
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert torch.equal(pyro.param("kept"), kept)


def test_a_failing_program_leaves_the_store_as_it_was():
    def broken(x):
        pyro.param("half", torch.ones(1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pv.weigh(broken, broken, data())
    assert not list(pyro.get_param_store().keys())


def test_a_shared_module_is_counted_once():
    vae = TutorialVAE()
    assert modules_of(vae.model) == [vae]
    names = parameters((vae.model, vae.guide), data())
    assert len(names) == len(list(vae.parameters()))


class CallableGuide:
    """A guide that is an object with a call, and no module."""

    def __init__(self):
        self.nets = {"norm": nn.BatchNorm1d(D), "loc": nn.Linear(D, 2)}

    def __call__(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.nets["loc"](self.nets["norm"](x)), 1.0).to_event(1))


def test_networks_inside_plain_objects_train_and_are_left_alone_by_evaluation():
    (model, _), guide, x = functions_with_modules(), CallableGuide(), data()
    norm, loc = guide.nets["norm"], guide.nets["loc"]
    buffers, weight = norm.running_mean.clone(), loc.weight.detach().clone()
    first, again = (pv.evaluate(model, guide, x, particles=3) for _ in range(2))
    assert torch.equal(first.log_px, again.log_px)
    assert torch.equal(norm.running_mean, buffers)
    assert norm.training
    pv.fit(model, guide, x, epochs=1)
    assert not torch.equal(loc.weight, weight)
    assert not torch.equal(norm.running_mean, buffers)


def test_dropout_in_a_plain_functions_network_is_off_in_evaluation():
    model, guide = functions_with_modules()
    encoder = modules_of(guide)[0]
    encoder.softplus = nn.Dropout(0.9)
    first, again = (pv.evaluate(model, guide, data(), particles=2, seed=0) for _ in range(2))
    assert torch.equal(first.log_px, again.log_px)
    assert encoder.training
