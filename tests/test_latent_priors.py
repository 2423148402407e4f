"""Priors made of components, and the GMVAE: densities by quadrature and by hand, one owner for each parameter."""

import copy
import csv
import doctest
import importlib
import io
from itertools import combinations
from pathlib import Path

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, step_on
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn
from typer.testing import CliRunner

import ppl_vae as pv
from ppl_vae import priors
from ppl_vae.guides.component import Component
from ppl_vae.guides.mixture import Mixture
from ppl_vae.guides.normal import Normal
from ppl_vae.models.gmvae import GMVAE
from ppl_vae.models.vae import VAE

DOUBLE = torch.float64
SIZES = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
AXIS = torch.linspace(-9, 9, 301, dtype=DOUBLE)
PLANE, CELL = torch.cartesian_prod(AXIS, AXIS), (18 / 300) ** 2


def data(n=5):
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(1)) < 0.5).to(DOUBLE)


class ToLaplace(nn.Module):
    def forward(self, h):
        return dist.Laplace(h[..., :2], 0.6).to_event(1)


PRIORS = {
    "standard normal": lambda guide: priors.StandardNormal(2),
    "mixture": lambda guide: priors.MixtureOfNormals(z_dim=2, components=4),
    "fixed": lambda guide: priors.FixedMixtureOfNormals(torch.zeros(3), torch.randn(3, 2), torch.rand(3, 2) + 0.5),
    "vamp": lambda guide: priors.VampPrior(guide.encoder, x_dim=6, components=3),
    "vamp, weighted": lambda guide: priors.VampPrior(
        guide.encoder, x_dim=6, components=3, logits=nn.Parameter(torch.randn(3))
    ),
    "aggregated": lambda guide: priors.Exemplar(guide.encoder, data(7)),
    "exemplar": lambda guide: priors.Exemplar(guide.encoder, data(7), priors.OneScale(0.7)),
    "subset": lambda guide: priors.Exemplar(guide.encoder, data(7), subset=3),
}
ENCODERS = {
    "normal": lambda: Normal(**SIZES),
    "mixture": lambda: Mixture(**SIZES, components=2),
    "laplace": lambda: Normal(**SIZES, encoder=nn.Sequential(pv.nets.MLP(6, (8,), 4), ToLaplace())),
}


def pair(name, encoder="normal"):
    torch.manual_seed(0)
    guide = ENCODERS[encoder]()
    return VAE(**SIZES, prior=PRIORS[name](guide)).double(), guide.double()


WITH_ENCODERS = [(name, "normal") for name in PRIORS] + [
    (name, encoder) for name in ("vamp", "aggregated") for encoder in ("mixture", "laplace")
]
each = pytest.mark.parametrize(("name", "encoder"), WITH_ENCODERS)


@each
def test_densities_integrate_to_one_and_draws_have_them(name, encoder):
    model, _ = pair(name, encoder)
    prior = model.eval().prior()
    mass = prior.log_prob(PLANE).exp().detach() * CELL
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3 if encoder == "laplace" else 1e-8)  # it has kinks
    drawn = prior.sample([20_000])
    for feature in (lambda z: z, torch.square, lambda z: (2 * z).sin()):
        exact = (mass.unsqueeze(-1) * feature(PLANE)).sum(0)
        values = feature(drawn)
        odds.assert_agree(values.mean(0), values.std(0) / len(drawn) ** 0.5 + 2e-4, exact)


@each
def test_programs_take_them(name, encoder):
    model, guide = pair(name, encoder)
    pv.check(model, guide, data())
    found = pv.weigh(model, guide, data(), particles=3, linear=True)
    assert found.log_w.shape == (3, 5)
    draws = pv.sample(model, like=data(), n=4)
    assert draws["z"].shape == (4, 2)


@pytest.mark.parametrize("name", PRIORS)
def test_gradients_reach_every_parameter_of_the_prior_and_the_encoder(name):
    model, guide = pair(name)
    tensors = dict(model.prior.named_parameters())
    if hasattr(model.prior, "encoder"):
        tensors |= {f"encoder.{name}": p for name, p in guide.encoder.named_parameters()}
    log_p = model.prior().log_prob(torch.randn(5, 2, dtype=DOUBLE)).sum()
    for where, slope in zip(tensors, torch.autograd.grad(log_p, [*tensors.values()]) if tensors else (), strict=True):
        assert slope.abs().sum() > 0, where


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "standard normal"])
def test_captured_steps_are_the_eager_ones(name, uncompiled):
    model, guide = pair(name)
    others = copy.deepcopy((model, guide))
    eager, captured = (
        step_on(*programs, data(), compile=c) for programs, c in (((model, guide), False), (others, True))
    )
    assert_steps_agree(eager, captured, [data(5), data(4), data(7)])
    assert captured.ascent.count == 1


