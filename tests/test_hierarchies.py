"""Layers of Gaussian latents: against closed forms of linear hierarchies, and against Pyro at the same seed."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from given import Given
from odds import assert_mean
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import ppl_vae as pv
from ppl_vae import nets
from ppl_vae.distributions import sign_points
from ppl_vae.guides import hierarchical as bottom_up
from ppl_vae.guides.ladder import Ladder, product
from ppl_vae.guides.normal import Normal
from ppl_vae.models.hierarchical import Hierarchical
from ppl_vae.models.vae import VAE

SMALL = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
# Variances of z1 given z2, and of x given z1.
INNER, NOISE = 0.49, 0.25
EYE = torch.eye(2).double()
ROTATION = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()


class Affine(nn.Module):
    """A normal whose mean is affine in what it is given."""

    def __init__(self, weight, bias, variance):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.scale = nn.Parameter(variance.sqrt().expand_as(bias).clone())

    def forward(self, given):
        return dist.Normal(given @ self.weight.mT + self.bias, self.scale).to_event(1)


class Linear:
    """z2 ~ N(0, I), z1 ~ N(A z2 + a, INNER), x ~ N(W z1 + b, NOISE), and what follows from it."""

    def __init__(self, down, out):
        self.down, self.out = down, out
        self.a, self.b = torch.tensor([0.3, -0.2]).double(), torch.linspace(-1, 1, 6).double()
        variances = torch.tensor([INNER, NOISE]).double()
        self.model = Hierarchical(
            prior=pv.priors.StandardNormal(2),
            conditionals=[Affine(down, self.a, variances[0])],
            decoder=Affine(out, self.b, variances[1]),
        ).double()

    def log_px(self, x):
        inner = self.down @ self.down.mT + INNER * EYE
        covariance = self.out @ inner @ self.out.mT + NOISE * torch.eye(6).double()
        return dist.MultivariateNormal(self.out @ self.a + self.b, covariance).log_prob(x)

    @property
    def seen(self):
        """Precision of z1 in the likelihood of x."""
        return self.out.mT @ self.out / NOISE

    @property
    def seen_above(self):
        """Covariance, given z2, of the z1 that makes x most likely."""
        return INNER * EYE + self.seen.inverse()

    def fitted(self, x_dim=6):
        """Return the affine map from x to the z1 that makes x most likely."""
        weight = self.seen.inverse() @ self.out.mT / NOISE
        return weight, -weight @ self.b

    def ladder(self):
        """Return the ladder guide with the exact q(z1 | z2, x) and the best diagonal q(z2 | x)."""
        below = nn.Linear(6, 2).double()
        below.weight.data, below.bias.data = self.fitted()
        precision = EYE + self.down.mT @ self.seen_above.inverse() @ self.down
        weight = precision.inverse() @ self.down.mT @ self.seen_above.inverse()
        estimates = [
            Affine(EYE, torch.zeros(2).double(), 1 / self.seen.diag()),
            Affine(weight, -weight @ self.a, 1 / precision.diag()),
        ]
        return Ladder(self.model, encoders=[below, nn.Identity()], estimates=estimates), precision

    def upward(self):
        """Return the guide from the data upward with the best diagonal q(z1 | x) and the exact q(z2 | z1)."""
        prior = (self.down @ self.down.mT + INNER * EYE).inverse()
        precision = prior + self.seen
        fitted, offset = self.fitted()
        weight = precision.inverse() @ self.seen @ fitted
        bias = precision.inverse() @ (prior @ self.a + self.seen @ offset)
        above = EYE + self.down.mT @ self.down / INNER
        slope = above.inverse() @ self.down.mT / INNER
        encoders = [Affine(weight, bias, 1 / precision.diag()), Affine(slope, -slope @ self.a, 1 / above.diag())]
        return bottom_up.Hierarchical(encoders=encoders), precision


ORTHOGONAL = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [1.0, 0.5], [0.5, -1.0], [0.0, 0.7], [0.5, 0.0]]).double()
SLANTED = torch.tensor([[1.0, 0.9], [-1.0, 0.2], [0.8, 1.0], [0.5, 0.5], [0.0, 0.7], [0.4, 0.0]]).double()
GENERAL = torch.tensor([[1.0, 0.7], [0.4, -0.8]]).double()


@pytest.fixture
def x():
    return torch.randn(7, 6, generator=torch.Generator().manual_seed(1)).double()


def exact_elbo(model, guide, x):
    """Return the ELBO of programs whose log-weights are quadratic in the guide's noise, ``(B,)``."""
    noise, values = sign_points(4).double().unsqueeze(1), {}
    noise = torch.cat([noise, -noise]).expand(-1, len(x), -1)
    order = list(pv.weigh(model, guide, x).values)
    for name, own in zip(order, noise.split(2, -1), strict=True):
        with Given(values):
            trace = pv.tracing.paired_traces(model, guide, (x,), len(noise))[1]
        normal = trace.nodes[name]["fn"].base_dist
        values[name] = normal.loc + normal.scale * own
    with Given(values):
        return pv.weigh(model, guide, x, particles=len(noise)).log_w.mean(0)


