"""Missing pixels: against closed forms and enumeration, by every method; and what is refused."""

import importlib
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import odds
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from small import parameter
from torch import nn

import ppl_vae as pv
from ppl_vae import chains, contract
from ppl_vae.guides.bernoulli import Bernoulli
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.imputing import gibbs, pseudo_gibbs, resampled
from ppl_vae.missing import Conditional
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
from ppl_vae.models.vae import VAE
from ppl_vae.programs import own_parameters

DOUBLE = torch.float64
OBSERVED = torch.tensor([True, False, True, False, True])
# A ratio of means is biased by 1 / K, which has to be little beside the errors of the rows' mean.
EXACT_METHODS = {
    "resampled": partial(resampled, particles=6000, chunk=500),
    "by the guide alone": partial(resampled, particles=6000, chunk=500, defensive=0.0),
    "by the prior alone": partial(resampled, particles=6000, chunk=500, defensive=1.0),
    "gibbs": partial(gibbs, steps=200, warm_up=5),
}


# For what does not depend on their length.
SHORT = {
    "resampled": partial(resampled, particles=60),
    "gibbs": partial(gibbs, steps=10, warm_up=3),
    "pseudo_gibbs": partial(pseudo_gibbs, steps=10),
}


def linear_gaussian():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=5, z_dim=2).double()
    model.bias.data.normal_()
    model.log_scale.data.normal_(-0.7, 0.3)
    return model


class Off(nn.Module):
    """The exact guide, shrunk towards the prior's mean and widened: wrong, with the right support."""

    def __init__(self, model):
        super().__init__()
        self.posterior = model.posterior

    def forward(self, x):
        exact = self.posterior(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.MultivariateNormal(0.8 * exact.loc, 3 * exact.covariance_matrix))


def given_pixels(mean, covariance, x, observed):
    """Mean and covariance of a normal vector's other entries, given some."""
    m, o = ~observed, observed
    gain = torch.linalg.solve(covariance[o][:, o], covariance[o][:, m]).mT
    return mean[m] + gain @ (x[o] - mean[o]), covariance[m][:, m] - gain @ covariance[o][:, m]


def marginal(model):
    """Mean and covariance of x."""
    return model.bias.detach(), (model.weight @ model.weight.mT + (2 * model.log_scale).exp().diag()).detach()


def assert_moments(draws, mean, covariance):
    odds.assert_mean(draws, mean)
    centred = draws - mean
    odds.assert_mean((centred.unsqueeze(-1) * centred.unsqueeze(-2)).flatten(1), covariance.flatten())


@pytest.mark.parametrize("name", EXACT_METHODS)
def test_draws_from_a_linear_gaussian_model_have_the_exact_moments(name):
    model = linear_gaussian()
    x = pv.sample(model, shape=(5,), n=1)["x"]
    mean, covariance = given_pixels(*marginal(model), x[0], OBSERVED)
    rows = x.expand(200, -1)
    found = pv.impute(model, Off(model), rows, OBSERVED, method=EXACT_METHODS[name], draws=1, batch_size=200)
    assert_moments(found.draws[0, :, ~OBSERVED], mean, covariance)
    odds.assert_mean(found.mean[:, ~OBSERVED], mean)
    assert torch.equal(found.draws[0, :, OBSERVED], rows[:, OBSERVED])
    assert torch.equal(found.mean[:, OBSERVED], rows[:, OBSERVED])


def test_the_likelihood_of_the_observed_pixels_is_unbiased():
    model = linear_gaussian()
    x = pv.sample(model, shape=(5,), n=1)["x"]
    mean, covariance = marginal(model)
    among = dist.MultivariateNormal(mean[OBSERVED], covariance[OBSERVED][:, OBSERVED])
    for defensive in (0.0, 0.1, 1.0):
        method = partial(resampled, particles=50, defensive=defensive)
        found = pv.impute(model, Off(model), x.expand(500, -1), OBSERVED, method=method, batch_size=500)
        odds.assert_mean(
            (found.log_px - among.log_prob(x[:, OBSERVED])).exp().unsqueeze(-1), torch.ones(1, dtype=DOUBLE)
        )


