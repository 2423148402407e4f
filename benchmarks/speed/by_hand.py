"""The same training steps as people write them in PyTorch, without a library."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.programs import Pair, Workload, belief_network, convolutional, vae
from benchmarks.speed.timing import Contender


class GaussianVAE(nn.Module):
    """A VAE with diagonal Gaussian encoder and Bernoulli pixels; the loss takes one draw and a closed-form KL."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation."""
        mean, raw = self.encoder(x).chunk(2, dim=-1)
        return mean, F.softplus(raw) + 1e-4

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss, minus the ELBO."""
        mean, scale = self.encode(x)
        logits = self.decoder(mean + scale * torch.randn_like(mean))
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (mean**2 + scale**2 - 1 - 2 * scale.log()).sum()
        return (reconstruction + kl) / x.shape[0]


class ImportanceWeighted(GaussianVAE):
    """The same networks under the importance-weighted bound."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, particles: int):
        super().__init__(encoder, decoder)
        self.particles = particles

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss, minus L_K."""
        mean, scale = self.encode(x)
        noise = torch.randn(self.particles, *mean.shape)
        z = mean + scale * noise
        logits = self.decoder(z)
        log_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_w = log_x - 0.5 * (z**2).sum(-1) + (0.5 * noise**2 + scale.log()).sum(-1)
        return -(torch.logsumexp(log_w, 0) - math.log(self.particles)).mean()


class BeliefNetwork(nn.Module):
    """A sigmoid belief network of two layers with its inference network, under VIMCO."""

    def __init__(self, up: list[nn.Module], down: list[nn.Module], prior: nn.Parameter, particles: int):
        super().__init__()
        self.up, self.down, self.prior, self.particles = nn.ModuleList(up), nn.ModuleList(down), prior, particles

    def forward(self, x: Tensor) -> Tensor:
        """Return a loss whose gradient is VIMCO's; its value is minus L_K."""
        below = x.expand(self.particles, *x.shape)
        log_q, draws = 0.0, []
        for layer in self.up:
            logits = layer(2 * below - 1)
            below = torch.bernoulli(logits.sigmoid().detach())
            draws.append(below)
            log_q = log_q + log_bernoulli(below, logits)
        low, high = draws
        log_p = log_bernoulli(high, self.prior.expand_as(high)) + log_bernoulli(low, self.down[1](2 * high - 1))
        log_p = log_p + log_bernoulli(x.expand(self.particles, *x.shape), self.down[0](2 * low - 1))
        log_w = log_p - log_q
        return -vimco(log_w, log_q).mean()


def log_bernoulli(value: Tensor, logits: Tensor) -> Tensor:
    """Return the log density of bits, the last axis summed."""
    return -F.binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1)


def vimco(log_w: Tensor, log_q: Tensor) -> Tensor:
    """Return L_K with VIMCO's gradient."""
    particles = log_w.shape[0]
    bound = torch.logsumexp(log_w, 0) - math.log(particles)
    with torch.no_grad():
        others = (log_w.sum(0) - log_w) / (particles - 1)  # the geometric mean of the rest stands in for each
        replaced = log_w.unsqueeze(0).repeat(particles, 1, 1)
        replaced[torch.arange(particles), torch.arange(particles)] = others
        signal = bound - (torch.logsumexp(replaced, 1) - math.log(particles))
    surrogate = (signal * log_q).sum(0)
    return bound + surrogate - surrogate.detach()


def network(workload: Workload, pair: Pair) -> nn.Module | None:
    """Return the hand-written network with a pair's own layers; None where none was written."""
    model, guide = pair
    if workload.make is belief_network:
        return BeliefNetwork(list(guide.encoders), list(model.decoders), model.prior_logits, workload.particles)
    if workload.make not in (vae, convolutional):
        return None
    layers = guide.encoder[0], model.decoder[0]
    return ImportanceWeighted(*layers, workload.particles) if workload.particles > 1 else GaussianVAE(*layers)


def step(net: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Return a training step with torch's fused Adam."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        call(x).backward()
        optimizer.step()

    return run


def contenders(workload: Workload, x: Tensor) -> list[Contender]:
    """Return the hand-written step, eager and under ``torch.compile``."""
    found = []
    for name, prepare in (("PyTorch by hand", lambda net: net), ("torch.compile of it", torch.compile)):
        net = network(workload, workload.plain_pair())
        if net is not None:
            call = prepare(net)
            found.append(Contender(name, step(net, call, x), loss=loss_of(network(workload, workload.plain_pair()), x)))
    return found


def loss_of(net: nn.Module, x: Tensor) -> Callable[[], float]:
    """Return what computes a loss once."""

    @torch.no_grad()
    def loss() -> float:
        return float(net(x))

    return loss
