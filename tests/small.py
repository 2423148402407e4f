"""Small models with discrete latents, of which every expectation is a sum over few terms."""

import itertools

import pyro
import pyro.distributions as dist
import torch
from torch import nn


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Bits(nn.Module):
    """Two latent bits, one observed."""

    def __init__(self):
        super().__init__()
        self.prior = parameter(0.3, -0.5)
        self.weight = parameter(1.2, -0.7)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)


class BitsGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = parameter(0.4, 0.9)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.logits + x.unsqueeze(-1)).to_event(1))


class PenalisedBits(Bits):
    """Paid for bits that are on, in training."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ self.weight), obs=x)
            pyro.factor("penalty_z", 3 * z.sum(-1))


def all_bits(particles):
    """Every outcome of K draws of two bits, one along the batch: ``{"z": (K, outcomes, 2)}``."""
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2 * particles)), dtype=torch.float64)
    return {"z": bits.reshape(len(bits), particles, 2).transpose(0, 1)}


class Choice(nn.Module):
    """A one-hot choice of three, seen through a non-linear likelihood."""

    def __init__(self):
        super().__init__()
        self.prior = parameter(0.3, -0.5, 0.1)
        self.loc = parameter(-1.0, 0.2, 1.5)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            c = pyro.sample("c", dist.OneHotCategorical(logits=self.prior))
            pyro.sample("x", dist.Normal((c @ self.loc).exp(), 1.0), obs=x)


class ChoiceGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = parameter(0.4, 0.9, -0.3)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("c", dist.OneHotCategorical(logits=self.logits * (1 + x.unsqueeze(-1))))


def all_choices(particles):
    """Every outcome of K choices: ``{"c": (K, outcomes, 3)}``."""
    corners = torch.eye(3, dtype=torch.float64)
    outcomes = torch.stack([torch.stack(c) for c in itertools.product(corners, repeat=particles)])
    return {"c": outcomes.transpose(0, 1)}


class Layers(nn.Module):
    """Two layers of bits: two on top, two below, one observed."""

    def __init__(self):
        super().__init__()
        self.prior = parameter(0.3, -0.5)
        self.middle = nn.Parameter(torch.tensor([[0.8, -1.1], [0.4, 0.9]], dtype=torch.float64))
        self.weight = parameter(1.2, -0.7)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z2 = pyro.sample("z2", dist.Bernoulli(logits=self.prior).to_event(1))
            z1 = pyro.sample("z1", dist.Bernoulli(logits=z2 @ self.middle - 0.3).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=2 * z1 @ self.weight), obs=x)


class LayersGuide(nn.Module):
    """From the data upward."""

    def __init__(self):
        super().__init__()
        self.logits = parameter(0.4, 0.9)
        self.up = nn.Parameter(torch.tensor([[-0.6, 0.5], [1.0, -0.8]], dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z1 = pyro.sample("z1", dist.Bernoulli(logits=self.logits * x.unsqueeze(-1)).to_event(1))
            pyro.sample("z2", dist.Bernoulli(logits=z1 @ self.up + 0.2).to_event(1))


def all_layers(particles):
    """Every outcome of K draws of both layers: ``{"z1": (K, outcomes, 2), "z2": ...}``."""
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4 * particles)), dtype=torch.float64)
    bits = bits.reshape(len(bits), particles, 4).transpose(0, 1)
    return {"z1": bits[..., :2], "z2": bits[..., 2:]}


class Mixed(nn.Module):
    """A bit next to a continuous latent, which it moves: y -> z -> x, y -> x."""

    def __init__(self):
        super().__init__()
        self.prior = parameter(0.3, -0.2)
        self.loc = parameter(0.5, -1.0)
        self.weight = parameter(0.8, 0.6)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.prior).to_event(1))
            z = pyro.sample("z", dist.Normal(y @ self.loc, 1.0))
            pyro.sample("x", dist.Normal(self.weight[0] * z + y @ self.weight, 0.7), obs=x)


class MixedGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = parameter(0.4, -0.9)
        self.slope = parameter(0.3, 0.2)
        self.log_scale = nn.Parameter(torch.tensor(-0.4, dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.logits + 0.5 * x.unsqueeze(-1)).to_event(1))
            pyro.sample("z", dist.Normal(y @ self.slope + 0.3 * x, self.log_scale.exp()))


def all_mixed_bits():
    """Every value of the bits, one along the batch: ``(4, 2)``."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)


# Name to model, guide and the list of all outcomes of K draws.
DISCRETE = {
    "bernoulli": (Bits, BitsGuide, all_bits),
    "one-hot": (Choice, ChoiceGuide, all_choices),
    "two layers": (Layers, LayersGuide, all_layers),
}


class Line(nn.Module):
    """Two continuous layers of size one: z2 -> z1 -> x, the last step bent."""

    def __init__(self):
        super().__init__()
        self.weights = parameter(0.7, 1.2)
        self.log_scales = parameter(-0.2, -0.5)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.weights[0] * z2, self.log_scales[0].exp()))
            pyro.sample("x", dist.Normal((self.weights[1] * z1).sin(), self.log_scales[1].exp()), obs=x)


class LineGuide(nn.Module):
    """From the data upward: z1 given x, then z2 given z1."""

    def __init__(self):
        super().__init__()
        self.slopes = parameter(0.4, 0.6)
        self.log_scales = parameter(-0.3, -0.1)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z1 = pyro.sample("z1", dist.Normal(self.slopes[0] * x, self.log_scales[0].exp()))
            pyro.sample("z2", dist.Normal(self.slopes[1] * z1, (self.log_scales[1] + 0.2 * z1).exp()))

    def at(self, noise, x):
        """Return the draws that standard normal noise ``(..., 2)`` gives."""
        z1 = self.slopes[0] * x + self.log_scales[0].exp() * noise[..., 0]
        return {"z1": z1, "z2": self.slopes[1] * z1 + (self.log_scales[1] + 0.2 * z1).exp() * noise[..., 1]}