def test_pseudo_gibbs_is_exact_with_the_exact_guide_alone():
    model = linear_gaussian()
    x = pv.sample(model, shape=(5,), n=1)["x"]
    moments = given_pixels(*marginal(model), x[0], OBSERVED)
    for guide, right in ((Exact(model), True), (Off(model), False)):
        method = partial(pseudo_gibbs, steps=30)
        found = pv.impute(model, guide, x.expand(1500, -1), OBSERVED, method=method, draws=1, batch_size=1500)
        if right:
            assert_moments(found.draws[0, :, ~OBSERVED], *moments)
        else:
            with pytest.raises(AssertionError, match="standard errors off"):
                assert_moments(found.draws[0, :, ~OBSERVED], *moments)


def test_a_metropolis_move_leaves_the_joint_conditional_as_it_is():
    """From exact draws of z and x_missing to exact draws, however few moves."""
    model = linear_gaussian()
    x = pv.sample(model, shape=(5,), n=1)["x"].expand(4000, -1)
    mean, covariance = given_pixels(*marginal(model), x[0], OBSERVED)
    torch.manual_seed(1)
    filled = x.clone()
    filled[:, ~OBSERVED] = dist.MultivariateNormal(mean, covariance).sample((4000,))
    observed = OBSERVED.expand(x.shape)
    conditional = Conditional(model, Off(model), (x,), observed, "x", x)
    with torch.no_grad():
        z = model.posterior(filled).sample()
        state = chains._State(filled, {"z": z.unsqueeze(0)}, None, torch.ones(4000, dtype=torch.bool))
        for _ in range(2):
            state = chains._metropolis(conditional, state)
        assert 0.2 < state.accepted.double().mean() < 0.95
    assert_moments(state.x[:, ~OBSERVED], mean, covariance)
    # z and x_missing jointly: standardised by p(z | x), z is white and uncorrelated with x.
    posterior = model.posterior(state.x)
    white = torch.linalg.solve_triangular(
        posterior.scale_tril.detach(), (state.latents["z"][0] - posterior.loc.detach()).unsqueeze(-1), upper=False
    ).squeeze(-1)
    assert_moments(white, torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE))
    cross = white.unsqueeze(-1) * (state.x[:, ~OBSERVED] - mean).unsqueeze(-2)
    odds.assert_mean(cross.flatten(1), torch.zeros(4, dtype=DOUBLE))


def all_bits(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=DOUBLE)


def belief_network(layers):
    torch.manual_seed(0)
    model = SigmoidBeliefNetwork(x_dim=4, z_dim=2, layers=layers).double()
    for p in model.parameters():
        p.data.normal_(0, 1.5)
    return model, Bernoulli(x_dim=4, z_dim=2, layers=layers).double()


def joint_of_pixels(model, layers):
    """Log p(x) of all sixteen images, by summing over every state of the latents."""
    x, z = all_bits(4), all_bits(2 * layers)
    latents = {"z": z} if layers == 1 else {f"z{i + 1}": z[:, 2 * i : 2 * i + 2] for i in range(layers)}
    total = []
    for image in x:
        with own_parameters():
            program = poutine.condition(model, data=latents)
            trace = poutine.trace(program).get_trace(image.expand(len(z), -1))
        total.append(sum(s["fn"].log_prob(s["value"]) for _, s in contract.sample_sites(trace)).logsumexp(0))
    return torch.stack(total).detach()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["resampled", "gibbs"])
def test_draws_from_a_belief_network_follow_the_enumerated_probabilities(name, layers):
    model, guide = belief_network(layers)
    observed = torch.tensor([True, False, True, False])
    images, log_px = all_bits(4), joint_of_pixels(model, layers)
    x = torch.tensor([1.0, 0, 0, 0], dtype=DOUBLE)
    agreeing = (images[:, observed] == x[observed]).all(1)
    exact = log_px[agreeing].softmax(0)
    method = {"resampled": partial(resampled, particles=500), "gibbs": partial(gibbs, steps=100)}[name]
    found = pv.impute(model, guide, x.expand(1000, -1), observed, method=method, draws=1, batch_size=1000)
    hits = (found.draws[0].unsqueeze(1) == images[agreeing]).all(-1).double()
    odds.assert_mean(hits, exact)
    mean = exact @ images[agreeing]
    odds.assert_mean(found.mean[:, ~observed], mean[~observed])
    if found.log_px is not None:
        ratio = (found.log_px - log_px[agreeing].logsumexp(0)).exp()
        odds.assert_mean(ratio.unsqueeze(-1), torch.ones(1, dtype=DOUBLE))


