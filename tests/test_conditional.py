"""Conditional VAEs: against Gaussian algebra, in sampling and completing given y; networks of several inputs."""

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import nets, priors
from ppl_vae.guides.conditional import Conditional as Guide
from ppl_vae.models.conditional import Conditional

DOUBLE = torch.float64
SIZES = {"x_dim": 4, "z_dim": 2, "y_dim": 3}
NOISE = 0.7


def linear(embedding=None, prior=None):
    """x = A z + B e(y) + c + noise, z = C e(y) + d + noise."""
    torch.manual_seed(0)
    prior = prior or nn.Sequential(nn.Linear(3, 4), nets.ToNormal())
    decoder = nets.Joined((nn.Linear(2, 4), nn.Linear(3, 4)), nets.ToNormalOneScale(NOISE))
    return Conditional(**SIZES, embedding=embedding, prior=prior, decoder=decoder).double()


def given(model, y):
    """Mean ``(B, 4)`` and covariance ``(B, 4, 4)`` of x given y, and the prior of z."""
    (a, b), e = model.decoder.parts, model.embedding(y)
    z = model.prior(e).base_dist
    mean = a(z.loc) + b(e)
    scale = z.scale.expand(len(y), 2).square().diag_embed()
    noise = model.decoder.rest[0].log_scale.mul(2).exp() * torch.eye(4, dtype=DOUBLE)
    return mean.detach(), (a.weight @ scale @ a.weight.mT + noise).detach(), z


class ExactGuide(nn.Module):
    """p(z | x, y)."""

    def __init__(self, model):
        super().__init__()
        self.model = [model]

    def forward(self, x, y):
        (model,) = self.model
        mean, covariance, z = given(model, y)
        loc, scale = z.loc.detach().expand(len(x), 2), z.scale.detach().square().expand(len(x), 2).diag_embed()
        gain = scale @ model.decoder.parts[0].weight.detach().mT @ covariance.inverse()
        posterior = scale - gain @ model.decoder.parts[0].weight.detach() @ scale
        loc = loc + (gain @ (x - mean).unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, (posterior + posterior.mT) / 2))


CONDITIONS = {
    "classes": (None, torch.tensor([0, 2, 1, 2, -1])),
    "vectors": (nn.Identity(), torch.linspace(-2, 2, 15, dtype=DOUBLE).reshape(5, 3)),
}
of_each_condition = pytest.mark.parametrize(("embedding", "y"), CONDITIONS.values(), ids=CONDITIONS)


@of_each_condition
@pytest.mark.parametrize("learned", [True, False], ids=["prior given y", "standard normal prior"])
def test_weights_under_the_exact_posterior_are_the_conditional_likelihood(embedding, y, learned):
    model = linear(embedding, None if learned else nets.Reads(priors.StandardNormal(2)))
    mean, covariance, z = given(model, y)
    assert z.loc.shape == ((5, 2) if learned else (2,))
    x = torch.linspace(-1, 1, 20, dtype=DOUBLE).reshape(5, 4)
    exact = dist.MultivariateNormal(mean, covariance).log_prob(x)
    guide = ExactGuide(model)
    torch.testing.assert_close(pv.weigh(model, guide, (x, y), particles=3).log_w, exact.expand(3, 5).clone())
    torch.testing.assert_close(pv.evaluate(model, guide, (x, y), particles=5).log_px, exact)
    pv.check(model, Guide(**SIZES, hidden=(8,), embedding=embedding).double(), (x, y))


@of_each_condition
def test_draws_are_given_the_y_that_is_passed(embedding, y):
    model, times = linear(embedding), 3000
    x, each = torch.zeros(5 * times, 4, dtype=DOUBLE), y.repeat(times, *[1] * (y.dim() - 1))
    drawn = pv.sample(model, like=(x, each), n=len(x))
    assert drawn.keys() == {"z", "x"}
    mean, covariance, _ = given(model, y)
    draws = drawn["x"].reshape(times, 5, 4)
    odds.assert_mean(draws, mean)
    centred = draws - mean
    odds.assert_mean(centred.unsqueeze(-1) * centred.unsqueeze(-2), covariance)


