"""A guide's draws scored elsewhere: at the other data, and under a prior."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_vae import contract
from ppl_vae.batches import Batch, InMemory, Source, source
from ppl_vae.contract import PARTICLE_PLATE, ContractError, Site
from ppl_vae.data.splits import Splits
from ppl_vae.enumeration import enumerated_by, expanded, summed_out
from ppl_vae.particles import total
from ppl_vae.programs import Program, own_parameters
from ppl_vae.tracing import Enumerating

__all__ = [
    "check_densities",
    "check_guide",
    "check_one_prior",
    "in_memory",
    "latent_sites",
    "log_given",
    "log_others",
    "log_prior",
    "several",
    "slices",
    "spread",
    "to_evaluate",
    "trace_given",
    "unmarked",
]

# Densities of one thing computed in two ways differ by rounding; anything else is off by far more.
ROUNDING = 1e-3


def to_evaluate(data: Any, batch_size: int) -> Source:
    """Return the data that a figure is computed on as batches: of `Splits`, the test set.

    Example:
        >>> len(list(to_evaluate(torch.zeros(5, 2), batch_size=2)))
        3
    """
    if isinstance(data, DataLoader) and data.drop_last:
        raise ValueError("data: the DataLoader drops its last batch, which would leave data out; set drop_last=False")
    return source(data.test if isinstance(data, Splits) else data, batch_size)


def in_memory(data: Any, batch_size: int) -> Batch:
    """Return data as tensors with all rows. What streams is read once, so that every datum has one value.

    Example:
        >>> loader = DataLoader(torch.utils.data.TensorDataset(torch.zeros(5, 2)), batch_size=2)
        >>> in_memory(loader, batch_size=2)[0].shape
        torch.Size([5, 2])
    """
    batches = to_evaluate(data, batch_size)
    if isinstance(batches, InMemory):
        return batches.tensors
    parts = list(batches)
    if not parts:
        raise ValueError("data: empty (no rows); check the split or the filter that made it")
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def slices(data: Batch, size: int) -> Iterator[tuple[int, Batch]]:
    """Yield the rows of data, so many at a time, each with the index of its first.

    Example:
        >>> [(start, x.tolist()) for start, (x,) in slices((torch.arange(3),), 2)]
        [(0, [0, 1]), (2, [2])]
    """
    for start in range(0, data[0].shape[0], size):
        yield start, tuple(part[start : start + size] for part in data)


def several(data: Batch) -> Batch:
    """Return data if there are at least two.

    Raises:
        ValueError: there is one.
    """
    if data[0].shape[0] < 2:
        raise ValueError("data: found one datum, whose posterior is the aggregated one; give at least two")
    return data


def spread(data: Batch, rows: int) -> Batch:
    """Return some rows of data from all over them.

    Example:
        >>> spread((torch.arange(9),), rows=3)
        (tensor([0, 4, 8]),)
    """
    n = data[0].shape[0]
    return tuple(part[torch.linspace(0, n - 1, max(2, min(rows, n))).long().to(part.device)] for part in data)


def unmarked(guide: Program) -> Program:
    """Return a guide that draws what it marks for enumeration.

    Each value of an enumerated site would have to be scored at all data as if it had been drawn.
    """
    return poutine.infer_config(guide, lambda site: {"enumerate": None})


def trace_given(program: Program, batch: Batch, values: Mapping[str, Tensor], draws: int) -> Any:
    """Trace a program with ``draws`` particles, latents held to values ``(draws, B, *event)``, others enumerated."""
    # Draws of one datum may lie outside what another one's distribution supports.
    quiet = pyro.validation_enabled(False)
    held = poutine.condition(program, data=values)
    enumerating, plate = Enumerating(first_available_dim=-3), pyro.plate(PARTICLE_PLATE, draws, dim=-2)
    with own_parameters(), quiet, torch.no_grad(), enumerating, poutine.trace() as tracer, plate:
        held(*batch)
    return tracer.trace


def latent_sites(guide: Program, batch: Batch, draws: int) -> dict[str, Site]:
    """Return the sites that a guide draws, with values ``(draws, B, *event)``; auxiliary ones are left out."""
    drawn = contract.latents(trace_given(unmarked(guide), batch, {}, draws))
    return {name: site for name, site in drawn.items() if not contract.is_auxiliary(site)}


def check_guide(guide: Program, batch: Batch) -> Any:
    """Raise unless a program is a guide; return its trace with one particle.

    Raises:
        ContractError: it observes data, draws nothing, or leaves the plate "data".
    """
    trace = trace_given(unmarked(guide), batch, {}, 1)
    for name, site in contract.observed(trace).items():
        if not contract.is_factor(site):
            raise ContractError(f"guide: site '{name}' is observed, but a guide only draws latents; is this the model?")
    if not contract.latents(trace):
        raise ContractError("guide: it draws no latent, so there is nothing to look at; give it pyro.sample('z', ...)")
    contract.check_plates(trace, "guide", batch[0].shape[0])
    return trace


def check_densities(guide_trace: Any) -> None:
    """Raise unless a guide's latents have a density that can be taken at other data."""
    for name, site in contract.sample_sites(guide_trace):
        if contract.is_auxiliary(site) and not name.startswith(contract.PENALTY):
            raise ContractError(
                f"site '{name}' of the guide is auxiliary: the density of the latents alone would be an integral over "
                "it; draw them from one distribution, such as a TransformedDistribution"
            )
        if not contract.is_factor(site) and contract.kind(site["fn"]) == "Delta":
            raise ContractError(
                f"site '{name}' is a point mass (Delta) in the guide, which has no density at other data; draw it from "
                "a distribution, such as a Normal"
            )
        if not contract.has_common_scale(site):
            raise ContractError(
                f"site '{name}' has a scale of its own (poutine.scale), with which the guide is no distribution; set "
                "it to 1"
            )


