"""Every head, found in `nets`: behind either network, in every verb, captured, in mixed precision."""

import pytest
import torch
from capturing import assert_steps_agree, step_on, twins
from odds import assert_mean
from torch import nn

import ppl_vae as pv
from ppl_vae import nets, zoo
from ppl_vae.guides.full_covariance import FullCovariance
from ppl_vae.guides.low_rank import LowRank
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

SHAPE, Z_DIM = (4, 3), 2
X_DIM = SHAPE[0] * SHAPE[1]
SIZES = {"x_dim": X_DIM, "z_dim": Z_DIM, "hidden": (8,)}
HEADS = {name: getattr(nets, name) for name in nets.__all__ if name.startswith("To")}
LIKELIHOODS = [name for name, head in HEADS.items() if hasattr(head, "outputs")]
CORRELATED = ["ToLowRankNormal", "ToMultivariateNormal"]
OTHERS = ["ToCodes", "ToDelta", "ToFlow", "ToNormalMixture", "ToRelaxedCodes"]


def dense(head):
    return nn.Sequential(nets.MLP(Z_DIM, (8,), head.outputs * X_DIM), head)


def convolutional(head):
    return nn.Sequential(nets.ConvDecoder(Z_DIM, SHAPE, (4, 3), outputs=head.outputs), head)


@pytest.fixture(params=LIKELIHOODS)
def head(request):
    torch.manual_seed(0)
    return zoo.build(HEADS[request.param], SIZES)


def pair(head, decoder=dense):
    """Return a VAE with this likelihood, its guide, and data drawn from it."""
    torch.manual_seed(1)
    encoder = nn.Sequential(nets.ConvEncoder(SHAPE, 2 * Z_DIM, (3, 4)), nets.ToNormal())
    guide = Normal(**SIZES, encoder=encoder) if decoder is convolutional else Normal(**SIZES)
    model = VAE(**SIZES, decoder=decoder(head))
    return model, guide, pv.sample(model, shape=(X_DIM,), n=6, seed=2)["x"]


def test_every_head_says_how_much_it_takes():
    assert {"ToBernoulli", "ToNormal", "ToContinuousBernoulli", "ToDiscretisedLogistic"} <= set(LIKELIHOODS)
    assert {*HEADS} == {*LIKELIHOODS, *CORRELATED, *OTHERS}
    for name in LIKELIHOODS:
        made = zoo.build(HEADS[name], SIZES)
        assert made(torch.zeros(5, made.outputs * X_DIM)).event_shape == (X_DIM,)
    for name in CORRELATED:
        made = zoo.build(HEADS[name], SIZES)
        assert made(torch.zeros(5, made.in_dim)).event_shape == (Z_DIM,)


@pytest.mark.parametrize("decoder", [dense, convolutional])
def test_a_pair_fits_the_contract_and_every_parameter_learns(decoder, head):
    model, guide, x = pair(head, decoder)
    pv.check(model, guide, x)
    log_w = pv.weigh(model, guide, x, particles=3).log_w
    assert log_w.shape == (3, 6)
    log_w.sum().backward()
    for name, parameter in [*model.named_parameters(), *guide.named_parameters()]:
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_convolutions_give_what_heads_take_image_by_image():
    """The second half of what a head gets is the second image."""
    net = nets.ConvDecoder(Z_DIM, SHAPE, (4, 3), outputs=2)
    z = torch.randn(5, 3, Z_DIM)
    assert net(z).shape == (5, 3, 2 * X_DIM)
    with torch.no_grad():
        net.net[-1].weight[:, 1].zero_()
        net.net[-1].bias[1] = 7.0
    first, second = net(z).chunk(2, -1)
    assert (second == 7).all()
    assert first.std() > 0


def test_leading_axes_are_rows(head):
    h = torch.randn(2, 3, head.outputs * X_DIM)
    d = head(h)
    assert (d.batch_shape, d.event_shape) == ((2, 3), (X_DIM,))
    x = d.sample()
    torch.testing.assert_close(d.log_prob(x)[1, 2], head(h[1, 2]).log_prob(x[1, 2]))
    assert d.expand((4, 2, 3)).log_prob(x).shape == (4, 2, 3)


def test_the_mean_is_that_of_draws(head):
    torch.manual_seed(3)
    d = head.double()(torch.randn(head.outputs * X_DIM, dtype=torch.float64))
    assert_mean(d.sample((4000,)), d.mean)


def test_masked_pixels_do_not_count(head):
    d = head.double()(torch.randn(5, head.outputs * X_DIM, dtype=torch.float64))
    x, counted = d.sample(), torch.arange(X_DIM) % 3 > 0
    masked = d.base_dist.mask(counted).to_event(1)
    torch.testing.assert_close(masked.log_prob(x), d.base_dist.log_prob(x)[:, counted].sum(-1))


