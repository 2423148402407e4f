"""Variational EM: two kinds of update in turn, each on its own parameters, towards the maximum of the likelihood."""

import copy
from functools import partial

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from small import Bits, BitsGuide, PenalisedBits
from test_styles import TutorialVAE, data
from torch import nn

import ppl_vae as pv
from ppl_vae import runs
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE
from ppl_vae.ownership import owned

SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9)


@pytest.fixture
def pair():
    return pairs.make("vae", "normal")


def step_on(pair, objective=pv.objectives.elbo, particles=2, **options):
    own = [*objective.parameters()] if isinstance(objective, nn.Module) else []
    optimizers = {
        "guide_optimizer": SGD([*pair.guide.parameters(), *own]),
        "model_optimizer": SGD(pair.model.parameters()),
    }
    return pv.variational_em_step(pair.model, pair.guide, objective, particles, **optimizers, **options)


def assert_equal(one, other, **tolerance):
    for name, tensor in one.parameters().items():
        torch.testing.assert_close(other.parameters()[name], tensor, rtol=0, atol=0, **tolerance)


@pytest.mark.parametrize(("numbers", "mode"), [((1, 1), False), ((3, 2), False), ((2, 2), True)], ids=str)
def test_a_step_is_so_many_svi_steps_in_turn(numbers, mode, pair, uncompiled):
    twin, batches = pairs.make("vae", "normal"), [pair.data(n) for n in (8, 5, 8)]
    alternate = step_on(pair, e_steps=numbers[0], m_steps=numbers[1], compile=mode)
    of = partial(pv.svi_step, twin.model, twin.guide, particles=2, compile=mode)
    guide_step, model_step = (of(optimizer=SGD(program.parameters())) for program in (twin.guide, twin.model))
    torch.manual_seed(3)
    infos = [alternate(x) for x in batches]
    torch.manual_seed(3)
    for x, info in zip(batches, infos, strict=True):
        for _ in range(numbers[0]):
            guide_step(x)
        for _ in range(numbers[1]):
            last = model_step(x)
        assert torch.equal(info.bound, last.bound)
    assert_equal(pair, twin)
    assert alternate.graphs == (2 if mode else 0)


def test_each_step_moves_its_own_parameters_alone(pair):
    step, x = step_on(pair), pair.data()
    step.prepare(x)
    for kind, moved, kept in (("e_step", "guide", "model"), ("m_step", "model", "guide")):
        before = copy.deepcopy({"model": pair.model.state_dict(), "guide": pair.guide.state_dict()})
        getattr(step, kind)(x)
        after = {"model": pair.model.state_dict(), "guide": pair.guide.state_dict()}
        assert all(torch.equal(after[kept][name], t) for name, t in before[kept].items())
        assert all(not torch.equal(after[moved][name], t) for name, t in before[moved].items())


def gaussian(n=200, x_dim=4):
    """Data with one strong factor."""
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(n, 1, generator=draw).double()
    noise = torch.randn(n, x_dim, generator=draw).double()
    return z @ torch.tensor([[2.0, -1.0, 1.5, 0.5]]).double() + 0.6 * noise + 1.0


def factor_analysis():
    torch.manual_seed(0)
    return LinearGaussian(x_dim=4, z_dim=1).double()


@torch.no_grad()
def exact_em(model, x):
    """One iteration of EM for factor analysis, in closed form."""
    posterior = model.posterior(x)
    one = torch.ones(len(x), 1).double()
    z = torch.cat([posterior.mean, one], 1)
    second = z.mT @ z
    second[:-1, :-1] += posterior.covariance_matrix.sum(0)
    both = torch.linalg.solve(second, z.mT @ x).mT  # weight and bias
    variance = (x.square().sum(0) - (both * (x.mT @ z)).sum(1)) / len(x)
    model.weight.copy_(both[:, :-1])
    model.bias.copy_(both[:, -1])
    model.log_scale.copy_(0.5 * variance.log())


class Local(nn.Module):
    """q(z_n) with a mean and a scale of its own for each of N data."""

    def __init__(self, rows, z_dim=1):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(rows, z_dim).double())
        self.log_scale = nn.Parameter(torch.zeros(rows, z_dim).double())

    def forward(self, x, index):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.loc[index], self.log_scale[index].exp()).to_event(1))