def log_others(
    guide: Program,
    data: Batch,
    values: Mapping[str, Tensor],
    log_q: Tensor,
    first: int,
    size: int,
    tick: Callable[[], None],
) -> Tensor:
    """Sum a guide's densities of draws at all data but their own.

    For draw z of datum n::

        log sum_(j != n) q(z | x_j)

    Args:
        guide: Pyro program.
        data: N rows.
        values: draws of the guide, ``(K, R, *event)``.
        log_q: ``(K, R)``, their densities at their own data.
        first: the index of the first of these R data.
        size: data at a time; then ``K x R x size`` densities are in memory.
        tick: called after each batch.

    Returns:
        ``(K, R)``, in float64.

    Raises:
        ContractError: a draw's density at its own datum is not the one given.
    """
    shape, device = log_q.shape, log_q.device
    flat = {name: value.flatten(0, 1).unsqueeze(1) for name, value in values.items()}
    own = torch.arange(first, first + shape[1], device=device).repeat(shape[0]).unsqueeze(1)
    summed = torch.full((len(own),), -torch.inf, dtype=torch.float64, device=device)
    for start, batch in slices(data, size):
        rows = batch[0].shape[0]
        crossed = log_given(guide, batch, {n: v.expand(-1, rows, *v.shape[2:]) for n, v in flat.items()})
        mine = own == torch.arange(start, start + rows, device=device)
        _check_own(crossed[mine], log_q.flatten()[mine.any(1)])
        summed = torch.logaddexp(summed, crossed.masked_fill(mine, -torch.inf).logsumexp(1))
        tick()
    return summed.view(shape)


def log_given(guide: Program, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
    """Return ``log q(z | x)`` at values ``(K, B, *event)``, ``(K, B)``, in float64.

    Example:
        >>> from ppl_vae.guides.normal import Normal
        >>> log_given(Normal(z_dim=2), (torch.ones(4, 784),), {"z": torch.zeros(3, 4, 2)}).shape
        torch.Size([3, 4])
    """
    draws = _draws(values)
    sites = contract.sample_sites(trace_given(guide, batch, values, draws))
    densities = {n: _log_density(n, site) for n, site in sites if not n.startswith(contract.PENALTY)}
    return expanded(total(densities), _shape(batch, draws)).double()


def _log_density(name: str, site: Site) -> Tensor:
    """Return a site's log density with its masks."""
    try:
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except (KeyError, NotImplementedError) as error:
        raise ContractError(
            f"site '{name}': its distribution ({contract.kind(site['fn'])}) scores its own draws only, as a flow "
            "without an inverse does; use one that scores any value"
        ) from error
    density = scale_and_mask(log_prob, 1.0, site["mask"])
    if (density.isnan() | density.isposinf()).any():
        raise FloatingPointError(
            f"site '{name}': log density is NaN or infinite for a draw; look at the parameters of its distribution (a "
            "scale of zero, an overflow)"
        )
    return density


def _draws(values: Mapping[str, Tensor]) -> int:
    return next(iter(values.values())).shape[0]


def _shape(batch: Batch, draws: int) -> torch.Size:
    return torch.Size([draws, batch[0].shape[0]])


def _check_own(crossed: Tensor, own: Tensor) -> None:
    off = (crossed - own).abs() > ROUNDING * (1 + own.abs())
    if off.any():
        raise ContractError(
            f"guide: a draw has log density {float(own[off][0]):.4f} at its datum, and {float(crossed[off][0]):.4f} "
            "when asked again: something random or kept besides its latents moves it (noise of its own, a counter); "
            "make q(z | x) a function of z and x"
        )


def prior_densities(program: Program, batch: Batch, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the log densities ``(K, B)`` of a model's latents at values, without its data, marked latents summed out.

    Sites that are summed together share an entry; other factors than latents belong to the data.
    """
    draws = _draws(values)
    trace = trace_given(program, batch, values, draws)
    sites = dict(contract.sample_sites(trace))
    summed = enumerated_by(sites)
    latent = {name: _log_density(name, site) for name, site in sites.items() if name in values or name in summed}
    densities = summed_out(trace, latent, summed) if summed else latent
    return {name: expanded(density, _shape(batch, draws)) for name, density in densities.items()}


def log_prior(program: Program, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
    """Return ``log p(z)`` at values ``(K, B, *event)``, ``(K, B)``, in float64.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> log_prior(VAE(z_dim=2), (torch.ones(4, 784),), {"z": torch.zeros(3, 4, 2)})[0]
        tensor([-1.8379, -1.8379, -1.8379, -1.8379], dtype=torch.float64)
    """
    return total(prior_densities(program, batch, values)).double()


def check_one_prior(program: Program, batch: Batch, values: Mapping[str, Tensor]) -> None:
    """Raise if the prior of latents depends on the datum that they belong to."""
    ours = prior_densities(program, batch, values)
    theirs = prior_densities(program, tuple(part.roll(1, 0) for part in batch), values)
    for name, density in ours.items():
        if ((density - theirs[name]).abs() > ROUNDING * (1 + density.abs())).any():
            raise ContractError(
                f"site '{name}': its prior reads the data, so that there is no one p(z) for the aggregated posterior "
                "to be compared with; take a model that generates all that it conditions on"
            )
