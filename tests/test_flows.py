"""Normalising flows: densities against Jacobians, quadrature and closed forms; what a draw remembers."""

import copy
import gc
import itertools
import math
import subprocess
import sys
import weakref

import odds
import pytest
import torch
from capturing import assert_steps_agree, step_on, twins
from pyro import distributions as dist
from pyro.infer import Trace_ELBO
from torch import nn
from torch.autograd.functional import jacobian

import ppl_vae as pv
from ppl_vae.distributions import NormalizingFlow
from ppl_vae.estimation import estimate
from ppl_vae.guides.flow import Flow
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE
from ppl_vae.nets import flows

F64 = torch.float64
FAMILIES = list(itertools.product([flows.autoregressive, flows.coupling], [flows.affine, flows.spline]))
IDS = [f"{transform.__name__}-{function.__name__}" for transform, function in FAMILIES]
PRIORS = [pv.priors.AutoregressiveFlow, pv.priors.CouplingFlow]
X_DIM, Z_DIM = 6, 3


def steep(module, factor=3.0):
    """Return a module in float64 with weights so large that its flow is far from the identity."""
    for part in module.double().modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    for parameter in module.parameters():
        parameter.data.mul_(factor)
    return module


@pytest.fixture(params=FAMILIES, ids=IDS)
def family(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "inverse"])
def transform(request, family):
    """A steep transform of each family, each way round, with five rows of context."""
    make, function = family
    module = steep(make(z_dim=4, context=2, hidden=(8,), layers=2, elementwise=function))
    return (module.inv if request.param else module)(torch.randn(5, 2, dtype=F64))


def flow(module, rows=5, context=None, z_dim=4):
    noise = dist.Normal(torch.zeros(rows, z_dim, dtype=F64), 1.5).to_event(1)
    return NormalizingFlow(noise, module(context))


