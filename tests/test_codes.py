"""Discrete codes: models and guides against a list of every code, their distributions, priors and networks."""

import itertools
import math

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae import distributions, nets, objectives, priors
from ppl_vae.guides.bernoulli import Bernoulli
from ppl_vae.guides.categorical import Categorical
from ppl_vae.guides.relaxed import Relaxed
from ppl_vae.laboratory import exact_gradient
from ppl_vae.models.discrete_vae import DiscreteVAE
from ppl_vae.models.dvae import DVAE
from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
from ppl_vae.weighing import weigh

SIZES = {"x_dim": 5, "positions": 3, "codes": 4, "hidden": (6,)}


class Preferred(nn.Module):
    """A prior that is not uniform, with parameters."""

    def __init__(self, positions, codes):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(positions, codes))

    def forward(self):
        return distributions.OneHotCodes(logits=self.logits).to_event(1)


PRIORS = {"uniform": priors.UniformCodes, "learned": Preferred}


def made(prior="uniform", **sizes):
    """Return a small model with its guide, and data, in float64."""
    torch.manual_seed(0)
    sizes = SIZES | sizes
    model = DiscreteVAE(**sizes, prior=PRIORS[prior](sizes["positions"], sizes["codes"])).double()
    return model, Categorical(**sizes).double(), torch.bernoulli(torch.full((7, sizes["x_dim"]), 0.4)).double()


def every_code(positions=3, codes=4):
    """Return every code, ``(codes^positions, positions, codes)``."""
    corners = torch.eye(codes, dtype=torch.float64)
    return torch.stack([corners[list(rows)] for rows in itertools.product(range(codes), repeat=positions)])


def by_hand(model, x):
    """Return log p(x, c) for every code, ``(codes, B)``, written out."""
    c = every_code(*model.prior().event_shape)
    if isinstance(model.prior, Preferred):
        log_prior = (c * model.prior.logits.log_softmax(-1)).sum((1, 2))
    else:
        log_prior = torch.full((len(c),), -c.shape[1] * math.log(c.shape[2]), dtype=torch.float64)
    logits = model.decoder[1](c.flatten(1)).unsqueeze(1)
    return log_prior.unsqueeze(1) + (x * logits - nn.functional.softplus(logits)).sum(-1)


def listed(model, guide, x, values):
    """Weigh a list of values, one to each particle, for every datum."""
    rows = {name: value.unsqueeze(1).expand(-1, len(x), *value.shape[1:]) for name, value in values.items()}
    return weigh(model, guide, x, len(next(iter(values.values()))), linear=True, draw=lambda name, fn: rows[name])


def gradients(value, *modules):
    """Return the gradient of a sum in all parameters, in one vector."""
    parameters = [p for module in modules for p in module.parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), parameters, retain_graph=True)])


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_model_is_that_of_a_full_enumeration(prior):
    """Likelihood, posterior, and the gradient of the likelihood."""
    model, guide, x = made(prior)
    wanted = by_hand(model, x)
    joint = sum(listed(model, guide, x, {"c": every_code()}).log_p.values())
    assert_close(joint.logsumexp(0), wanted.logsumexp(0))
    assert_close(joint.softmax(0), wanted.softmax(0))
    assert_close(gradients(joint.logsumexp(0), model), gradients(wanted.logsumexp(0), model))


@pytest.mark.parametrize("prior", PRIORS)
def test_elbo_and_its_gradient_are_sums_over_all_codes(prior):
    model, guide, x = made(prior)
    log_q = (every_code().unsqueeze(1) * guide.encoder[0](x).unflatten(-1, (3, 4)).log_softmax(-1)).sum((2, 3))
    elbo = (log_q.exp() * (by_hand(model, x) - log_q)).sum(0)
    wanted = gradients(elbo / len(x), model, guide)
    found = exact_gradient(model, guide, x)
    assert_close(torch.cat([g.flatten() for g in found.values()]), wanted)
    odds.assert_mean(weigh(model, guide, x, 4000).log_w.detach(), elbo.detach())