class Components(nn.Module):
    """y -> z -> x, all that is given y being linear and normal."""

    def __init__(self, infer):
        super().__init__()
        self.infer = infer
        self.logits, self.log_scale = parameter(0.3, -0.2, 0.1), parameter(-0.5)
        self.loc = nn.Parameter(torch.tensor([[-2.0, 0.5], [0.3, 1.5], [1.8, -1.0]], dtype=DOUBLE))
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.2], [-0.5, 0.8], [0.7, 0.7]], dtype=DOUBLE))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=self.infer)
            z = pyro.sample("z", dist.Normal(self.loc[y], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.mT, self.log_scale.exp()).to_event(1), obs=x)

    def given_pixels(self, x, observed):
        """Mean and covariance of the missing pixels, given some."""
        covariance = (self.weight @ self.weight.mT + (2 * self.log_scale).exp() * torch.eye(3)).detach()
        means = (self.loc @ self.weight.mT).detach()
        among = dist.MultivariateNormal(means[:, observed], covariance[observed][:, observed])
        share = (self.logits.log_softmax(-1) + among.log_prob(x[observed])).softmax(-1).detach()
        parts = [given_pixels(mean, covariance, x, observed) for mean in means]
        mean = share @ torch.stack([m for m, _ in parts])
        spread = [c + torch.outer(m - mean, m - mean) for m, c in parts]
        return mean, sum(s * c for s, c in zip(share, spread, strict=True))


class ComponentsGuide(nn.Module):
    def __init__(self, infer=None, label=True):
        super().__init__()
        self.infer, self.label = infer or {}, label
        self.slope = nn.Parameter(torch.tensor([[0.5, -0.1], [-0.2, 0.4], [0.2, 0.3]], dtype=DOUBLE))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            if self.label:
                pyro.sample("y", dist.Categorical(logits=0.5 * x), infer=self.infer)
            pyro.sample("z", dist.Normal(x @ self.slope, 1.2).to_event(1))


MARK = {"enumerate": "parallel"}
COMPONENTS = {
    "drawn": (Components({}), ComponentsGuide()),
    "summed out": (Components(MARK), ComponentsGuide(label=False)),
    "enumerated by the guide": (Components({}), ComponentsGuide(MARK)),
    "marked in the model, drawn by the guide": (Components(MARK), ComponentsGuide()),
}


@pytest.mark.parametrize("how", COMPONENTS)
@pytest.mark.parametrize("name", ["resampled", "gibbs"])
def test_discrete_latents_are_drawn_or_summed_out_alike(how, name):
    model, guide = COMPONENTS[how]
    observed, x = torch.tensor([True, False, False]), torch.tensor([0.4, 0.0, 0.0], dtype=DOUBLE)
    method = {"resampled": partial(resampled, particles=2000, chunk=200), "gibbs": partial(gibbs, steps=80)}[name]
    found = pv.impute(model, guide, x.expand(300, -1), observed, method=method, draws=1, batch_size=300)
    mean, covariance = model.given_pixels(x, observed)
    assert_moments(found.draws[0, :, ~observed], mean, covariance)
    odds.assert_mean(found.mean[:, ~observed], mean)


