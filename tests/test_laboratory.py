"""Measured gradients against exact ones, exact ones against sums written out, and the benchmarks' smoke test."""

import csv
import doctest
import importlib
import itertools
from functools import partial
from pathlib import Path

import odds
import pyro
import pyro.distributions as dist
import pytest
import test_enumeration
import test_estimators
import torch
from given import Given
from pyro import poutine
from small import DISCRETE, Bits, BitsGuide, Mixed, MixedGuide, parameter
from torch import nn
from torch.distributions import Bernoulli
from typer.testing import CliRunner

import ppl_vae as pv
from ppl_vae import contract, objectives, zoo
from ppl_vae.estimation import estimate
from ppl_vae.guides.normal import Normal
from ppl_vae.laboratory import exact_gradient, gradient_statistics
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.programs import Programs, undisturbed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
UNBIASED = {
    "elbo": (objectives.elbo, 1),
    "reinforce": (objectives.reinforce, 2),
    "score_function": (objectives.score_function, 1),
    "rloo": (objectives.rloo, 2),
    "NVIL": (objectives.NVIL(x_dim=1, normalise=False).double(), 1),
    "MuProp": (objectives.MuProp(), 1),
    "ARM": (objectives.ARM(), 1),
    "DisARM": (objectives.DisARM(), 2),
    "REBAR": (objectives.REBAR().double(), 1),
    "RELAX": (objectives.RELAX(z=pv.nets.MLP(2, (4,), 1)).double(), 1),
}


def named(model, guide):
    return Programs(model, guide).parameters()


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def differentiated(value, model, guide):
    parameters = named(model, guide)
    gradients = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


def test_exact_gradient_is_that_of_a_sum_written_by_hand():
    model, guide = Bits(), BitsGuide()
    expected = 0.0
    for bits in itertools.product([0.0, 1.0], repeat=2):
        z = torch.tensor(bits, dtype=torch.float64).expand(3, 2)
        log_p = Bernoulli(logits=model.prior).log_prob(z).sum(-1) + Bernoulli(logits=z @ model.weight).log_prob(X)
        log_q = Bernoulli(logits=guide.logits + X.unsqueeze(-1)).log_prob(z).sum(-1)
        expected = expected + (log_q.exp() * (log_p - log_q)).mean()
    assert_same(exact_gradient(model, guide, X), differentiated(expected, model, guide))


def outcomes(model, guide, listed, particles, x):
    """Return log p and log q of every outcome of K draws, ``(K, outcomes)``, for one datum."""
    draws = listed(particles)
    n = next(iter(draws.values())).shape[1]
    totals = []
    for program in (model, guide):
        by_particle = []
        for k in range(particles):
            values = {name: draw[k] for name, draw in draws.items()}
            with Given(values):
                trace = poutine.trace(program).get_trace(x.expand(n))
            trace.compute_log_prob()
            by_particle.append(sum(site["log_prob"] for _, site in contract.sample_sites(trace)))
        totals.append(torch.stack(by_particle))
    return totals


@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize("bound", [objectives.elbo, objectives.iwae])
@pytest.mark.parametrize("kind", DISCRETE)
def test_exact_gradient_is_that_of_a_sum_over_traces(kind, bound, particles):
    model_class, guide_class, listed = DISCRETE[kind]
    model, guide = model_class(), guide_class()
    expected = 0.0
    for x in X:
        log_p, log_q = outcomes(model, guide, listed, particles, x)
        values = bound(pv.Particles(log_p={"x": log_p}, log_q={"z": log_q}))
        expected = expected + (log_q.sum(0).exp() * values).sum() / len(X)
    assert_same(exact_gradient(model, guide, X, bound, particles), differentiated(expected, model, guide))


class Coin(nn.Module):
    """A scalar bit, marked for enumeration or not, as model and as guide."""

    def __init__(self, role, mark=None):
        super().__init__()
        self.role, self.mark, self.logit = role, mark, parameter(0.3)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample(
                "y", dist.Bernoulli(logits=self.logit[0]), infer={"enumerate": self.mark} if self.mark else {}
            )
            if self.role == "model":
                pyro.sample("x", dist.Normal(y.exp(), 1.0), obs=x)


def test_sites_marked_for_enumeration_give_the_same():
    model = Coin("model")
    listed = exact_gradient(model, Coin("guide"), X)
    assert_same(exact_gradient(model, Coin("guide", "parallel"), X), listed)