def test_a_transform_taken_back_is_the_identity(transform):
    u = 2 * torch.randn(3, 5, 4, dtype=F64)
    z, ladj = transform.call_and_ladj(u)
    assert (z - u).abs().mean() > 0.1
    back, negative = transform.inv.call_and_ladj(z)
    torch.testing.assert_close(back, u, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(negative, -ladj, rtol=1e-7, atol=1e-7)


def test_volumes_are_those_of_autograds_jacobian(transform):
    u = 2 * torch.randn(5, 4, dtype=F64)
    _, ladj = transform.call_and_ladj(u)
    whole = jacobian(transform, u)  # (row, dimension, row, dimension)
    assert all(whole[i, :, j].abs().max() == 0 for i in range(5) for j in range(5) if i != j)
    exact = torch.stack([torch.linalg.slogdet(whole[i, :, i])[1] for i in range(5)])
    torch.testing.assert_close(ladj, exact, rtol=1e-7, atol=1e-7)


def test_a_flow_begins_near_its_noise(family):
    make, function = family
    module = make(z_dim=4, context=2, hidden=(64,), layers=2, elementwise=function)
    u = torch.randn(500, 4)
    assert (module(torch.randn(500, 2))(u) - u).abs().mean() < 0.15


def test_one_layer_follows_its_order():
    """Below the diagonal alone; and half a matrix alone."""
    u = torch.randn(4, dtype=F64)
    before = torch.ones(4, 4).tril().bool()
    halves = torch.eye(4).bool() | (torch.arange(4) < 2) & (torch.arange(4)[:, None] >= 2)
    for make, follows in ((flows.autoregressive, before), (flows.coupling, halves)):
        slopes = jacobian(steep(make(z_dim=4, layers=1, hidden=(16,)))(), u)
        assert torch.equal(slopes != 0, follows)


# Steeper ones put mass on ridges too narrow for a grid.
FACTORS = {flows.affine: 1.5, flows.spline: 1.0}
POINTS = 300


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("function", FACTORS)
def test_densities_integrate_to_one_and_are_those_of_the_draws(function, inverse):
    """In two dimensions couplings are autoregressive."""
    module = steep(flows.autoregressive(z_dim=2, hidden=(8,), layers=2, elementwise=function), FACTORS[function])
    q = flow(module.inv if inverse else module, rows=1, z_dim=2)
    with torch.no_grad():
        draws = q.expand([20_000]).sample()
        assert q.transform.call_and_ladj(draws)[1].abs().mean() > 0.2
        low, high = draws.amin(0), draws.amax(0)
        low, side = low - 0.15 * (high - low), 1.3 * (high - low)
        axis = (torch.arange(POINTS, dtype=F64) + 0.5) / POINTS
        z = low + side * torch.cartesian_prod(axis, axis)
        p = q.log_prob(z).exp() * side.prod() / POINTS**2
    assert p.sum() == pytest.approx(1, abs=2e-3)
    for statistic in (lambda z: z, lambda z: z.square(), lambda z: z.prod(-1, keepdim=True), torch.cos):
        odds.assert_mean(statistic(draws), (p.unsqueeze(-1) * statistic(z)).sum(0) / p.sum())


def slopes_of(density, module):
    return torch.autograd.grad(density.sum(), list(module.parameters()), retain_graph=True)


@pytest.mark.parametrize("context", [0, 2])
def test_a_draw_is_scored_without_another_pass_and_other_values_alike(family, context):
    make, function = family
    module = steep(make(z_dim=4, context=context, hidden=(8,), layers=2, elementwise=function), 2.0)
    q = flow(module, context=torch.randn(5, 2, dtype=F64) if context else None)
    z = q.rsample((3,))
    passes = []
    for part in module.modules():
        part.register_forward_hook(lambda *_: passes.append(1))
    density = q.log_prob(z)
    assert density.shape == (3, 5)
    assert not passes
    again = q.log_prob(z.clone())
    assert passes
    torch.testing.assert_close(again, density, rtol=1e-7, atol=1e-7)
    # Both are functions of the parameters through the draw and directly.
    for slope, found in zip(slopes_of(again, module), slopes_of(density, module), strict=True):
        torch.testing.assert_close(slope, found, rtol=1e-6, atol=1e-6)


def test_a_draw_without_gradients_is_scored_with_them():
    module = steep(flows.autoregressive(z_dim=4, hidden=(8,)))
    q = flow(module)
    z = q.sample()
    for slope, found in zip(slopes_of(q.log_prob(z.clone()), module), slopes_of(q.log_prob(z), module), strict=True):
        torch.testing.assert_close(found, slope)
        assert slope.abs().max() > 0
    with torch.no_grad():
        assert not q.log_prob(z).requires_grad


def test_a_flow_remembers_its_last_draw_alone():
    q = flow(flows.autoregressive(z_dim=4).double())
    first, _ = weakref.ref(q.rsample()), q.rsample()
    gc.collect()
    assert first() is None


def test_batches_expand_and_masks_hold():
    q = flow(flows.coupling(z_dim=4, hidden=(8,)).double()).expand([3, 5])
    z = q.rsample()
    assert (q.batch_shape, q.event_shape, z.shape) == ((3, 5), (4,), (3, 5, 4))
    mask = torch.arange(5) % 2 == 0
    torch.testing.assert_close(q.mask(mask).log_prob(z), q.log_prob(z) * mask)


def test_one_dimension_is_a_flow_too(family):
    make, function = family
    q = flow(steep(make(z_dim=1, elementwise=function)), z_dim=1)
    z = q.rsample((3,))
    torch.testing.assert_close(q.log_prob(z.clone()), q.log_prob(z), rtol=1e-7, atol=1e-7)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"base: expected noise with one event axis, found event shape \(\)"):
        NormalizingFlow(dist.Normal(torch.zeros(5, 4), 1.0), flows.coupling(z_dim=4)())
    with pytest.raises(ValueError, match="layers: expected at least 1, found 0"):
        flows.coupling(z_dim=4, layers=0)
    with pytest.raises(ValueError, match=r"h: expected a last axis of 9 = 2 z_dim \+ context, found shape \(5, 8\)"):
        pv.nets.ToFlow(z_dim=3, context=3)(torch.zeros(5, 8))
    with pytest.raises(ValueError, match="within the support"):
        flow(flows.coupling(z_dim=4).double()).log_prob(torch.full((5, 4), math.nan, dtype=F64))


def set_linear_layer(network, matrix, of_context=0.0):
    """Make of one masked linear layer the map ``matrix @ u + of_context * context``."""
    scales = matrix.diag().log()
    with torch.no_grad():
        weight, bias = (network.weight.zero_(), network.bias.zero_())
        weight[0::2, : len(matrix)] = matrix.tril(-1)
        weight[0::2, len(matrix) :] = of_context * torch.eye(len(matrix), dtype=F64)[:, : weight.shape[1] - len(matrix)]
        bias[1::2] = scales / (1 - scales.abs() / math.log(1000))  # zuko's bound on log scales


