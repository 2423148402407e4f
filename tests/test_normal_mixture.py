"""Mixtures of normals: densities, moments and draws against torch and quadrature, gradients of draws to rounding."""

import odds
import pyro
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ppl_vae as pv
from ppl_vae import nets, priors
from ppl_vae.distributions import NormalMixture, mixture
from ppl_vae.guides.mixture import Mixture
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

DOUBLE = torch.float64
AXIS = torch.linspace(-11, 11, 301, dtype=DOUBLE)
PLANE, CELL = torch.cartesian_prod(AXIS, AXIS), (22 / 300) ** 2
SIZES = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}


def parameters(*batch, components=3, d=2):
    """Draw logits, means and scales, in float64."""
    torch.manual_seed(0)
    logits = torch.randn(*batch, components, dtype=DOUBLE)
    loc = 2 * torch.randn(*batch, components, d, dtype=DOUBLE)
    scale = 0.4 + torch.rand(*batch, components, d, dtype=DOUBLE)
    return [tensor.requires_grad_() for tensor in (logits, loc, scale)]


def torchs(logits, loc, scale):
    normals = torch.distributions.Normal(loc, scale, validate_args=False)
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits), torch.distributions.Independent(normals, 1)
    )


@pytest.mark.parametrize("batch", [(), (4,), (5, 4)])
def test_densities_and_their_gradients_are_torchs(batch):
    given = parameters(*batch, d=5)
    z = torch.randn(5, 4, 5, dtype=DOUBLE, requires_grad=True)
    found, wanted = (
        m.log_prob(z)
        for m in (NormalMixture(*given).expand([4]) if batch == () else NormalMixture(*given), torchs(*given))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(value.cos().sum(), [*given, z]) for value in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_moments_are_torchs_in_the_shape_of_the_batch():
    given = parameters(4)
    for found in (NormalMixture(*given), NormalMixture(*given).expand([7, 4])):
        torch.testing.assert_close(found.mean, torchs(*given).mean.expand((*found.batch_shape, 2)))
        torch.testing.assert_close(found.variance, torchs(*given).variance.expand((*found.batch_shape, 2)))


def test_weights_of_each_datum_on_components_that_all_share():
    (_, loc, scale), z = parameters(), torch.randn(4, 2, dtype=DOUBLE)
    logits = torch.randn(4, 3, dtype=DOUBLE)
    logits[1, 2] = -torch.inf
    found = NormalMixture(logits, loc, scale)
    wanted = torchs(logits, loc.expand(4, 3, 2), scale.expand(4, 3, 2))
    torch.testing.assert_close(found.log_prob(z), wanted.log_prob(z))
    torch.testing.assert_close(found.mean, wanted.mean)
    assert torch.autograd.grad(found.log_prob(z).sum(), loc)[0].isfinite().all()


def test_single_precision_is_kept_far_from_the_origin_and_for_narrow_components():
    torch.manual_seed(0)
    loc, scale = 3 * torch.randn(200, 20) + 50, 0.02 + 0.2 * torch.rand(200, 20)
    z = loc[::2] + scale[::2] * torch.randn(100, 20)
    exact = torchs(*(part.double() for part in (torch.zeros(200), loc, scale))).log_prob(z.double())
    assert (NormalMixture(torch.zeros(200), loc, scale).log_prob(z) - exact).abs().max() < 2e-5


class Largest(TorchDispatchMode):
    """Remember the size of the largest tensor that any operation gives."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        views = func.is_view or func.overloadpacket.__name__ == "expand"
        self.size = max([self.size, *(r.numel() for r in results if torch.is_tensor(r) and not views)])
        return result


def test_components_that_all_share_take_no_tensor_of_data_components_and_dimensions():
    torch.manual_seed(0)
    logits, loc, scale = (t.requires_grad_() for t in (torch.zeros(50), torch.randn(50, 20), torch.ones(50, 20)))
    z = torch.randn(100, 20, requires_grad=True)
    with pyro.validation_enabled(False), Largest() as largest:
        found = NormalMixture(logits, loc, scale).expand([100]).log_prob(z)
        torch.autograd.grad(found.sum(), [logits, loc, scale, z])
        NormalMixture(logits, loc, scale).expand([100]).sample()
    assert largest.size == 100 * 50


def test_draws_have_the_density():
    given = parameters()
    mass = NormalMixture(*given).log_prob(PLANE).exp().detach() * CELL
    of_each = NormalMixture(*(tensor.expand(20_000, *tensor.shape) for tensor in given))
    for drawn in (NormalMixture(*given).sample([20_000]), of_each.rsample().detach()):
        for feature in (lambda z: z, torch.square, lambda z: (2 * z).sin()):
            odds.assert_mean(feature(drawn), (mass.unsqueeze(-1) * feature(PLANE)).sum(0))


@pytest.mark.parametrize("particles", [(), (1,)])
def test_gradients_of_draws_are_those_of_expectations(particles):
    """On a grid in place of draws, so that the two agree to the error of the quadrature."""
    given = parameters()
    if particles:
        given = [tensor.detach()[None].requires_grad_() for tensor in given]

    def f(z):
        return (1.3 * z[..., 0]).sin() * z[..., 1] + z[..., 0] * z[..., 1].square()

    drawn = PLANE.unsqueeze(-2) if particles else PLANE
    mass = NormalMixture(*given).log_prob(drawn).exp() * CELL
    assert float(mass.detach().sum()) == pytest.approx(1, abs=1e-10)
    wanted = torch.autograd.grad((mass * f(drawn)).sum(), given)
    moved = NormalMixture(*given).moved(drawn)
    assert torch.equal(moved, drawn)
    found = torch.autograd.grad((mass.detach() * f(moved)).sum(), given)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_a_draw_of_one_component_moves_as_a_normals():
    torch.manual_seed(0)
    loc, scale = (torch.rand(4, 1, 3, dtype=DOUBLE).add(0.5).requires_grad_() for _ in range(2))
    z = NormalMixture(torch.zeros(4, 1, dtype=DOUBLE), loc, scale).rsample([5])
    slopes = torch.randn(5, 4, 3, dtype=DOUBLE)
    noise = ((z.unsqueeze(-2) - loc) / scale).squeeze(-2).detach()
    wanted = slopes.sum(0).unsqueeze(-2), (slopes * noise).sum(0).unsqueeze(-2)
    torch.testing.assert_close(torch.autograd.grad((slopes * z).sum(), [loc, scale]), wanted)


def test_gradients_of_draws_survive_single_precision():
    """Components apart by many scales in many dimensions, where densities are tiny."""
    torch.manual_seed(0)
    given = [torch.randn(500, 5), 3 * torch.randn(500, 5, 20), 0.02 + torch.rand(500, 5, 20)]
    z, slopes = NormalMixture(*given).sample(), torch.randn(500, 20)

    def gradient(dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in given]
        return torch.autograd.grad((slopes.to(dtype) * NormalMixture(*leaves).moved(z.to(dtype))).sum(), leaves)

    for single, double in zip(gradient(torch.float32), gradient(DOUBLE), strict=True):
        assert (single - double).norm() < 1e-3 * double.norm()


def test_masks_cover_densities_and_gradients():
    given, z = parameters(4), torch.randn(4, 2, dtype=DOUBLE)
    seen = torch.tensor([True, False, True, False])
    masked = NormalMixture(*given).mask(seen).log_prob(z)
    assert torch.equal(masked, NormalMixture(*given).log_prob(z) * seen)


def test_no_gradient_no_path():
    given = [tensor.detach() for tensor in parameters(4)]
    assert not NormalMixture(*given).rsample().requires_grad
    with torch.no_grad():
        assert not NormalMixture(*parameters(4)).rsample().requires_grad


def test_mixtures_of_other_distributions_are_pyros():
    laplace = pyro.distributions.Laplace(torch.zeros(3, 2), 1.0).to_event(1)
    z = torch.randn(7, 2)
    found = mixture(torch.zeros(3), laplace)
    torch.testing.assert_close(found.log_prob(z), pyro.distributions.Laplace(0.0, 1.0).log_prob(z).sum(-1))
    tril = torch.eye(2).expand(3, 2, 2)
    assert type(mixture(torch.zeros(3), pyro.distributions.MultivariateNormal(torch.zeros(3, 2), tril))).__name__ == (
        "MixtureSameFamily"
    )


@pytest.mark.parametrize(("weights", "components"), [((2, 3), (3,)), ((3,), (2, 3)), ((4, 1, 3), (2, 3))])
def test_mixtures_of_other_distributions_broadcast(weights, components):
    torch.manual_seed(0)
    logits, loc = torch.randn(weights), torch.randn(*components, 2)
    found = mixture(logits, pyro.distributions.MultivariateNormal(loc, 0.5 * torch.eye(2)))
    same = NormalMixture(logits, loc, torch.full_like(loc, 0.5**0.5))
    z = found.sample((5,))
    assert (found.batch_shape, z.shape) == (same.batch_shape, (5, *same.batch_shape, 2))
    torch.testing.assert_close(found.log_prob(z), same.log_prob(z))
    torch.testing.assert_close(found.mean, same.mean)


def test_mixed_precision_leaves_double_precision_alone():
    h = torch.randn(4, 10, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert nets.ToNormalMixture(2)(h).loc.dtype is torch.float64


def test_shapes_that_do_not_fit_are_refused():
    for shapes in [
        ((0,), (0, 2), (0, 2)),
        ((3,), (4, 2), (4, 2)),
        ((3,), (3, 2), (3, 1)),
        ((3,), (3,), (3,)),
        ((2, 3), (5, 3, 2), (5, 3, 2)),
    ]:
        with pytest.raises(ValueError, match="logits, loc, scale: expected shapes"):
            NormalMixture(*map(torch.ones, shapes))
    with pytest.raises(ValueError, match=r"scale|constraint"):
        NormalMixture(torch.zeros(2), torch.zeros(2, 1), -torch.ones(2, 1), validate_args=True)
    with pytest.raises(ValueError, match=r"components: expected 3 x \(2 D \+ 1\) numbers, found 12"):
        nets.ToNormalMixture(3)(torch.zeros(12))


class Free(nn.Module):
    """A distribution for every datum alike, of given raw parameters."""

    def __init__(self, start, head):
        super().__init__()
        self.raw, self.head = nn.Parameter(start), head

    def forward(self, x):
        return self.head(self.raw.expand(*x.shape[:-1], -1))


class Far(nn.Module):
    """A likelihood that sees the latent's size and not its sign."""

    def forward(self, z):
        return pyro.distributions.Normal(z.abs(), 0.5).to_event(1)


def divergence(guide, x):
    """KL(q || p(z | x)) by quadrature, for one latent dimension."""
    z = AXIS.unsqueeze(-1)
    log_joint = torch.distributions.Normal(0.0, 1.0).log_prob(AXIS) + Far()(z).log_prob(x)
    log_q = guide.encoder(x).log_prob(z).detach()
    log_px = (log_joint + (AXIS[1] - AXIS[0]).log()).logsumexp(0)
    return float((log_q.exp() * (log_q - log_joint + log_px)).sum() * (AXIS[1] - AXIS[0]))


def test_a_posterior_with_two_modes_is_fitted_by_a_mixture_and_not_by_a_normal():
    x, start = torch.tensor([[1.5]], dtype=DOUBLE), torch.tensor([0.0, -1.0, 0.5, 0.0, 1.0, 0.5], dtype=DOUBLE)
    two = Mixture(encoder=Free(start, nets.ToNormalMixture(2)))
    one = Normal(encoder=Free(torch.tensor([1.0, 0.5], dtype=DOUBLE), nets.ToNormal()))
    model = VAE(prior=priors.StandardNormal(1), decoder=Far()).double()
    torch.manual_seed(0)
    for guide in (one, two):
        optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
        step = pv.svi_step(model, guide, pv.objectives.stl, particles=100, optimizer=optimizer)
        for done in range(150):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - done / 150)
            step(x)
    assert divergence(two, x) < 0.01
    assert divergence(one, x) > 0.5  # near log 2, for one of two equal modes


def test_a_guide_that_is_the_posterior_sticks_the_landing():
    """The prior is the posterior, so that every weight is one, and its gradient along the path is nothing."""
    given = [tensor.detach() for tensor in parameters()]
    prior = priors.FixedMixtureOfNormals(*given)
    raw = torch.cat([given[0].unsqueeze(-1), given[1], (given[2] - 1e-4).expm1().log()], -1).flatten()
    guide = Mixture(encoder=Free(raw, nets.ToNormalMixture(3)))
    model = VAE(**SIZES, prior=prior, decoder=Free(torch.zeros(6, dtype=DOUBLE), nets.ToBernoulli())).double()
    x = torch.ones(4, 6, dtype=DOUBLE)
    for objective in (pv.objectives.stl, pv.objectives.dreg):
        found = pv.estimation.estimate(objective, model, guide, x, particles=7)
        torch.testing.assert_close(found.value, torch.full((4,), -6 * torch.tensor(2.0).log(), dtype=DOUBLE))
        (slope,) = torch.autograd.grad(found.surrogate.sum(), guide.encoder.raw)
        assert slope.abs().max() < 1e-10
