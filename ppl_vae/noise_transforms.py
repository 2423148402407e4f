"""Noise of a guide that has no counterpart in the model: whether what is made of it is given its density."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError, Site
from ppl_vae.programs import Program, Programs, own_parameters

__all__ = ["check_noise"]

Sites = Mapping[str, Site]

# Of a log density, for each of its terms, and of its slopes: above what single precision rounds away.
TOLERANCE = 0.02


def check_noise(model_trace: Any, guide_trace: Any, guide: Program, programs: Programs, batch: Batch) -> None:
    """Raise unless latents that a guide makes of auxiliary noise have the density that follows from it.

    A guide may draw noise e at sites marked ``is_auxiliary`` and give latents z = f(e) a Delta, as Pyro's autoguides
    do. The density of the noise then counts, and log q is that of z if the Delta carries the change of volume::

        log q(z) = log q(e) + log_density,    log_density = -log |det df / de|

    Both sides are compared on the first datum, in unconstrained coordinates of noise and latents, and their slopes in
    parameters and noise, since a transform may begin as the identity. Noise of more dimensions than z has to be
    accounted for, by a factor or by a log density of z, which are taken on trust, as are discrete z.

    Args:
        model_trace: without particles.
        guide_trace: likewise.
        guide: Pyro program.
        programs: its parameters.
        batch: on which both were traced.

    Raises:
        ContractError: the message names the site, the noise, and what is missing.

    Reference: D. J. Rezende, S. Mohamed, "Variational Inference with Normalizing Flows", ICML 2015,
    https://arxiv.org/abs/1505.05770, equation 5.

    Example:
        >>> import pyro
        >>> def guide(x):
        ...     with pyro.plate("data", x.shape[0], dim=-1):
        ...         e = pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        ...         pyro.sample("z", dist.Delta(2 * e))
        >>> def model(x):
        ...     with pyro.plate("data", x.shape[0], dim=-1):
        ...         pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)
        >>> pv.check(model, guide, torch.ones(3))
        Traceback (most recent call last):
        ...
        ppl_vae.contract.ContractError: guide: site 'z' is made of the noise 'e', and the log_density ...
    """
    drawn, latents = contract.latents(guide_trace), contract.latents(model_trace)
    noise = {name: site for name, site in drawn.items() if name not in latents}
    made = {name: latents[name] for name, site in drawn.items() if name in latents and _is_point(site)}
    traces = (model_trace, guide_trace)
    accounted = any(_counts(name, site) for trace in traces for name, site in contract.observed(trace).items())
    if not noise or accounted or any(map(contract.is_marked, noise.values())):
        return
    if made and any(site["fn"].support.is_discrete for site in (*noise.values(), *made.values())):
        return
    _check_sizes(noise, made, drawn)
    if _size(noise) == _size(made):
        _check_volume(guide, noise, made, drawn, batch, [*programs.parameters().values()])


def _check_sizes(noise: Sites, made: Sites, drawn: Sites) -> None:
    """Raise if noise and what is made of it have other numbers of dimensions, and nothing accounts for the rest."""
    n, m = _size(noise) if made else 1, _size(made)
    if n < m or (n > m and not any(_log_density(drawn[name]).any() for name in made)):
        which = f" ({n} dimensions of noise for {m})" if made else ""
        raise ContractError(
            f"{_where(noise, made)}{which}, so that the density of the noise would count in log q, and log q be no "
            "density of the latents; give the model a latent of the noise's name, or, for draws without density, take "
            "ppl_vae.distributions.Pushforward and pv.adversarial_step"
        )


def _check_volume(
    guide: Program, noise: Sites, made: Sites, drawn: Sites, batch: Batch, parameters: list[Tensor]
) -> None:
    """Raise if noise and latents of as many dimensions have densities that do not fit."""
    others = {name: site["value"] for name, site in drawn.items() if name not in made}
    with torch.enable_grad(), own_parameters():
        excess, slopes = _excess(guide, noise, made, others, batch, parameters)
    terms = _size(made) + abs(float(sum(_log_density(drawn[name]) for name in made)))
    if not abs(excess) <= TOLERANCE * terms or any(slope.abs().max() > TOLERANCE for slope in slopes):
        raise ContractError(
            f"{_where(noise, made)}, and the log_density of its Delta is not minus the log determinant of that "
            f"transform's Jacobian (off by {excess:.3g} nats now, or once parameters move), so that log q would be "
            "another's; draw from a TransformedDistribution, pass Delta(z, log_density=...), or, for a network whose "
            "Jacobian is unknown, take ppl_vae.distributions.Pushforward and pv.adversarial_step"
        )


def _where(noise: Sites, made: Sites) -> str:
    names, of = (", ".join(f"'{name}'" for name in sites) for sites in (made, noise))
    return f"guide: site {names} is made of the noise {of}" if made else f"guide: no Delta is made of the noise {of}"


def _is_point(site: Site) -> bool:
    return isinstance(contract.innermost(site["fn"]), dist.Delta)


def _counts(name: str, site: Site) -> bool:
    return contract.is_factor(site) and not name.startswith(contract.PENALTY)


def _size(sites: Sites) -> int:
    """Return how many numbers without constraints stand for the values of a datum."""
    return sum(_unconstrained(site["fn"], site["value"])[0].numel() for site in sites.values())


def _unconstrained(fn: Any, value: Tensor) -> Tensor:
    return biject_to(fn.support).inv(value)


def _log_density(site: Site) -> Tensor:
    """Return what a datum's Delta carries."""
    return site["fn"].log_prob(site["value"])[0].detach()


def _excess(
    guide: Program, noise: Sites, made: Sites, others: Mapping[str, Tensor], batch: Batch, parameters: list[Tensor]
) -> tuple[float, list[Tensor]]:
    """Return by how much log q of the first datum is too large, and the slopes of that."""
    maps = {name: biject_to(site["fn"].support) for name, site in (*noise.items(), *made.items())}
    free = {name: maps[name].inv(site["value"]).detach().requires_grad_() for name, site in noise.items()}
    given = {name: maps[name](value) for name, value in free.items()}
    sites = poutine.trace(poutine.condition(guide, data={**others, **given})).get_trace(*batch).nodes
    values = {name: sites[name]["value"] for name in made}
    latents = {name: maps[name].inv(value) for name, value in values.items()}
    excess = torch.linalg.slogdet(_jacobian([*latents.values()], [*free.values()]))[1]
    for name, z in values.items():
        excess = excess + (maps[name].log_abs_det_jacobian(latents[name], z) + sites[name]["fn"].log_prob(z))[0]
    for name, value in free.items():
        excess = excess - maps[name].log_abs_det_jacobian(value, given[name])[0]
    wanted = [*parameters, *free.values()]
    slopes = torch.autograd.grad(excess, wanted, allow_unused=True) if excess.requires_grad else []
    return float(excess.detach()), [slope for slope in slopes if slope is not None]


def _jacobian(outputs: list[Tensor], inputs: list[Tensor]) -> Tensor:
    """Return the slopes of one datum's outputs in its inputs, ``(m, n)``, themselves differentiable."""
    rows = []
    # What does not follow the noise has slopes of zero.
    still = sum(value.sum() for value in inputs) * 0
    for output in torch.cat([value[0].flatten() for value in outputs]) + still:
        slopes = torch.autograd.grad(output, inputs, create_graph=True)
        rows.append(torch.cat([slope[0].flatten() for slope in slopes]))
    return torch.stack(rows)
