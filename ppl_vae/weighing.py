"""Make importance weights of a pair of traces: the one place where that is done."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Size, Tensor
from torch.distributions import Independent, OneHotCategorical

from ppl_vae import contract
from ppl_vae.arguments import whole
from ppl_vae.batches import as_batch
from ppl_vae.contract import ContractError, Site
from ppl_vae.divergences import closed_kl
from ppl_vae.enumeration import enumerated_by, expanded, summed_out
from ppl_vae.gradients import along
from ppl_vae.indexing import alike, refuse_dreams
from ppl_vae.particles import Particles, Path, finite_mass
from ppl_vae.programs import Program, own_parameters
from ppl_vae.tracing import Draw, paired_traces, scored_at_draws, scored_dream

__all__ = ["scaled", "weigh"]


def weigh(
    model: Program,
    guide: Program,
    x: Any,
    particles: int = 1,
    *,
    linear: bool = False,
    path: Path = Path.TOTAL,
    kl: bool = False,
    draw: Draw | None = None,
) -> Particles:
    """Draw K latents per datum from the guide and weigh them under the model.

    For each datum and particle::

        log w = log p(x, z) - log q(z | x),    z ~ q(z | x)

    Sites marked ``infer={"enumerate": "parallel"}`` are not drawn. Those that only the model has
    are summed out of ``log_p`` exactly; those of the guide take every value, on an axis of their own.

    Args:
        model: Pyro program that keeps to the contract; see `check`.
        guide: Pyro program with the same arguments.
        x: a batch: a tensor, or a tuple of tensors that the programs take in this order.
        particles: K, the number of draws per datum.
        linear: promises that the weights go into a bound that is linear in them. Only then may a
            single site carry a scale of its own (``poutine.scale``, as for annealing).
        path: how gradients reach the guide through its draws.
        kl: whether to give KL(q || p) of the latents that have it in closed form.
        draw: draws the guide's latents by a rule of an estimator, and may draw them relaxed. The
            sites that it draws have no score.

    Returns:
        `Particles`, with ``log_w`` of shape ``(K, B)`` in nats, differentiable in the parameters
        of both programs.

    Raises:
        ContractError: the programs do not fit each other (`check` looks closer).
        TypeError, ValueError: x is not a batch, or K is below 1.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR
    2016, https://arxiv.org/abs/1509.00519; sums as in F. Obermeyer et al., "Tensor Variable
    Elimination for Plated Factor Graphs", ICML 2019, https://arxiv.org/abs/1902.03210.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> particles = pv.weigh(VAE(), Normal(), torch.ones(4, 784), particles=3)
        >>> particles.log_w.shape, particles.values["z"].shape
        (torch.Size([3, 4]), torch.Size([3, 4, 20]))
    """
    whole("particles", particles)
    batch = as_batch(x)
    model, guide = alike(model, guide)
    rows = batch[0].shape[0]  # len(x) would tie a captured graph to one batch size
    # A relaxed value is outside its site's support.
    unvalidated = nullcontext() if draw is None else pyro.validation_enabled(False)
    with own_parameters(), unvalidated:
        model_trace, guide_trace = paired_traces(model, guide, batch, particles, path, draw)
        contract.check_roles(model_trace, guide_trace)
        contract.check_names(model_trace, guide_trace)
        contract.check_known(guide_trace)
        contract.check_plates(guide_trace, "guide", rows)
        contract.check_plates(model_trace, "model", rows)
        shape = Size([particles, rows])
        log_p, penalties = _model_densities(model_trace, guide_trace, shape, linear)
        guide_sites = dict(contract.sample_sites(guide_trace))
        for name in () if linear else enumerated_by(guide_sites):
            contract.check_mass(name, guide_sites[name])
        log_q = _densities(guide_sites, shape, linear)
        # A factor of the guide enters an ELBO with a minus; so does its penalty. The model may have one of this name.
        for name in filter(_is_penalty, guide_sites):
            penalties[name] = penalties.get(name, 0.0) - log_q.pop(name)
        values = _values(model_trace, guide_trace)
        if path is Path.STOPPED:
            again = scored_at_draws(guide, batch, particles, model_trace, guide_trace)
            log_q |= _stopped(log_q, again, values, shape, linear)
    return Particles(
        log_p=log_p,
        log_q=log_q,
        score={} if draw else _scores(guide_trace, path),
        values=values,
        penalties=penalties,
        scale=_common_scale(model_trace, guide_trace),
        enumerated=enumerated_by(guide_sites),
        summed=_summed(model_trace, guide_trace),
        kl=_closed_kl(model_trace, guide_trace, log_p, log_q) if kl else {},
        path=path,
    )


def dreamt_log_q(model: Program, guide: Program, x: Any) -> Tensor:
    """Draw latents and data from the model, one pair for each row, and score the latents by the guide.

    Args:
        model: Pyro program whose observed sites are tensors of the batch.
        guide: Pyro program with the same arguments.
        x: a batch, for its shapes and for what the model does not generate.

    Returns:
        ``log q(z' | x')`` with ``x', z' ~ p``, ``(B,)``, differentiable in the guide's parameters.

    Raises:
        ContractError: the model observes something that is not a tensor of the batch, or the guide has something for
            the rows of a data set, where dreams have none.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> dreamt_log_q(VAE(), Normal(), torch.ones(4, 784)).shape
        torch.Size([4])
    """
    refuse_dreams(guide)
    model, guide = alike(model, guide)
    with own_parameters():
        return scored_dream(model, guide, as_batch(x))


def _model_densities(
    model_trace: Any, guide_trace: Any, shape: Size, linear: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the model's densities, latents that it enumerates summed out, and its penalties."""
    sites = dict(contract.sample_sites(model_trace))
    summed = _summed(model_trace, guide_trace)
    sites |= {name: contract.without_mask(sites[name]) for name in summed}
    log_p = _densities(sites, shape, linear, natural=bool(summed))
    if summed:
        contract.check_summable(sites, summed)
        log_p = summed_out(model_trace, log_p, summed, penalties=set(filter(_is_penalty, sites)))
        log_p = {name: expanded(density, shape) for name, density in log_p.items()}
    return log_p, {name: log_p.pop(name) for name in sites if _is_penalty(name)}