def test_likelihoods_of_an_evaluation_are_those_of_the_enumeration():
    model, guide, x = made()
    found = pv.evaluate(model, guide, x, particles=2000, progress=False, compile=False)
    odds.assert_agree(found.log_px, found.log_px_error, by_hand(model, x).logsumexp(0).detach())


def test_the_divergence_from_uniform_codes_is_what_entropy_is_missing():
    """positions log C - sum of entropies, under elbo_kl and its gradient; no more noise than the likelihood's."""
    model, guide, x = made()
    log_q = guide.encoder[0](x).unflatten(-1, (3, 4)).log_softmax(-1)
    wanted = 3 * math.log(4) + (log_q.exp() * log_q).sum((1, 2))
    found = weigh(model, guide, x, 2, kl=True).kl["c"]
    assert_close(found.expand(2, 7), wanted.expand(2, 7))
    assert_close(gradients(found[0] if found.dim() > 1 else found, guide), gradients(wanted, guide))
    assert_close(kl_divergence(guide.encoder(x), model.prior()), wanted)


def test_training_by_a_relaxation_finds_good_codes():
    """Data of four kinds, a code for each: the bound on the discrete model comes near their entropy."""
    torch.manual_seed(0)
    x = torch.eye(4).repeat(5, 1).repeat_interleave(3, 1)
    sizes = {"x_dim": 12, "positions": 1, "codes": 8, "hidden": (16,)}
    model, guide = DiscreteVAE(**sizes), Categorical(**sizes)
    before = objectives.elbo(weigh(model, guide, x, 10)).mean()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=0.03)
    step = pv.svi_step(model, guide, objectives.Concrete(1.0, objectives.elbo_kl), optimizer=optimizer, compile=False)
    for _ in range(120):
        step(x)
    after = objectives.elbo(weigh(model, guide, x, 10)).mean()
    assert before < -7
    assert after > -2.2  # the most that can be had is -log 4 = -1.39


def test_the_density_of_uniform_codes_pulls_at_nothing():
    """Neither at codes with a gradient nor at relaxed ones, whatever the sum of their coordinates."""
    prior = priors.UniformCodes(positions=3, codes=4)()
    c = torch.randn(5, 3, 4, requires_grad=True)
    with pyro.validation_enabled(False):
        density = distributions.OneHotUniform(torch.zeros(3, 4), validate_args=False).to_event(1).log_prob(c)
    torch.testing.assert_close(density, torch.full((5,), -3 * math.log(4)))
    assert not density.requires_grad
    assert prior.event_shape == (3, 4)
    with pytest.raises(ValueError, match="to be within the support"):
        distributions.OneHotUniform(torch.zeros(4), validate_args=True).log_prob(torch.ones(4))


def test_uniform_codes_are_those_of_equal_logits():
    ours, pyros = distributions.OneHotUniform(torch.zeros(3, 4)), dist.OneHotCategorical(logits=torch.zeros(3, 4))
    torch.manual_seed(0)
    found = ours.sample((5,))
    torch.manual_seed(0)
    assert torch.equal(found, pyros.sample((5,)))
    for name in ("enumerate_support", "entropy"):
        torch.testing.assert_close(getattr(ours, name)(), getattr(pyros, name)())
    torch.testing.assert_close(ours.log_prob(found), pyros.log_prob(found))
    torch.testing.assert_close(ours.mean, pyros.mean)
    wider = ours.expand((2, 3))
    assert (wider.batch_shape, wider.sample().shape) == ((2, 3), (2, 3, 4))
    assert ours.enumerate_support(expand=False).shape == (4, 1, 4)


@pytest.mark.parametrize("make", [lambda: Categorical(**SIZES), lambda: Categorical(**SIZES | {"positions": 1})])
def test_draws_are_pyros_at_the_same_seed(make):
    guide, x = make(), torch.ones(7, 5)
    torch.manual_seed(1)
    found = guide.encoder(x).sample((3,))
    torch.manual_seed(1)
    assert torch.equal(found, dist.OneHotCategorical(logits=guide.encoder(x).base_dist.logits).sample((3,)))


