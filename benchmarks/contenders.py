"""The estimators that are compared on sigmoid belief networks, with what each costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ppl_vae import nets, objectives
from ppl_vae.estimation import estimate
from ppl_vae.guides.bernoulli import Bernoulli
from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork


@dataclass(frozen=True)
class Network:
    """A sigmoid belief network's sizes.

    Attributes:
        x_dim: number of pixels.
        z_dim: latents in a layer.
        layers: layers of latents.
        nonlinear: whether a tanh layer of ``z_dim`` units stands between two layers of variables.
    """

    x_dim: int = 784
    z_dim: int = 200
    layers: int = 1
    nonlinear: bool = False

    @property
    def title(self) -> str:
        """The network in words."""
        return f"{self.layers} layer{'s' * (self.layers > 1)}, {'nonlinear' if self.nonlinear else 'linear'}"

    @property
    def sites(self) -> list[str]:
        """Names of the latent sites."""
        return ["z"] if self.layers == 1 else [f"z{i}" for i in range(1, self.layers + 1)]

    def pair(self, seed: int) -> tuple[nn.Module, nn.Module]:
        """Return a model and its guide."""
        torch.manual_seed(seed)
        hidden = (self.z_dim,) if self.nonlinear else ()
        sizes = {"x_dim": self.x_dim, "z_dim": self.z_dim, "hidden": hidden, "layers": self.layers}
        return SigmoidBeliefNetwork(**sizes), Bernoulli(**sizes)

    def baselines(self) -> dict[str, nn.Module]:
        """Return a control variate for each latent site."""
        return {name: nets.MLP(self.z_dim, (100,), 1, nn.Tanh) for name in self.sites}


@dataclass(frozen=True)
class Contender:
    """An estimator.

    Attributes:
        make: from a network to the objective.
        passes: evaluations of the model for one particle, given the number of layers.
        bound: what it estimates the gradient of.
    """

    make: Callable[[Network], Any]
    passes: Callable[[int], int] = lambda layers: 1
    bound: str = "ELBO"

    def particles(self, budget: int, layers: int) -> int:
        """Return how many particles a budget of model evaluations per datum affords."""
        return max(1, budget // self.passes(layers))


CONTENDERS = {
    "REINFORCE": Contender(lambda n: objectives.reinforce),
    "NVIL": Contender(lambda n: objectives.NVIL(x_dim=n.x_dim)),
    "MuProp": Contender(lambda n: objectives.MuProp(), lambda layers: 2),
    "RLOO": Contender(lambda n: objectives.rloo),
    "VIMCO": Contender(lambda n: objectives.vimco, bound="L_K"),
    "ARM": Contender(lambda n: objectives.ARM(), lambda layers: 1 + layers),
    "DisARM": Contender(lambda n: objectives.DisARM(), lambda layers: 1 + layers),
    "REBAR": Contender(lambda n: objectives.REBAR(), lambda layers: 1 + 2 * layers),
    "RELAX": Contender(lambda n: objectives.RELAX(**n.baselines()), lambda layers: 1 + 2 * layers),
    "Concrete": Contender(lambda n: objectives.Concrete(0.5), lambda layers: 2),
    "StraightThrough": Contender(lambda n: objectives.StraightThrough()),
    "ST-Gumbel": Contender(lambda n: objectives.StraightThroughGumbel(0.5)),
}

# By temperature.
RELAXED = {
    "Concrete": objectives.Concrete,
    "ST-Gumbel": objectives.StraightThroughGumbel,
    "REBAR": objectives.REBAR,
}


def own_parameters(objective: Any) -> list[nn.Parameter]:
    """Return the parameters of an objective that has some."""
    return list(objective.parameters()) if isinstance(objective, nn.Module) else []


def adapt(objective: Any, model: nn.Module, guide: nn.Module, batches: Any, particles: int) -> None:
    """Train an objective's own parameters and running state alone; model and guide stay as they are."""
    own = own_parameters(objective)
    if not own:
        return
    optimizer = torch.optim.Adam(own, lr=1e-2)
    for x in batches:
        loss = -estimate(objective, model, guide, x, particles).surrogate.mean()
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own, allow_unused=True), strict=True):
            parameter.grad = gradient
        optimizer.step()