def test_m_steps_on_the_exact_posterior_climb_the_likelihood():
    """Every weight is then p(x): the gradient is that of log p(x), Fisher's identity, without noise."""
    x, model, twin = gaussian(), factor_analysis(), factor_analysis()
    fit = pv.variational_em(model, Exact(model), x, m_steps=2, model_optimizer=SGD, epochs=5, batch_size=200)
    optimizer, found = SGD(twin.parameters()), []
    for _ in range(10):
        optimizer.zero_grad()
        loss = -twin.log_px(x).mean()
        loss.backward()
        found.append(-loss.item())
        optimizer.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert fit.history["elbo"] == pytest.approx(found[1::2], abs=1e-9)


def test_many_steps_of_both_kinds_are_exact_em():
    """A guide that can hold the posterior, fitted to it, and then the model: sweep by sweep the likelihood of EM."""
    x, model, twin = gaussian(), factor_analysis(), factor_analysis()
    guide, rows = Local(len(x)), torch.arange(len(x))
    optimizers = {
        "guide_optimizer": torch.optim.Adam(guide.parameters(), lr=0.15),
        "model_optimizer": torch.optim.Adam(model.parameters(), lr=0.1),
    }
    numbers = {"e_steps": 60, "m_steps": 120, "particles": 5}
    step = pv.variational_em_step(model, guide, pv.objectives.elbo_kl, **numbers, **optimizers, compile=False)
    torch.manual_seed(0)
    found, wanted = [], []
    for _ in range(3):
        step((x, rows))
        exact_em(twin, x)
        found.append(model.log_px(x).mean().item())
        wanted.append(twin.log_px(x).mean().item())
    assert found == pytest.approx(wanted, abs=0.04)
    assert wanted[0] + 0.4 < wanted[1] < wanted[2] - 0.4


def of_rate(lr):
    return partial(torch.optim.Adam, lr=lr)


