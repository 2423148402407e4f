"""Draws from the model: unconditioned, and given data through the guide."""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ppl_vae import contract
from ppl_vae.arguments import whole
from ppl_vae.batches import Batch, as_batch
from ppl_vae.checking import check_dtype, paired_structure
from ppl_vae.contract import ContractError
from ppl_vae.enumeration import enumerated_by
from ppl_vae.indexing import alike
from ppl_vae.programs import Program, Programs, own_parameters, undisturbed
from ppl_vae.tracing import placed
from ppl_vae.weighing import paired_traces

__all__ = ["decode", "reconstruct", "sample"]


def sample(
    model: Program, like: Any = None, n: int = 64, shape: tuple[int, ...] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Draw from the joint distribution of a model, data included.

    Args:
        model: a Pyro program whose likelihood does not read x.
        like: a batch whose first tensor gives the form of x; its values are not used. Further
            tensors (labels) are passed on as they are, ``n`` rows of them; a site that observes one
            is drawn like any other.
        n: number of draws.
        shape: event shape of x, instead of ``like``.
        seed: seeds the draws; the caller's random state does not move.

    Returns:
        Site name to draws ``(n, *event)``, latents and data.

    Raises:
        ContractError: the likelihood reads x, as autoregressive ones do; such a program has its
            own way to sample.
        ValueError: not exactly one of ``like`` and ``shape`` is given.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> {name: tuple(v.shape) for name, v in pv.sample(VAE(), shape=(784,), n=3).items()}
        {'z': (3, 20), 'x': (3, 784)}
    """
    trace, _ = _joint(model, like, n, shape, seed)
    return {name: site["value"] for name, site in _densities(trace).items()}


def simulate(
    model: Program, like: Any = None, n: int = 64, shape: tuple[int, ...] | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], Batch]:
    """Draw latents and data together, so that the latents are exact draws from the posterior given the data.

    Args:
        model: as for `sample`.
        like: likewise. Tensors that the model only reads stay as they are.
        n: likewise.
        shape: likewise.
        seed: likewise.

    Returns:
        The latents by name, ``(n, *event)``, and the batch with drawn data in the place of observed.

    Raises:
        ContractError: as for `sample`; or a factor weighs the draws, which are then none of the
            posterior; or the model observes something that is not a tensor of the batch.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> latents, (x,) = simulate(VAE(), shape=(784,), n=3)
        >>> latents["z"].shape, x.shape
        (torch.Size([3, 20]), torch.Size([3, 784]))
    """
    trace, batch = _joint(model, like, n, shape, seed)
    for name, site in contract.sample_sites(trace):
        if contract.is_factor(site) and not name.startswith(contract.PENALTY):
            raise ContractError(
                f"factor '{name}': draws of the model do not follow it, so they are not the joint distribution's; give "
                "the model a sample site in its place"
            )
    sites = _densities(trace)
    latents = {name: site["value"] for name, site in sites.items() if not site["infer"].get("was_observed")}
    return latents, placed(sites, batch)


def _joint(model: Program, like: Any, n: int, shape: tuple[int, ...] | None, seed: int) -> tuple[Any, Batch]:
    """Return the trace of a model that draws everything, and the batch on which it ran."""
    programs = Programs(model, model)
    x, *rest = _placeholder(like, n, shape, programs)
    batch = (torch.zeros_like(x), *rest)
    with undisturbed(programs, seed, training=False), own_parameters(), torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*batch)
        # Copies, since a flow scores its own draw in another way than values, equal to rounding alone.
        draws = {name: site["value"].clone() for name, site in _densities(trace).items()}
        # The same draws beside another x: a density that moves was computed from x.
        beside = poutine.trace(poutine.condition(model, data=draws)).get_trace(_noise_like(x), *rest)
    again = _densities(beside)
    for name, site in _densities(trace).items():
        if not torch.equal(_log_density({**site, "value": draws[name]}), _log_density(again[name])):
            raise ContractError(
                f"site '{name}': its distribution reads x, so the model cannot be drawn from in one pass; use the "
                "program's own way to sample"
            )
    return trace, batch


def _placeholder(like: Any, n: int, shape: tuple[int, ...] | None, programs: Programs) -> Batch:
    if (like is None) == (shape is None):
        raise ValueError("like, shape: give exactly one of them")
    whole("n", n)
    if shape is not None:
        shape = (shape,) if isinstance(shape, int) else shape
        dtypes = [p.dtype for p in programs.parameters().values()]
        return programs.on_device((torch.zeros(n, *shape, dtype=next(iter(dtypes), torch.float32)),))
    batch = as_batch(like)
    rows = torch.arange(n) % len(batch[0])
    return programs.on_device(tuple(part[rows.to(part.device)] for part in batch))


def _densities(trace: Any) -> dict[str, contract.Site]:
    return {name: site for name, site in contract.sample_sites(trace) if not contract.is_factor(site)}


def _log_density(site: contract.Site) -> Tensor:
    return site["fn"].log_prob(site["value"])


def _noise_like(x: Tensor) -> Tensor:
    """Return zeros and ones drawn at random, in the type of x."""
    return torch.randint(0, 2, x.shape, device=x.device).to(x.dtype)


def reconstruct(model: Program, guide: Program, x: Any, particles: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Return the posterior predictive mean of the data: encode with the guide, decode with the model.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        x: a batch ``(B, ...)``.
        particles: draws of the latents per datum over which the mean is taken. Over enumerated latents it is exact.
        seed: seeds the draws; the caller's random state does not move.

    Returns:
        Name of each observed site to ``E_q[E[x' | z]]``, ``(B, *event)``. Sites without a mean (a
        Categorical) are left out.

    Raises:
        ContractError: the programs cannot be run on these data; the message says why.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> pv.reconstruct(VAE(), Normal(), torch.ones(3, 784))["x"].shape
        torch.Size([3, 784])
    """
    model, guide = alike(model, guide)
    programs = Programs(model, guide)
    batch = programs.on_device(as_batch(x))
    check_dtype(programs, batch)
    whole("particles", particles)
    with undisturbed(programs, seed, training=False), own_parameters(), torch.no_grad():
        try:
            model_trace, guide_trace = paired_traces(model, guide, batch, particles)
        except RuntimeError:
            paired_structure(model, guide, batch)  # which may say what is wrong in better words
            raise
        contract.check_names(model_trace, guide_trace)
        mass, sites = _mass(model_trace, guide_trace), contract.observed(model_trace)
        return {name: _averaged(mean, mass, sites[name]) for name, mean in _means(model_trace).items()}


def _mass(model_trace: Any, guide_trace: Any) -> Tensor:
    """Return the probability of each enumerated value: q(y | x) of the guide's, p(y | x, z) of the model's own."""
    own, drawn = _densities(model_trace), _densities(guide_trace)
    summed = [name for name in enumerated_by(own) if name not in drawn]
    log_mass = sum((_log_density(drawn[name]) for name in enumerated_by(drawn)), start=torch.zeros(()))
    if summed:
        own |= {name: contract.without_mask(own[name]) for name in summed}
        joint = sum(map(_masked, own.values()))
        axes = [own[name]["infer"]["_enumerate_dim"] for name in summed]
        log_mass = log_mass + joint - joint.logsumexp(axes, keepdim=True)
    return log_mass.exp()


def _masked(site: contract.Site) -> Tensor:
    return scale_and_mask(_log_density(site), 1.0, site["mask"])


def _averaged(mean: Tensor, mass: Tensor, site: contract.Site) -> Tensor:
    """Average over enumerated values, whose axes lie left of the particles, and over these."""
    event_dim = site["fn"].event_dim
    total = mean * mass.to(mean).reshape(mass.shape + (1,) * event_dim)
    while total.dim() > 2 + event_dim:
        total = total.sum(0)
    return total.mean(0)


def decode(model: Program, latents: Mapping[str, Tensor], like: Any = None, shape: Any = None) -> dict[str, Tensor]:
    """Return the mean of the data given latents.

    Args:
        model: a Pyro program.
        latents: site name to values ``(n, *event)``, such as `sample` gives. Every latent of the
            model must be there. Values of observed sites (labels) are held to them too.
        like: a batch whose first tensor gives the form of x, as for `sample`.
        shape: event shape of x, instead of ``like``.

    Returns:
        Name of each observed site to its mean given the others, ``(n, *event)``. Sites without a
        mean (a Categorical) are left out.

    Raises:
        ValueError: a latent is missing.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> model = VAE()
        >>> pv.decode(model, pv.sample(model, shape=(784,), n=3), shape=(784,))["x"].shape
        torch.Size([3, 784])
    """
    if not isinstance(latents, Mapping) or not latents:
        raise ValueError("latents: expected a dict of site name to values, such as pv.sample gives")
    programs = Programs(model, model)
    batch = _placeholder(like, len(next(iter(latents.values()))), shape, programs)
    with undisturbed(programs, training=False), own_parameters(), torch.no_grad():
        wanted = contract.latents(poutine.trace(model).get_trace(*batch))
        missing = wanted.keys() - latents.keys()
        if missing:
            raise ValueError(f"latents: {', '.join(sorted(missing))} missing; found {', '.join(latents)}")
        trace = poutine.trace(poutine.condition(model, data=latents)).get_trace(*batch)
    return {name: mean for name, mean in _means(trace).items() if name not in wanted}


def _means(model_trace: Any) -> dict[str, Tensor]:
    """Return the mean of every observed site's distribution that has one."""
    sites = {n: s["fn"] for n, s in contract.observed(model_trace).items() if not contract.is_factor(s)}
    means = {name: mean_of(fn) for name, fn in sites.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def mean_of(fn: Any) -> Tensor | None:
    """Return the mean of a distribution; None where it has none.

    Example:
        >>> mean_of(torch.distributions.Normal(1.0, 2.0)), mean_of(torch.distributions.Categorical(torch.ones(3)))
        (tensor(1.), None)
    """
    try:
        mean = fn.mean
    except NotImplementedError:
        return None
    return None if mean.isnan().all() else mean  # torch's way to say that a Categorical has none
