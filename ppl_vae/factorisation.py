"""What mean field needs to know of a program: its factors, and which site reads which of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError, Site, in_data, number_of_values
from ppl_vae.factors import Factor, Values, factor_of, joint_factor_of, kind, unwrapped
from ppl_vae.natural_forms import log_density, natural
from ppl_vae.programs import Program, own_parameters
from ppl_vae.tracing import enumerated_trace

__all__ = ["Factorisation", "drawn", "factorisation_of", "factorisation_on", "run"]

CENTRED = (dist.Gamma, dist.Wishart, dist.Beta, dist.Dirichlet)
SURVEYED = 256  # data, to see what a program does
Joint = Sequence[tuple[str, str]]


class Placing(Messenger):
    """Give latents the values of a mapping, and others that are not normal their means.

    Draws of a vague gamma or a sparse Dirichlet may be as good as zero, and what is computed with them infinite.
    """

    def __init__(self, values: Values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"]:
            return
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True
        elif kind(unwrapped(msg["fn"])[0]) in CENTRED:
            msg["value"], msg["done"] = msg["fn"].mean, True


def run(model: Program, batch: Batch, values: Values, first_dim: int = -2) -> dict[str, Site]:
    """Run a program with values for its continuous latents, and its discrete ones enumerated.

    Args:
        model: Pyro program.
        batch: tensors.
        values: site name to value; other continuous latents are drawn if normal, and at their mean if not.
        first_dim: the axis for the first enumerated latent, left of every plate.
    """
    with pyro.validation_enabled(False):
        sites = dict(contract.sample_sites(enumerated_trace(Placing(values)(model), batch, first_dim)))
    return sites | {name: contract.without_mask(site) for name, site in sites.items() if enumerated(site)}


@dataclass(frozen=True)
class Factorisation:
    """A program, as mean field sees it.

    Attributes:
        factors: of the continuous latents, by name; local ones for this very batch.
        discrete: per-datum discrete latents, by site, with the axis of their values.
        values: how many there are of each of them.
        reads: site name to the names of the factors that its log density depends on.
        in_data: sites in the plate "data".
        observed: what each observed site of the plate "data" observes, all of it.
        origins: the means of those that are floating numbers.
        once: sites whose density for all data follows from a run on the first of them.
        groups: factors by name to a number; those of one number are read together by no site.
        first_dim: the axis for the first enumerated latent.
    """

    factors: Mapping[str, Factor]
    discrete: Mapping[str, int]
    values: Mapping[str, int]
    reads: Mapping[str, frozenset[str]]
    in_data: frozenset[str]
    observed: Mapping[str, Tensor]
    origins: Mapping[str, Tensor]
    once: frozenset[str]
    groups: Mapping[str, int]
    first_dim: int

    def readers(self, factor: str) -> list[str]:
        """Return the sites whose density depends on a factor."""
        return [site for site, read in self.reads.items() if factor in read]


def factorisation_of(model: Program, batch: Batch, joint: Joint | None) -> Factorisation:
    """Look at a program by running it on a batch.

    Args:
        model: Pyro program.
        batch: tensors.
        joint: pairs of a mean and its precision that share a factor; found when left out.

    Raises:
        ContractError: a latent that no factor fits, a discrete latent outside the plate "data", a penalty, data
            outside it, nothing observed or nothing to infer.
    """
    first_dim = -1 - _depth(model, tuple(part[:SURVEYED] for part in batch))
    sites, alone = (run(model, part, {}, first_dim) for part in (batch, tuple(part[:1] for part in batch)))
    for name, site in sites.items():
        _check(name, site)
        if not in_data(site):
            contract.check_global(name, site, alone.get(name))
    contract.check_observes(sites)
    if all(site["is_observed"] for site in sites.values()):
        raise ContractError("model: it has no latents, so that there is nothing to infer; pv.em fits parameters")
    discrete = {name: site["infer"]["_enumerate_dim"] for name, site in sites.items() if enumerated(site)}
    continuous = drawn(model, batch)
    read = _reads(model, tuple(part[:SURVEYED] for part in batch), first_dim)
    pairs = _pairs(continuous, read) if joint is None else joint
    factors = _factors(continuous, pairs)
    owner = {site: factor.name for factor in factors for site in factor.sites}
    reads = {site: frozenset(owner[name] for name in names) for site, names in read.items()}
    return Factorisation(
        factors={factor.name: factor for factor in factors},
        discrete=discrete,
        values={name: number_of_values(sites[name]) for name in discrete},
        reads=reads,
        in_data=frozenset(name for name, site in sites.items() if in_data(site)),
        **_seen(sites),
        once=_once(model, batch, continuous, first_dim),
        groups=_groups(owner.values(), reads.values()),
        first_dim=first_dim,
    )


def drawn(model: Program, batch: Batch) -> dict[str, Site]:
    """Run a program without enumerating, and return its continuous latents.

    One that follows a discrete latent has one value for each datum then, as its factor does.
    """
    # A drawn class takes parameters of its own to each datum, so that all data would take much memory.
    few = _drawn(model, tuple(part[:SURVEYED] for part in batch))
    return _drawn(model, batch) if any(map(in_data, few.values())) else few


def _drawn(model: Program, batch: Batch) -> dict[str, Site]:
    with own_parameters(), pyro.validation_enabled(False):
        found = contract.latents(poutine.trace(Placing({})(model)).get_trace(*batch))
    return {name: site for name, site in found.items() if not site["fn"].support.is_discrete}


def factorisation_on(found: Factorisation, model: Program, batch: Batch) -> tuple[Factorisation, Mapping[str, Site]]:
    """Return what is known of a program, for other data, and the sites of its local factors."""
    names = [name for name, factor in found.factors.items() if factor.local]
    priors = drawn(model, batch) if names else {}
    local = {name: factor_of(name, priors[name]["fn"], True) for name in names}
    seen = _seen(run(model, batch, {}, found.first_dim))
    return replace(found, factors={**found.factors, **local}, **seen), priors


def _seen(sites: Mapping[str, Site]) -> dict[str, dict[str, Tensor]]:
    observed = {name: site["value"] for name, site in sites.items() if site["is_observed"] and in_data(site)}
    origins = {name: value.mean(0) for name, value in observed.items() if value.is_floating_point()}
    return {"observed": observed, "origins": origins}


def enumerated(site: Site) -> bool:
    """Tell whether a site takes all its values at once."""
    return site["infer"].get("_enumerate_dim") is not None


def _depth(model: Program, batch: Batch) -> int:
    """Return how many axes the plates of a program take, if that of data is alone around each datum's sites."""
    with own_parameters():
        trace = poutine.trace(Placing({})(model)).get_trace(*batch)
    for name, site in contract.sample_sites(trace):
        if in_data(site):
            contract.check_plate(name, site, "model", len(batch[0]))
            contract.check_data_shape(name, site)
    frames = [f for site in trace.nodes.values() if site["type"] == "sample" for f in site["cond_indep_stack"]]
    return max((-frame.dim for frame in frames if frame.vectorized), default=1)