def linear_layer(module):
    (network,) = (part for part in module.modules() if isinstance(part, nn.Linear))
    return network


@pytest.fixture
def exact():
    """Factor analysis, and the flow that is its posterior: noise times a Cholesky factor, plus a mean given by x."""
    model = LinearGaussian(X_DIM, Z_DIM).double()
    guide = Flow(X_DIM, Z_DIM, hidden=(), layers=1, context=Z_DIM).double()
    posterior = model.posterior(torch.cat([torch.zeros(1, X_DIM, dtype=F64), torch.eye(X_DIM, dtype=F64)]))
    encoder, head = guide.encoder
    with torch.no_grad():
        weight, bias = encoder[0].weight.zero_(), encoder[0].bias.zero_()
        bias[Z_DIM : 2 * Z_DIM] = math.log(math.expm1(1 - 1e-4))  # a scale of one, by ToNormal
        weight[2 * Z_DIM :], bias[2 * Z_DIM :] = (posterior.loc[1:] - posterior.loc[0]).mT, posterior.loc[0]
    set_linear_layer(linear_layer(head), posterior.scale_tril[0], 1.0)
    return model, guide


def test_a_linear_flow_is_a_full_covariance_posterior(exact):
    """Every weight is p(x), and the path derivative of the bound is zero, draw by draw."""
    model, guide = exact
    x = pv.sample(model, shape=(X_DIM,), n=7, seed=1)["x"]
    log_w = pv.weigh(model, guide, x, particles=4).log_w
    torch.testing.assert_close(log_w, model.log_px(x).expand(4, 7), rtol=1e-10, atol=1e-10)
    estimate(pv.objectives.stl, model, guide, x, 4).surrogate.sum().backward()
    assert max(parameter.grad.abs().max() for parameter in guide.parameters()) < 1e-10
    assert pv.evaluate(model, guide, x, particles=20).log_px == pytest.approx(model.log_px(x).detach(), abs=1e-9)