def test_images_are_completed():
    """Lower halves of digits given the upper ones."""
    data = pv.data.load("digits", binarize="threshold")
    halves = [(part[:, 32:], part[:, :32]) for part in (data.train, data.test)]
    torch.manual_seed(0)
    sizes = {"x_dim": 32, "z_dim": 4, "y_dim": 32, "hidden": (64,), "embedding": nn.Identity()}
    model, guide = Conditional(**sizes), Guide(**sizes)
    pv.fit(model, guide, halves[0], epochs=6, batch_size=64, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3))
    own = pv.evaluate(model, guide, halves[1], particles=20)
    lower, upper = halves[1]
    others = pv.evaluate(model, guide, (lower, upper.roll(1, 0)), particles=20)
    odds.assert_at_most(others.log_px, own.log_px - 1.0)  # a nat at least for the half that belongs to it
    drawn = pv.sample(model, like=(lower, upper), n=len(lower))["x"]
    assert drawn.shape == lower.shape


def test_labels_out_of_range_are_refused():
    model, guide = linear(), Guide(**SIZES, hidden=(8,)).double()
    with pytest.raises(ValueError, match=r"y: expected labels from 0 to 2, or -1 .*, found 3, 4"):
        pv.check(model, guide, (torch.zeros(3, 4, dtype=DOUBLE), torch.tensor([4, 3, 0])))


def test_one_hot_vectors_have_the_type_of_their_program():
    for dtype in (torch.float32, DOUBLE, torch.bfloat16):
        vectors = nets.OneHot(400).to(dtype)(torch.tensor([0, 257, 399, -1]))
        assert vectors.dtype == dtype
        assert vectors.nonzero().tolist() == [[0, 0], [1, 257], [2, 399]]
    assert not nets.OneHot(3).state_dict()


def test_a_joined_network_is_that_of_the_concatenated_inputs():
    torch.manual_seed(0)
    net = nets.JoinedMLP((5, 3, 2), (7, 6), 4)
    together = nets.MLP(10, (7, 6), 4)
    together[0].weight.data.copy_(torch.cat([part.weight for part in net.parts], 1))
    together[0].bias.data.copy_(net.parts[0].bias)
    together[2].load_state_dict(net.rest[1][0].state_dict())
    together[4].load_state_dict(net.rest[1][2].state_dict())
    a, b, c = torch.randn(8, 5), torch.randn(3, 1, 8, 3), torch.randn(2, 8, 2)
    inputs = [part.expand(3, 2, 8, -1) for part in (a, b, c)]
    torch.testing.assert_close(net(a, b, c), together(torch.cat(inputs, -1)))
    assert len([*net.parameters()]) == len([*together.parameters()]) + 2  # a matrix for each input, one bias
    straight = nets.JoinedMLP((5, 3), (), 4, nets.ToNormal())
    assert straight(a, b).event_shape == (2,)
    with pytest.raises(ValueError, match="inputs: expected 3, one for each part, found 2"):
        net(a, b)


def test_convolutions_take_a_condition():
    torch.manual_seed(0)
    wide = nets.Joined(
        (nn.Linear(2, 16), nn.Linear(3, 16)), nn.ReLU(), nets.ConvDecoder(16, (8, 7)), nets.ToBernoulli()
    )
    narrow = nets.Joined((nets.ConvEncoder((8, 7), 16), nn.Linear(3, 16)), nn.ReLU(), nn.Linear(16, 4), nets.ToNormal())
    model = Conditional(z_dim=2, y_dim=3, hidden=(8,), decoder=wide)
    pv.check(model, Guide(y_dim=3, encoder=narrow), (torch.ones(4, 56), torch.tensor([0, 1, 2, 0])))
