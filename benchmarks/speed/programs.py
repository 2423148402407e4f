"""The workloads as programs of this library, with sizes and what each is to reach."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import nets, objectives
from ppl_vae.guides.bernoulli import Bernoulli
from ppl_vae.guides.normal import Normal
from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
from ppl_vae.models.vae import VAE

X_DIM, Z_DIM, COMPONENTS = 784, 20, 10
SHAPE = (28, 28)


class Mixture(VAE):
    """A VAE whose prior is a mixture with an explicit component, which the model sums out."""

    def __init__(self, hidden: tuple[int, ...]):
        super().__init__(X_DIM, Z_DIM, hidden)
        self.loc = nn.Parameter(torch.randn(COMPONENTS, Z_DIM))
        self.log_scale = nn.Parameter(torch.zeros(COMPONENTS, Z_DIM))
        self.register_buffer("weights", torch.zeros(COMPONENTS))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.loc[y], self.log_scale.exp()[y]).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)


Pair = tuple[nn.Module, nn.Module]


def vae(hidden: int) -> Pair:
    """Return a VAE and its guide with one hidden layer."""
    return VAE(hidden=(hidden,)), Normal(hidden=(hidden,))


def mixture(hidden: int) -> Pair:
    """Return the mixture and its guide."""
    return Mixture((hidden,)), Normal(hidden=(hidden,))


def belief_network(width: int) -> Pair:
    """Return a sigmoid belief network of two layers and its guide."""
    return SigmoidBeliefNetwork(z_dim=width, layers=2), Bernoulli(z_dim=width, layers=2)


def convolutional(channels: int) -> Pair:
    """Return a VAE of two strided convolutions on either side."""
    decoder = nn.Sequential(nets.ConvDecoder(Z_DIM, SHAPE, (2 * channels, channels)), nets.ToBernoulli())
    encoder = nn.Sequential(nets.ConvEncoder(SHAPE, 2 * Z_DIM, (channels, 2 * channels)), nets.ToNormal())
    return VAE(decoder=decoder), Normal(encoder=encoder)


@dataclass(frozen=True)
class Workload:
    """What is trained, and the ratios to other contenders that it is to stay below.

    Attributes:
        name: for tables.
        make: makes the programs.
        size: their one size.
        objective: the bound.
        particles: K.
        goals: contender to the largest ratio of our time to its.
    """

    name: str
    make: Callable[[int], Pair]
    size: int
    objective: Callable = objectives.elbo
    particles: int = 1
    goals: dict[str, float] = field(default_factory=dict)

    def pair(self) -> Pair:
        """Return the programs, the same ones each time."""
        torch.manual_seed(0)
        return self.make(self.size)

    def plain_pair(self) -> Pair:
        """Return them with their kernels laid out as people write them, in torch's usual order."""
        return tuple(program.to(memory_format=torch.contiguous_format) for program in self.pair())


HAND, HAND_COMPILED, PYRO, NUMPYRO, PYTHAE = (
    "PyTorch by hand",
    "torch.compile of it",
    "Pyro SVI",
    "NumPyro scan",
    "pythae",
)

WORKLOADS = {
    "elbo-400": Workload(
        "ELBO, 400 hidden units",
        vae,
        400,
        goals={HAND: 0.85, HAND_COMPILED: 0.85, PYRO: 0.5, NUMPYRO: 1.0, PYTHAE: 0.45},
    ),
    "elbo-50": Workload(
        "ELBO, 50 hidden units",
        vae,
        50,
        goals={HAND: 0.8, HAND_COMPILED: 0.8, PYRO: 0.33, NUMPYRO: 1.0, PYTHAE: 0.3},
    ),
    "iwae": Workload(
        "IWAE, K = 50, 200 hidden units",
        vae,
        200,
        objectives.iwae,
        50,
        goals={HAND: 0.8, HAND_COMPILED: 1.0, PYRO: 0.7, NUMPYRO: 0.9, PYTHAE: 0.5},
    ),
    "gmvae": Workload("GMVAE, 10 components summed out", mixture, 400, goals={PYRO: 0.5, NUMPYRO: 1.0}),
    "sbn": Workload("SBN 200-200, VIMCO, K = 5", belief_network, 200, objectives.vimco, 5, goals={HAND: 0.9}),
    "conv": Workload(
        "convolutional VAE, 28 x 28",
        convolutional,
        32,
        goals={HAND: 1.0, HAND_COMPILED: 1.0, PYRO: 0.9, PYTHAE: 0.9},
    ),
}
