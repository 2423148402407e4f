"""The variance of NVIL, MuProp and REBAR along one trajectory of a sigmoid belief network with two linear layers.

Reference: G. Tucker et al., "REBAR", NeurIPS 2017, https://arxiv.org/abs/1703.07370; the figures are those that the
README of its code printed, https://github.com/tensorflow/models/tree/r1.13.0/research/rebar.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import process_time

import torch
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.contenders import adapt, own_parameters
from benchmarks.published.records import Experiment, Figures, Published
from ppl_vae import objectives
from ppl_vae.guides.bernoulli import Bernoulli
from ppl_vae.laboratory import gradient_statistics
from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork

SIZES = {"x_dim": 784, "z_dim": 200, "layers": 2}
BATCH, RATE = 24, 3e-4
STEPS = {"step 959": 959, "step 1,918": 1918}
DRAWS, ADAPTED = 400, 500


def estimators() -> Mapping[str, nn.Module]:
    """Return what is compared, each with its own state, and all of them estimates of one gradient."""
    return {
        "NVIL": objectives.NVIL(x_dim=784, normalise=False),
        "MuProp": objectives.MuProp(),
        "REBAR": objectives.REBAR(),
    }


def batches(x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield random batches without end."""
    while True:
        yield x[torch.randint(len(x), (BATCH,), generator=generator)]


def measured(seed: int, folder: Path) -> Figures:
    """Train by REBAR; at two steps take the log of the variance of an element of the guide's gradient."""
    began, data = process_time(), pv.data.load("static_mnist").train
    torch.manual_seed(seed)
    feed = batches(data, torch.Generator().manual_seed(seed))
    model, guide, trainer = SigmoidBeliefNetwork(**SIZES), Bernoulli(**SIZES), objectives.REBAR()
    own = {"params": own_parameters(trainer), "lr": 10 * RATE}
    optimizer = torch.optim.Adam([{"params": [*model.parameters(), *guide.parameters()]}, own], lr=RATE)
    step = pv.svi_step(model, guide, trainer, optimizer=optimizer)
    figures = {}
    for done in range(1, max(STEPS.values()) + 1):
        step(next(feed))
        for at in (name for name, steps in STEPS.items() if steps == done):
            figures |= {f"{name}, {at}": value for name, value in variances(model, guide, feed)}
    return figures | {"steps": done, "seconds": process_time() - began}


def variances(model: nn.Module, guide: nn.Module, feed: Iterator[Tensor]) -> Iterator[tuple[str, float]]:
    """Yield the log of each estimator's mean variance over the guide's parameters, on one batch."""
    elements = sum(p.numel() for p in guide.parameters())
    x = next(feed)
    for name, estimator in estimators().items():
        adapt(estimator, model, guide, (next(feed) for _ in range(ADAPTED)), particles=1)
        found = gradient_statistics(model, guide, x, estimator, particles=1, draws=DRAWS)
        yield name, math.log(found["guide"].variance / elements)


README = "README of REBAR, on Omniglot"
SETTING = "one trajectory, by REBAR"
PRINTED = {
    "NVIL": ("2.76", "2.27"),
    "MuProp": ("-0.03", "-0.72"),
    "REBAR": ("-3.54", "-3.66"),
}
EXPERIMENT = Experiment(
    title="Log variance of gradients: NVIL, MuProp, REBAR",
    recipe="Sigmoid belief network 200-200-784, linear; batches of 24, Adam with 3e-4; all estimators on one "
    "trajectory, at steps 959 and 1,918; natural logarithm of the variance of an element of the gradient.",
    deviation="Static MNIST in place of Omniglot. The variance is over draws on one batch, for the guide's "
    f"parameters, the estimators' own ones having learnt from {ADAPTED} batches there; in the source it is "
    "a running one over steps. NVIL does not divide by its signal's deviation, so that all estimate one "
    "gradient.",
    settings={SETTING: measured},
    published={
        (SETTING, f"{name}, {at}"): Published(value, README)
        for name, values in PRINTED.items()
        for at, value in zip(STEPS, values, strict=True)
    },
)
