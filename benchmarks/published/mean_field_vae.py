"""A small mean-field VAE on static MNIST: test log-likelihood after 35,000 steps.

Reference: J. Altosaar, "variational-autoencoder", https://github.com/jaanli/variational-autoencoder (README of 2019,
and of 2021); method: D. Kingma, M. Welling 2014, https://arxiv.org/abs/1312.6114.
"""

from functools import partial
from pathlib import Path

import torch

import ppl_vae as pv
from benchmarks.published.records import Experiment, Figures, Published, fitted
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

SIZES = {"x_dim": 784, "z_dim": 128, "hidden": (256, 256)}
BATCH = 128
STEPS_AN_EPOCH = 391


def after(steps: int, particles: int, seed: int, folder: Path) -> Figures:
    """Train for so many steps, keep the best on validation data, and evaluate."""
    data = pv.data.load("static_mnist")
    torch.manual_seed(seed)
    model, guide = VAE(**SIZES), Normal(**SIZES)
    # The source's loss is the sum over the batch, which for RMSprop is an epsilon that much smaller.
    rmsprop = partial(torch.optim.RMSprop, lr=1e-3, centered=True, eps=1e-8 / BATCH)
    fit, cost = fitted(
        *(model, guide, data),
        epochs=round(steps / STEPS_AN_EPOCH),
        batch_size=BATCH,
        optimizer=rmsprop,
        seed=seed,
        folder=folder,
    )
    evaluation = pv.evaluate(model, guide, data, particles=particles, out=folder / "evaluation.pt", progress=False)
    return {
        "test log p(x)": evaluation.mean,
        "test ELBO": float(evaluation.elbo.mean()),
        "validation ELBO": fit.best["bound"],
        **cost,
    }


OLD = "J. Altosaar, README of 2019"
NEW = "J. Altosaar, README of 2021"
EXPERIMENT = Experiment(
    title="Mean-field VAE on static MNIST",
    recipe="784-256-256-128-256-256-784, ReLU, softplus scales; RMSprop (1e-3, centered), batches of 128, one draw; "
    "best on validation data; log p(x) from 128 importance samples (2019) or 1,000 (2021). The source's test "
    "line belongs to the step that validated best, 35,000 and 20,000.",
    deviation="Validation after each epoch, by one draw, in place of every 5,000 or 10,000 steps by 128 or 1,000.",
    settings={
        "35,000 steps": partial(after, 35_000, 128),
        "20,000 steps": partial(after, 20_000, 1000),
    },
    published={
        ("35,000 steps", "test log p(x)"): Published("-97.10", OLD),
        ("35,000 steps", "test ELBO"): Published("-103.31", OLD),
        ("20,000 steps", "test log p(x)"): Published("-100.31", NEW),
        ("20,000 steps", "test ELBO"): Published("-106.64", NEW),
    },
)