def test_training_finds_what_a_diagonal_guide_cannot():
    """The gap of a diagonal normal is log det diag(P) - log det P over two, with P the posterior's precision."""
    model = LinearGaussian(X_DIM, Z_DIM).double()
    model.requires_grad_(False).weight.mul_(0.5).add_(0.7)  # columns far from orthogonal
    x = pv.sample(model, shape=(X_DIM,), n=64, seed=1)["x"]
    precision = model.posterior(x[:1]).precision_matrix[0]
    gap = (precision.diag().log().sum() - precision.logdet()) / 2
    guide = Flow(X_DIM, Z_DIM, hidden=(), layers=1, context=4).double()
    for lr, steps in ((0.05, 100), (0.01, 50)):
        optimizer = torch.optim.Adam(guide.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            (-estimate(pv.objectives.stl, model, guide, x, 2).surrogate.mean()).backward()
            optimizer.step()
    left = (model.log_px(x) - pv.weigh(model, guide, x, particles=200).log_w.mean(0)).mean()
    assert gap > 0.3
    assert left < 0.05 * gap


def test_a_linear_autoregressive_prior_is_a_normal_with_any_covariance():
    prior = pv.priors.AutoregressiveFlow(3, hidden=(), layers=1).double()
    precision_root = torch.tensor([[0.5, 0, 0], [-1.0, 2.0, 0], [0.3, 0.7, 1.1]], dtype=F64)  # u = R z
    set_linear_layer(linear_layer(prior.transform), precision_root)
    z = torch.randn(5, 3, dtype=F64)
    exact = dist.MultivariateNormal(torch.zeros(3, dtype=F64), precision_matrix=precision_root.mT @ precision_root)
    torch.testing.assert_close(prior().log_prob(z), exact.log_prob(z))
    odds.assert_mean(prior().sample((20_000,)).square(), exact.variance)


SIZES = {"x_dim": X_DIM, "z_dim": Z_DIM, "hidden": (8,)}


def pair_of(transform=flows.coupling, elementwise=flows.spline, prior=pv.priors.CouplingFlow, function=flows.affine):
    torch.manual_seed(0)
    model = VAE(**SIZES, prior=prior(Z_DIM, hidden=(8,), layers=2, elementwise=function))
    guide = Flow(**SIZES, layers=1, context=3, transform=transform, elementwise=elementwise)
    return model.double(), guide.double()


def data(rows=5):
    return torch.bernoulli(torch.full((rows, X_DIM), 0.5, dtype=F64), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("prior", PRIORS)
def test_every_part_learns(family, prior):
    model, guide = pair_of(*family, prior, family[1])
    pv.check(model, guide, data())
    for objective in (pv.objectives.iwae, pv.objectives.dreg, pv.objectives.score_function):
        estimate(objective, model, guide, data(), 3).surrogate.sum().backward()
        for name, parameter in [*model.named_parameters(), *guide.named_parameters()]:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
            parameter.grad = None


def test_pyros_elbo_is_ours(family):
    model, guide = pair_of(*family)
    torch.manual_seed(1)
    ours = estimate(pv.objectives.elbo, model, guide, data(), 1)
    torch.manual_seed(1)
    theirs = Trace_ELBO().differentiable_loss(model, guide, data())
    torch.testing.assert_close(-theirs, ours.value.sum())
    parameters = [*model.parameters(), *guide.parameters()]
    found = torch.autograd.grad(ours.surrogate.sum(), parameters)
    for slope, other in zip(torch.autograd.grad(-theirs, parameters), found, strict=True):
        torch.testing.assert_close(slope, other)


def test_captured_steps_are_the_eager_ones(uncompiled):
    """A spline in the guide, couplings in both programs: one graph for batches of every size."""
    (model, guide), other = twins(pair_of)
    captured = step_on(*other, data(), compile=True)
    assert_steps_agree(step_on(model, guide, data()), captured, [data(5), data(4)])
    assert captured.ascent.count == 1


@pytest.mark.parametrize("prior", PRIORS)
def test_what_was_used_is_copied_saved_and_loaded(prior):
    model, _ = pair_of(prior=prior)
    z = model.prior().rsample((4,))
    kept, state = copy.deepcopy(model), model.state_dict()
    fresh, _ = pair_of(prior=prior)
    steep(fresh).load_state_dict(state)
    for same in (kept, fresh):
        torch.testing.assert_close(same.prior().log_prob(z), model.prior().log_prob(z))


@pytest.mark.parametrize("prior", PRIORS)
def test_a_model_with_a_flow_is_drawn_from(prior):
    """Rounding in the way back to the noise is no sign of a prior that reads x."""
    model = VAE(**SIZES, prior=steep(prior(Z_DIM, hidden=(8,)), 2.0)).float()
    p = model.prior().expand([200])
    z = p.sample()
    with torch.no_grad():
        assert not torch.equal(p.log_prob(z), p.log_prob(z.clone()))
        assert pv.sample(model, shape=(X_DIM,), n=200)["z"].shape == (200, Z_DIM)


def test_mixed_precision_stops_at_the_flow():
    _, guide = pair_of(flows.autoregressive)
    guide.float()
    with torch.autocast("cpu", torch.bfloat16):
        q = guide.encoder(data().float())
        z = q.rsample()
        assert z.dtype == torch.float32
        torch.testing.assert_close(q.log_prob(z.clone()), q.log_prob(z), rtol=1e-4, atol=1e-4)


UNTOUCHED = """
import sys
import torch, pyro
from torch import distributions as d
owners = [getattr(d, name) for name in d.__all__ if isinstance(getattr(d, name), type)]
owners += [d.Distribution, d.Transform, d.transforms._InverseTransform]
def seen(owner):
    return owner.__name__, {name: id(value) for name, value in vars(owner).items() if not name.startswith("__")}
before = [seen(owner) for owner in owners]
import ppl_vae as pv
assert "zuko" not in sys.modules
pv.priors.CouplingFlow(3)().log_prob(torch.zeros(3))
assert "zuko" in sys.modules
new = {(o.__name__, n) for o, b in zip(owners, before) for n in {*seen(o)[1]} - {*b[1]} if n != "_abc_impl"}
assert new == {("Transform", "call_and_ladj")}, new
for owner, (name, values) in zip(owners, before):
    found = seen(owner)
    assert found[0] == name and values.items() <= found[1].items(), owner
for normal in (d.Normal, pyro.distributions.Normal):
    try:
        normal(0.0, -1.0)
    except ValueError:
        continue
    raise AssertionError("a negative scale passes")
print("untouched")
"""


def test_a_flow_leaves_torchs_distributions_as_they_were():
    """Zuko's import turns validation off for all of them, which ours undoes; it adds one method."""
    done = subprocess.run([sys.executable, "-c", UNTOUCHED], capture_output=True, text=True)
    assert done.stdout == "untouched\n", done.stderr