def test_an_enumerated_gradient_has_no_noise_and_no_bias():
    model, guide = Coin("model"), Coin("guide", "parallel")
    exact = exact_gradient(model, guide, X)
    found = gradient_statistics(model, guide, X, objectives.elbo, draws=8, exact=exact)
    for group in found.groups.values():
        assert group.variance < 1e-25
        assert abs(group.z) < 1
    off = {name: 1.01 * gradient for name, gradient in exact.items()}
    assert gradient_statistics(model, guide, X, objectives.elbo, draws=8, exact=off)["guide"].z > 1e6


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_normal_latents_are_integrated(name):
    """In one and two layers, beside bits: the same as a quadrature written out."""
    bound, x = objectives.every()[name], torch.tensor([test_estimators.X], dtype=torch.float64)
    for exact, particles, nodes in ((test_estimators.exact_mixed, 1, 24), (test_estimators.exact_line, 2, 16)):
        wanted, model, guide = exact(bound, particles)
        found = exact_gradient(model, guide, x, bound, particles, nodes)
        assert list(found) == list(named(model, guide))
        torch.testing.assert_close(torch.cat([g.flatten() for g in found.values()]), wanted, rtol=1e-9, atol=1e-12)


def test_latents_that_the_model_sums_out_keep_their_name():
    """y -> z -> x with y summed out: a divergence of z is found beside it."""
    model, guide = test_enumeration.SemiSupervised({"enumerate": "parallel"}), test_enumeration.StyleAlone()
    x = torch.tensor([0.3, -1.2], dtype=torch.float64)
    assert_same(exact_gradient(model, guide, x, objectives.beta_elbo), exact_gradient(model, guide, x))


def test_a_polynomial_needs_few_nodes():
    model, guide = LinearGaussian(2, 1).double(), Normal(2, 1, hidden=()).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    assert_same(exact_gradient(model, guide, x, nodes=2), exact_gradient(model, guide, x, nodes=40))


def test_bounds_that_are_not_linear_are_not_summed_over_enumerated_values():
    """Listed as if drawn, the values would give another expectation."""
    model, guide = Coin("model"), Coin("guide", "parallel")
    with pytest.raises(ValueError, match="site 'y' is marked for enumeration, and renyi is not linear"):
        exact_gradient(model, guide, X, objectives.renyi)


def test_what_cannot_be_listed_is_named():
    with pytest.raises(ValueError, match="site 'n' is a Poisson, whose values cannot be listed"):
        exact_gradient(test_estimators.Counts("model"), test_estimators.Counts("guide"), X)
    with pytest.raises(ValueError, match="24 nodes in each dimension of site 'z' make more than 65,536"):
        exact_gradient(LinearGaussian(4, 4), Normal(4, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="nodes: expected a whole number of at least 1, found 0"):
        exact_gradient(Mixed(), MixedGuide(), X, nodes=0)
    sizes = {"x_dim": 4, "z_dim": 17}
    programs = [
        zoo.find(kind, name)(**sizes) for kind, name in (("models", "sigmoid_belief_network"), ("guides", "bernoulli"))
    ]
    with pytest.raises(ValueError, match="the values of site 'z' make more than 65,536"):
        exact_gradient(*programs, torch.ones(2, 4))
    with pytest.raises(ValueError, match="4 values for 9 particles make more than"):
        exact_gradient(Bits(), BitsGuide(), X, particles=9)


@pytest.mark.parametrize("bound", [objectives.stl, objectives.cubo, objectives.MuProp()])
def test_exact_gradients_are_those_of_bounds(bound):
    with pytest.raises(ValueError, match="bound: expected a function of Particles that is made large"):
        exact_gradient(Bits(), BitsGuide(), X, bound)


def test_exact_gradient_asks_for_enough_particles():
    with pytest.raises(ValueError, match="particles: rloo needs at least 2, found 1"):
        exact_gradient(Bits(), BitsGuide(), X, objectives.rloo)


def test_masked_sites_are_not_summed_as_if_they_had_mass():
    masked = poutine.mask(BitsGuide(), mask=torch.tensor(False))
    with pytest.raises(ValueError, match="mass of 4, not 1"):
        exact_gradient(Bits(), masked, X)


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_are_found_so(name):
    objective, particles = UNBIASED[name]
    model, guide = Bits(), BitsGuide()
    exact = exact_gradient(model, guide, X)
    found = gradient_statistics(model, guide, X, objective, particles, 200, exact=exact)
    for group in found.groups.values():
        assert abs(group.z) < odds.limit(2 * len(UNBIASED))
        assert group.bias < 10 * group.noise


def shrunk(particles):
    """Less than it should be."""
    return 0.7 * objectives.rloo(particles)


@pytest.mark.parametrize(
    ("objective", "group"), [(shrunk, "model"), (shrunk, "guide"), (objectives.Concrete(2.0), "guide")]
)
def test_a_bias_is_caught(objective, group):
    model, guide = Bits(), BitsGuide()
    found = gradient_statistics(model, guide, X, objective, 4, 1000, exact=exact_gradient(model, guide, X))
    assert found[group].z > odds.limit(3)
    assert found[group].bias > 2 * found[group].noise


def test_without_bias_z_is_standard_normal():
    model, guide = Bits(), BitsGuide()
    exact = exact_gradient(model, guide, X)
    runs = [gradient_statistics(model, guide, X, objectives.rloo, 4, 40, exact=exact, seed=seed) for seed in range(60)]
    z = torch.tensor([run["guide"].z for run in runs])
    # A t statistic of 20 draws has a standard deviation of sqrt(19/17), and a kurtosis of 3.4.
    assert abs(z.mean()) < odds.limit(2) * (19 / 17 / len(z)) ** 0.5
    assert abs(z.square().mean() - 19 / 17) < odds.limit(2) * 19 / 17 * (2.4 / len(z)) ** 0.5


def drawn(model, guide, objective, particles, draws, seed):
    """Return gradients one by one, as measured ones are drawn: evaluation mode, the first left out."""
    programs = Programs(model, guide, objective)
    rows = []
    with undisturbed(programs, seed, training=False):
        for _ in range(draws + 1):
            surrogate = estimate(objective, model, guide, X, particles).surrogate.mean()
            gradients = torch.autograd.grad(surrogate, list(named(model, guide).values()))
            rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows[1:])


