"""IWAE beside VAE with k = 1, 5 and 50, and IWAE-DReG: dynamic MNIST, one stochastic layer.

Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016,
https://arxiv.org/abs/1509.00519 (table 1; code: https://github.com/yburda/iwae); G. Tucker, D. Lawson, S. Gu,
C. Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", ICLR 2019,
https://arxiv.org/abs/1810.04152; "IWAE", https://github.com/nbip/IWAE (figures with DReG).
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import ppl_vae as pv
from benchmarks.published.records import Difference, Experiment, Figures, Published, fitted
from ppl_vae import objectives
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

X_DIM, Z_DIM, HIDDEN = 784, 50, (200, 200)
BATCH, TRAINED = 20, 59_600
# Stage i is 3^i epochs; the source has eight, 3,280 epochs.
STAGES = 4
TEST_PARTICLES = 5000
UNITS = 500  # images from which active units are counted


class ToNormalExp(nn.Module):
    """Two halves to normals, the second half being logarithms of standard deviations."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        loc, log_scale = h.chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class AdamFromOnes(torch.optim.Adam):
    """Adam as the source has it: second moments that begin at one, for the sum over a batch."""

    def __init__(self, params: Iterable[Any], lr: float):
        # What is minimised here is a mean: its gradients, moments and epsilon are smaller by the size of the batch.
        super().__init__(params, lr=lr, betas=(0.99, 0.999), eps=1e-4 / BATCH)
        for group in self.param_groups:
            for p in group["params"]:
                ones = torch.full_like(p, BATCH**-2)
                self.state[p] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": ones}


def rate(epoch: int) -> float:
    """Return the learning rate of an epoch over that of the first.

    Example:
        >>> [rate(epoch) for epoch in (0, 1, 3, 4, 12, 13)]
        [1.0, 0.72, 0.72, 0.52, 0.52, 0.37]
    """
    stage = 0
    while epoch >= 3**stage:
        epoch -= 3**stage
        stage += 1
    return round(10 ** (1 - stage / 7), 1) / 10


def programs(train: Tensor) -> tuple[VAE, Normal]:
    """Return the pair, begun as in the source."""
    decoder, encoder = (pv.nets.MLP(*sizes, nn.Tanh) for sizes in ((Z_DIM, HIDDEN, X_DIM), (X_DIM, HIDDEN, 2 * Z_DIM)))
    for layer in [*decoder, *encoder]:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        decoder[-1].bias.copy_(train.mean(0).clamp(0.001, 0.999).logit())
    model = VAE(X_DIM, Z_DIM, decoder=nn.Sequential(decoder, pv.nets.ToBernoulli()))
    return model, Normal(X_DIM, Z_DIM, encoder=nn.Sequential(encoder, ToNormalExp()))


def trained(objective: Callable[..., Tensor], particles: int, seed: int, folder: Path) -> Figures:
    """Train through the first stages of the schedule, and evaluate."""
    grey, test = pv.data.load("mnist"), pv.data.load("mnist", binarize="dynamic").test
    train = torch.cat([grey.train, grey.valid])[:TRAINED]
    torch.manual_seed(seed)
    model, guide = programs(train)
    _, cost = fitted(
        *(model, guide, train),
        objective=objective,
        particles=particles,
        epochs=sum(3**stage for stage in range(STAGES)),
        batch_size=BATCH,
        optimizer=partial(AdamFromOnes, lr=1e-3),
        scheduler=partial(LambdaLR, lr_lambda=rate),
        transform=pv.data.binarize,
        seed=seed,
        folder=folder,
    )
    some = pv.data.binarize(train[:UNITS])
    evaluation = pv.evaluate(
        *(model, guide, test), particles=TEST_PARTICLES, out=folder / "evaluation.pt", progress=False
    )
    return {
        "test L_5000": evaluation.mean,
        "test ELBO": float(evaluation.elbo.mean()),
        "active units": float(pv.active_units(guide, some, progress=False).count),
        **cost,
    }


PAPER = "Burda et al. 2016, table 1"
NBIP = "README of nbip/IWAE"
TABLE = {
    "VAE, k = 1": ("-86.76", "19"),
    "VAE, k = 5": ("-86.47", "20"),
    "VAE, k = 50": ("-86.35", "20"),
    "IWAE, k = 5": ("-85.54", "22"),
    "IWAE, k = 50": ("-84.78", "25"),
}
DREG = {"DReG, k = 5": "-84.90", "DReG, k = 50": "-84.32"}
OBJECTIVES = {"VAE": objectives.elbo, "IWAE": objectives.iwae, "DReG": objectives.dreg}


def setting(name: str) -> Callable[[int, Path], Figures]:
    """Return the run of a setting by its name."""
    kind, k = name.split(", k = ")
    return partial(trained, OBJECTIVES[kind], int(k))


FIGURE = "test L_5000"
EXPERIMENT = Experiment(
    title="IWAE, VAE and IWAE-DReG on dynamic MNIST, one stochastic layer",
    recipe="784-200-200-50-200-200-784, tanh, Glorot, last bias the logit of the mean image; 59,600 images binarized "
    "anew in each batch of 20; Adam with beta1 = 0.99, epsilon = 1e-4, second moments from one, rates 1e-3 * "
    "10^(-i/7) over stages of 3^i epochs; L_5000 of 10,000 test images; units with a variance above 0.01 on "
    "500 training images.",
    deviation=f"The first {STAGES} stages of 8, 40 epochs of 3,280: levels are those of short training, and only "
    "signs and sizes of differences can be compared. Images are shuffled; test images are binarized once.",
    settings={name: setting(name) for name in [*TABLE, *DREG]},
    published={
        **{(name, FIGURE): Published(value, PAPER) for name, (value, _) in TABLE.items()},
        **{(name, "active units"): Published(units, PAPER) for name, (_, units) in TABLE.items()},
        **{(name, FIGURE): Published(value, NBIP) for name, value in DREG.items()},
    },
    differences=(
        Difference("IWAE, k = 5", "VAE, k = 1", FIGURE, Published("+1.22", PAPER)),
        Difference("IWAE, k = 50", "IWAE, k = 5", FIGURE, Published("+0.76", PAPER)),
        Difference("IWAE, k = 5", "VAE, k = 5", FIGURE, Published("+0.93", PAPER)),
        Difference("IWAE, k = 50", "VAE, k = 50", FIGURE, Published("+1.57", PAPER)),
        Difference("IWAE, k = 50", "VAE, k = 50", "active units", Published("+5", PAPER)),
        Difference("DReG, k = 5", "IWAE, k = 5", FIGURE, Published("+0.28", NBIP)),
        Difference("DReG, k = 50", "IWAE, k = 50", FIGURE, Published("+0.27", NBIP)),
    ),
    formats={"active units": ".1f"},
)
