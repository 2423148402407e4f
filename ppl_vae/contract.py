"""The contract between a model and its guide, as checks on their traces.

Each check raises a `ContractError` that names the site, what was found and the repair. They read
traces only; `ppl_vae.checking` runs the programs.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pyro import distributions as dist
from torch import Size, Tensor

__all__ = ["DATA_PLATE", "PARTICLE_PLATE", "PENALTY", "ContractError"]

DATA_PLATE = "data"
PARTICLE_PLATE = "_particles"
PENALTY = "penalty_"

Site = Mapping[str, Any]


class ContractError(ValueError):
    """A model and a guide, or the data, do not fit; the message says where and what to do."""


def sample_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """Yield the sites that have a density: no subsample indices, no deterministic values."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and has_density(site):
            yield name, site


def has_density(site: Site) -> bool:
    """Tell a random variable from subsample indices and deterministic values."""
    bookkeeping = site["infer"].get("_deterministic") or type(site["fn"]).__name__ == "_Subsample"
    return isinstance(site["fn"], dist.Distribution) and not bookkeeping


def latents(trace: Any) -> dict[str, Site]:
    """Return the sites whose value was drawn."""
    return {name: site for name, site in sample_sites(trace) if not site["is_observed"]}


def observed(trace: Any) -> dict[str, Site]:
    """Return the sites whose value was given, penalties and factors included."""
    return {name: site for name, site in sample_sites(trace) if site["is_observed"]}


def is_factor(site: Site) -> bool:
    """Tell whether a site is a ``pyro.factor``."""
    return isinstance(site["fn"], dist.Unit)


def is_auxiliary(site: Site) -> bool:
    """Tell whether a guide's site may have no counterpart in the model."""
    return bool(site["infer"].get("is_auxiliary"))


def plate_scale(site: Site) -> float:
    """Return N / B of the plate "data" around a site."""
    frame = next(f for f in site["cond_indep_stack"] if f.name == DATA_PLATE)
    return 1.0 if frame.full_size in (None, frame.size) else frame.full_size / frame.size


def in_data(site: Site) -> bool:
    """Tell whether a site stands in the plate "data"."""
    return any(frame.name == DATA_PLATE for frame in site["cond_indep_stack"])


def number_of_values(site: Site) -> int:
    """Return how many values an enumerated site takes."""
    value, axis = site["value"], site["infer"]["_enumerate_dim"] - site["fn"].event_dim
    return value.shape[axis] if value.dim() >= -axis else 1  # Pyro drops an axis of a single value


def without_mask(site: Site) -> Site:
    """Return a site with its density where a handler masks it, too.

    A latent that is summed out keeps its density there, as under Pyro's ``TraceEnum_ELBO``: probabilities sum to one,
    and masked ones would sum to their number.
    """
    return {**site, "mask": None}


def has_common_scale(site: Site) -> bool:
    """Tell whether a site has no scale but its plate's."""
    common, scale = plate_scale(site), site["scale"]
    return not isinstance(scale, Tensor) and abs(scale - common) <= 1e-9 * common


def is_marked(site: Site) -> bool:
    """Tell whether a site is to be summed over all its values."""
    return bool(site["infer"].get("enumerate"))


def has_mask(fn: Any) -> bool:
    """Tell whether a distribution leaves some of its values out of its density."""
    return isinstance(fn, dist.MaskedDistribution) or (isinstance(fn, dist.Independent) and has_mask(fn.base_dist))


def innermost(fn: Any) -> Any:
    """Return a distribution without its declared events and masks."""
    while hasattr(fn, "base_dist") and isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def kind(fn: Any) -> str:
    """Return a distribution's name, for messages."""
    return type(innermost(fn)).__name__


def check_names(model_trace: Any, guide_trace: Any) -> None:
    """Every latent has its guide site or is summed out, and every guide site has its latent."""
    wanted, drawn = latents(model_trace), latents(guide_trace)
    for name, site in {**wanted, **drawn}.items():
        check_mark(name, site)
    for name, site in wanted.items():
        if name not in drawn and not is_marked(site):
            raise ContractError(
                f"site '{name}' is latent in the model, but the guide never samples it (it samples "
                f"{_names(drawn)}); add pyro.sample('{name}', ...) to the guide, observe it with obs=, or, if it is "
                "discrete, sum it out with infer={'enumerate': 'parallel'}"
            )
    for name, site in drawn.items():
        if name not in wanted and not is_auxiliary(site):
            given = name in observed(model_trace)
            raise ContractError(
                f"site '{name}' is sampled by the guide, but the model "
                + ("observes it" if given else f"has no such latent (it has {_names(wanted)})")
                + "; remove it from the guide, or give both the same name"
            )


