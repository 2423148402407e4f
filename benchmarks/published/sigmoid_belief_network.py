"""A sigmoid belief network of three layers, trained by VIMCO with K = 5: bounds after each of four epochs.

Reference: J. van Amersfoort, "VIMCO", https://github.com/y0ast/VIMCO (README); method: A. Mnih, D. Rezende 2016,
https://arxiv.org/abs/1602.06725.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.published.records import Experiment, Figures, Published, fitted

LAYERS = (784, 200, 200, 200)
PARTICLES, BATCH, EPOCHS = 5, 24, 4
TRAINED = 50_000


def linear(n_in: int, n_out: int) -> nn.Linear:
    """Return a layer as the source begins it: normal weights of variance 1 / n_in, no bias."""
    layer = nn.Linear(n_in, n_out)
    nn.init.normal_(layer.weight, std=n_in**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


def names() -> list[str]:
    """Return the latent sites, from the data upward."""
    return [f"z{i}" for i in range(1, len(LAYERS))]


class Network(nn.Module):
    """Layers of bits, each from those above as they are, zeros and ones (the zoo's are -1 and 1 to the next layer)."""

    def __init__(self):
        super().__init__()
        self.prior_logits = nn.Parameter(torch.zeros(LAYERS[-1]))
        self.decoders = nn.ModuleList(linear(above, below) for below, above in pairwise(LAYERS))

    def forward(self, x: Tensor) -> None:
        """Generate x ``(B, 784)``."""
        logits = self.prior_logits
        with pyro.plate("data", x.shape[0], dim=-1):
            for name, decoder in zip(names()[::-1], list(self.decoders)[::-1], strict=True):
                logits = decoder(pyro.sample(name, dist.Bernoulli(logits=logits).to_event(1)))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class Recognition(nn.Module):
    """The same from the data upward."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleList(linear(below, above) for below, above in pairwise(LAYERS))

    def forward(self, x: Tensor) -> None:
        """Draw the layers given x ``(B, 784)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            for name, encoder in zip(names(), self.encoders, strict=True):
                x = pyro.sample(name, dist.Bernoulli(logits=encoder(x)).to_event(1))


class AdamByEpoch(torch.optim.Optimizer):
    """Adam as the source has it: debiased by the number of the epoch, epsilon within the root, weights decayed.

    Args:
        params: parameters.
        lr: learning rate.
        steps: updates in an epoch.
        decay: of weight matrices, times the learning rate.
    """

    def __init__(self, params: Iterable[Any], lr: float, steps: int, decay: float, betas: tuple = (0.95, 0.999)):
        super().__init__(params, {"lr": lr, "steps": steps, "decay": decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return closure() if closure else None

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        epoch = state["step"] // group["steps"] + 1
        state["step"] += 1
        state["mean"].lerp_(parameter.grad, 1 - first)
        state["square"].lerp_(parameter.grad**2, 1 - second)
        size = group["lr"] * math.sqrt(1 - second**epoch) / (1 - first**epoch)
        decay = group["lr"] * group["decay"] if parameter.ndim > 1 else 0.0
        parameter.sub_(decay * parameter + size * state["mean"] / (state["square"] + 1e-6).sqrt())


def trained(seed: int, folder: Path) -> Figures:
    """Train for four epochs; the bounds of each, and that of the validation data after the first."""
    data = pv.data.load("static_mnist")
    torch.manual_seed(seed)
    model, guide = Network(), Recognition()
    steps = math.ceil(TRAINED / BATCH)
    fit, cost = fitted(
        *(model, guide, data),
        objective=pv.objectives.vimco,
        particles=PARTICLES,
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=partial(AdamByEpoch, lr=1e-3, steps=steps, decay=BATCH / TRAINED),
        seed=seed,
        folder=folder,
    )
    figures = {f"training bound, epoch {i}": value for i, value in enumerate(fit.history["train_bound"], start=1)}
    figures |= {"validation bound, epoch 1": fit.history["valid_bound"][0]}
    return figures | cost


LOG = "J. van Amersfoort, README of y0ast/VIMCO"
SETTING = "VIMCO, K = 5"
TRAINING = {1: "-166.19", 2: "-140.23", 3: "-133.95", 4: "-130.41"}
EXPERIMENT = Experiment(
    title="Sigmoid belief network 200-200-200, VIMCO with K = 5, static MNIST",
    recipe="Linear layers of bits, weights begun at N(0, 1/n), batches of 24, Adam with 1e-3, beta1 = 0.95, debiased "
    "by the number of the epoch, weight decay 24/50,000; bounds are means over the epoch while parameters "
    "move.",
    deviation="Data are shuffled anew in each epoch (the source shuffles batches that stay the same).",
    settings={SETTING: trained},
    published={
        **{(SETTING, f"training bound, epoch {i}"): Published(value, LOG) for i, value in TRAINING.items()},
        (SETTING, "validation bound, epoch 1"): Published("-145.71", LOG),
    },
)
