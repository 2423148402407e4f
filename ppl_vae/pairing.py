"""Which guides of the zoo fit which models, found by making all of them small and running them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae import contract, nets, priors, supports, zoo
from ppl_vae.batches import Batch, as_batch
from ppl_vae.indexing import alike
from ppl_vae.programs import Programs, forked_random_state
from ppl_vae.sampling import sample

__all__ = ["SMALL", "Names", "Pair", "fits", "make", "names", "variants", "with_global_latents"]

# Sizes at which every program of the zoo runs in milliseconds.
SMALL = {
    "x_dim": 6,
    "z_dim": 2,
    "y_dim": 3,
    "covariate_dim": 6,
    "hidden": (8,),
    "components": 3,
    "positions": 2,
    "codes": 4,
}

# What a batch holds besides x, by the names of the programs' arguments.
GIVEN: dict[str, Callable[[int, int], Tensor]] = {
    "y": lambda n, x_dim: torch.arange(n) % SMALL["y_dim"],
    "observed": lambda n, x_dim: torch.arange(n * x_dim).reshape(n, -1) % 4 != 1,
}

# Of model and guide; and of a prior or a head that takes the place of a VAE's own.
Names = tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A model with a guide, and data for both.

    Example:
        >>> make("vae", "normal").data(3).shape
        torch.Size([3, 6])
    """

    model: nn.Module
    guide: nn.Module

    @property
    def arguments(self) -> list[str]:
        """Return the names of what either program takes, x first and rows of the data set last."""
        taken = [*_arguments(self.model), *_arguments(self.guide)]
        return sorted(dict.fromkeys(taken), key=lambda name: (name == "index", name != "x"))

    def data_set(self, n: int = 5, x_dim: int = SMALL["x_dim"]) -> Tensor | Batch:
        """Draw data that the likelihood supports, its own, in the form that `ppl_vae.fit` takes."""
        dtypes = [p.dtype for p in self.parameters().values()]
        like = self.beside(torch.zeros(n, x_dim, dtype=next(iter(dtypes), torch.float32)))
        return self.beside(sample(self.model, like=like, n=n, seed=1)["x"])

    def beside(self, x: Tensor) -> Tensor | Batch:
        """Return data with what else the programs take of each datum but its row: labels in turn, a mask."""
        others = [name for name in self.arguments if name not in ("x", "index")]
        return (x, *(GIVEN[name](*x.shape) for name in others)) if others else x

    def data(self, n: int = 5, x_dim: int = SMALL["x_dim"]) -> Tensor | Batch:
        """Draw a batch, with its rows in the data set where a program asks for them."""
        batch = as_batch(self.data_set(n, x_dim))
        batch += (torch.arange(n),) if "index" in self.arguments else ()
        return batch if len(batch) > 1 else batch[0]

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters by name."""
        return Programs(self.model, self.guide).parameters()


def make(model: str, guide: str, part: str | None = None, sizes: Mapping[str, Any] = SMALL) -> Pair:
    """Return a small pair in float64.

    Args:
        model: its name in the zoo.
        guide: likewise.
        part: the name of a prior, or of a head, that the model is to have.
        sizes: what the constructors are given of what they take.

    Example:
        >>> type(make("vae", "normal", "ToNormalOneScale").model.decoder[-1]).__name__
        'ToNormalOneScale'
    """
    with forked_random_state(0):
        if part in priors.__all__:  # some are made of the guide's encoder
            q = zoo.build(zoo.find("guides", guide), sizes)
            made = zoo.build(getattr(priors, part), sizes | _of_priors(sizes) | {"encoder": q.encoder})
            p = zoo.build(zoo.find("models", model), sizes | {"prior": made})
        else:
            p = zoo.build(zoo.find("models", model), sizes | (_decoder(part, sizes) if part else {}))
            q = zoo.build(zoo.find("guides", guide), sizes | {"model": p})
    return Pair(p.double(), q.double())


def _of_priors(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what else constructors of priors take: exemplars, components."""
    shape = (sizes["components"], sizes["z_dim"])
    given = {"logits": torch.zeros(shape[0]), "loc": torch.randn(shape), "scale": torch.ones(shape)}
    return given | {"exemplars": torch.rand(7, sizes["x_dim"])}