@pytest.mark.parametrize("make", [Linear.ladder, Linear.upward])
def test_guides_close_the_gap_where_every_posterior_is_diagonal(make, x):
    """Orthogonal columns: the layers' components do not explain each other away."""
    linear = Linear(torch.diag(torch.tensor([1.3, -0.6]).double()), ORTHOGONAL)
    guide, _ = make(linear)
    log_w = pv.weigh(linear.model, guide, x, particles=4).log_w
    torch.testing.assert_close(log_w, linear.log_px(x).expand(4, -1))


CASES = {
    "ladder": (Linear.ladder, GENERAL, ORTHOGONAL),
    "upward": (Linear.upward, 1.2 * ROTATION, SLANTED),
}


@pytest.mark.parametrize("case", CASES)
def test_gaps_are_those_of_one_diagonal_layer(case, x):
    """What is left is KL(q || p) of the layer that is not diagonal: (sum log Lambda_ii - log det Lambda) / 2."""
    make, down, out = CASES[case]
    linear = Linear(down, out)
    guide, precision = make(linear)
    gap = (precision.diag().log().sum() - precision.logdet()) / 2
    assert gap > 0.01
    torch.testing.assert_close(exact_elbo(linear.model, guide, x), linear.log_px(x) - gap)


def test_the_product_of_normals_is_their_density_up_to_a_factor():
    normals = [dist.Normal(torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.1).to_event(1) for _ in range(3)]
    z = torch.randn(8, 5, 3).double()
    left = sum(normal.log_prob(z) for normal in normals) - product(*normals).log_prob(z)
    torch.testing.assert_close(left, left[:1].expand_as(left))


LAYERED = {
    "ladder": lambda model: Ladder(model, **SMALL),
    "upward": lambda model: bottom_up.Hierarchical(**SMALL, layers=3),
}
BOUNDS = {
    "elbo": (pv.objectives.elbo, Trace_ELBO),
    "elbo_kl": (pv.objectives.elbo_kl, TraceMeanField_ELBO),
    "iwae": (pv.objectives.iwae, partial(RenyiELBO, alpha=0)),
}


def nonlinear(guide):
    model = Hierarchical(**SMALL, layers=3).double()
    return model, LAYERED[guide](model).double()


@pytest.mark.parametrize(("guide", "bound"), [("ladder", b) for b in BOUNDS] + [("upward", "elbo"), ("upward", "iwae")])
def test_bounds_are_pyros(guide, bound, x):
    (model, guide), x = nonlinear(guide), (x > 0).double()
    ours, theirs = BOUNDS[bound]
    torch.manual_seed(3)
    found = ours(pv.weigh(model, guide, x, particles=4, kl=bound == "elbo_kl")).sum()
    torch.manual_seed(3)
    wanted = theirs(num_particles=4, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, x)
    assert found.item() == pytest.approx(-wanted, rel=1e-12)


def test_weights_are_those_written_out(x):
    model, guide = nonlinear("ladder")
    x = (x > 0).double()
    drawn = pv.weigh(model, guide, x, particles=4)
    z3, z2, z1 = (drawn.values[name] for name in ("z3", "z2", "z1"))
    d1 = guide.encoders[0](x)
    d2 = guide.encoders[1](d1)
    q3 = guide.estimates[2](guide.encoders[2](d2))
    p2, p1 = model.conditionals[1](z3), model.conditionals[0](z2)
    q2, q1 = product(guide.estimates[1](d2), p2), product(guide.estimates[0](d1), p1)
    log_p = model.prior().log_prob(z3) + p2.log_prob(z2) + p1.log_prob(z1) + model.decoder(z1).log_prob(x)
    torch.testing.assert_close(drawn.log_w, log_p - q3.log_prob(z3) - q2.log_prob(z2) - q1.log_prob(z1))


def test_closed_form_divergences_are_the_means_of_their_estimates(x):
    model, guide = nonlinear("ladder")
    drawn = pv.weigh(model, guide, (x > 0).double(), particles=20000, kl=True)
    assert list(drawn.kl) == ["z3", "z2", "z1"]
    for name, divergence in drawn.kl.items():
        assert_mean((drawn.log_q[name] - drawn.log_p[name] - divergence).detach(), torch.zeros(len(x)).double())


def test_layers_drawn_upward_have_no_closed_form_divergence(x):
    model, guide = nonlinear("upward")
    with pytest.raises(pv.ContractError, match=r"draws 'z1', 'z2', 'z3', the model 'z3', 'z2', 'z1'.*train on elbo"):
        pv.weigh(model, guide, (x > 0).double(), kl=True)


