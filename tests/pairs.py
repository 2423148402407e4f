"""Every model with every guide that fits it, found in the tree and made small."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pyro import poutine
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import contract, supports, zoo

ROOT = Path(__file__).parents[1]
SMALL = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}

# A smaller number means that discovery, not the library, has shrunk.
AT_LEAST = 4


@dataclass(frozen=True)
class Pair:
    model: nn.Module
    guide: nn.Module

    def data(self, n: int = 5) -> Tensor:
        """Draw data that the likelihood supports: its own."""
        return pv.sample(self.model, shape=(SMALL["x_dim"],), n=n, seed=1)["x"]

    def parameters(self) -> dict[str, Tensor]:
        return pv.programs.Programs(self.model, self.guide).parameters()


def make(model: str, guide: str) -> Pair:
    """Return a small pair in float64."""
    torch.manual_seed(0)
    p = zoo.build(zoo.find("models", model), SMALL)
    q = zoo.build(zoo.find("guides", guide), SMALL | {"model": p})
    return Pair(p.double(), q.double())


def fits(model: str, guide: str) -> bool:
    """Tell whether a guide draws just what a model leaves latent: same names, shapes and supports."""
    try:
        pair = make(model, guide)
    except TypeError:  # a closed form that this model does not have
        return False
    x = pair.data()
    traces = [poutine.trace(program).get_trace(x) for program in (pair.model, pair.guide)]
    names = [set(contract.latents(trace)) for trace in traces]
    if names[0] != names[1]:
        return False
    try:
        supports.check_supports(*traces)
    except pv.ContractError:
        return False
    return True


def names() -> list[tuple[str, str]]:
    """Return the names of all pairs that fit."""
    return [(m, g) for m in zoo.discover("models") for g in zoo.discover("guides") if fits(m, g)]


def files(kind: str) -> set[str]:
    """Return the names of the program files of a kind, read from the tree."""
    return {path.stem for path in (ROOT / kind).glob("*.py")} - {"__init__"}


def digits_vae() -> tuple[nn.Module, nn.Module]:
    """Return an untrained VAE and guide for the 8 x 8 digits."""
    torch.manual_seed(0)
    sizes = {"x_dim": 64, "z_dim": 4, "hidden": (32,)}
    return zoo.find("models", "vae")(**sizes), zoo.find("guides", "normal")(**sizes)
