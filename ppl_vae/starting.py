"""Where annealing starts: draws from the prior or a guide, and what programs must be for it."""

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.checking import check, check_arguments, check_dtype, check_leading_axes, check_values
from ppl_vae.contract import ContractError, Site
from ppl_vae.coordinates import Coordinates, coordinates
from ppl_vae.programs import Program, Programs, own_parameters
from ppl_vae.supports import check_densities
from ppl_vae.tempering import Ends

__all__ = ["checked_coordinates", "draw_start", "refuse_impossible"]


def checked_coordinates(model: Program, guide: Program | None, batch: Batch) -> Coordinates:
    """Hold programs to the contract on a batch, and find the coordinates in which their latents move.

    Args:
        model: Pyro program.
        guide: Pyro program, or None where the path starts from the prior. A model alone may have
            parameters that its bound does not reach (those of its encoder, say).
        batch: tensors.

    Raises:
        ContractError: what does not hold, naming the site, what was found and the repair.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> list(checked_coordinates(VAE(), None, (torch.ones(4, 784),)).latents)
        ['z']
    """
    if guide is None:
        check_arguments(model, "model", batch)
        check_values(model, batch)
        check_dtype(Programs(model, model), batch)
        with pyro.validation_enabled(True):
            # A batch size may equal an event's by chance, and hide a missing .to_event.
            for rows in (batch, tuple(torch.cat([part, part[:1]]) for part in batch)):
                _check_alone(model, rows)
            space = coordinates(model, batch)
            check_leading_axes(model, space.stand_in, batch)
        return space
    check_arguments(guide, "guide", batch)
    drawn = _latents(guide, batch)
    for name, site in drawn.items():
        _check_density(name, site)
    check(model, guide, batch)
    space = coordinates(model, batch, summed=[name for name, site in drawn.items() if contract.is_marked(site)])
    for name, site in drawn.items():
        if name not in space.latents and not contract.is_marked(site):
            raise ContractError(
                f"site '{name}' is summed out of the model, but the guide draws it; mark it with "
                "infer={'enumerate': 'parallel'} in the guide too, or leave the guide out"
            )
    return space


def _latents(program: Program, batch: Batch) -> dict[str, Site]:
    with own_parameters(), torch.no_grad():
        return contract.latents(poutine.trace(program).get_trace(*batch))


def _check_alone(model: Program, batch: Batch) -> None:
    with own_parameters(), torch.no_grad():
        trace = poutine.trace(model).get_trace(*batch)
    for name, site in contract.sample_sites(trace):
        contract.check_mark(name, site)
        contract.check_site(name, site, "model", batch[0].shape[0])
    check_densities(trace, poutine.Trace())


def _check_density(name: str, site: Site) -> None:
    """A path can start only where draws have a density that can be computed."""
    fn = site["fn"]
    known = not (contract.is_auxiliary(site) or isinstance(contract.innermost(fn), pyro.distributions.Delta))
    try:
        with torch.no_grad():
            fn.log_prob(site["value"])
    except NotImplementedError:
        known = False
    if not known:
        raise ContractError(
            f"site '{name}': the guide draws it without a density of its own ({contract.kind(fn)}), so no path can "
            "start from this guide; leave it out (guide=None), and the path starts from the model's prior"
        )


def draw_start(program: Program, space: Coordinates, batch: Batch, chains: int) -> Tensor:
    """Draw from the distribution at the path's start, ``(chains, B, D)``, in real coordinates.

    Args:
        program: the guide, or a model whose prior is meant.
        space: coordinates of the latents.
        batch: tensors.
        chains: draws per datum.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> model, batch = VAE(), (torch.ones(4, 784),)
        >>> draw_start(model, checked_coordinates(model, None, batch), batch, 3).shape
        torch.Size([3, 4, 20])
    """
    with pyro.plate(contract.PARTICLE_PLATE, chains, dim=-2):
        sites = _latents(program, batch)
    return space.position({name: sites[name]["value"] for name in space.latents})


def refuse_impossible(found: Ends, first: int) -> None:
    """Raise if a chain cannot start: at its own draw the base has a density, and the target one that is a number.

    Args:
        found: both ends' densities at the starting points.
        first: index of the batch's first datum.

    Raises:
        FloatingPointError: naming the site and the datum.

    Example:
        >>> refuse_impossible(Ends({"z": torch.tensor([[0.0, torch.nan]])}, {}, None, None), first=100)
        Traceback (most recent call last):
        ...
        FloatingPointError: site 'z': log density is NaN or infinite for datum 101 where its chains start; ...
    """
    impossible = {name: ~base.isfinite() for name, base in found.base.items()}
    for name, density in found.target.items():
        impossible[name] = impossible.get(name, False) | density.isnan() | density.isposinf()
    for name, bad in impossible.items():
        if bad.any():
            datum = first + int(bad.flatten(0, -2).any(0).nonzero()[0])
            raise FloatingPointError(
                f"site '{name}': log density is NaN or infinite for datum {datum} where its chains start; look at the "
                "parameters of its distribution there (a scale of zero, an overflow)"
            )