def mixture(x):
    """No latent but a component that is summed out."""
    loc = torch.tensor([[-2.0, -1.0], [1.0, 3.0]], dtype=DOUBLE)
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Categorical(logits=torch.tensor([1.0, 0.0], dtype=DOUBLE)), infer=MARK)
        pyro.sample("x", dist.Normal(loc[y], 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("method", [resampled, partial(gibbs, steps=10)], ids=["resampled", "gibbs"])
def test_a_guide_with_nothing_to_draw(method):
    x, observed = torch.tensor([0.2, torch.nan], dtype=DOUBLE), torch.tensor([True, False])
    found = pv.impute(mixture, lambda x: None, x.expand(200, -1), observed, method=method, draws=5)
    share = torch.sigmoid(-1 - 0.5 * torch.tensor(0.2 - 1.0) ** 2 + 0.5 * torch.tensor(0.2 + 2.0) ** 2)
    assert found.draws.shape == (5, 200, 2)
    odds.assert_mean(found.draws[:, :, 1].reshape(-1, 1), (4 * share - 1).double().unsqueeze(-1))


@pytest.mark.parametrize("method", [resampled, gibbs, pseudo_gibbs])
def test_without_an_observed_pixel_draws_are_the_models(method):
    model = linear_gaussian()
    guide = Exact(model) if method is pseudo_gibbs else Off(model)
    x = torch.full((400, 5), torch.nan, dtype=DOUBLE)
    found = pv.impute(model, guide, x, x.isfinite(), method=method, draws=1, batch_size=400)
    assert_moments(found.draws[0], *marginal(model))


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_with_every_pixel_observed_x_comes_back(method):
    pair = pairs.make("vae", "normal")
    x = pair.data()
    found = pv.impute(pair.model, pair.guide, x, torch.ones(6, dtype=torch.bool), method=method)
    assert torch.equal(found.mean, x)
    assert torch.equal(found.draws, x.expand(10, 5, 6))


HALF = torch.arange(6) < 3


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_the_seed_alone_decides_and_nothing_else_changes(method):
    model, guide = VAE(6, 2, (8,)), Normal(6, 2, (8,))
    model.decoder = nn.Sequential(nn.Dropout(0.5), model.decoder)
    x = torch.randint(0, 2, (5, 6)).float()
    before = {name: t.clone() for name, t in pv.programs.Programs(model, guide).tensors().items()}
    state, kept = torch.get_rng_state(), x.clone()
    runs = [pv.impute(model, guide, x, HALF, method=method, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].draws, runs[1].draws)
    assert torch.equal(runs[0].mean, runs[1].mean)
    assert not torch.equal(runs[0].mean, runs[2].mean)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert torch.equal(x, kept)
    assert not runs[0].mean.requires_grad
    for name, tensor in pv.programs.Programs(model, guide).tensors().items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_what_stands_in_a_missing_pixel_is_never_read(method):
    pair = pairs.make("vae", "normal")
    x = pair.data()
    runs = [pv.impute(pair.model, pair.guide, x.masked_fill(~HALF, v), HALF, method=method) for v in (0.0, torch.nan)]
    assert torch.equal(runs[0].draws, runs[1].draws)
    assert torch.equal(runs[0].mean, runs[1].mean)
    assert set(runs[0].draws.unique().tolist()) <= {0.0, 1.0}
    assert ((runs[0].mean >= 0) & (runs[0].mean <= 1)).all()


def test_batches_and_chunks_change_the_draws_alone():
    model = linear_gaussian()
    x = pv.sample(model, shape=(5,), n=7)["x"]
    many = partial(resampled, particles=20_000, chunk=7000)
    runs = [
        pv.impute(model, Off(model), x, OBSERVED, method=method, batch_size=size)
        for method, size in ((many, 100), (partial(many, chunk=999), 3))
    ]
    assert [run.draws.shape for run in runs] == [(10, 7, 5), (10, 7, 5)]
    assert len(runs[1].ess) == len(runs[1].observed) == len(runs[1]) == 7
    torch.testing.assert_close(runs[0].mean, runs[1].mean, atol=0.2, rtol=0)
    exact = torch.stack([given_pixels(*marginal(model), row, OBSERVED)[0] for row in x])
    torch.testing.assert_close(runs[1].mean[:, ~OBSERVED], exact, atol=0.2, rtol=0)


def test_particles_are_those_asked_for():
    for particles, chunk in ((10, 3), (1, 50), (37, 50)):
        drawn = []
        model, guide = VAE(6, 2, (8,)), Normal(6, 2, (8,))
        model.decoder.register_forward_hook(lambda module, inputs, output, drawn=drawn: drawn.append(inputs[0].shape))
        method = partial(resampled, particles=particles, chunk=chunk)
        found = pv.impute(model, guide, torch.ones(4, 6), HALF, method=method, draws=2)
        assert found.ess.max() <= particles
        assert max(shape[0] for shape in drawn if len(shape) == 3) <= max(chunk, 2)


class Images(nn.Module):
    """Pictures with channels, handed to the likelihood in another shape."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(pv.nets.MLP(2, (8,), 16), pv.nets.ToNormalOneScale())

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x.flatten(1))


class ImagesGuide(Normal):
    def forward(self, x):
        super().forward(x.flatten(1))


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_images_keep_their_shape(method):
    x, observed = torch.randn(3, 1, 4, 4), torch.rand(3, 1, 4, 4) < 0.5
    found = pv.impute(Images(), ImagesGuide(16, 2, (8,)), x, observed, method=method, draws=4)
    assert found.draws.shape == (4, 3, 1, 4, 4)
    assert torch.equal(found.mean[observed], x[observed])
    assert torch.equal(found.draws[:, observed], x[observed].expand(4, -1))
    assert found.draws[:, ~observed].std() > 0


def levels(x):
    """Grey levels as classes."""
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Categorical(logits=z.unsqueeze(-1) * torch.ones(6, 4)).to_event(1), obs=x)


def level_guide(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x.float().mean(-1, keepdim=True), 1.0).to_event(1))


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_a_likelihood_without_a_mean_gives_draws_alone(method):
    x = torch.randint(0, 4, (3, 6))
    found = pv.impute(levels, level_guide, x, HALF, method=method)
    assert found.mean is None
    assert found.draws.dtype == x.dtype
    assert set(found.draws.unique().tolist()) <= {0, 1, 2, 3}


def labelled(x, y):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("y", dist.Bernoulli(0.5), obs=y)
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(10 * y.unsqueeze(-1) + z, 1.0).to_event(1), obs=x)


def labelled_guide(x, y):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(0.5 * (x - 10 * y.unsqueeze(-1)), 0.5**0.5).to_event(1))


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
def test_labels_are_passed_on(method):
    batch = (torch.zeros(4, 2), torch.tensor([0.0, 1, 0, 1]))
    observed = torch.zeros(4, 2, dtype=torch.bool)
    found = pv.impute(labelled, labelled_guide, batch, observed, method=method, batch_size=3)
    assert (found.draws.mean((0, 2)) > 5).tolist() == [False, True, False, True]


def masked(x, present):
    """A likelihood with a mask of its own, outside the event's own masks."""
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with poutine.mask(mask=present):
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)


def masked_guide(x, present):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))