def test_relaxed_codes_have_torchs_density_and_no_zeros():
    torch.manual_seed(0)
    logits, at = 20 * torch.randn(50, 6), torch.tensor(0.1)
    ours, torchs = distributions.RelaxedOneHot(at, logits=logits), dist.RelaxedOneHotCategorical(at, logits=logits)
    assert not torchs.log_prob(torchs.rsample()).isfinite().all()
    drawn = ours.rsample((200,))
    assert ours.log_prob(drawn).isfinite().all()
    assert ours.support.check(drawn).all()
    inside = torch.full((6,), 1 / 6)
    torch.testing.assert_close(ours.log_prob(inside), torchs.log_prob(inside))
    torch.manual_seed(1)
    found = ours.rsample()
    torch.manual_seed(1)
    torch.testing.assert_close(found, torchs.rsample(), rtol=1e-5, atol=1e-6)


def test_relaxed_draws_have_their_density_at_low_temperatures_in_double_precision():
    torch.manual_seed(0)
    kind, temperature = distributions.RelaxedOneHot, torch.tensor(0.05, dtype=torch.float64)
    q = kind(temperature, logits=torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64))
    p = kind(temperature, logits=torch.zeros(3, dtype=torch.float64))
    c = p.sample((20_000,))
    odds.assert_mean((q.log_prob(c) - p.log_prob(c)).exp(), torch.tensor(1.0, dtype=torch.float64))


def test_relaxed_codes_have_a_density_that_integrates_to_one():
    """On the line between two corners."""
    at = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    points = torch.stack([at, 1 - at], -1)
    fn = distributions.RelaxedOneHot(torch.tensor(0.8).double(), logits=torch.tensor([0.3, -0.4]).double())
    torch.testing.assert_close(
        torch.trapezoid(fn.log_prob(points).exp(), at), torch.tensor(1.0).double(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("programs", ["grid", "dense"])
def test_relaxed_bounds_are_true_in_the_relaxed_model(programs):
    """One code of two corners: log p(x) is an integral over a line; the bounds rise towards it from below."""
    torch.manual_seed(0)
    if programs == "grid":
        model, guide = DVAE(x_dim=4, codes=2, channels=(3, 3)), Relaxed(x_dim=4, codes=2, channels=(3, 3))
    else:
        prior = priors.RelaxedUniformCodes(1, 2)
        model = DiscreteVAE(x_dim=4, positions=1, codes=2, hidden=(3,), prior=prior)
        encoder = nn.Sequential(nets.MLP(4, (3,), 2), nn.Unflatten(-1, (1, 2)), nets.ToRelaxedCodes())
        guide = Relaxed(encoder=encoder)
    model, guide = model.double(), guide.double()
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]).double()
    logit = torch.linspace(-40, 40, 8001, dtype=torch.float64)  # of the first coordinate, of density p(c) c (1 - c)
    c = torch.stack([logit.sigmoid(), (-logit).sigmoid()], -1).unsqueeze(1)
    log_p = model.prior().log_prob(c) + c.log().sum((1, 2))
    joint = log_p.unsqueeze(1) + model.decoder(c.unsqueeze(1)).log_prob(x)
    exact = (torch.trapezoid(joint.exp(), logit, dim=0)).log().detach()
    found = pv.evaluate(model, guide, x, particles=4000, progress=False, compile=False)
    odds.assert_agree(found.log_px, found.log_px_error, exact)
    odds.assert_at_most(weigh(model, guide, x, 2000).log_w.detach().mean(1), exact.mean().expand(2000))


def test_a_discrete_grid_is_trained_by_a_relaxation():
    """As Ramesh et al. do: the same networks over one-hot codes."""
    shape, codes = (7, 5), 6
    h, w = nets.grid_of(shape)
    model = DVAE(shape=shape, codes=codes, prior=priors.UniformCodes(h * w, codes))
    guide = Categorical(encoder=nn.Sequential(nets.GridEncoder(shape, codes), nets.ToCodes()))
    x = torch.bernoulli(torch.full((6, 35), 0.5))
    pv.check(model, guide, x)
    for objective in (objectives.Concrete(1.0, bound=objectives.elbo_kl), objectives.StraightThroughGumbel()):
        value, surrogate = objective.estimate(model, guide, x, 3)
        surrogate.sum().backward()
        assert value.shape == (6,)
        assert all(p.grad.abs().max() > 0 for p in [*model.parameters(), *guide.parameters()])