def test_the_guide_of_each_datum_becomes_its_posterior():
    """The model stands still, so that many E-steps are one whole E-step; rows go with their data in every order."""
    x, model = gaussian(50), factor_analysis()
    guide, still = Local(50), torch.optim.SGD(model.parameters(), lr=0.0)
    # The gradient of stl has no noise at the posterior; rows that are not in a batch stay where they are.
    options = {"objective": pv.objectives.stl, "particles": 5, "batch_size": 20, "model_optimizer": still}
    rate = partial(torch.optim.SGD, lr=1.0)
    fit = pv.variational_em(model, guide, x, e_steps=5, epochs=30, guide_optimizer=rate, **options)
    posterior = model.posterior(x)
    torch.testing.assert_close(guide.loc, posterior.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(guide.log_scale.exp(), posterior.stddev, rtol=0.05, atol=0)
    assert fit.history["elbo"][-1] == pytest.approx(model.log_px(x).mean().item(), abs=0.01)


def test_one_seed_gives_one_result_and_the_callers_state_stays(pair):
    before = torch.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        again = pairs.make("vae", "normal")
        x = again.data(20)
        before = torch.get_rng_state()
        pv.variational_em(again.model, again.guide, x, epochs=2, batch_size=8, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(nn.utils.parameters_to_vector(again.parameters().values()).detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_run_leaves_what_fit_leaves(pair, tmp_path):
    x, out = pair.data(20), tmp_path / "run"
    fit = pv.variational_em(pair.model, pair.guide, x, valid=x[:5], epochs=3, batch_size=8, out=out, e_steps=2)
    assert fit.history["elbo"] == fit.history["train_bound"]
    assert len(fit.history["valid_bound"]) == 3
    assert runs.read_config(out)["e_steps"] == 2
    assert "nats per datum" in str(fit)
    assert fit.trained[2] == "validation"
    fresh = pairs.make("vae", "normal")
    pv.restore(fresh.model, fresh.guide, out)
    assert_equal(fresh, pair)


def test_a_saved_step_goes_on(pair):
    twin, x = pairs.make("vae", "normal"), pair.data()
    first, second = step_on(pair, e_steps=2), step_on(twin, e_steps=2)
    first(x)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in (first, second):
        torch.manual_seed(3)
        step(x)
    assert_equal(pair, twin)
    state = first.state_dict()
    wrong = {**state, "programs": {name: torch.zeros(99) for name in state["programs"]}}
    with pytest.raises(ValueError, match=r"state: does not fit model and guide: .*has shape \(99,\)"):
        second.load_state_dict(wrong)
    assert_equal(pair, twin)


@pytest.mark.parametrize(
    "objective",
    [
        pv.objectives.rloo,
        pv.objectives.DisARM(),
        pv.objectives.Concrete(),
        pv.objectives.RELAX(z=nn.Linear(2, 1)).double(),
    ],
    ids=lambda objective: pv.objectives.facts(objective).name,
)
def test_estimators_train_the_guide_and_their_bound_the_model(objective):
    x = torch.tensor([1.0, 0.0, 1.0, 1.0] * 10, dtype=torch.float64)
    model, guide = Bits(), BitsGuide()
    of_model, of_guide = owned(model, guide, objective, (x,))
    own = [*objective.parameters()] if isinstance(objective, nn.Module) else []
    assert [*map(id, of_model.values())] == [*map(id, model.parameters())]
    assert [*map(id, of_guide.values())] == [*map(id, [*guide.parameters(), *own])]
    options = {"guide_optimizer": of_rate(0.05), "model_optimizer": of_rate(0.05), "particles": 4}
    fit = pv.variational_em(model, guide, x, objective=objective, epochs=30, batch_size=20, e_steps=2, **options)
    assert fit.history["elbo"][-1] > fit.history["elbo"][0] + 0.05


def test_penalties_and_schedules_go_with_every_update():
    schedule = pv.objectives.Scheduled(pv.objectives.beta_elbo, beta=pv.objectives.linear(0.0, 1.0, steps=1000))
    x = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    options = {"batch_size": 2, "epochs": 2, "e_steps": 3, "m_steps": 2}
    fit = pv.variational_em(PenalisedBits(), BitsGuide(), x, objective=schedule, **options)
    assert len(fit.history["penalty_z"]) == 2
    assert int(schedule.step) == 2 * 2 * 5


def test_the_log_prior_is_of_the_m_step(pair):
    twin, x = pairs.make("vae", "normal"), pair.data(8)
    prior = pv.normal_prior(pair.model, 0.5)
    fit = pv.variational_em(
        pair.model, pair.guide, x, model_optimizer=SGD, guide_optimizer=SGD, epochs=1, log_prior=prior, batch_size=8
    )
    decayed = [{"params": [*twin.model.parameters()], "weight_decay": 1 / (8 * 0.5**2)}]
    pv.variational_em(
        twin.model, twin.guide, x, model_optimizer=SGD(decayed), guide_optimizer=SGD, epochs=1, batch_size=8
    )
    for name, p in pair.parameters().items():
        torch.testing.assert_close(p, twin.parameters()[name], rtol=1e-10, atol=1e-12)
    assert len(fit.history["log_prior"]) == 1


class Vamp(VAE):
    """A prior that is the guide's at some pseudo-inputs, read off the guide and not held."""

    def __init__(self, guide):
        super().__init__(x_dim=6, z_dim=2, hidden=(8,))
        self.inputs = nn.Parameter(torch.rand(1, 6))
        self.encode = guide.encoder.forward

    def prior(self):
        base = self.encode(self.inputs).base_dist
        return dist.Normal(base.loc[0], base.scale[0]).to_event(1)


class Holding(nn.Module):
    """A guide that holds the model whose posterior it is, and widens it."""

    def __init__(self, model):
        super().__init__()
        self.model, self.log_scale = model, nn.Parameter(torch.zeros(2))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            loc = self.model.posterior(x).mean
            pyro.sample("z", dist.Normal(loc, self.log_scale.exp()).to_event(1))


def names_of(model, guide, x):
    return [[*part] for part in owned(model, guide, pv.objectives.elbo, (x,))]


def test_shared_parameters_belong_to_one_program():
    x = torch.rand(5, 6).bernoulli()
    guide = Normal(x_dim=6, z_dim=2, hidden=(8,))
    of_model, of_guide = names_of(Vamp(guide), guide, x)
    assert "model.inputs" in of_model
    assert all(name.startswith("guide.encoder") for name in of_guide)
    assert len(of_guide) == 4
    model = LinearGaussian(x_dim=6, z_dim=2)
    assert names_of(model, Holding(model), x) == [
        ["model.weight", "model.bias", "model.log_scale"],
        ["guide.log_scale"],
    ]


def test_methods_of_one_object_come_apart():
    vae = TutorialVAE()
    of_model, of_guide = owned(vae.model, vae.guide, pv.objectives.elbo, (data(5),))
    assert {*map(id, of_model.values())} == {*map(id, vae.decoder.parameters())}
    assert {*map(id, of_guide.values())} == {*map(id, vae.encoder.parameters())}
    fit = pv.variational_em(vae.model, vae.guide, data(100), epochs=3, batch_size=20)
    assert fit.history["elbo"][-1] > fit.history["elbo"][0]


def test_param_sites_come_apart():
    pyro.clear_param_store()

    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(2))
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        shift = pyro.param("shift", lambda: torch.zeros(2))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x / 2 + shift, 0.5**0.5).to_event(1))

    x = torch.full((20, 2), 4.0)
    optimizers = {"guide_optimizer": of_rate(0.1), "model_optimizer": of_rate(0.1)}
    pv.variational_em(model, guide, x, e_steps=3, epochs=80, batch_size=20, particles=5, **optimizers)
    torch.testing.assert_close(pyro.param("loc").detach(), torch.full((2,), 4.0), rtol=0, atol=0.2)
    torch.testing.assert_close(pyro.param("shift").detach(), torch.full((2,), 2.0), rtol=0, atol=0.2)
    pyro.clear_param_store()