def test_running_moments_are_those_of_all_draws():
    model, guide = Bits(), BitsGuide()
    found = gradient_statistics(model, guide, X, objectives.rloo, 2, 30, seed=4)
    draws = drawn(model, guide, objectives.rloo, 2, 30, 4)[:, 4:]  # the guide's two
    mean, std = draws.mean(0), draws.std(0)
    torch.testing.assert_close(found["guide"].mean["guide.logits"], mean)
    torch.testing.assert_close(found["guide"].error["guide.logits"], std / 30**0.5)
    assert found["guide"].variance == pytest.approx(float(std.square().sum()))
    assert found["guide"].snr == pytest.approx(float((mean.abs() / std).mean()))
    assert found["guide"].noise == pytest.approx(float((std.square().sum() / 30).sqrt()))
    assert found["guide"].z is found["guide"].bias is None


def test_elements_without_noise_have_no_ratio():
    model, guide = Bits(), BitsGuide()
    model.unused = parameter(1.0)
    found = gradient_statistics(model, guide, X, objectives.rloo, 2, 30)
    assert not found["model"].mean["model.unused"].any()
    del model.unused
    assert found["model"].snr == gradient_statistics(model, guide, X, objectives.rloo, 2, 30)["model"].snr


@pytest.mark.parametrize(
    "objective", [objectives.NVIL(x_dim=1).double(), objectives.Concrete(), objectives.REBAR().double()]
)
def test_nothing_is_changed(objective):
    model, guide = Bits(), BitsGuide()
    programs = Programs(model, guide, objective)
    programs.train()
    before = {name: tensor.clone() for name, tensor in programs.state_dict().items()}
    state, store = torch.get_rng_state(), dict(pyro.get_param_store().items())
    exact = exact_gradient(model, guide, X)
    gradient_statistics(model, guide, X, objective, 2, 10, exact=exact)
    after = programs.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in programs.parameters().values())
    assert all(module.training for module in programs.modules.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store().items()) == store


def test_the_seed_decides():
    measure = partial(gradient_statistics, Bits(), BitsGuide(), X, objectives.rloo, 2, 10)
    assert measure(seed=1)["guide"].variance == measure(seed=1)["guide"].variance
    assert measure(seed=1)["guide"].variance != measure(seed=2)["guide"].variance


def test_groups_may_be_ones_own():
    model, guide = Bits(), BitsGuide()
    found = gradient_statistics(model, guide, X, draws=10, groups=lambda name: "prior" if "prior" in name else "rest")
    assert list(found["prior"].mean) == ["model.prior"]
    assert list(found["rest"].mean) == ["model.weight", "guide.logits"]


