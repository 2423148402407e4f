"""Every pair of the zoo trains on real images: to a bound that no model without latents reaches."""

import pairs
import pytest
import torch

import ppl_vae as pv
from ppl_vae.checking import supports

SIZES = {"x_dim": 64, "z_dim": 8, "y_dim": 10, "hidden": (64,), "components": 10}
NAMES = [*pairs.names(), *pairs.variants()]

# Nats per image by which a pair is to beat independent pixels after so few epochs.
MARGIN = 2.0
EPOCHS = 40


def digits(model):
    """Return images for training and for testing, binary where the likelihood takes nothing else."""
    grey = pv.data.load("digits")
    binary = pv.data.load("digits", binarize="static")
    return grey if supports(model, (grey.test[:2],)) else binary


def independent_pixels(train, test):
    """Return the mean log-likelihood of the model that has no latents."""
    mean = train.mean(0).clamp(1e-3, 1 - 1e-3)
    if ((test == 0) | (test == 1)).all():
        return float(torch.distributions.Bernoulli(mean).log_prob(test).sum(-1).mean())
    return float(torch.distributions.Normal(mean, train.std(0).clamp_min(0.05)).log_prob(test).sum(-1).mean())


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_training_on_digits_beats_independent_pixels(names):
    pair = pairs.make(*names, sizes=SIZES)
    model, guide = pair.model.float(), pair.guide.float()
    data = digits(model)
    train, test = (pair.beside(x.float()) for x in (data.train, data.test))
    step = {"objective": pv.objectives.rloo, "particles": 4} if pv.weigh(model, guide, test[:9]).score else {}
    pv.fit(model, guide, train, epochs=EPOCHS, batch_size=64, optimizer=lambda p: torch.optim.Adam(p, 5e-3), **step)
    found = pv.evaluate(model, guide, test, particles=1).elbo.mean()
    assert found > independent_pixels(data.train, data.test) + MARGIN