def test_a_models_own_mask_counts_too():
    batch = (torch.full((2, 2), 2.0), torch.tensor([True, False]))
    observed = torch.tensor([True, False])
    found = pv.impute(masked, masked_guide, batch, observed, method=partial(resampled, particles=2000, defensive=0.0))
    # The first datum's weights follow its one pixel; the second's are all alike.
    assert found.ess[0] < 1000
    torch.testing.assert_close(found.ess[1], torch.tensor(2000.0, dtype=DOUBLE))


def test_the_initial_values_are_what_the_guide_sees():
    seen = []

    class Seeing(Normal):
        def forward(self, x):
            seen.append(x)
            super().forward(x)

    model, guide, x = VAE(6, 2, (8,)), Seeing(6, 2, (8,)), torch.ones(3, 6)
    initial = torch.full((6,), 0.25)
    pv.impute(model, guide, x, HALF, initial=initial)
    assert torch.equal(seen[-1], torch.where(HALF, x, initial))
    seen.clear()
    pv.impute(model, guide, x, HALF)
    means = pv.decode(model, pv.sample(model, shape=(6,), n=4000), shape=(6,))["x"].mean(0)
    torch.testing.assert_close(seen[-1][0, ~HALF], means[~HALF], atol=0.05, rtol=0)


def autoregressive(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        shifted = nn.functional.pad(x, (1, -1))
        pyro.sample("x", dist.Bernoulli(logits=shifted + z[..., :1]).to_event(1), obs=x)


def of(likelihood):
    """Return a model with this distribution of x."""

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            likelihood(x, z)

    return model


def joint(x, z):
    pyro.sample("x", dist.MultivariateNormal(z[..., :1].expand(*z.shape[:-1], 6), torch.eye(6)), obs=x)


def doubled(x, z):
    pyro.sample("x", dist.Normal(z[..., :1] + torch.zeros(6), 1.0).to_event(1), obs=2 * x)


def twice(x, z):
    for name in ("a", "b"):
        pyro.sample(name, dist.Normal(z[..., :1] + torch.zeros(6), 1.0).to_event(1), obs=x)


class Auxiliary(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u, event_dim=1))