@pytest.mark.parametrize("shape", [(28, 28), (28, 20), (1, 6), (7, 5)])
@pytest.mark.parametrize("channels", [(4,), (3, 4), (2, 3, 4)])
def test_grids_keep_leading_axes_and_raster_order(shape, channels):
    torch.manual_seed(0)
    encoder, decoder = nets.GridEncoder(shape, 5, channels), nets.GridDecoder(5, shape, channels)
    h, w = nets.grid_of(shape, channels)
    x = torch.randn(2, 3, shape[0] * shape[1])
    z = encoder(x)
    assert z.shape == (2, 3, h * w, 5)
    assert decoder(z).shape == x.shape
    torch.testing.assert_close(encoder(x[1, 2]), z[1, 2])
    torch.testing.assert_close(decoder(z)[1, 2], decoder(z[1, 2]))
    image = encoder.net(x[0, 0].reshape(1, 1, *shape))[0]
    torch.testing.assert_close(z[0, 0, (h - 1) * w + w // 2], image[:, h - 1, w // 2])
    assert decoder.net(decoder.read(z[0, 0].T.reshape(1, 5, h, w))).shape[-2:] >= shape


def test_a_position_sees_its_part_of_the_image():
    """What changes in the first pixel reaches the first position, not the last."""
    torch.manual_seed(0)
    encoder, x = nets.GridEncoder((28, 28), 5), torch.randn(784)
    moved = x.clone()
    moved[0] += 5
    change = (encoder(moved) - encoder(x)).abs().sum(-1)
    assert change[0] > 0
    assert change[1:].max() == 0


def test_a_decoder_knows_the_places_of_its_grid():
    """Equal codes everywhere leave a mean image to be learned, which convolutions alone cannot draw."""
    torch.manual_seed(0)
    decoder, image = nets.GridDecoder(2, (8, 8), (16,)), torch.randn(64)
    adam = torch.optim.Adam(decoder.parameters(), lr=0.05)
    for _ in range(300):
        loss = (decoder(torch.full((16, 2), 0.5)) - image).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert loss < 0.01


def test_convolutions_are_taken_as_networks():
    decoder = nn.Sequential(nn.Flatten(-2), nets.ConvDecoder(8, (28, 28)), nets.ToBernoulli())
    model = DiscreteVAE(positions=2, codes=4, decoder=decoder)
    encoder = nn.Sequential(nets.ConvEncoder((28, 28), 8), nn.Unflatten(-1, (2, 4)), nets.ToCodes())
    pv.check(model, Categorical(encoder=encoder), torch.ones(3, 784))


def test_convolutions_train_under_pyros_svi():
    """Whose store copies parameters that are laid out in another way, and would train the copies."""
    model, guide = DVAE(shape=(4, 4), codes=3), Relaxed(shape=(4, 4), codes=3)
    before = [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]
    svi = SVI(pv.registered(model), pv.registered(guide), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(torch.ones(3, 16))
    assert not any(torch.equal(a, b) for a, b in zip(before, [*model.parameters(), *guide.parameters()], strict=True))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="x: expected a last axis of 35 = 7 x 5 pixels, found shape"):
        nets.GridEncoder((7, 5), 3)(torch.zeros(2, 36))
    with pytest.raises(ValueError, match="z: expected 4 = 2 x 2 positions of 3 numbers, found shape"):
        nets.GridDecoder(3, (7, 5))(torch.zeros(2, 5, 3))
    for make in (lambda: nets.ToRelaxedCodes(0.0), lambda: priors.RelaxedUniformCodes(temperature=-1.0)):
        with pytest.raises(ValueError, match="temperature: expected a positive number, found"):
            make()


def test_the_nearest_code_is_found_far_from_the_origin():
    torch.manual_seed(0)
    codebook, z = torch.randn(32, 8) + 1000, torch.randn(500, 8) + 1000
    distances = (z.unsqueeze(-2).double() - codebook.double()).square().sum(-1)
    assert torch.equal(distributions.NearestCode(z, codebook).code.argmax(-1), distances.argmin(-1))


@pytest.mark.parametrize(
    "make",
    [
        lambda checks: distributions.OneHotUniform(torch.zeros(3), validate_args=checks),
        lambda checks: distributions.NearestCode(torch.zeros(3), torch.eye(3), validate_args=checks),
    ],
)
def test_a_larger_batch_is_validated_as_the_smaller_was(make):
    inside = torch.full((2, 3), 1 / 3)
    make(False).expand([2]).log_prob(inside)
    with pytest.raises(ValueError, match="within the support"):
        make(True).expand([2]).log_prob(inside)


def test_relaxed_and_discrete_codes_do_not_meet():
    discrete, guide = DiscreteVAE(x_dim=6, positions=2, codes=8), Relaxed(x_dim=6)
    with pytest.raises(pv.ContractError, match="site 'c' has support"):
        pv.check(discrete, guide, torch.ones(3, 6))


NETWORKS = [(1, (), 12), (1, (5,), 8), (2, (), 6), (2, (5,), 4), (3, (), 4), (3, (5,), 3)]


def belief_network(layers, hidden, z_dim):
    torch.manual_seed(0)
    sizes = {"x_dim": 5, "z_dim": z_dim, "layers": layers, "hidden": hidden}
    model, guide = SigmoidBeliefNetwork(**sizes).double(), Bernoulli(**sizes).double()
    model.prior_logits.data.normal_()
    names = ["z"] if layers == 1 else [f"z{i}" for i in range(1, layers + 1)]
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * (layers * z_dim))
    values = dict(zip(names, bits.split(z_dim, -1), strict=True))
    return model, guide, torch.bernoulli(torch.full((3, 5), 0.4)).double(), values


def units(logits, s):
    """Return the log probability of units, written out."""
    return (s * logits - nn.functional.softplus(logits)).sum(-1)


@pytest.mark.parametrize(("layers", "hidden", "z_dim"), NETWORKS)
def test_a_belief_network_is_that_of_a_full_enumeration(layers, hidden, z_dim):
    """Up to 12 units, linear and not, one layer or more: log p(x), posterior, the gradients of both bounds."""
    model, guide, x, values = belief_network(layers, hidden, z_dim)
    z = list(values.values())
    wanted = units(model.prior_logits, z[-1]).unsqueeze(1) + units(model.decoders[0](2 * z[0] - 1).unsqueeze(1), x)
    log_q = units(guide.encoders[0](2 * x - 1), z[0].unsqueeze(1))
    for i in range(1, layers):
        wanted = wanted + units(model.decoders[i](2 * z[i] - 1), z[i - 1]).unsqueeze(1)
        log_q = log_q + units(guide.encoders[i](2 * z[i - 1] - 1), z[i]).unsqueeze(1)
    record = listed(model, guide, x, values)
    joint = sum(record.log_p.values())
    assert_close(joint.logsumexp(0), wanted.logsumexp(0))
    assert_close(joint.softmax(0), wanted.softmax(0))
    assert_close(sum(record.log_q.values()), log_q)
    assert_close(gradients(joint.logsumexp(0), model), gradients(wanted.logsumexp(0), model))
    elbo = (log_q.exp() * (wanted - log_q)).sum(0)
    found = torch.cat([g.flatten() for g in exact_gradient(model, guide, x).values()])
    assert_close(found, gradients(elbo / len(x), model, guide))


def test_a_linear_belief_network_learns_by_the_posteriors_delta_rule():
    """Neal's gradient: E[(s_i - p_i) s_j | x], here with units of -1 and 1 above."""
    model, guide, x, values = belief_network(1, (), 8)
    joint = sum(listed(model, guide, x, values).log_p.values())
    posterior, above = joint.softmax(0), 2 * values["z"] - 1
    missing = x - model.decoders[0](above).sigmoid().unsqueeze(1)
    found = torch.autograd.grad(joint.logsumexp(0).sum(), model.decoders[0][0].weight)[0]
    assert_close(found, torch.einsum("sb,sbi,sj->ij", posterior, missing, above))