def _check(name: str, site: Site) -> None:
    contract.check_no_penalty(name)
    if enumerated(site) and not in_data(site):
        raise ContractError(
            f"site '{name}': discrete and outside the plate 'data'; factors of discrete latents are those of each "
            "datum. Put it in the plate, or try its values one after the other"
        )
    contract.check_whole(name, site)
    if enumerated(site):
        contract.check_probabilities(name, site)


def _reads(model: Program, batch: Batch, first_dim: int) -> dict[str, set[str]]:
    """Return the latents that each site's log density depends on, itself included, by following gradients."""
    values = {name: site["value"].detach().clone().requires_grad_() for name, site in drawn(model, batch).items()}
    with torch.enable_grad():
        sites = run(model, batch, values, first_dim)
        found = {}
        for name, site in sites.items():
            density = site["fn"].log_prob(site["value"]).sum()
            found[name] = _reached(density, values)
    return found


def _reached(density: Tensor, values: Values) -> set[str]:
    if not density.requires_grad or not values:
        return set()
    slopes = torch.autograd.grad(density, [*values.values()], allow_unused=True)
    return {name for name, slope in zip(values, slopes, strict=True) if slope is not None}


def _once(model: Program, batch: Batch, latents: Mapping[str, Site], first_dim: int) -> frozenset[str]:
    """Return the sites that look the same when the program runs on one datum: priors, components, classes."""
    values = {name: site["value"] for name, site in latents.items()}
    whole = run(model, batch, values, first_dim)
    values = {name: value[:1] if in_data(latents[name]) else value for name, value in values.items()}
    alone = run(model, tuple(part[:1] for part in batch), values, first_dim)
    return frozenset(name for name, site in whole.items() if _looks_the_same(site, alone[name]))


def _looks_the_same(site: Site, alone: Site) -> bool:
    if in_data(site) and site["fn"].batch_shape[-1:] == (1,):
        return False  # a single datum looks like itself, whatever others will do
    if site["is_observed"] and in_data(site):
        found = [natural(one) for one in (site, alone)]
        return None not in found and all(map(torch.equal, found[0][1], found[1][1]))
    if in_data(site) and not enumerated(site):
        return False
    densities = log_density(site), log_density(alone)
    return densities[0].shape[:-1] == densities[1].shape[:-1] and bool((densities[0] == densities[1]).all())


def _pairs(latents: Mapping[str, Site], reads: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
    """Return normal means whose prior reads a precision of their own shape."""
    return [
        (mean, precision)
        for mean, site in latents.items()
        for precision in reads[mean]
        if precision != mean and _matching(site, latents[precision])
    ]


def _matching(mean: Site, precision: Site) -> bool:
    if in_data(mean) or in_data(precision):
        return False
    try:
        joint_factor_of("mean", mean["fn"], "precision", precision["fn"])
    except ContractError:
        return False
    return True


def _factors(latents: Mapping[str, Site], pairs: Iterable[tuple[str, str]]) -> list[Factor]:
    made, left = [], dict(latents)
    for mean, precision in pairs:
        for name in (mean, precision):
            if name not in left:
                raise ContractError(
                    f"joint: '{name}' is no continuous latent of the program, or stands in two pairs; there are "
                    f"{', '.join(latents) or 'none'}"
                )
        made.append(joint_factor_of(mean, left.pop(mean)["fn"], precision, left.pop(precision)["fn"]))
    made += [factor_of(name, site["fn"], in_data(site)) for name, site in left.items()]
    return made


def _groups(names: Iterable[str], read_together: Iterable[frozenset[str]]) -> dict[str, int]:
    """Number factors such that no site reads two of one number."""
    groups: dict[str, int] = {}
    for name in names:
        taken = {groups.get(other) for together in read_together if name in together for other in together - {name}}
        groups[name] = next(number for number in range(len(groups) + 1) if number not in taken)
    return groups