def check_known(guide_trace: Any) -> None:
    """What a guide draws has a density, where one is asked for."""
    for name, site in latents(guide_trace).items():
        if kind(site["fn"]) == "Pushforward":
            raise ContractError(
                f"site '{name}' is a network's output of noise in the guide, whose density is not known; train it by "
                "pv.adversarial_step, evaluate its model by pv.ais, or draw it from a distribution, such as a Normal"
            )


def check_mark(name: str, site: Site) -> None:
    """A site that is to be summed out has finitely many values, all at once."""
    how = site["infer"].get("enumerate")
    if how not in (None, "parallel"):
        raise ContractError(
            f"site '{name}' is marked enumerate={how!r}; only 'parallel' is known: infer={{'enumerate': 'parallel'}}"
        )
    if how and not site["fn"].has_enumerate_support:
        raise ContractError(
            f"site '{name}' is marked for enumeration, but its distribution ({kind(site['fn'])}, event shape "
            f"{tuple(site['fn'].event_shape)}) gives no finite list of values; remove the mark and draw it in the "
            "guide, or give each element of a discrete vector a site of its own"
        )
    if how and site["infer"].get("num_samples"):
        raise ContractError(
            f"site '{name}' is marked for enumeration with num_samples, which draws instead; remove num_samples, and "
            "ask for particles"
        )


def check_probabilities(name: str, site: Site) -> None:
    """The values of a latent that is summed out have probabilities, which a mask in its distribution takes away."""
    if has_mask(site["fn"]):
        raise ContractError(
            f"site '{name}' is summed out, and its distribution has a mask, under which its values have no "
            "probabilities that sum to one; take the mask off, and mask the likelihood of the missing data"
        )


def check_mass(name: str, site: Site) -> None:
    """A value that a guide enumerates has the mass q(y | x), which a mask takes away."""
    if has_mask(site["fn"]) or site["mask"] is not None:
        raise ContractError(
            f"guide: site '{name}' is enumerated under a mask, where its values have no probabilities that sum to one; "
            "mask the likelihood of the missing data alone, or train on a bound that is linear in the weights, such as "
            "elbo"
        )


def check_summable(sites: Mapping[str, Site], summed: Iterable[str]) -> None:
    """Latents to be summed out have probabilities, and no site a scale: inside a sum of densities it has no meaning."""
    for name in summed:
        check_probabilities(name, sites[name])
    for name, site in sites.items():
        if not (has_common_scale(site) or name.startswith(PENALTY)):
            raise ContractError(
                f"site '{name}' has a scale of its own (poutine.scale), but {_names(summed)} is summed out of the "
                "model, and inside a sum a scale has no meaning; enumerate it in the guide, or drop the scale"
            )


def check_order(model_trace: Any, guide_trace: Any) -> None:
    """The guide draws in the model's order, so that a latent's prior is known once it is drawn."""
    drawn = latents(guide_trace)
    order = [name for name in latents(model_trace) if name in drawn]
    found = [name for name in drawn if name in order]
    if order != found:
        raise ContractError(
            "guide: a closed-form KL holds only when a latent's prior depends on nothing drawn later, and the guide "
            f"draws in another order; it draws {_names(found)}, the model {_names(order)}: draw in the model's order, "
            "or train on elbo"
        )


def _names(sites: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sites) or "none"


def check_roles(model_trace: Any, guide_trace: Any) -> None:
    """The model observes the data, the guide nothing."""
    for name, site in observed(guide_trace).items():
        if not is_factor(site):
            raise ContractError(
                f"guide: site '{name}' is observed, but a guide only draws latents; are model and guide swapped?"
            )
    check_observes(observed(model_trace))


def check_observes(sites: Mapping[str, Site]) -> None:
    """A model has a likelihood."""
    if not any(site["is_observed"] and not name.startswith(PENALTY) for name, site in sites.items()):
        raise ContractError("model: it observes nothing; give the data a likelihood, pyro.sample('x', ..., obs=x)")


def check_no_penalty(name: str) -> None:
    """What is a density has no part that is none."""
    if name.startswith(PENALTY):
        raise ContractError(
            f"factor '{name}': a training penalty is part of no likelihood; leave it out, or train with pv.fit (a log "
            "density of parameters is log_prior of pv.em)"
        )


def check_whole(name: str, site: Site) -> None:
    """Every datum counts once."""
    if isinstance(site["scale"], Tensor) or site["scale"] != 1:
        raise ContractError(
            f"site '{name}' has a scale, {site['scale']:.4g} (poutine.scale, or a plate 'data' that holds fewer data "
            "than its size), with which it is no density of the data; drop it, write pyro.plate('data', x.shape[0], "
            "dim=-1), and pass all of them (pv.cavi takes a few at a time by batch_size=)"
        )


