"""Draws from the model, reconstructions, and what refuses to be drawn from."""

import odds
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.guides.exact import Exact
from ppl_vae.models.linear_gaussian import LinearGaussian


def test_draws_have_the_models_moments():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=4, z_dim=2).double()
    model.bias.data.normal_()
    draws = pv.sample(model, shape=(4,), n=20_000)
    odds.assert_mean(draws["z"], torch.zeros(2).double())
    odds.assert_mean(draws["x"], model.bias.detach())
    second = (model.weight @ model.weight.mT + (2 * model.log_scale).exp().diag()).detach()
    centred = draws["x"] - model.bias.detach()
    odds.assert_mean((centred.unsqueeze(-1) * centred.unsqueeze(-2)).flatten(1), second.flatten())


def test_draws_depend_on_the_seed_alone():
    pair = pairs.make("vae", "normal")
    x, state = pair.data(), torch.get_rng_state()
    draws = [pv.sample(pair.model, like=x, n=5, seed=seed)["x"] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(pv.sample(pair.model, shape=(6,), n=5)["x"], draws[0])
    assert torch.equal(torch.get_rng_state(), state)


def autoregressive(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        shifted = torch.nn.functional.pad(x, (1, -1))
        pyro.sample("x", dist.Bernoulli(logits=shifted + z[..., :1]).to_event(1), obs=x)


def test_a_likelihood_that_reads_x_is_refused():
    with pytest.raises(pv.ContractError, match="site 'x': its distribution reads x"):
        pv.sample(autoregressive, shape=(6,), n=1)


def test_a_guide_that_does_not_fit_reconstructs_nothing():
    pair = pairs.make("vae", "normal")
    with pytest.raises(pv.ContractError, match="the guide never samples it"):
        pv.reconstruct(pair.model, lambda x: None, pair.data())
    with pytest.raises(ValueError, match="particles: expected a whole number"):
        pv.reconstruct(pair.model, pair.guide, pair.data(), particles=0)


def test_draws_and_reconstructions_are_made_in_evaluation_mode():
    model, guide = pairs.digits_vae()
    model.decoder = torch.nn.Sequential(torch.nn.Dropout(0.5), model.decoder)
    x = pv.data.load("digits", binarize="static").test[:5]
    assert torch.equal(pv.reconstruct(model, guide, x)["x"], pv.reconstruct(model.eval(), guide, x)["x"])
    model.train()
    draws = pv.sample(model, like=x, n=5)
    assert torch.equal(pv.decode(model, draws, like=x)["x"], model.eval().decoder(draws["z"]).mean)


def labelled(x, y):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(y.unsqueeze(-1) + 0 * z, 1e-3).to_event(1), obs=x)


def test_labels_are_passed_on():
    y = torch.arange(3.0)
    draws = pv.sample(labelled, like=(torch.zeros(3, 2), y), n=5)
    torch.testing.assert_close(draws["x"][:, 0], torch.tensor([0.0, 1, 2, 0, 1]), atol=0.02, rtol=0)


@pytest.mark.parametrize("given", [{}, {"like": torch.zeros(2, 6), "shape": (6,)}], ids=["neither", "both"])
def test_the_form_of_x_is_given_once(given):
    with pytest.raises(ValueError, match="like, shape: give exactly one"):
        pv.sample(pairs.make("vae", "normal").model, **given)


def test_reconstruction_is_the_posterior_predictive_mean():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=4, z_dim=2).double()
    x = pv.sample(model, shape=(4,), n=3)["x"]
    exact = (model.posterior(x).mean @ model.weight.mT + model.bias).detach()
    mean = pv.reconstruct(model, Exact(model), x, particles=40_000)["x"]
    torch.testing.assert_close(mean, exact, atol=0.05, rtol=0)


def test_decode_is_the_mean_of_the_likelihood_given_latents():
    model = pairs.make("vae", "normal").model
    draws = pv.sample(model, shape=(6,), n=4)
    means = pv.decode(model, draws, shape=(6,))
    assert means.keys() == {"x"}
    torch.testing.assert_close(means["x"], model.decoder(draws["z"]).mean.detach())
    with pytest.raises(ValueError, match="latents: z missing; found zz"):
        pv.decode(model, {"zz": draws["z"]}, shape=(6,))
    with pytest.raises(ValueError, match="latents: expected a dict"):
        pv.decode(model, {}, shape=(6,))


def semi_supervised(x, y):
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Categorical(logits=torch.zeros(3)), obs=y)
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(y.unsqueeze(-1) + z, 1.0).to_event(1), obs=x)


def test_decode_holds_observed_labels_to_the_draws():
    batch = (torch.zeros(5, 1), torch.zeros(5, dtype=torch.long))
    draws = pv.sample(semi_supervised, like=batch, n=5)
    assert draws["y"].any()
    means = pv.decode(semi_supervised, draws, like=batch)
    assert means.keys() == {"x"}  # a Categorical has no mean
    torch.testing.assert_close(means["x"], draws["y"].unsqueeze(-1) + draws["z"])