def _decoder(head: str, sizes: Mapping[str, Any]) -> Mapping[str, nn.Module]:
    """Return a VAE's decoder with a head by name."""
    made = zoo.build(getattr(nets, head), sizes)
    return {"decoder": nn.Sequential(nets.MLP(sizes["z_dim"], sizes["hidden"], made.outputs * sizes["x_dim"]), made)}


@cache
def fits(model: str, guide: str) -> bool:
    """Tell whether a guide draws just what a model leaves latent: same names, shapes and supports.

    Example:
        >>> fits("vae", "normal"), fits("vae", "bernoulli")
        (True, False)
    """
    drawn = _sites_of("guides", guide)
    if drawn is not None and not {*drawn} <= {*(_sites_of("models", model) or ())}:
        return False  # told cheaply
    try:
        pair = make(model, guide)
        batch = as_batch(pair.data())
        if [name for name in pair.arguments if name != "index"] != _arguments(pair.model):
            return False  # the guide reads what the model's batch has not
        model, guide = alike(pair.model, pair.guide)
        # Networks of guides read real numbers; a guide that fits a model of whole numbers reads none.
        real = (batch[0].double(), *batch[1:])
        traces = [poutine.trace(model).get_trace(*batch), poutine.trace(guide).get_trace(*real)]
        contract.check_names(*traces)
        contract.check_known(traces[1])
        supports.check_pair_shapes(*traces)
        supports.check_densities(*traces)
        supports.check_supports(*traces)
    except (TypeError, ValueError):  # no closed form, other arguments, other latents
        return False
    return True


@cache
def _sites_of(kind: str, name: str) -> tuple[str, ...] | None:
    """Return the latents of a program that is made without another one; None where it needs one."""
    program = zoo.find(kind, name)
    if zoo.takes(program, "model"):
        return None
    with forked_random_state(0):
        made = zoo.build(program, SMALL)
        trace = poutine.trace(poutine.uncondition(made)).get_trace(*_batch(made))
    return tuple(name for name, site in contract.sample_sites(trace) if not contract.is_auxiliary(site))


def _batch(program: nn.Module, n: int = 5) -> Batch:
    """Return a batch of ones, with what else a program takes."""
    given = GIVEN | {"index": lambda n, x_dim: torch.arange(n)}
    return tuple(given.get(name, torch.ones)(n, SMALL["x_dim"]) for name in _arguments(program))


def _arguments(program: nn.Module) -> list[str]:
    parameters = inspect.signature(program.forward).parameters
    return [name for name, p in parameters.items() if p.kind is not p.VAR_POSITIONAL]


def names() -> list[Names]:
    """Return the names of all pairs that fit.

    Example:
        >>> ("vae", "normal") in names()
        True
    """
    shared = with_global_latents()
    models = [name for name in zoo.discover("models") if name not in shared]
    return [(m, g) for m in models for g in zoo.discover("guides") if fits(m, g)]


def variants() -> list[Names]:
    """Return the names of the VAEs that differ from the first in their prior or their likelihood.

    Example:
        >>> ("vae", "normal", "ToNormalOneScale") in variants()
        True
    """
    heads = [name for name in nets.__all__ if hasattr(getattr(nets, name), "outputs")]
    return [("vae", "normal", part) for part in (*priors_of_vectors(), *heads)]


def priors_of_vectors() -> list[str]:
    """Return the names of the priors of real vectors, which a VAE takes."""
    found = {name: getattr(priors, name) for name in priors.__all__ if "Codes" not in name}
    return [name for name, prior in found.items() if _takes_nothing(prior)]


def _takes_nothing(module: Any) -> bool:
    return isinstance(module, type) and [*inspect.signature(module.forward).parameters] == ["self"]


def with_global_latents() -> set[str]:
    """Return the names of the models with a latent that all data share; no guide for batches can weigh them.

    Example:
        >>> "bayesian_gaussian_mixture" in with_global_latents()
        True
    """
    return {name for name, model in zoo.discover("models").items() if has_global_latents(model)}


@cache
def has_global_latents(model: type[nn.Module]) -> bool:
    """Run a model, and tell whether it draws anything outside the plate "data".

    Example:
        >>> has_global_latents(zoo.find("models", "vae"))
        False
    """
    made: Any = zoo.build(model, SMALL)
    with forked_random_state(0):
        trace = poutine.trace(poutine.uncondition(made)).get_trace(*_batch(made))
    plates = [{frame.name for frame in site["cond_indep_stack"]} for _, site in contract.sample_sites(trace)]
    return any(contract.DATA_PLATE not in found for found in plates)