@pytest.mark.parametrize("name", [name for name in PRIORS if name not in ("standard normal", "mixture", "fixed")])
def test_the_encoder_has_one_owner(name):
    model, guide = pair(name)
    own = {id(p) for p in guide.parameters()}
    assert own.isdisjoint(id(p) for p in model.parameters())
    assert not any("encoder" in key or "exemplars" in key for key in model.state_dict())
    programs = pv.programs.Programs(model, guide)
    assert len({id(p) for p in programs.parameters().values()}) == len(programs.parameters())


@pytest.mark.parametrize("name", PRIORS)
def test_copies_go_together_and_states_are_restored(name):
    model, guide = pair(name)
    model.eval()
    (other, others_guide), file = copy.deepcopy((model, guide)), io.BytesIO()
    before = model.prior().log_prob(PLANE[::50])
    torch.save(pv.programs.Programs(model, guide).state_dict(), file)
    with torch.no_grad():
        for parameter in [*other.parameters(), *others_guide.parameters()]:
            parameter.add_(0.3)
    assert torch.equal(model.prior().log_prob(PLANE[::50]), before)
    if name not in ("standard normal", "fixed"):
        assert not torch.allclose(other.prior().log_prob(PLANE[::50]), before)
    file.seek(0)
    pv.programs.Programs(other, others_guide).load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.prior().log_prob(PLANE[::50]), before)
    single = model.float(), guide.float()
    assert single[0].prior().log_prob(PLANE[::50].float()).dtype is torch.float32


@pytest.mark.parametrize("name", ["vamp", "vamp, weighted"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_vamp_prior_is_the_mean_of_the_guides_densities(name, encoder):
    model, guide = pair(name, encoder)
    weights, inputs = model.prior.logits.softmax(0), model.prior.inputs
    assert inputs.min() > 0
    assert inputs.max() < 1
    densities = [guide.encoder(row).log_prob(PLANE).exp() for row in inputs]
    wanted = sum(weight * density for weight, density in zip(weights, densities, strict=True))
    torch.testing.assert_close(model.prior().log_prob(PLANE).exp(), wanted, rtol=1e-10, atol=1e-14)


def test_pseudo_inputs_begin_where_they_are_told():
    guide, start = Normal(**SIZES), data(3).float() * 0.98 + 0.01
    torch.testing.assert_close(priors.VampPrior(guide.encoder, 6, 3, start).inputs, start)
    wide = priors.VampPrior(guide.encoder, 6, 3, 7 * start, support=torch.distributions.constraints.real)
    assert torch.equal(wide.inputs, 7 * start)
    with pytest.raises(ValueError, match=r"inputs: found values from 0\.07 to 6\.93, outside the support"):
        priors.VampPrior(guide.encoder, 6, 3, 7 * start)
    with pytest.raises(ValueError, match=r"inputs, logits: expected shapes \(4, 6\) and \(4,\), found \(3, 6\)"):
        priors.VampPrior(guide.encoder, 6, 4, start)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_prior_of_all_data_is_the_aggregated_posterior(encoder):
    model, guide = pair("aggregated", encoder)
    x = data(7)
    assert abs(float(pv.aggregate_kl(guide, x, model.prior(), draws=3))) < 1e-9
    surgery = pv.elbo_surgery(model, guide, x, draws=3)
    assert abs(surgery.marginal_kl.mean) < 1e-9
    standard = VAE(**SIZES, decoder=model.decoder).double()
    assert surgery.elbo.mean > pv.elbo_surgery(standard, guide, x, draws=3).elbo.mean


def test_a_datums_own_exemplar_is_left_out():
    model, guide = pair("exemplar")
    prior, scale = model.prior, model.prior.kernel.log_scale.exp()
    z, means = torch.randn(3, 2, dtype=DOUBLE), guide.encoder(data(7)).mean
    of_each = dist.Normal(means, scale).to_event(1).log_prob(z.unsqueeze(1))
    others = torch.arange(7) != torch.tensor([[4], [0], [-1]])
    wanted = torch.stack([row[kept].logsumexp(0) - kept.sum().log() for row, kept in zip(of_each, others, strict=True)])
    torch.testing.assert_close(prior.without(torch.tensor([4, 0, -1])).log_prob(z), wanted)


def test_a_subset_of_exemplars_is_unbiased_in_the_density_and_below_in_its_logarithm(monkeypatch):
    model, _ = pair("subset")
    z, found = torch.randn(9, 2, dtype=DOUBLE), []
    whole = model.eval().prior().log_prob(z)
    own = model.prior.without(torch.zeros(9, dtype=torch.long)).log_prob(z)
    left_out = []
    model.train()
    for rows in combinations(range(7), 3):
        monkeypatch.setattr(torch, "randperm", lambda n, device, rows=rows: torch.tensor(rows))
        found.append(model.prior().log_prob(z))
        if 0 not in rows:
            left_out.append(model.prior.without(torch.zeros(9, dtype=torch.long)).log_prob(z))
    torch.testing.assert_close(torch.stack(found).exp().mean(0), whole.exp())
    assert (torch.stack(found).mean(0) < whole).all()
    torch.testing.assert_close(torch.stack(left_out).exp().mean(0), own.exp())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.long])