WRONG = {
    "no E-step": ({"e_steps": 0}, "e_steps: expected a whole number of at least 1, found 0"),
    "half an M-step": ({"m_steps": 0.5}, "m_steps: expected a whole number of at least 1, found 0.5"),
    "True": ({"m_steps": True}, "m_steps: expected a whole number of at least 1, found True"),
    "an upper bound": (
        {"objective": pv.objectives.cubo, "particles": 2},
        "objective: cubo is an upper bound.*no M-step",
    ),
    "Pyro's": ({"objective": Trace_ELBO()}, "objective: expected a function of Particles"),
    "no particles": ({"particles": 0}, "particles: expected a whole number of at least 1"),
    "no chunk": ({"chunk": 4, "particles": 6}, "chunk: 6 particles do not split"),
    "no epochs": ({"epochs": 0}, "epochs: expected a whole number"),
    "no data": ({"x": None}, "data: nothing to train on"),
    "an optimizer by name": (
        {"guide_optimizer": "adam"},
        "^guide_optimizer: expected a torch optimizer, or a",
    ),
    "a list for one": ({"model_optimizer": [torch.zeros(2)]}, "^model_optimizer: expected a torch optimizer, or a"),
    "one of Pyro's": ({"model_optimizer": pyro.optim.Adam({})}, r"^model_optimizer: those of pyro\.optim"),
    "LBFGS": ({"guide_optimizer": torch.optim.LBFGS}, "^guide_optimizer: LBFGS asks"),
    "other data": ({"valid": torch.full((3, 6), 0.5).double()}, "outside the support"),
    "no loader's size": (
        {"x": torch.utils.data.DataLoader(torch.ones(9, 6).double(), 2, drop_last=True), "log_prior": lambda: None},
        "log_prior: it needs the number",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named_and_change_nothing(case, pair):
    change, message = WRONG[case]
    before = copy.deepcopy(pair)
    with pytest.raises((ValueError, TypeError), match=message):
        pv.variational_em(pair.model, pair.guide, **{"x": pair.data()} | change)
    assert_equal(pair, before)


def test_optimizers_are_apart(pair):
    both = [*pair.model.parameters(), *pair.guide.parameters()]
    optimizers = {"guide_optimizer": SGD(both), "model_optimizer": SGD(pair.model.parameters())}
    with pytest.raises(ValueError, match=r"guide_optimizer, model_optimizer: both hold model\.decoder"):
        pv.variational_em_step(pair.model, pair.guide, **optimizers)
    with pytest.raises(TypeError, match="model_optimizer: expected a torch optimizer, found None"):
        pv.variational_em_step(pair.model, pair.guide, **optimizers | {"model_optimizer": None})


def test_a_model_without_parameters_has_no_m_step():
    model = LinearGaussian(x_dim=6, z_dim=2).requires_grad_(False)
    with pytest.raises(
        ValueError, match="model: it has no trainable parameters of its own, so that there is no M-step"
    ):
        pv.variational_em(model, Normal(x_dim=6, z_dim=2, hidden=()), torch.zeros(5, 6))