def _summed(model_trace: Any, guide_trace: Any) -> tuple[str, ...]:
    """Return the names of the latents that only the model enumerates."""
    enumerated = enumerated_by(dict(contract.sample_sites(model_trace)))
    return tuple(name for name in enumerated if name not in guide_trace.nodes)


def _densities(sites: Mapping[str, Site], shape: Size, linear: bool, natural: bool = False) -> dict[str, Tensor]:
    densities = {name: scaled(name, site, linear) for name, site in sites.items()}
    for name in enumerated_by(sites):
        densities[name] = densities[name] if natural else finite_mass(densities[name])
    return densities if natural else {name: expanded(density, shape) for name, density in densities.items()}


def _is_penalty(name: str) -> bool:
    return name.startswith(contract.PENALTY)


def _log_prob(site: Site) -> Tensor:
    """Return a site's log density with its masks and without any scale, ``(B,)`` or ``(K, B)``."""
    log_prob = _relaxed_log_prob(site["fn"], site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, 1.0, site["mask"])


def _relaxed_log_prob(fn: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return a log density, that of one-hot codes continued linearly between the corners.

    Torch scores a one-hot value at its arg-max, which has no gradient in the value. (A Bernoulli's
    is linear as it is.)
    """
    if isinstance(fn, Independent) and isinstance(fn.base_dist, OneHotCategorical):
        return _relaxed_log_prob(fn.base_dist, value).flatten(-fn.reinterpreted_batch_ndims).sum(-1)
    if isinstance(fn, OneHotCategorical) and value.requires_grad:
        return (value * fn.logits).sum(-1)
    return fn.log_prob(value, *args, **kwargs)


def scaled(name: str, site: Site, linear: bool) -> Tensor:
    """Return a site's log density with its masks, times its own scale; the plate's common scale stays outside.

    Args:
        name: of the site.
        site: of a trace.
        linear: whether what it goes into is linear in it, so that a scale of its own has a meaning.

    Raises:
        ContractError: it has such a scale where it has no meaning.
    """
    common, scale = contract.plate_scale(site), site["scale"]
    if contract.has_common_scale(site):
        return _log_prob(site)
    if linear or _is_penalty(name):
        return _log_prob(site) * (scale / common)
    raise ContractError(
        f"site '{name}' has a scale of its own (poutine.scale), which means nothing inside a log-sum-exp; set it to 1 "
        "to weigh or evaluate, or train on a bound that is linear in the weights, such as elbo (a bound of your own "
        "says so with objectives.objective(linear=True))"
    )


def _common_scale(model_trace: Any, guide_trace: Any) -> float:
    """Return N / B of the plate "data", which is one for both programs."""
    sites = [site for trace in (model_trace, guide_trace) for _, site in contract.sample_sites(trace)]
    scales = {contract.plate_scale(site) for site in sites}
    if len(scales) > 1:
        raise ContractError(
            f"plate 'data': model and guide scale it differently ({', '.join(map(str, sorted(scales)))}); give both "
            "the same pyro.plate('data', N, len(x))"
        )
    return scales.pop()


def _values(model_trace: Any, guide_trace: Any) -> dict[str, Tensor]:
    """Return the guide's draws as the model saw them; auxiliary ones as they were drawn."""
    seen = contract.latents(model_trace)
    return {name: seen.get(name, site)["value"] for name, site in contract.latents(guide_trace).items()}


def _scores(guide_trace: Any, path: Path) -> dict[str, Tensor]:
    """Return the log density, one for each draw, of sites whose draws carry no gradient."""
    drawn = {n: s for n, s in contract.latents(guide_trace).items() if s["infer"].get("_enumerate_dim") is None}
    scores = {n: _log_prob(s) for n, s in drawn.items() if path is Path.NONE or not s["fn"].has_rsample}
    for name, score in scores.items():
        check_learns(name, drawn[name]["fn"], score)
    return scores


def check_learns(name: str, fn: Any, log_q: Tensor) -> None:
    """Raise if draws that are taken as given would teach a guide nothing, as its density has no gradient.

    Args:
        name: of the site.
        fn: the guide's distribution.
        log_q: its log density.

    Raises:
        ContractError: the draws have a gradient, and their density has none.

    Example:
        >>> from torch.distributions import Normal
        >>> loc = torch.zeros(2, requires_grad=True)
        >>> check_learns("z", Normal(loc, 1.0), Normal(loc, 1.0).log_prob(torch.zeros(2)))
    """
    along_path_alone = fn.has_rsample and torch.is_grad_enabled() and not log_q.requires_grad
    if along_path_alone and fn.rsample().requires_grad:
        raise ContractError(
            f"site '{name}' ({contract.kind(fn)}) learns through its draws alone, and this objective takes draws as "
            "given and learns from their density, which has no gradient here; train on elbo"
        )


def _stopped(
    log_q: Mapping[str, Tensor], again: Mapping[str, Site], values: Mapping[str, Tensor], shape: Size, linear: bool
) -> dict[str, Tensor]:
    """Return ``log_q`` of reparameterised sites with gradient through the draws only."""
    draws = {name: value for name, value in values.items() if value.requires_grad}
    if not draws or not torch.is_grad_enabled():
        return {}
    stopped = {}
    for name in log_q:
        if again[name]["fn"].has_rsample and contract.has_density(again[name]):
            density = scaled(name, again[name], linear)
            if not density.requires_grad:  # a constant, as that of a point mass on codes
                continue
            slopes = torch.autograd.grad(density.sum(), [*draws.values()], retain_graph=True, allow_unused=True)
            through = [
                along(draws[drawn], slope, _axes(again[drawn], density, name))
                for drawn, slope in zip(draws, slopes, strict=True)
                if slope is not None
            ]
            stopped[name] = expanded(sum(through, start=density.detach()), shape)
    return stopped


def _axes(drawn: Site, density: Tensor, name: str) -> int:
    """Return how many axes of a draw come before its event."""
    axes = drawn["value"].dim() - drawn["fn"].event_dim
    if density.dim() > axes:
        raise ContractError(
            f"site '{name}' has a density for each value of an enumerated site, its latents are drawn once for all of "
            "them, and this objective stops gradients draw by draw; leave the enumerated site out of the guide and "
            "mark it in the model, or train on elbo"
        )
    return axes


def _closed_kl(
    model_trace: Any, guide_trace: Any, log_p: Mapping[str, Tensor], log_q: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return KL(q || p) of each latent that has it in closed form."""
    contract.check_order(model_trace, guide_trace)
    p_sites, q_sites = contract.latents(model_trace), contract.latents(guide_trace)
    found = {}
    for name, q in q_sites.items():
        # A latent that hangs together with a summed one has no density of its own.
        if name not in log_p or not contract.has_common_scale(p_sites[name]) or not contract.has_common_scale(q):
            continue
        if contract.has_mask(q["fn"]) or contract.has_mask(p_sites[name]["fn"]):
            continue  # Pyro's closed form covers what either masks
        divergence = closed_kl(q["fn"], p_sites[name]["fn"])
        if divergence is None:
            continue
        covered = scale_and_mask(divergence, 1.0, q["mask"])
        # Where one program alone masks the site, what is left of the two densities is no divergence.
        agree = _mask(p_sites[name]) == _mask(q)
        found[name] = torch.where(agree, covered, log_q[name] - log_p[name])
    return found


def _mask(site: Site) -> Tensor:
    return torch.as_tensor(True if site["mask"] is None else site["mask"])