def test_exemplars_may_be_whole_numbers(dtype):
    x = torch.randint(0, 9, (5, 2)).to(dtype)
    prior = priors.Exemplar(lambda x: dist.Normal(x.double(), 1.0).to_event(1), x).double()
    components = dist.Normal(x.double(), 1.0).to_event(1)
    z = torch.randn(2, dtype=torch.float64)
    torch.testing.assert_close(
        prior().log_prob(z), components.log_prob(z).logsumexp(0) - torch.tensor(5.0).double().log()
    )
    left = components.log_prob(z)[1:].logsumexp(0) - torch.tensor(4.0).double().log()
    torch.testing.assert_close(prior.without(torch.tensor([0])).log_prob(z), left.unsqueeze(0))


def test_arguments_outside_their_range_are_named():
    with pytest.raises(ValueError, match="scale: expected a positive number, found"):
        priors.OneScale(-1.0)
    with pytest.raises(ValueError, match=r"inputs: expected pseudo-inputs, as data lie in Real\(\), found none"):
        priors.VampPrior(lambda x: x, 6, 3, support=torch.distributions.constraints.real)
    with pytest.raises(ValueError, match=r"expected shapes \(500, 6\) and .*; give components= and x_dim="):
        priors.VampPrior(lambda x: x, 6, inputs=torch.rand(7, 6))


def test_exemplars_that_cannot_be_left_out_are_refused():
    with pytest.raises(ValueError, match="exemplars: found 1; give at least two"):
        priors.Exemplar(Normal(**SIZES).encoder, torch.zeros(1, 6))
    for subset in (1, 6):
        with pytest.raises(ValueError, match=f"subset: expected a whole number from 2 to 5, .* found {subset}"):
            priors.Exemplar(Normal(**SIZES).encoder, torch.zeros(5, 6), subset=subset)


def test_variational_em_leaves_the_encoder_to_the_guide():
    model, guide = pair("vamp")
    before = copy.deepcopy(model.state_dict()), copy.deepcopy(guide.state_dict())
    of_model, of_guide = pv.ownership.owned(model, guide, pv.objectives.elbo, (data(),))
    assert "model.prior.unbounded" in of_model
    assert {name.split(".")[0] for name in of_guide} == {"guide"}
    pv.variational_em(model, guide, data(20), epochs=1, batch_size=10)
    assert all(
        not torch.equal(old, new) for old, new in zip(before[1].values(), guide.state_dict().values(), strict=True)
    )
    assert not torch.equal(before[0]["prior.unbounded"], model.prior.unbounded)


def test_evaluation_takes_all_exemplars():
    model, guide = pair("subset")
    evaluation = pv.evaluate(model, guide, data(), particles=50)
    same = pv.evaluate(
        VAE(**SIZES, prior=priors.Exemplar(guide.encoder, data(7)), decoder=model.decoder), guide, data(), particles=50
    )
    torch.testing.assert_close(evaluation.log_px, same.log_px)


def gmvae():
    """Return a GMVAE, the VAE with the same mixture as its prior, and a guide for both."""
    torch.manual_seed(0)
    model, guide = GMVAE(**SIZES, y_dim=3).double(), Normal(**SIZES).double()
    prior = priors.MixtureOfNormals(2, 3).double()
    with torch.no_grad():
        model.logits.normal_()
        model.log_scale.normal_(0, 0.3)
    prior.logits, prior.loc, prior.log_scale = model.logits, model.loc, model.log_scale
    return model, VAE(**SIZES, prior=prior, decoder=model.decoder), guide


@pytest.mark.parametrize("name", ["elbo", "iwae", "stl", "dreg", "tvo", "rws"])
def test_the_gmvae_is_the_vae_with_a_mixture_as_its_prior(name):
    model, vae, guide = gmvae()
    objective, found = pv.objectives.every()[name], []
    for program in (model, vae):
        torch.manual_seed(1)
        bound = pv.estimation.estimate(objective, program, guide, data(), particles=4)
        tensors = [*guide.parameters(), *model.parameters()]
        found.append([bound.value, *torch.autograd.grad(bound.surrogate.sum(), tensors)])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)


