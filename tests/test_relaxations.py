"""The Gumbel-max law, conditional noise, and what a relaxation's temperature trades."""

import odds
import pytest
import torch
from test_estimators import exact_discrete, gradients
from torch.distributions import Bernoulli, OneHotCategorical

from ppl_vae import objectives
from ppl_vae.objectives.relaxations import variable

DOUBLE = torch.float64
ROWS = 200_000
SITES = {
    "bernoulli": lambda: Bernoulli(logits=torch.tensor([-1.3, 0.2, 2.0], dtype=DOUBLE).expand(ROWS, 3)),
    "one-hot": lambda: OneHotCategorical(logits=torch.tensor([-1.3, 0.2, 2.0, 0.0], dtype=DOUBLE).expand(ROWS, 4)),
}


@pytest.fixture(params=SITES)
def site(request):
    torch.manual_seed(0)
    fn = SITES[request.param]()
    return fn, variable("z", fn)


def test_the_decision_of_noise_has_exactly_the_sites_law(site):
    """Arg-max of Gumbel noise on logits is categorical; the sign of logistic noise is Bernoulli."""
    fn, drawn = site
    odds.assert_mean(drawn.hard(drawn.latent(drawn.noise())), fn.probs[0])


def test_conditional_noise_decides_for_its_value_and_has_the_law_of_all_noise(site):
    fn, drawn = site
    value = fn.sample()
    held = drawn.conditional(value, drawn.noise())
    assert torch.equal(drawn.hard(held), value)
    free = drawn.latent(drawn.noise())
    for moment in (lambda z: z, lambda z: z.square(), lambda z: (z > 1).double()):
        gap = moment(held) - moment(free)
        odds.assert_mean(gap, torch.zeros(gap.shape[1], dtype=DOUBLE))


def test_relaxed_values_come_to_the_corner_as_the_temperature_falls(site):
    _, drawn = site
    latent = drawn.latent(drawn.noise())
    distances = [(drawn.relaxed(latent, t) - drawn.hard(latent)).abs().mean() for t in (2.0, 0.5, 0.1, 0.01)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.01


@pytest.mark.parametrize("model", ["bernoulli", "one-hot"])
def test_a_lower_temperature_trades_bias_for_variance(model):
    exact, *pair = exact_discrete(objectives.elbo, model, 1)
    drawn = [gradients(objectives.Concrete(t), *pair, particles=2, repeats=60) for t in (2.0, 0.5, 0.1)]
    biases = [float((g.mean(0) - exact).norm()) for g in drawn]
    guide = slice(-2, None)  # parameters that the draws reach
    variances = [float(g[:, guide].var(0).sum()) for g in drawn]
    assert biases == sorted(biases, reverse=True)
    assert variances == sorted(variances)
