"""Every pair of the zoo trains on real images, to a bound that no model without latents reaches."""

from functools import partial

import pairs
import pytest
import torch
from torch.distributions import Bernoulli, Normal

import ppl_vae as pv
from ppl_vae import nets
from ppl_vae.batches import as_batch
from ppl_vae.checking import supports
from ppl_vae.pairing import SMALL

SIZES = SMALL | {"x_dim": 64, "z_dim": 8, "y_dim": 10, "hidden": (64,), "components": 10}
SIZES |= {"positions": 4, "codes": 16, "width": 16}

# Nats an image by which a pair beats independent pixels after so many passes over 1,257 images. One whose latents are
# left unused stays below them.
MARGIN, EPOCHS = 0.5, 15
# Codes that follow nothing at first take more.
LONGER = {"nearest_code": 45, "text_to_image": 30, "relaxed": 30, "discrete_vae": 45, "missing": 45}
RATE, SLOWER = 1e-2, {"text_to_image": 5e-3, "discrete_vae": 5e-3}

# Relaxed codes pay for the noise between corners, so that few of them are worth it, and more slowly than they cost.
FEW_CODES = {"relaxed": {"codes": 4}}
WARM_UP = {
    guide: pv.objectives.Scheduled(pv.objectives.beta_elbo, beta=pv.objectives.linear(0.0, 1.0, steps=steps))
    for guide, steps in (("relaxed", 400), ("ladder", 200))
}

# Of tokens, not of pixels; mixtures, which are EM's; likelihoods of grey values have tests of their own, and so have
# local guides, for which these passes are as many updates.
ELSEWHERE = {"token_transformer", "gaussian_mixture", "bernoulli_mixture", *nets.__all__, "local"}
ALL = [names for names in (*pairs.names(), *pairs.variants()) if not ELSEWHERE & set(names)]
OF_A_VAE = {guide for model, guide, *_ in ALL if model == "vae"}
# Every guide with a VAE if it fits one, every other model with a guide of its own, or else the plain one.
NAMES = [n for n in ALL if n[0] == "vae" or n[1] not in OF_A_VAE or n[1] == "normal"]


def images(pair):
    """Return training images: zeros and ones where the likelihood takes nothing else, grey values otherwise."""
    grey = pv.data.load("digits").train
    takes_grey = supports(pair.model, pair.beside(grey[:3]))
    return grey if takes_grey else pv.data.load("digits", binarize="static").train


def independent_pixels(x, seen):
    """Return the mean log-likelihood of pixels seen, by the best model with a mean for each and no latents."""
    mean = x.mean(0)
    binary = ((x == 0) | (x == 1)).all()
    fn = Bernoulli(mean) if binary else Normal(mean, (x - mean).square().mean().sqrt())
    return float((fn.log_prob(x).nan_to_num() * seen).sum(-1).mean())


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_training_beats_independent_pixels(names):
    pair = pairs.make(*names, sizes=SIZES | FEW_CODES.get(names[1], {}))
    pair = pairs.Pair(pair.model.float(), pair.guide.float())
    x = images(pair)
    data = pair.beside(x)
    seen = data[1] if "observed" in pair.arguments else torch.ones(())
    rows = (torch.arange(4),) if "index" in pair.arguments else ()
    scored = pv.weigh(pair.model, pair.guide, (*as_batch(pairs.part(data, slice(4))), *rows)).score
    how = (
        {"objective": pv.objectives.rloo, "particles": 4}
        if scored
        else {"objective": WARM_UP.get(names[1], pv.objectives.elbo)}
    )
    adam = partial(torch.optim.Adam, lr=SLOWER.get(names[0], RATE))
    fit = pv.fit(
        pair.model,
        pair.guide,
        data,
        epochs=max(LONGER.get(name, EPOCHS) for name in names),
        batch_size=64,
        optimizer=adam,
        compile=False,
        **how,
    )
    assert fit.history["train_bound"][-1] > independent_pixels(x, seen) + MARGIN