def test_the_gmvaes_weights_are_those_of_the_vae_and_its_elbo_is_pyros():
    model, vae, guide = gmvae()
    found = []
    for program in (model, vae):
        torch.manual_seed(1)
        found.append(pv.weigh(program, guide, data(), particles=4).log_w)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    pyros = []
    for program, elbo in ((model, TraceEnum_ELBO), (vae, Trace_ELBO)):
        torch.manual_seed(1)
        loss = elbo(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
        pyros.append(loss.differentiable_loss(program, guide, data()).detach())
    for loss in pyros:
        torch.testing.assert_close(-loss, found[0].mean(0).sum().detach(), rtol=1e-12, atol=1e-12)


def test_clusters_follow_bayes_rule():
    model, _, _ = gmvae()
    z = torch.randn(7, 4, 2, dtype=DOUBLE)
    of_each = dist.Normal(model.loc, model.log_scale.exp()).to_event(1).log_prob(z.unsqueeze(-2)).exp()
    joint = model.logits.softmax(0) * of_each
    torch.testing.assert_close(model.clusters(z), joint / joint.sum(-1, keepdim=True))


def test_a_guide_with_the_component_tries_every_one():
    model, _, _ = gmvae()
    guide, x = Component(**SIZES, y_dim=3).double(), data()
    pv.check(model, guide, x)
    torch.manual_seed(1)
    found = pv.weigh(model, guide, x, particles=4, linear=True)
    z, log_y = found.values["z"], guide.classifier(x).log_softmax(-1)
    assert z.shape == (3, 4, 5, 2)
    total = 0
    for y in range(3):
        code = torch.eye(3, dtype=DOUBLE)[y].expand(5, 3)
        log_q = guide.encoder(x, code).log_prob(z[y]) + log_y[:, y]
        log_p = dist.Normal(model.loc[y], model.log_scale[y].exp()).to_event(1).log_prob(z[y])
        log_p = log_p + model.logits.log_softmax(0)[y] + model.decoder(z[y]).log_prob(x)
        total = total + log_y[:, y].exp() * (log_p - log_q)
    torch.testing.assert_close(pv.objectives.elbo(found), total.mean(0), rtol=1e-12, atol=1e-12)
    torch.manual_seed(1)
    loss = TraceEnum_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    with pyro.poutine.enum(first_available_dim=-3):
        pyros = -loss.differentiable_loss(model, guide, x)
    torch.testing.assert_close(pyros, total.mean(0).sum(), rtol=1e-12, atol=1e-12)


def test_the_component_is_read_beside_an_image():
    parts = pv.nets.ConvEncoder((8, 7), 12), nn.Linear(3, 12)
    encoder = pv.nets.Joined(parts, nn.ReLU(), nn.Linear(12, 4), pv.nets.ToNormal())
    guide = Component(y_dim=3, classifier=pv.nets.ConvEncoder((8, 7), 3), encoder=encoder)
    pv.check(GMVAE(x_dim=56, z_dim=2, y_dim=3, hidden=(8,)), guide, torch.ones(4, 56))


@pytest.mark.parametrize("name", ["elbo", "stl", "rws"])
def test_captured_steps_with_the_component_are_the_eager_ones(name, uncompiled):
    model, _, _ = gmvae()
    pairs = (model, Component(**SIZES, y_dim=3).double())
    others, objective = copy.deepcopy(pairs), pv.objectives.every()[name]
    eager = step_on(*pairs, data(), objective, 3)
    captured = step_on(*others, data(), objective, 3, compile=True)
    assert_steps_agree(eager, captured, [data(5), data(4), data(7)])
    assert captured.ascent.count == 1
    assert all(p.grad.abs().sum() > 0 for p in pairs[1].parameters())


def test_the_benchmark_runs(monkeypatch, tmp_path, uncompiled):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    benchmark = importlib.import_module("benchmarks.priors")
    assert doctest.testmod(benchmark).failed == 0
    arguments = ["--quick", "--out", str(tmp_path), "--only", "VampPrior", "--only", "exemplars without itself"]
    result = CliRunner().invoke(benchmark.app, arguments)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "priors.csv").open()))
    assert [row["prior"] for row in rows] == ["VampPrior", "exemplars without itself"]
    assert all(float(row["gap"]) == float(row["train_log_px"]) - float(row["test_log_px"]) for row in rows)
    assert (tmp_path / "priors.png").stat().st_size > 1000
    unknown = CliRunner().invoke(benchmark.app, ["--only", "flat"])
    assert unknown.exit_code == 2