def test_verbs_take_the_likelihood(head):
    model, guide, x = pair(head)
    assert pv.reconstruct(model, guide, x, particles=2)["x"].isfinite().all()
    assert pv.evaluate(model, guide, x, particles=10).log_px.isfinite().all()
    observed = torch.arange(X_DIM) % 2 == 0
    filled = pv.impute(model, guide, x, observed, draws=3)
    assert torch.equal(filled.draws[:, :, observed], x[:, observed].expand(3, -1, -1))
    assert filled.mean.isfinite().all()
    assert model.decoder(torch.zeros(Z_DIM)).support.check(filled.draws).all()


def test_captured_steps_are_the_eager_ones(head, uncompiled):
    """Of batches of several sizes, in one graph."""
    model, guide, x = pair(head)
    first, second = twins(lambda: (model, guide))
    eager, captured = step_on(*first, x), step_on(*second, x, compile=True)
    assert_steps_agree(eager, captured, [x, x[:4]])
    assert captured.ascent.count == 1


class TestMixedPrecision:
    def test_densities_are_in_single_precision(self, head):
        h = torch.randn(5, head.outputs * X_DIM).bfloat16()
        x = head(h.float()).sample()
        exact = head(h.float()).log_prob(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = head(h).log_prob(x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact)

    @pytest.mark.parametrize("name", CORRELATED)
    def test_correlated_ones_too(self, name):
        made = zoo.build(HEADS[name], SIZES)
        h = torch.randn(5, made.in_dim).bfloat16()
        z = made(h.float()).sample()
        with torch.autocast("cpu", torch.bfloat16):
            found = made(h)
        assert found.loc.dtype == torch.float32
        torch.testing.assert_close(found.log_prob(z), made(h.float()).log_prob(z))

    def test_double_precision_stays(self, head):
        with torch.autocast("cpu", torch.bfloat16):
            assert head.double()(torch.zeros(2, head.outputs * X_DIM, dtype=torch.float64)).mean.dtype == torch.float64

    @pytest.mark.parametrize("guide", [Normal, FullCovariance, LowRank])
    def test_training(self, guide, head):
        model, _, x = pair(head)
        found = []
        for programs, precision in zip(twins(lambda: (model, guide(**SIZES))), (None, torch.bfloat16), strict=True):
            torch.manual_seed(4)
            found.append(step_on(*programs, x, particles=20, precision=precision)(x).bound)
        assert found[1].dtype == torch.float32
        assert found[1] != found[0]
        assert float(found[1]) == pytest.approx(float(found[0]), rel=0.05, abs=0.5)


class TestGreyLevels:
    def test_bits_are_those_of_a_mass(self):
        model, guide, x = pair(nets.ToDiscretisedLogistic())
        evaluation = pv.evaluate(model, guide, x, particles=5)
        assert evaluation.mass
        assert evaluation.bits_per_dim() > 0

    def test_other_data_are_refused_and_the_support_named(self):
        model, guide, x = pair(nets.ToDiscretisedLogistic())
        with pytest.raises(pv.ContractError, match=r"outside the support of the likelihood .*multiples of 1/255"):
            pv.check(model, guide, x + 0.001)

    def test_a_continuous_bernoulli_takes_intensities_alone(self):
        model, guide, x = pair(nets.ToContinuousBernoulli())
        with pytest.raises(pv.ContractError, match="outside the support of the likelihood"):
            pv.check(model, guide, 255 * x)


REFUSALS = {
    "odd": (lambda: nets.ToNormal()(torch.zeros(2, 5)), r"h: expected an even last axis.*\(2, 5\)"),
    "odd, grey": (lambda: nets.ToDiscretisedLogistic()(torch.zeros(5)), "h: expected an even last axis"),
    "pixels": (lambda: nets.ToNormalPixelScale(6)(torch.zeros(2, 5)), r"last axis of x_dim = 6, found shape \(2, 5\)"),
    "one pixel": (lambda: nets.ToNormalPixelScale(6)(torch.zeros(2, 1)), "last axis of x_dim = 6"),
    "fixed": (lambda: nets.ToNormalFixedScale(0.0), "scale: expected a positive number, found 0.0"),
    "nan": (lambda: nets.ToNormalFixedScale(float("nan")), "scale: expected a positive number, found nan"),
    "one": (lambda: nets.ToNormalOneScale(-1.0), "scale: expected a positive number, found -1.0"),
    "floor": (lambda: nets.ToNormalPixelScale(6, 0.1, min_scale=0.2), "scale - min_scale: expected a positive number"),
    "normal": (lambda: nets.ToNormal(0.0), "min_scale: expected a positive number, found 0.0"),
    "triangle": (lambda: nets.ToMultivariateNormal(2, -1.0), "min_scale: expected a positive number, found -1.0"),
    "low rank": (lambda: nets.ToLowRankNormal(2, min_scale=-1.0), "min_scale: expected a positive number"),
    "mixture": (lambda: nets.ToNormalMixture(2, min_scale=-1.0), "min_scale: expected a positive number"),
    "no component": (lambda: nets.ToNormalMixture(0), "components: expected a whole number of at least 1, found 0"),
    "levels": (lambda: nets.ToDiscretisedLogistic(levels=1), "levels: expected a whole number of at least 2"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    make, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        make()
