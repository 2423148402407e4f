"""A VampPrior of 500 pseudo-inputs beside the standard normal prior, on static MNIST.

Reference: J. Tomczak, M. Welling, "VAE with a VampPrior", AISTATS 2018, https://arxiv.org/abs/1705.07120; code:
https://github.com/jmtomczak/vae_vampprior.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ppl_vae as pv
from benchmarks.published.records import Difference, Experiment, Figures, Published, fitted
from ppl_vae import distributions, objectives, priors
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

X_DIM, Z_DIM, WIDTH = 784, 40, 300
BATCH, WARM_UP, EPOCHS = 100, 100, 150
COMPONENTS = 500
TEST_PARTICLES = 5000


class Gated(nn.Module):
    """A linear layer times the sigmoid of another."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.linear, self.gate = nn.Linear(n_in, n_out), nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated layer."""
        return self.linear(x) * self.gate(x).sigmoid()


class ToNormalWithin(nn.Module):
    """Two halves to normals, the second being log variances cut off at -6 and 2."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        loc, log_variance = h.chunk(2, dim=-1)
        return dist.Normal(loc, (0.5 * F.hardtanh(log_variance, -6.0, 2.0)).exp()).to_event(1)


def network(n_in: int, n_out: int) -> nn.Sequential:
    """Return two gated layers and a linear one, with normal weights of variance 2 / n."""
    layers = nn.Sequential(Gated(n_in, WIDTH), Gated(WIDTH, WIDTH), nn.Linear(WIDTH, n_out))
    for layer in layers.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
    return layers


class PseudoInputs(nn.Module):
    """The source's VampPrior: pseudo-inputs cut off at 0 and 1, from 0.05 on."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder.forward  # the parameters stay the guide's
        self.inputs = nn.Parameter(0.05 + 0.01 * torch.randn(COMPONENTS, X_DIM))
        self.register_buffer("logits", torch.zeros(COMPONENTS))

    def forward(self) -> dist.TorchDistribution:
        """Return p(z)."""
        return distributions.mixture(self.logits, self.encoder(F.hardtanh(self.inputs, 0.0, 1.0)))


class AdamNormGrad(torch.optim.Adam):
    """Adam on gradients divided by their norm, parameter by parameter."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Normalise, and update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= parameter.grad.norm() + 1e-7
        return super().step(closure)


def standard(encoder: nn.Module) -> nn.Module:
    """Return the standard normal prior."""
    return priors.StandardNormal(Z_DIM)


def trained(prior: Callable[[nn.Module], nn.Module], seed: int, folder: Path) -> Figures:
    """Train with KL warm-up, keep the best on validation data, and evaluate."""
    data = pv.data.load("static_mnist")
    torch.manual_seed(seed)
    encoder = nn.Sequential(network(X_DIM, 2 * Z_DIM), ToNormalWithin())
    decoder = nn.Sequential(network(Z_DIM, X_DIM), pv.nets.ToBernoulli())
    guide = Normal(X_DIM, Z_DIM, encoder=encoder)
    model = VAE(X_DIM, Z_DIM, prior=prior(encoder), decoder=decoder)
    steps = len(data.train) // BATCH
    beta = objectives.linear(0.0, 1.0, steps=WARM_UP * steps)
    _, cost = fitted(
        *(model, guide, data),
        objective=objectives.Scheduled(objectives.beta_elbo, beta=beta),
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=partial(AdamNormGrad, lr=5e-4),
        seed=seed,
        folder=folder,
    )
    evaluation = pv.evaluate(
        *(model, guide, data), particles=TEST_PARTICLES, out=folder / "evaluation.pt", progress=False
    )
    return {
        "test log p(x)": evaluation.mean,
        "test ELBO": float(evaluation.elbo.mean()),
        **cost,
    }


PAPER = "Tomczak, Welling 2018, as pythae's page quotes it"
STANDARD, VAMP = "standard normal", "VampPrior, 500"
DYNAMIC = "Norouzi et al. 2020, dynamic MNIST, same networks: -84.45 and -82.43"
EXPERIMENT = Experiment(
    title="VampPrior beside the standard normal prior, static MNIST",
    recipe="Gated layers 784-300-300-40-300-300-784, log variances within -6 and 2, 500 pseudo-inputs from N(0.05, "
    "0.01^2) cut off at 0 and 1; Adam with 5e-4 on gradients of norm one, batches of 100, KL warm-up over 100 "
    "epochs, best on validation data; log p(x) from 5,000 importance samples.",
    deviation=f"{EPOCHS} epochs in place of up to 2,000 with early stopping after 50 without progress; warm-up moves "
    "with each update, not each epoch.",
    settings={STANDARD: partial(trained, standard), VAMP: partial(trained, PseudoInputs)},
    published={(VAMP, "test log p(x)"): Published("-85.57", PAPER)},
    differences=(Difference(VAMP, STANDARD, "test log p(x)", Published("+2.02", DYNAMIC)),),
)
