"""Pair a guide's trace with its model's: the one file that weighs with Pyro's effect handlers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.contract import PARTICLE_PLATE, Site
from ppl_vae.particles import Path
from ppl_vae.programs import Program, own_parameters

__all__ = [
    "Draw",
    "Unobserved",
    "dreamt",
    "enumerated_trace",
    "first",
    "paired_traces",
    "placed",
    "plated",
    "scored_at_draws",
    "scored_dream",
    "trace_of_first",
    "trace_with_particles",
]

# How to draw a latent of the guide: site name and distribution to value, or None for the usual way.
Draw = Callable[[str, Any], Tensor | None]


def paired_traces(
    model: Program,
    guide: Program,
    batch: Batch,
    particles: int,
    path: Path = Path.TOTAL,
    draw: Draw | None = None,
) -> tuple[Any, Any]:
    """Trace the guide, then the model with the guide's draws, K particles at once."""
    if path is Path.NONE:
        draw = _as_given
    # Enumerated values get axes left of the particles, those of the model left of the guide's.
    with Enumerating(first_available_dim=-3), Drawing(draw):
        guide_trace = poutine.trace(plated(guide, particles)).get_trace(*batch)
    # Innermost, so that sites with a value from the guide still learn which axes are in scope.
    enumerated = Enumerating()(plated(model, particles))
    model_trace = poutine.trace(poutine.replay(enumerated, trace=_tapped(guide_trace))).get_trace(*batch)
    return model_trace, guide_trace


def trace_with_particles(program: Program, batch: Batch, particles: int) -> Any:
    """Trace one program alone, with K draws of each of its latents."""
    return poutine.trace(plated(program, particles)).get_trace(*batch)


def scored_at_draws(
    guide: Program, batch: Batch, particles: int, model_trace: Any, guide_trace: Any
) -> dict[str, Site]:
    """Return the guide's sites at the draws as the model saw them.

    Densities of these sites, differentiated in those draws, leave out what reaches the draws
    through the guide's own later sites. A guide of several reparameterised sites is run once more
    for that, since later ones may have parameters made of earlier draws.
    """
    drawn, seen = contract.latents(guide_trace), contract.latents(model_trace)
    at_taps = _with_values(guide_trace, {name: seen[name]["value"] for name in drawn if name in seen})
    if sum(site["value"].requires_grad for site in drawn.values()) > 1:
        with Enumerating(first_available_dim=-3):
            at_taps = poutine.trace(poutine.replay(plated(guide, particles), trace=at_taps)).get_trace(*batch)
    return dict(contract.sample_sites(at_taps))


def trace_of_first(program: Program, trace: Any, batch: Batch, given: Iterable[str]) -> Any:
    """Trace a program on the first datum with the first of the draws of a trace with particles.

    Args:
        program: model or guide.
        trace: its trace with particles.
        batch: tensors.
        given: the latents to take from there; it enumerates the others again.
    """
    sites = contract.latents(trace)
    values = {name: first(sites[name]["value"], sites[name]["fn"].event_dim) for name in given}
    # The axes of values that the guide enumerated stay where they are.
    taken = [sites[n]["infer"]["_enumerate_dim"] for n in values if sites[n]["infer"].get("_enumerate_dim")]
    with Enumerating(first_available_dim=min([-2, *taken]) - 1):
        conditioned = poutine.condition(plated(program, 1), data=values)
        return poutine.trace(conditioned).get_trace(*(part[:1] for part in batch))


def first(value: Tensor, event_dim: int = 0) -> Tensor:
    """Return a tensor with only the first particle and datum left of its event.

    Example:
        >>> first(torch.zeros(3, 2, 5), event_dim=1).shape
        torch.Size([1, 1, 5])
    """
    for axis in (-1, -2):
        if value.dim() >= event_dim - axis:
            value = value.narrow(axis - event_dim, 0, 1)
    return value


def scored_dream(model: Program, guide: Program, batch: Batch) -> Tensor:
    """Draw latents and data from the model, one for each row, and score the latents by the guide, ``(B,)``.

    Raises:
        ContractError: the model observes something that is not a tensor of the batch.
    """
    with torch.no_grad():
        sites, dream = dreamt(model, batch)
    latents = {name: site["value"] for name, site in sites.items() if not site["infer"].get("was_observed")}
    guide_trace = poutine.trace(poutine.condition(guide, data=latents)).get_trace(*dream)
    drawn = {name: site for name, site in contract.sample_sites(guide_trace) if name in latents}
    return sum(scale_and_mask(s["fn"].log_prob(s["value"]), 1.0, s["mask"]) for s in drawn.values())