def check_global(name: str, site: Site, among_fewer: Site | None) -> None:
    """What stands outside the plate "data" has the same shape when the program runs on fewer data."""
    shape = site["fn"].shape()
    if among_fewer is None or among_fewer["fn"].shape() != shape:
        raise ContractError(
            f"site '{name}' follows the number of data (its shape is {tuple(shape)}) but stands outside the plate "
            "'data'; put it inside: with pyro.plate('data', x.shape[0], dim=-1)"
        )


def check_plates(trace: Any, program: str, rows: int) -> None:
    """Every site stands in the one batch plate."""
    for name, site in sample_sites(trace):
        check_plate(name, site, program, rows)


def check_site(name: str, site: Site, program: str, rows: int) -> None:
    """Hold one site, traced without particles, to its plate and its batch shape."""
    check_plate(name, site, program, rows)
    if 0 in site["fn"].event_shape and not is_factor(site):
        raise ContractError(
            f"{program}: site '{name}' has events of shape {tuple(site['fn'].event_shape)}, which hold nothing; give "
            "it an element at least (is a size such as z_dim 0, or have the data no columns?)"
        )
    check_batch_shape(name, site, program, rows)
    check_data_shape(name, site)


def check_plate(name: str, site: Site, program: str, rows: int) -> None:
    """Hold one site to the batch plate (the particle plate lies left of it)."""
    frames = [f for f in site["cond_indep_stack"] if f.name != PARTICLE_PLATE]
    where = f"{program}: site '{name}'"
    if not frames:
        _raise_unplated(where, site, rows)
    for frame in frames:
        if frame.name != DATA_PLATE:
            kind = "misnamed batch plate" if len(frames) == 1 and frame.size == rows else "second plate"
            repair = (
                f"name it 'data': pyro.plate('data', x.shape[0], dim=-1) instead of '{frame.name}'"
                if kind == "misnamed batch plate"
                else "the batch plate is the only one; make the rest an event with .to_event"
            )
            raise ContractError(f"{where} is inside the plate '{frame.name}' (size {frame.size}), a {kind}; {repair}")
    (frame,) = frames
    if frame.dim != -1:
        raise ContractError(f"{where}: the plate 'data' has dim={frame.dim}; it needs dim=-1")
    if frame.size != rows:
        raise ContractError(
            f"{where}: the plate 'data' has size {frame.size}, but the batch has {rows} rows; "
            "write pyro.plate('data', x.shape[0], dim=-1). (An autoguide holds one fixed data set; a guide for batches "
            "reads its latents off x)"
        )


def _raise_unplated(where: str, site: Site, rows: int) -> None:
    if is_factor(site):
        raise ContractError(
            f"{where} is a factor outside the plate 'data'; a term per datum belongs inside the plate. A penalty on "
            "parameters belongs to the optimizer (weight_decay)"
        )
    shape = site["fn"].batch_shape + site["fn"].event_shape
    if site["is_observed"] or rows in shape[:1]:
        raise ContractError(
            f"{where} has one value per datum (shape {tuple(shape)}) but stands outside the plate 'data'; put it "
            "inside: with pyro.plate('data', x.shape[0], dim=-1)"
        )
    raise ContractError(
        f"{where} is a global latent (outside the plate 'data'); importance weights are per datum and cannot hold "
        "one. Move it into the plate, or make it a parameter"
    )


def check_data_shape(name: str, site: Site) -> None:
    """Data have the shape of their likelihood; broadcasting would count some of them more than once."""
    wanted = site["fn"].batch_shape + site["fn"].event_shape
    if site["is_observed"] and not is_factor(site) and site["value"].shape != wanted:
        raise ContractError(
            f"site '{name}': data of shape {tuple(site['value'].shape)} meet a likelihood of shape {tuple(wanted)} "
            "(batch and event); give the network the data's size, or reshape the data"
        )


def check_batch_shape(name: str, site: Site, program: str, rows: int) -> None:
    """Traced without particles, a site's batch shape is exactly the batch."""
    shape = site["fn"].batch_shape
    if shape != Size([rows]) and is_factor(site):
        raise ContractError(
            f"{program}: factor '{name}' has shape {tuple(shape)}; it is one number per datum, so sum the rest: "
            f".sum({-1 if len(shape) == 2 else tuple(range(1 - len(shape), 0))})"
        )
    if shape != Size([rows]):
        raise ContractError(
            f"{program}: site '{name}' has batch shape {tuple(shape)} and event shape "
            f"{tuple(site['fn'].event_shape)}; everything right of the plate 'data' ({rows} rows) must be an event: "
            f"add .to_event({max(len(shape) - 1, 1)})"
        )
