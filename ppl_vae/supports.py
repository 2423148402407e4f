"""Where values may lie: what model, guide and data must agree on, as checks on their traces.

As in `ppl_vae.contract`, each check raises a `ContractError` that names the site, what was found
and the repair.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution, constraints

from ppl_vae.contract import ContractError, innermost, is_auxiliary, is_factor, kind, latents, observed
from ppl_vae.remarks import remark

__all__ = [
    "check_data_support",
    "check_densities",
    "check_likelihood",
    "check_pair_shapes",
    "check_reach_of_draws",
    "check_supports",
    "check_types",
    "shared_latents",
]


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
    """Neither the likelihood nor the guide is a point mass, and the guide's draws have the gradient that they can."""
    check_likelihood(model_trace)
    auxiliary = any(is_auxiliary(site) for site in latents(guide_trace).values())
    for name, site in latents(guide_trace).items():
        _remark_on_path(name, type(innermost(site["fn"])))
        if isinstance(innermost(site["fn"]), dist.Delta) and not auxiliary:
            raise ContractError(
                f"site '{name}' is a point mass (Delta) in the guide, which has no density to weigh; draw it from a "
                "distribution, such as a Normal"
            )


def _remark_on_path(name: str, of: type[Distribution]) -> None:
    """Warn of a distribution that can draw along a path and does not say so, as torch's LogitRelaxedBernoulli."""
    if of.has_rsample is False and of.rsample is not Distribution.rsample:
        remark(
            f"check: the guide's site '{name}' is trained by its score, of high variance, since {of.__name__} has a "
            "method rsample and yet has_rsample = False; give the class has_rsample = True, to train it along the path"
        )


def check_likelihood(model_trace: Any) -> None:
    """The likelihood is no point mass."""
    for name, site in observed(model_trace).items():
        if isinstance(innermost(site["fn"]), dist.Delta):
            raise ContractError(
                f"site '{name}' is a deterministic likelihood (Delta), which has no density to weigh; give it noise, "
                "such as a Normal, or leave it out with pyro.deterministic"
            )


def check_reach_of_draws(model_trace: Any, guide_trace: Any) -> None:
    """What a guide without density draws for a latent has one under the prior."""
    drawn = latents(guide_trace)
    for name, p, _ in shared_latents(model_trace, guide_trace):
        if not _supports(p, drawn[name]["value"]):
            raise ContractError(
                f"site '{name}': the guide draws values outside {p.support}, the support of the model's {kind(p)}; "
                "give its network an output that stays inside, such as a softplus or a sigmoid"
            )


def check_supports(model_trace: Any, guide_trace: Any) -> None:
    """What either program draws for a latent, the other gives a density.

    A guide that reaches outside the prior's support has zero-weight particles; one that reaches
    less than all of it gives a bound on the wrong model.
    """
    for name, p, q in shared_latents(model_trace, guide_trace):
        if isinstance(innermost(q), dist.Delta) and _supports(p, q.sample()):
            continue  # made of noise, and said by nobody how far it reaches
        same = _range(_stated(name, p)) == _range(_stated(name, q))
        if not (same and _supports(p, q.sample()) and _supports(q, p.sample())):
            raise ContractError(
                f"site '{name}' has support {p.support} in the model ({kind(p)}) and {q.support} in the guide "
                f"({kind(q)}); choose a guide distribution with the model's support"
            )


def _stated(name: str, fn: Any) -> Any:
    """Return the support of a distribution, which a person's own may have forgotten."""
    try:
        return fn.support
    except NotImplementedError as error:
        raise ContractError(
            f"site '{name}': its distribution ({kind(fn)}) does not state its support; give the class an attribute, "
            "such as support = constraints.real"
        ) from error


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


def check_types(model_trace: Any, floating: Collection[torch.dtype]) -> None:
    """What a likelihood is given has the parameters' floating type, or is of whole numbers that it can compute with."""
    for name, site in observed(model_trace).items():
        value = site["value"]
        if is_factor(site):
            continue
        wanted = next(iter(floating), torch.get_default_dtype())
        if value.is_floating_point():
            if floating and value.dtype not in floating:
                raise ContractError(
                    f"site '{name}': its data are {value.dtype} but the parameters are {wanted}; convert one"
                )
        elif why := _not_computed(site["fn"], value, wanted):
            raise ContractError(
                f"site '{name}': its data are {value.dtype}, and {why}; pass them as floating numbers: x.to({wanted})"
            )


def _not_computed(fn: Any, value: Tensor, floating: torch.dtype) -> str:
    """Return why a density of whole numbers, or truth values, is not what it is of the same as floating numbers."""
    if value.is_complex():
        return "no likelihood has a density of complex numbers"
    with torch.no_grad():
        try:
            right = fn.log_prob(value.to(floating))
        except Exception:  # a likelihood that takes whole numbers alone, or has no density of these
            return ""
        try:
            found = fn.log_prob(value)
        except Exception as error:
            return f"{kind(fn)} has no density of such numbers ({str(error).splitlines()[0]})"
    near = torch.isclose(found.double(), right.double(), rtol=1e-3, atol=1e-3, equal_nan=True).all()
    return "" if near else f"{kind(fn)} goes wrong with them (a negative number wraps round in unsigned ones)"


def check_data_support(model_trace: Any) -> None:
    """The data lie where the likelihood has a density, wherever no mask covers them."""
    for name, site in observed(model_trace).items():
        fn, value = site["fn"], site["value"]
        if is_factor(site):
            continue
        _stated(name, fn)
        if not _masked_out(_inside(fn, value), site["mask"], fn).all():
            raise ContractError(
                f"site '{name}': data from {value.min():.4g} to {value.max():.4g} are outside the support of the "
                f"likelihood ({kind(fn)}: {innermost(fn).support}); {_repair(fn)}"
            )


def _inside(fn: Any, value: Tensor) -> Tensor:
    """Tell where data are in the support or masked out: element by element, vectors of a vector's support whole."""
    if isinstance(fn, dist.Independent):
        return _inside(fn.base_dist, value)
    if isinstance(fn, dist.MaskedDistribution):
        return _masked_out(_inside(fn.base_dist, value), fn._mask, fn)
    return fn.support.check(value)


def _masked_out(inside: Tensor, mask: Tensor | bool | None, fn: Any) -> Tensor:
    """Count as inside what a mask over a distribution's batch covers."""
    if torch.is_tensor(mask):
        elements = len(fn.event_shape) - innermost(fn).support.event_dim
        return inside | ~mask.reshape(mask.shape + (1,) * elements)
    return inside if mask in (None, True) else torch.ones_like(inside)


def _repair(fn: Any) -> str:
    if isinstance(innermost(fn), dist.Bernoulli):
        return (
            "binarize them (pv.data.load(..., binarize='dynamic'), or transform=pv.data.binarize in pv.fit), or choose "
            "a likelihood for grey values"
        )
    return "rescale the data or choose another likelihood"
