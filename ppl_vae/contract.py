"""The contract between a model and its guide, as checks on their traces.

Each check raises a `ContractError` that names the site, what was found and the repair. They read
traces only; `ppl_vae.checking` runs the programs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from pyro import distributions as dist
from torch import Size, Tensor
from torch.distributions import constraints

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


def has_common_scale(site: Site) -> bool:
    """Tell whether a site has no scale but its plate's."""
    common, scale = plate_scale(site), site["scale"]
    return not isinstance(scale, Tensor) and abs(scale - common) <= 1e-9 * common


def is_marked(site: Site) -> bool:
    """Tell whether a site is to be summed over all its values."""
    return bool(site["infer"].get("enumerate"))


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


def check_mark(name: str, site: Site) -> None:
    """A site that is to be summed out has finitely many values, all at once."""
    how = site["infer"].get("enumerate")
    if how not in (None, "parallel"):
        raise ContractError(
            f"site '{name}' is marked enumerate={how!r}; only 'parallel' is known: infer={{'enumerate': 'parallel'}}"
        )
    if how and not site["fn"].has_enumerate_support:
        raise ContractError(
            f"site '{name}' is marked for enumeration, but its distribution ({_kind(site['fn'])}, event shape "
            f"{tuple(site['fn'].event_shape)}) gives no finite list of values; remove the mark and draw it in the "
            "guide, or give each element of a discrete vector a site of its own"
        )
    if how and site["infer"].get("num_samples"):
        raise ContractError(
            f"site '{name}' is marked for enumeration with num_samples, which draws instead; remove num_samples, and "
            "ask for particles"
        )


def check_summable(sites: Mapping[str, Site], summed: Iterable[str]) -> None:
    """No scale of its own where latents are summed out: inside a sum of densities it has no meaning."""
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
            f"guide: it draws {_names(found)}, the model {_names(order)}, in this order; a closed-form KL holds only "
            "when a latent's prior depends on nothing drawn later, so draw in the model's order, or train on elbo"
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
    if not any(not name.startswith(PENALTY) for name in observed(model_trace)):
        raise ContractError("model: it observes nothing; give the data a likelihood, pyro.sample('x', ..., obs=x)")


def check_plates(trace: Any, program: str, rows: int) -> None:
    """Every site stands in the one batch plate."""
    for name, site in sample_sites(trace):
        check_plate(name, site, program, rows)


def check_site(name: str, site: Site, program: str, rows: int) -> None:
    """Hold one site, traced without particles, to its plate and its batch shape."""
    check_plate(name, site, program, rows)
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


def shared_latents(model_trace: Any, guide_trace: Any) -> list[tuple[str, Any, Any]]:
    """Return name, prior and guide of each latent that the guide draws."""
    drawn = latents(guide_trace)
    return [(n, site["fn"], drawn[n]["fn"]) for n, site in latents(model_trace).items() if n in drawn]


def check_pair_shapes(model_trace: Any, guide_trace: Any) -> None:
    """A latent has one event shape and one support in both programs."""
    for name, p, q in shared_latents(model_trace, guide_trace):
        if p.event_shape != q.event_shape:
            raise ContractError(
                f"site '{name}' has event shape {tuple(p.event_shape)} in the model and {tuple(q.event_shape)} in the "
                "guide; give both the same size and the same .to_event"
            )


def check_densities(model_trace: Any, guide_trace: Any) -> None:
    """Neither the likelihood nor the guide is a point mass."""
    for name, site in observed(model_trace).items():
        if isinstance(_innermost(site["fn"]), dist.Delta):
            raise ContractError(
                f"site '{name}' is a deterministic likelihood (Delta), which has no density to weigh; give it noise, "
                "such as a Normal, or leave it out with pyro.deterministic"
            )
    auxiliary = any(is_auxiliary(site) for site in latents(guide_trace).values())
    for name, site in latents(guide_trace).items():
        if isinstance(_innermost(site["fn"]), dist.Delta) and not auxiliary:
            raise ContractError(
                f"site '{name}' is a point mass (Delta) in the guide, which has no density to weigh; draw it from a "
                "distribution, such as a Normal"
            )


def _innermost(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and isinstance(fn, dist.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def check_supports(model_trace: Any, guide_trace: Any) -> None:
    """What either program draws for a latent, the other gives a density.

    A guide that reaches outside the prior's support has zero-weight particles; one that reaches
    less than all of it gives a bound on the wrong model.
    """
    for name, p, q in shared_latents(model_trace, guide_trace):
        same = _range(p.support) == _range(q.support)
        if not (same and _supports(p, q.sample()) and _supports(q, p.sample())):
            raise ContractError(
                f"site '{name}' has support {p.support} in the model ({_kind(p)}) and {q.support} in the guide "
                f"({_kind(q)}); choose a guide distribution with the model's support"
            )


def _range(support: Any) -> tuple[bool, float, float]:
    """Return whether a support is discrete, and its bounds; draws alone may miss a difference."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    bounds = (0, 1) if support is constraints.boolean else (-math.inf, math.inf)
    lower, upper = getattr(support, "lower_bound", bounds[0]), getattr(support, "upper_bound", bounds[1])
    return support.is_discrete, float(torch.as_tensor(lower).min()), float(torch.as_tensor(upper).max())


def _supports(fn: Any, value: Tensor) -> bool:
    try:
        return bool(fn.support.check(value).all())
    except NotImplementedError:  # a distribution that does not state its support
        return True


def _kind(fn: Any) -> str:
    return type(_innermost(fn)).__name__


def check_data_support(model_trace: Any) -> None:
    """The data lie where the likelihood has a density, wherever no mask covers them."""
    for name, site in observed(model_trace).items():
        fn, value = site["fn"], site["value"]
        if not is_factor(site) and not _inside(fn, value, site["mask"]).all():
            raise ContractError(
                f"site '{name}': data from {value.min():.4g} to {value.max():.4g} are outside the support of the "
                f"likelihood ({_kind(fn)}: {_innermost(fn).support}); {_repair(fn)}"
            )


def _inside(fn: Any, value: Tensor, mask: Tensor | bool | None) -> Tensor:
    """Tell, element by element, where data are in the support or masked out."""
    if isinstance(fn, dist.Independent):
        return _inside(fn.base_dist, value, mask)
    if isinstance(fn, dist.MaskedDistribution):
        events = len(fn.event_shape)
        return _masked_out(_inside(fn.base_dist, value, mask), fn._mask, events)
    inside = fn.support.check(value)
    return _masked_out(inside, mask, inside.dim() - mask.dim() if torch.is_tensor(mask) else 0)


def _masked_out(inside: Tensor, mask: Tensor | bool | None, events: int) -> Tensor:
    """Count as inside what a mask over the batch, with so many event axes to its right, covers."""
    if torch.is_tensor(mask):
        return inside | ~mask.reshape(mask.shape + (1,) * events)
    return inside if mask in (None, True) else torch.ones_like(inside)


def _repair(fn: Any) -> str:
    if isinstance(_innermost(fn), dist.Bernoulli):
        return (
            "binarize them (pv.data.load(..., binarize='dynamic'), or transform=torch.bernoulli in pv.fit), or choose "
            "a likelihood for grey values"
        )
    return "rescale the data or choose another likelihood"
