"""Run a guide against a model: the one place where importance weights are made."""

from contextlib import AbstractContextManager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Size, Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch, as_batch
from ppl_vae.contract import PARTICLE_PLATE, ContractError
from ppl_vae.particles import Particles
from ppl_vae.programs import Program, own_parameters

__all__ = ["weigh"]


def weigh(model: Program, guide: Program, x: Any, particles: int = 1, linear: bool = False) -> Particles:
    """Draw K latents per datum from the guide and weigh them under the model.

    For each datum and particle::

        log w = log p(x, z) - log q(z | x),    z ~ q(z | x)

    Args:
        model: Pyro program; see the contract in ARCHITECTURE.md.
        guide: Pyro program with the same arguments.
        x: a batch: a tensor, or a tuple of tensors that the programs take in this order.
        particles: K, the number of draws per datum.
        linear: promises that the weights go into a bound that is linear in them. Only then may a
            single site carry a scale of its own (``poutine.scale``, as for annealing).

    Returns:
        `Particles`, with ``log_w`` of shape ``(K, B)`` in nats, differentiable in the parameters
        of both programs.

    Raises:
        ContractError: the programs do not fit each other (`check` looks closer).
        TypeError, ValueError: x is not a batch, or K is below 1.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR
    2016, https://arxiv.org/abs/1509.00519.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> particles = pv.weigh(VAE(), Normal(), torch.ones(4, 784), particles=3)
        >>> particles.log_w.shape, particles.values["z"].shape
        (torch.Size([3, 4]), torch.Size([3, 4, 20]))
    """
    with own_parameters():
        return weigh_in_place(model, guide, as_batch(x), particles, linear)


def weigh_in_place(model: Program, guide: Program, batch: Batch, particles: int, linear: bool) -> Particles:
    """Weigh with Pyro's parameter store as it stands (``SVI`` finds parameters through it)."""
    if not isinstance(particles, int) or particles < 1:
        raise ValueError(f"particles: expected a whole number of at least 1, found {particles!r}")
    model_trace, guide_trace = paired_traces(model, guide, batch, particles)
    contract.check_roles(model_trace, guide_trace)
    contract.check_names(model_trace, guide_trace)
    rows = batch[0].shape[0]  # len(x) would tie a captured graph to one batch size
    contract.check_plates(guide_trace, "guide", rows)
    contract.check_plates(model_trace, "model", rows)
    return _record(model_trace, guide_trace, Size([particles, rows]), linear)


def paired_traces(model: Program, guide: Program, batch: Batch, particles: int) -> tuple[Any, Any]:
    """Trace the guide, then the model with the guide's draws, K particles at once."""
    with _particle_plate(particles):
        guide_trace = poutine.trace(guide).get_trace(*batch)
    with _particle_plate(particles):
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
    return model_trace, guide_trace


def _particle_plate(particles: int) -> AbstractContextManager:
    """Open the outermost plate. It costs the encoder nothing: x has no particle axis."""
    return pyro.plate(PARTICLE_PLATE, particles, dim=-2)


def _record(model_trace: Any, guide_trace: Any, shape: Size, linear: bool) -> Particles:
    model_sites, guide_sites = (dict(contract.sample_sites(t)) for t in (model_trace, guide_trace))
    log_p = {name: _scaled(name, site, linear).expand(shape) for name, site in model_sites.items()}
    log_q = {name: _scaled(name, site, linear).expand(shape) for name, site in guide_sites.items()}
    penalties = {name: log_p.pop(name) for name in model_sites if _is_penalty(name)}
    # A factor of the guide enters an ELBO with a minus; so does its penalty.
    penalties |= {name: -log_q.pop(name) for name in guide_sites if _is_penalty(name)}
    drawn = contract.latents(guide_trace)
    scales = {contract.plate_scale(site) for site in (*model_sites.values(), *guide_sites.values())}
    if len(scales) > 1:
        raise ContractError(
            f"plate 'data': model and guide scale it differently ({', '.join(map(str, sorted(scales)))}); give both "
            "the same pyro.plate('data', N, len(x))"
        )
    score = [_log_prob(site).expand(shape) for site in drawn.values() if not site["fn"].has_rsample]
    return Particles(
        log_p=log_p,
        log_q=log_q,
        log_q_score=sum(score, start=torch.zeros(())),
        values={name: site["value"] for name, site in drawn.items()},
        penalties=penalties,
        scale=scales.pop(),
    )


def _is_penalty(name: str) -> bool:
    return name.startswith(contract.PENALTY)


def _log_prob(site: contract.Site) -> Tensor:
    """Return a site's log density with its masks and without any scale, ``(B,)`` or ``(K, B)``."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, 1.0, site["mask"])


def _scaled(name: str, site: contract.Site, linear: bool) -> Tensor:
    """Return a site's log density times its own scale; the plate's common scale stays outside."""
    common, scale = contract.plate_scale(site), site["scale"]
    if not isinstance(scale, Tensor) and abs(scale - common) <= 1e-9 * common:
        return _log_prob(site)
    if linear or _is_penalty(name):
        return _log_prob(site) * (scale / common)
    raise ContractError(
        f"site '{name}' has a scale of its own (poutine.scale), which means nothing inside a log-sum-exp; set it to 1 "
        "to weigh or evaluate, or train on a bound that is linear in the weights, such as elbo (a bound of your own "
        "says so with objectives.objective(linear=True))"
    )
