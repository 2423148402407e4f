"""A small pair, data for it, and their importance weights."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae.guides.normal import Normal
from ppl_vae.importance import Weights
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.programs import Programs

SIZES = {"x_dim": 6, "z_dim": 2}


def pair():
    torch.manual_seed(0)
    return LinearGaussian(**SIZES).double(), Normal(**SIZES, hidden=(8,)).double()


def data(n=3):
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def weights(model, guide, **options):
    return Weights(model, guide, Programs(model, guide), compile=False, **options)


class OfOne(nn.Module):
    """A latent of one number, from the prior's middle."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.5).to_event(1))