@pytest.mark.parametrize("guide", LAYERED)
def test_bounds_rise_with_particles_to_the_exact_likelihood(guide, x):
    linear = Linear(GENERAL, SLANTED)
    guides = {"ladder": Ladder(linear.model, **SMALL), "upward": bottom_up.Hierarchical(**SMALL)}
    log_w = pv.weigh(linear.model, guides[guide].double(), x, particles=40000).log_w.detach()
    gaps = [linear.log_px(x).mean() - bound(log_w, k) for k in (1, 10, 100, 1000)]
    assert gaps == sorted(gaps, reverse=True)


def bound(log_w, particles):
    """Return the mean over groups, then data, of the importance-weighted bound."""
    grouped = log_w.unflatten(0, (-1, particles))
    return (grouped.logsumexp(1) - torch.tensor(particles).log()).mean()


@pytest.mark.parametrize("make", [Linear.ladder, Linear.upward])
def test_weights_average_to_the_exact_likelihood(make, x):
    linear = Linear(1.2 * ROTATION, SLANTED)
    guide, _ = make(linear)
    log_w = pv.weigh(linear.model, guide, x, particles=20000).log_w.detach()
    assert_mean((log_w - linear.log_px(x)).exp(), torch.ones(len(x)).double())


def test_one_layer_is_a_vae(x):
    model, guide = Hierarchical(**SMALL, layers=1).double(), bottom_up.Hierarchical(**SMALL, layers=1).double()
    vae, normal = VAE(**SMALL).double(), Normal(**SMALL).double()
    vae.load_state_dict(model.state_dict())
    normal.encoder.load_state_dict(guide.encoders[0].state_dict())
    log_w = []
    for pair in ((model, guide), (vae, normal)):
        torch.manual_seed(0)
        log_w.append(pv.weigh(*pair, (x > 0).double(), particles=3).log_w)
    assert torch.equal(*log_w)
    pv.check(model, Ladder(model, **SMALL).double(), (x > 0).double())


class Learned(nn.Module):
    """A prior with a mean."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


def test_layers_have_sizes_and_networks_of_their_own():
    images = torch.rand(3, 784).round()
    model = Hierarchical(
        prior=Learned(),
        conditionals=[nn.Sequential(nets.MLP(3, (8,), 10), nets.ToNormal())],
        decoder=nn.Sequential(nets.ConvDecoder(5, (28, 28), (4, 2)), nets.ToBernoulli()),
    )
    upward = bottom_up.Hierarchical(
        encoders=[
            nn.Sequential(nets.ConvEncoder((28, 28), 10, (2, 4)), nets.ToNormal()),
            nn.Sequential(nets.MLP(5, (8,), 6), nets.ToNormal()),
        ]
    )
    ladder = Ladder(
        model,
        encoders=[nn.Sequential(nets.ConvEncoder((28, 28), 8, (2, 4)), nn.ReLU()), nets.MLP(8, (), 7)],
        estimates=[nn.Sequential(nets.MLP(size, (), out), nets.ToNormal()) for size, out in ((8, 10), (7, 6))],
    )
    for guide in (upward, ladder):
        pv.check(model, guide, images)
        values = pv.weigh(model, guide, images, particles=2).values
        assert {name: tuple(value.shape) for name, value in values.items()} == {"z1": (2, 3, 5), "z2": (2, 3, 3)}


def test_a_ladder_owns_no_parameter_of_the_model_and_trains_it():
    model = Hierarchical(**SMALL)
    guide = Ladder(model, **SMALL)
    assert not {*model.parameters()} & {*guide.parameters()}
    before = model.conditionals[0][0][0].weight.clone()
    pv.fit(model, guide, torch.ones(20, 6), epochs=1)
    assert not torch.equal(before, model.conditionals[0][0][0].weight)


REFUSED = {
    "a model without layers": (lambda: Hierarchical(layers=0), ValueError, "layers: expected at least 1, found 0"),
    "a guide without layers": (lambda: bottom_up.Hierarchical(layers=0), ValueError, "layers: .* found 0"),
    "a ladder with too few encoders": (
        lambda: Ladder(Hierarchical(), encoders=[nn.Linear(784, 400)]),
        ValueError,
        r"encoders, estimates: 1 and 2 for \['z1', 'z2'\]",
    ),
    "a ladder on a VAE": (lambda: Ladder(VAE()), TypeError, "model: VAE has no conditional.*models.hierarchical"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_such_layers_is_refused(case):
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make()


def test_a_ladder_learns_digits():
    digits = pv.data.load("digits", binarize="static").train[:256]
    model = Hierarchical(x_dim=64, z_dim=4, hidden=(32,))
    guide = Ladder(model, x_dim=64, z_dim=4, hidden=(32,))
    fit = pv.fit(model, guide, digits, objective=pv.objectives.elbo_kl, epochs=8, batch_size=64, compile=False)
    assert fit.history["train_bound"][-1] > fit.history["train_bound"][0] + 3
