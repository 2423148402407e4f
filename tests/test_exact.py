"""Against closed forms: a linear-Gaussian model, whose likelihood and posterior are known."""

from functools import partial
from itertools import pairwise

import odds
import pytest
import torch
from scipy.stats import multivariate_normal

import ppl_vae as pv
from ppl_vae.estimation import weigh_for
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    with torch.no_grad():
        model.bias.normal_()
        model.log_scale.normal_(std=0.3)
    return model


def draw(model, n):
    return pv.sample(model, shape=(6,), n=n, seed=2)["x"]


@pytest.fixture(scope="module")
def learned():
    """A linear-Gaussian model with a guide that has learned its posterior."""
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    guide = Normal(x_dim=6, z_dim=2, hidden=(16,)).double()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    pv.fit(model, guide, draw(model, 2000), epochs=60, batch_size=100)
    return model, guide


def test_log_px_is_the_marginal_density(model):
    x = draw(model, 5)
    covariance = model.weight @ model.weight.mT + (2 * model.log_scale).exp().diag()
    exact = multivariate_normal(model.bias.detach().numpy(), covariance.detach().numpy()).logpdf(x.numpy())
    torch.testing.assert_close(model.log_px(x).detach(), torch.as_tensor(exact))


def test_posterior_obeys_bayes_rule(model):
    """log p(x, z) - log p(z | x) = log p(x) at any z, drawn here from the prior."""
    x = draw(model, 5)
    z = torch.randn(5, 2, dtype=torch.float64)
    joint = torch.distributions.Normal(0, 1).log_prob(z).sum(-1)
    loc = z @ model.weight.mT + model.bias
    joint = joint + torch.distributions.Normal(loc, model.log_scale.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(joint - model.posterior(x).log_prob(z), model.log_px(x))


@pytest.mark.parametrize("particles", [1, 2, 7, 1000])
@pytest.mark.parametrize("bound", pv.objectives.every().values(), ids=pv.objectives.every())
def test_with_the_exact_guide_every_bound_is_log_px(model, bound, particles):
    if particles < bound.facts.min_particles:
        pytest.skip("needs more particles")
    if bound.facts.kl:
        pytest.skip("its closed form stands where the draws of the weights would cancel")
    x = draw(model, 5)
    value = bound(weigh_for(bound, model, Exact(model), x, particles))
    torch.testing.assert_close(value, model.log_px(x), rtol=0, atol=1e-10)


def test_the_exact_guide_gives_the_gradient_of_log_px(model):
    """With every weight equal to p(x), the gradient is that of the marginal likelihood."""
    x = draw(model, 5)
    parameters = list(model.parameters())
    bound = pv.objectives.iwae(pv.weigh(model, Exact(model), x, particles=3)).sum()
    exact = torch.autograd.grad(model.log_px(x).sum(), parameters)
    for ours, wanted in zip(torch.autograd.grad(bound, parameters), exact, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.fixture(scope="module")
def evaluated(learned):
    """An evaluation of 200 data, and their exact log-likelihoods."""
    model, guide = learned
    x = draw(model, 200)
    return pv.evaluate(model, guide, x, particles=20_000), model.log_px(x)


def test_evaluate_agrees_with_log_px_on_200_data(evaluated):
    evaluation, exact = evaluated
    # The bias of L_K is half its variance: here below a thousandth of its error.
    assert evaluation.log_px_error.max() < 0.02
    odds.assert_agree(evaluation.log_px, evaluation.log_px_error, exact)


def test_evaluate_is_caught_when_it_is_off(evaluated):
    """The comparison above can fail: an estimate that forgets log K by a tenth does."""
    evaluation, exact = evaluated
    with pytest.raises(AssertionError, match="standard errors off"):
        odds.assert_agree(evaluation.log_px + 0.1, evaluation.log_px_error, exact)


def test_monte_carlo_error_is_the_spread_over_seeds(learned):
    model, guide = learned
    x = draw(model, 20).repeat(10, 1)  # copies, of which each draws its own
    runs = [pv.evaluate(model, guide, x, particles=500, seed=seed) for seed in range(6)]
    log_px = torch.cat([run.log_px for run in runs]).unflatten(0, (60, 20))
    stated = torch.cat([run.log_px_error for run in runs]).unflatten(0, (60, 20)).square().mean(0).sqrt()
    ratio = log_px.std(0) / stated
    # A standard deviation from 60 draws is known to 1 / sqrt(2 * 59) of itself.
    odds.assert_agree(ratio.mean(), torch.tensor((2 * 59 * 20) ** -0.5), torch.tensor(1.0))


def test_bounds_come_in_order():
    torch.manual_seed(0)
    model, guide = LinearGaussian(x_dim=6, z_dim=2).double(), Normal(x_dim=6, z_dim=2, hidden=(8,)).double()
    x = draw(model, 1).expand(4000, -1)  # one datum, many independent draws
    with torch.no_grad():
        drawn = pv.weigh(model, guide, x, particles=4)
    log_w = drawn.log_w
    bounds = [pv.objectives.iwae(pv.Particles(log_p={"w": log_w[:k]}, log_q={})) for k in (1, 2, 3, 4)]
    for smaller, larger in pairwise(bounds):
        odds.assert_at_most(smaller, larger)
    odds.assert_at_most(pv.objectives.elbo(drawn), bounds[-1])
    odds.assert_at_most(bounds[-1], model.log_px(x).detach())


def test_weights_are_unbiased_for_px():
    torch.manual_seed(0)
    model, guide = LinearGaussian(x_dim=6, z_dim=2).double(), Normal(x_dim=6, z_dim=2, hidden=(8,)).double()
    x = draw(model, 5)
    with torch.no_grad():
        log_w = pv.weigh(model, guide, x, particles=200_000).log_w
        odds.assert_mean((log_w - model.log_px(x)).exp(), torch.ones(5, dtype=torch.float64))


def test_a_linear_gaussian_model_trained_with_its_posterior_finds_the_data(model):
    """Maximum likelihood: the trained marginal fits the data at least as well as the one that made them."""
    x = draw(model, 2000)
    torch.manual_seed(1)
    student = LinearGaussian(x_dim=6, z_dim=2).double()
    adam = partial(torch.optim.Adam, lr=1e-2)
    pv.fit(student, Exact(student), x, epochs=25, batch_size=100, optimizer=adam)
    assert student.log_px(x).mean() > model.log_px(x).mean() - 0.02


def test_exact_refuses_a_model_without_a_closed_form():
    with pytest.raises(TypeError, match=r"model: VAE has no method posterior\(x\).*learned guide"):
        Exact(VAE())


def test_upper_bounds_are_what_their_docstrings_say():
    torch.manual_seed(0)
    model, guide = LinearGaussian(x_dim=6, z_dim=2).double(), Normal(x_dim=6, z_dim=2, hidden=(8,)).double()
    x = draw(model, 1).expand(20_000, -1)
    exact = model.log_px(x).detach()
    with torch.no_grad():
        one, few = (pv.weigh(model, guide, x, particles=k) for k in (1, 8))
        eubo, _ = pv.objectives.EUBO(Exact(model)).estimate(model, guide, x, particles=1)
    odds.assert_at_most(exact, eubo)  # from exact draws: above log p(x)
    odds.assert_at_most(pv.objectives.cubo(one), exact)  # one particle: the ELBO, not an upper bound
    odds.assert_at_most(pv.objectives.tvo(few), pv.objectives.iwae(few))
    odds.assert_at_most(pv.objectives.iwae(few), pv.objectives.tvo_upper(few))