REFUSED = {
    "a likelihood that reads x": (autoregressive, "site 'x': its distribution reads x"),
    "pixels that depend on each other": (of(joint), "site 'x': a MultivariateNormal with event shape"),
    "something made from x": (of(doubled), "'x' observe something else"),
    "x twice": (of(twice), "'a', 'b' observe it"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_models_that_cannot_be_imputed_are_refused_by_name(what):
    model, message = REFUSED[what]
    with pytest.raises(pv.ContractError, match=message):
        pv.impute(model, Normal(6, 2, (8,)), torch.ones(3, 6), HALF)


def test_a_guide_that_cannot_score_the_priors_draws_is_refused_with_the_repair():
    model, x = VAE(6, 2, (8,)), torch.ones(3, 6)
    with pytest.raises(pv.ContractError, match=r"site 'z': the guide draws|site 'u': the guide draws it.*defensive=0"):
        pv.impute(model, Auxiliary(), x, HALF)
    for method in (partial(resampled, particles=20, defensive=0.0), SHORT["pseudo_gibbs"]):
        assert pv.impute(model, Auxiliary(), x, HALF, method=method).draws.shape == (10, 3, 6)


class NoInverse(dist.transforms.Permute):
    def _inverse(self, y):
        raise KeyError("no inverse")


class OneWay(nn.Module):
    """A flow that scores its own draws only."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            base = dist.Normal(torch.zeros(x.shape[0], 2), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [NoInverse(torch.tensor([1, 0]), cache_size=1)]))


@pytest.mark.parametrize("method", list(SHORT.values())[:2], ids=list(SHORT)[:2])
def test_a_flow_without_inverse_is_refused_with_the_repair(method):
    with pytest.raises(pv.ContractError, match="guide: it cannot score values that it has not drawn itself"):
        pv.impute(VAE(6, 2, (8,)), OneWay(), torch.ones(3, 6), HALF, method=method)


def test_a_flow_without_inverse_may_draw_alone():
    for method in (partial(resampled, particles=20, defensive=0.0), SHORT["pseudo_gibbs"]):
        assert pv.impute(VAE(6, 2, (8,)), OneWay(), torch.ones(3, 6), HALF, method=method).mean.shape == (3, 6)


BAD = {
    "a mask of numbers": ({"observed": torch.ones(6)}, TypeError, "observed: expected a boolean tensor.*float32"),
    "a list": ({"observed": [True] * 6}, TypeError, "observed: expected a boolean tensor.*found list"),
    "a mask of another shape": ({"observed": HALF[:5]}, ValueError, r"observed: shape \(5,\) is not that of x"),
    "no draws": ({"draws": 0}, ValueError, "draws: expected a whole number"),
    "a name": ({"method": "gibbs"}, TypeError, "method: expected a function.*found 'gibbs'"),
    "particles": ({"method": partial(resampled, particles=0)}, ValueError, "particles: expected a whole number"),
    "a share": ({"method": partial(resampled, defensive=2)}, ValueError, "defensive: expected a share.*found 2"),
    "steps": ({"method": partial(gibbs, warm_up=0)}, ValueError, "warm_up: expected a whole number"),
    "initial values of another shape": ({"initial": torch.zeros(5)}, ValueError, r"initial: shape \(5,\)"),
    "initial values that are none": ({"initial": torch.nan}, ValueError, "initial: expected finite"),
    "an observed NaN": ({"x": torch.full((3, 6), torch.nan)}, ValueError, "x: 3 data have NaN.*the first is datum 0"),
    "data outside the support": ({"x": torch.full((3, 6), 0.5)}, pv.ContractError, "site 'x': data from"),
    "a method that gives something else": ({"method": lambda *_: None}, TypeError, "method: expected an Imputation"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_named(what):
    given, kind, message = BAD[what]
    arguments = {"x": torch.ones(3, 6), "observed": HALF} | given
    with pytest.raises(kind, match=message):
        pv.impute(VAE(6, 2, (8,)), Normal(6, 2, (8,)), **arguments)


def test_data_outside_the_support_are_found_in_any_batch():
    x = torch.ones(5, 6)
    x[4, 0] = 0.5
    with pytest.raises(pv.ContractError, match="site 'x': data from"):
        pv.impute(VAE(6, 2, (8,)), Normal(6, 2, (8,)), x, HALF, batch_size=2)


def test_impossible_pixels_are_named():
    def without_a_first_pixel(x, z):
        pyro.sample("x", dist.Bernoulli(torch.full((6,), 0.5)).to_event(1), obs=x)
        pyro.factor("never", torch.where(x[:, 0] == 1, -torch.inf, 0.0))

    x = torch.zeros(5, 6)
    x[3, 0] = 1
    with pytest.raises(FloatingPointError, match="observed pixels of datum 3 are impossible"):
        pv.impute(of(without_a_first_pixel), Normal(6, 2, (8,)), x, HALF, batch_size=2)


@pytest.mark.parametrize("method", list(SHORT.values())[:2], ids=list(SHORT)[:2])
def test_nan_densities_are_named(method):
    def bent(x, z):
        pyro.sample("x", dist.Normal(torch.zeros(6), (20 - z[..., :1]).sqrt()).to_event(1), obs=x)

    def far(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(100 * x[:, :2], 1.0).to_event(1))

    x = torch.zeros(5, 6)
    x[3, 0] = 2
    with pytest.raises(FloatingPointError, match="site 'x': log density is NaN for datum 3"):
        pv.impute(of(bent), far, x, HALF, method=method, batch_size=3)


def test_a_method_of_ones_own():
    def centre(conditional, draws, track):
        mean = conditional.filled(conditional.initial)
        return pv.imputing.Imputation(mean.expand(draws, *mean.shape), mean, conditional.observed, "the initial values")

    found = pv.impute(VAE(6, 2, (8,)), Normal(6, 2, (8,)), torch.ones(3, 6), HALF, method=centre, initial=0.5)
    assert found.mean[0].tolist() == [1, 1, 1, 0.5, 0.5, 0.5]
    assert str(found) == "Imputed 9 of 18 pixels (50.0%) of 3 data by the initial values; 10 draws each"


def test_reports_are_sentences():
    arguments = (VAE(6, 2, (8,)), Normal(6, 2, (8,)), torch.ones(3, 6), HALF)
    assert "K = 1,000; 10 draws each; effective sample size: median" in str(pv.impute(*arguments))
    report = str(pv.impute(*arguments, method=SHORT["gibbs"], draws=1))
    assert "Metropolis-within-Gibbs sampling, 10 steps; 1 draw each; accepted proposals: median" in report
    assert "accepted" not in str(pv.impute(*arguments, method=SHORT["pseudo_gibbs"]))


def test_long_runs_show_how_far_they_have_come(capfd):
    pv.impute(VAE(6, 2, (8,)), Normal(6, 2, (8,)), torch.ones(3, 6), HALF, progress=True, batch_size=2)
    shown = capfd.readouterr().err
    assert "Imputing from datum 0" in shown
    assert "Imputing from datum 2" in shown
    assert "100%" in shown


def test_the_benchmark_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    benchmark = importlib.import_module("benchmarks.imputation")
    monkeypatch.setattr(benchmark.commands, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["imputation", "--quick"])
    benchmark.main()
    shown = capsys.readouterr().out
    for task in ("inpainting", "denoising"):
        rows = json.loads((tmp_path / f"{task}.json").read_text())["rows"]
        assert [row["method"] for row in rows] == ["mean image", *benchmark.methods(1)]
        assert all(row["nats a pixel"] > 0 and 0 <= row["right"] <= 1 for row in rows)
        assert (tmp_path / f"{task}.png").read_bytes().startswith(b"\x89PNG")
    assert "Metropolis-within-Gibbs sampling, 10 steps" in shown


def test_the_benchmarks_error_is_the_log_loss_of_the_missing_pixels(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    error = importlib.import_module("benchmarks.imputation").error
    mean, x = torch.tensor([[0.9, 0.2, 0.4]]), torch.tensor([[1.0, 0.0, 1.0]])
    found = error(mean, x, torch.tensor([[True, False, True]]))
    assert found["nats a pixel"] == pytest.approx(-0.5 * (torch.tensor(0.9).log() + torch.tensor(0.4).log()).item())
    assert found["right"] == 0.5
