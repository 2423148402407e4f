"""Every model with every guide that fits it, found in the tree and made small."""

import inspect
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from pyro import poutine
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import contract, supports, zoo
from ppl_vae.batches import as_batch
from ppl_vae.indexing import alike

ROOT = Path(__file__).parents[1]
SMALL = {"x_dim": 6, "z_dim": 2, "y_dim": 3, "covariate_dim": 6, "hidden": (8,)}

# A smaller number means that discovery, not the library, has shrunk.
AT_LEAST = 8


# What a batch holds besides x, by the names of the programs' arguments.
GIVEN = {
    "y": lambda n, x_dim: torch.arange(n) % SMALL["y_dim"],
    "observed": lambda n, x_dim: torch.arange(n * x_dim).reshape(n, -1) % 4 != 1,
}


@dataclass(frozen=True)
class Pair:
    model: nn.Module
    guide: nn.Module

    @property
    def arguments(self) -> list[str]:
        """Return the names of what either program takes, rows of the data set last."""
        takes = [inspect.signature(program.forward).parameters for program in (self.model, self.guide)]
        names = [name for name, p in {**takes[1], **takes[0]}.items() if p.kind is not p.VAR_POSITIONAL]
        return sorted(names, key=lambda name: (name == "index", name != "x"))

    def data_set(self, n: int = 5, x_dim: int = SMALL["x_dim"]) -> Tensor | tuple[Tensor, ...]:
        """Draw data that the likelihood supports, its own, in the form that `pv.fit` takes."""
        rest = tuple(GIVEN[name](n, x_dim) for name in self.arguments if name not in ("x", "index"))
        dtypes = [p.dtype for p in self.parameters().values()]
        like = (torch.zeros(n, x_dim, dtype=next(iter(dtypes), torch.float32)), *rest)
        x = pv.sample(self.model, like=like, n=n, seed=1)["x"]
        return (x, *rest) if rest else x

    def data(self, n: int = 5, x_dim: int = SMALL["x_dim"]) -> Tensor | tuple[Tensor, ...]:
        """Draw a batch, with its rows in the data set where a program asks for them."""
        batch = as_batch(self.data_set(n, x_dim))
        batch += (torch.arange(n),) if "index" in self.arguments else ()
        return batch if len(batch) > 1 else batch[0]

    def parameters(self) -> dict[str, Tensor]:
        return pv.programs.Programs(self.model, self.guide).parameters()


def make(model: str, guide: str) -> Pair:
    """Return a small pair in float64."""
    torch.manual_seed(0)
    p = zoo.build(zoo.find("models", model), SMALL)
    q = zoo.build(zoo.find("guides", guide), SMALL | {"model": p})
    return Pair(p.double(), q.double())


def _asked(program: nn.Module) -> list[str]:
    return [name for name, p in inspect.signature(program.forward).parameters.items() if p.kind is not p.VAR_POSITIONAL]


def part(batch: Tensor | tuple[Tensor, ...], rows: slice) -> Tensor | tuple[Tensor, ...]:
    """Return some rows of a batch."""
    return batch[rows] if torch.is_tensor(batch) else tuple(tensor[rows] for tensor in batch)


@cache
def fits(model: str, guide: str) -> bool:
    """Tell whether a guide draws just what a model leaves latent: same names, shapes and supports."""
    try:
        pair = make(model, guide)
    except TypeError:  # a closed form that this model does not have
        return False
    if [name for name in pair.arguments if name not in ("x", "index")] != _asked(pair.model)[1:]:
        return False  # a guide that reads what the model's batch has not
    batch = as_batch(pair.data())
    traces = [poutine.trace(program).get_trace(*batch) for program in alike(pair.model, pair.guide)]
    wanted, drawn = (contract.latents(trace) for trace in traces)
    if {name for name, site in wanted.items() if not contract.is_marked(site)} != set(drawn):
        return False
    try:
        supports.check_supports(*traces)
    except pv.ContractError:
        return False
    return True


def names() -> list[tuple[str, str]]:
    """Return the names of all pairs that fit."""
    shared = with_global_latents()
    models = [name for name in zoo.discover("models") if name not in shared]
    return [(m, g) for m in models for g in zoo.discover("guides") if fits(m, g)]


def with_global_latents() -> set[str]:
    """Return the names of the models with a latent that all data share; no guide for batches can weigh them."""
    return {name for name, model in zoo.discover("models").items() if has_global_latents(model)}


@cache
def has_global_latents(model: type[nn.Module]) -> bool:
    """Run a model, and tell whether it draws anything outside the plate "data"."""
    arguments = inspect.signature(model.forward).parameters.keys() - {"self"}
    batch = [torch.ones(5, SMALL["x_dim"]) for _ in arguments]
    trace = poutine.trace(poutine.uncondition(zoo.build(model, SMALL))).get_trace(*batch)
    plates = [{frame.name for frame in site["cond_indep_stack"]} for _, site in contract.sample_sites(trace)]
    return any(contract.DATA_PLATE not in names for names in plates)


def kind(model: str, guide: str) -> Hashable:
    """Return what the library tells pairs apart by: the ways in which latents are drawn, one or several by each."""
    pair = make(model, guide)
    drawn = pv.weigh(pair.model, pair.guide, pair.data())
    ways = ["enumerated" if z in drawn.enumerated else "scored" if z in drawn.score else "path" for z in drawn.values]
    found = Counter(ways + ["summed"] * len(drawn.summed))
    return frozenset((way, min(count, 2)) for way, count in found.items())


def one_of_each_kind() -> list[tuple[str, str]]:
    """Return the names of a pair of every kind that there is, with a guide to train if one has it."""
    trained = sorted(names(), key=lambda pair: any(True for _ in make(*pair).guide.parameters()))
    return list({kind(*pair): pair for pair in trained}.values())


def files(kind: str) -> set[str]:
    """Return the names of the program files of a kind, read from the tree."""
    return {path.stem for path in (ROOT / kind).glob("*.py")} - {"__init__"}


def digits_vae() -> tuple[nn.Module, nn.Module]:
    """Return an untrained VAE and guide for the 8 x 8 digits."""
    torch.manual_seed(0)
    sizes = {"x_dim": 64, "z_dim": 4, "hidden": (32,)}
    return zoo.find("models", "vae")(**sizes), zoo.find("guides", "normal")(**sizes)