def dreamt(model: Program, batch: Batch) -> tuple[dict[str, Site], Batch]:
    """Draw latents and data from the model, one for each row; return its sites, and the batch that it dreamt.

    Raises:
        ContractError: the model observes something that is not a tensor of the batch.
    """
    trace = poutine.trace(poutine.uncondition(model)).get_trace(*batch)
    sites = dict(contract.sample_sites(trace))
    return sites, placed(sites, batch)


def placed(sites: Mapping[str, Site], batch: Batch) -> Batch:
    """Return a batch with what was drawn in place of what was observed.

    Args:
        sites: those of an unconditioned model's trace on the batch.
        batch: tensors.

    Raises:
        ContractError: the model observes something that is not a tensor of the batch.
    """
    dreamt = list(batch)
    for name, site in sites.items():
        if site["infer"].get("was_observed") and not contract.is_factor(site):
            dreamt[_place(name, site["infer"]["obs"], batch)] = site["value"]
    return tuple(new.reshape(old.shape) for new, old in zip(dreamt, batch, strict=True))


def _place(name: str, observed: Tensor, batch: Batch) -> int:
    for i, part in enumerate(batch):
        if _memory(observed) == _memory(part) and observed.numel() == part.numel():
            return i
    raise contract.ContractError(
        f"site '{name}': it observes a tensor made from the batch, not one of the batch, so a draw cannot take its "
        "place; observe the argument itself (training by wake-sleep can leave out the sleep phase: sleep=0)"
    )


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Tell where a tensor begins, stand-ins without memory included."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset()


def plated(program: Program, particles: int) -> Program:
    """Open the outermost plate. It costs the encoder nothing: x has no particle axis."""

    def run(*batch: Tensor) -> Any:
        with pyro.plate(PARTICLE_PLATE, particles, dim=-2):
            return program(*batch)

    return run


def _as_given(name: str, fn: Any) -> Tensor:
    return fn.sample()


class Enumerating(EnumMessenger):
    """Enumerate marked sites, and say by name which cannot be."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if contract.has_density(msg) and not (msg["is_observed"] or msg["done"]):
            contract.check_mark(msg["name"], msg)
        super()._pyro_sample(msg)


def enumerated_trace(program: Program, batch: Batch, first_dim: int = -2) -> Any:
    """Trace a program, all of its discrete latents enumerated, and bits that it observes as floating numbers.

    Args:
        program: what has values for its continuous latents draws nothing.
        batch: tensors.
        first_dim: the axis for the first enumerated latent, left of every plate.
    """
    with own_parameters(), Enumerating(first_available_dim=first_dim):
        return poutine.trace(config_enumerate(Floating()(program), default="parallel")).get_trace(*batch)


class Floating(Messenger):
    """Give Bernoulli likelihoods whole numbers and truth values in the type in which torch has their densities."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = contract.innermost(msg["fn"])
        if msg["is_observed"] and isinstance(fn, dist.Bernoulli) and not msg["value"].is_floating_point():
            msg["value"] = msg["value"].to(fn._param.dtype)


class Unobserved(Messenger):
    """Give observed sites no density, so that what is left of a model is its prior."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"]:
            msg["mask"] = False


class Drawing(Messenger):
    """Draw latents by a rule, those apart that are enumerated."""

    def __init__(self, draw: Draw | None):
        super().__init__()
        self.draw = draw

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        taken = msg["is_observed"] or msg["done"] or msg["infer"].get("enumerate")
        if self.draw is None or taken or not contract.has_density(msg):
            return
        value = self.draw(msg["name"], msg["fn"])
        if value is not None:
            msg["value"], msg["done"] = value, True


def _tapped(guide_trace: Any) -> Any:
    """Return the guide's trace with views of its draws.

    The gradient at a view is what reaches a draw through the model alone, not through later draws
    of the guide; estimators that weigh the two differently ask for it.
    """
    drawn = contract.latents(guide_trace)
    return _with_values(guide_trace, {n: s["value"].view_as(s["value"]) for n, s in drawn.items() if _moves(s)})


def _moves(site: Site) -> bool:
    return site["value"].requires_grad and site["infer"].get("_enumerate_dim") is None


def _with_values(trace: Any, values: dict[str, Tensor]) -> Any:
    changed = trace.copy()
    for name, value in values.items():
        changed.nodes[name] = {**trace.nodes[name], "value": value}
    return changed