def test_an_unknown_group_is_named():
    with pytest.raises(KeyError, match="group: expected one of model, guide, found 'guid'"):
        gradient_statistics(Bits(), BitsGuide(), X, draws=10)["guid"]


def test_printing_gives_a_table():
    model, guide = Bits(), BitsGuide()
    head, columns, *rows = str(gradient_statistics(model, guide, X, draws=10)).splitlines()
    assert head.startswith("gradient of elbo, K = 1: 10 draws, ")
    assert columns.split()[:3] == ["group", "signal/noise", "variance"]
    assert [row.split()[0] for row in rows] == ["model", "guide"]
    assert all(row.endswith("unknown") for row in rows)
    exact = exact_gradient(model, guide, X)
    assert "unknown" not in str(gradient_statistics(model, guide, X, draws=10, exact=exact))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 3}, "draws: expected a whole number of at least 4, found 3"),
        ({"objective": objectives.rloo}, "particles: rloo needs at least 2, found 1"),
        ({"exact": {}}, r"exact: expected a tensor of shape \(2,\) for 'model.prior', found none"),
        ({"exact": {"model.prior": torch.zeros(3)}}, r"for 'model.prior', found shape \(3,\)"),
        ({"exact": {"model.prior": torch.full((2,), torch.nan)}}, "exact: expected finite numbers for 'model.prior'"),
    ],
)
def test_arguments_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        gradient_statistics(Bits(), BitsGuide(), X, **options)


def test_frozen_programs_have_nothing_to_measure():
    model, guide = Bits().requires_grad_(False), BitsGuide().requires_grad_(False)
    with pytest.raises(ValueError, match="model, guide: neither has a parameter that requires a gradient"):
        gradient_statistics(model, guide, X)


class OffCentre(nn.Module):
    """A Gaussian of fixed scale near the posterior of a one-dimensional linear-Gaussian model."""

    def __init__(self):
        super().__init__()
        self.shift = parameter(0.4)

    def forward(self, x):
        return dist.Normal(x / 2 + self.shift, 0.8).to_event(1)


def slopes(model, guide, objective, counts):
    """Return the slopes of log SNR against log K, from copies of one datum, whose mean has less noise."""
    x = torch.ones(1000, 1, dtype=torch.float64)
    found = [gradient_statistics(model, guide, x, objective, k, 60) for k in counts]
    log_k = torch.tensor(counts).log()
    centred = log_k - log_k.mean()
    log_snr = {group: torch.tensor([run[group].snr for run in found]).log() for group in ("model", "guide")}
    return {group: float((centred * y).sum() / centred.square().sum()) for group, y in log_snr.items()}


def test_signal_to_noise_ratios_rise_and_fall_with_the_root_of_k():
    """Rainforth et al. 2018, Tucker et al. 2019, on one dimension."""
    model, guide = LinearGaussian(1, 1).double(), Normal(encoder=OffCentre())
    model.weight.requires_grad_(False).fill_(1.0)
    model.log_scale.requires_grad_(False)
    iwae, dreg = (slopes(model, guide, bound, [16, 64, 256]) for bound in (objectives.iwae, objectives.dreg))
    # Over seeds these slopes have a standard deviation of 0.01, 0.03 and 0.08.
    assert iwae["model"] == pytest.approx(0.5, abs=0.05)
    assert dreg["guide"] == pytest.approx(0.5, abs=0.15)
    assert iwae["guide"] == pytest.approx(-0.5, abs=0.35)


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        (["reparameterization"], {"estimator", "group", "variance", "step", "particles"}),
        (["estimators"], {"estimator", "group", "variance", "bias", "milliseconds"}),
        (["temperature"], {"estimator", "temperature", "variance", "bias"}),
        (["snr"], {"estimator", "group", "snr", "particles"}),
        (["training", "--layers", "2", "--linear"], {"network", "estimator", "seed", "step", "seconds", "elbo"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_benchmarks_run(benchmarks, command, columns, tmp_path):
    app = benchmarks("gradients").app
    done = CliRunner().invoke(app, [*command, "--quick", "--out", str(tmp_path / "results")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with (tmp_path / "results" / f"{command[0]}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert columns <= rows[0].keys()
    assert (tmp_path / "results" / f"{command[0]}.png").read_bytes().startswith(b"\x89PNG")


def test_examples_of_the_benchmarks_run(benchmarks):
    assert doctest.testmod(benchmarks("figures")).failed == 0
