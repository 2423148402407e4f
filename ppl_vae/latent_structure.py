"""Which latents a program has, and its log density at values of theirs, each datum's discrete ones enumerated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Size, Tensor

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError, Site, in_data, number_of_values
from ppl_vae.densities import fast_log_prob, is_shared
from ppl_vae.programs import Program, own_parameters
from ppl_vae.supports import check_data_support
from ppl_vae.tracing import enumerated_trace

__all__ = ["Structure", "check_data", "log_densities", "log_joint", "log_prior", "structure_of"]

# Rows on which a program is first run: more than one, and such that one less is another number.
ROWS = 3


@dataclass(frozen=True)
class Structure:
    """The latents of a program.

    Axes of a joint density are ``(..., *values, N)``: one axis for the values of each discrete latent, of the last
    one leftmost, and data along the last.

    Attributes:
        model: the program.
        discrete: name of each datum's discrete latents to their number of values, in the program's order.
        continuous: name of each datum's continuous latents to their event shape.
        supports: name of each global latent to its support.
        prior: whether any site stands outside the plate "data".
        width: numbers in the widest value of one datum.
        table_width: the same, but for values whose density is computed in parts where no gradient is asked for.
        like: an empty tensor of the type and on the device of the continuous latents.
    """

    model: Program
    discrete: Mapping[str, int]
    continuous: Mapping[str, Size]
    supports: Mapping[str, Any]
    prior: bool
    width: int
    table_width: int
    like: Tensor

    @property
    def values(self) -> tuple[int, ...]:
        """Numbers of values as axes of a joint density."""
        return tuple(reversed(self.discrete.values()))

    @property
    def dims(self) -> int:
        """Length of all continuous latents of a datum, one after the other."""
        return sum(prod(shape) for shape in self.continuous.values())

    def by_site(self, z: Tensor) -> dict[str, Tensor]:
        """Cut the continuous latents ``(..., dims)`` into those of each site, ``(..., *event)``."""
        sizes = [prod(shape) for shape in self.continuous.values()]
        pieces = z.split(sizes, -1) if sizes else ()
        shapes = zip(self.continuous.items(), pieces, strict=True)
        return {name: piece.reshape(*z.shape[:-1], *shape) for (name, shape), piece in shapes}


def structure_of(model: Program, batch: Batch) -> tuple[Structure, dict[str, Tensor]]:
    """Run a program on a few rows and find its latents.

    Args:
        model: Pyro program. Latents outside the plate "data" are global.
        batch: data.

    Returns:
        `Structure`, and values of the global latents, drawn from their prior.

    Raises:
        ContractError: a site has no place in an exact posterior; the message names it.

    Example:
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> found, points = structure_of(LinearGaussian(x_dim=6, z_dim=2), (torch.randn(4, 6),))
        >>> found.continuous, found.discrete, points
        ({'z': torch.Size([2])}, {}, {})
    """
    few = _rows(batch, ROWS)
    with own_parameters(), torch.no_grad():
        trace = poutine.trace(model).get_trace(*few)
        fewer = poutine.trace(model).get_trace(*_rows(batch, max(len(few[0]) - 1, 1)))
    sites = dict(contract.sample_sites(trace))
    around = {name: site for name, site in sites.items() if not in_data(site)}
    for name in sites:
        contract.check_no_penalty(name)
    for name, site in around.items():
        _check_global(name, site, fewer.nodes.get(name))
    local = {name: site for name, site in sites.items() if name not in around}
    _check_local(local, len(few[0]))
    latent = {name: site for name, site in local.items() if not site["is_observed"]}
    discrete = [name for name, site in latent.items() if site["fn"].support.is_discrete]
    continuous = {name: site for name, site in latent.items() if name not in discrete}
    points = {name: site["value"].detach() for name, site in around.items() if not site["is_observed"]}
    like = next((site["value"].new_zeros(()) for site in continuous.values()), torch.zeros(()))
    found = Structure(
        model,
        dict.fromkeys(discrete, 1),
        {name: site["fn"].event_shape for name, site in continuous.items()},
        {name: around[name]["fn"].support for name in points},
        bool(around),
        _widest(local),
        _widest(local),
        like,
    )
    return _counted(found, few, points), points


def _rows(batch: Batch, n: int) -> Batch:
    return tuple(part[:n] for part in batch)


def _check_global(name: str, site: Site, among_fewer: Site | None) -> None:
    """What stands outside the plate "data" is no discrete latent and does not follow the data."""
    if contract.is_factor(site):
        return
    contract.check_global(name, site, among_fewer)
    if site["fn"].support.is_discrete and not site["is_observed"]:
        raise ContractError(
            f"site '{name}' is a discrete global latent ({contract.kind(site['fn'])}), which cannot be a point mass "
            "found by ascent; run once for each of its values and compare, or move it into the plate 'data'"
        )


def _check_local(sites: Mapping[str, Site], rows: int) -> None:
    for name, site in sites.items():
        contract.check_site(name, site, "model", rows)
        if not contract.has_common_scale(site):
            raise ContractError(
                f"site '{name}' has a scale of its own (poutine.scale), which makes it no density; drop the scale"
            )
        if not site["is_observed"]:
            _check_latent(name, site["fn"])
            if site["fn"].support.is_discrete:
                contract.check_probabilities(name, site)
    contract.check_observes(sites)


def _check_latent(name: str, fn: Any) -> None:
    what = f"site '{name}' ({contract.kind(fn)}, event shape {tuple(fn.event_shape)})"
    if fn.support.is_discrete and not fn.has_enumerate_support:
        raise ContractError(
            f"{what} gives no finite list of values, so that its posterior is no sum; give each element of a discrete "
            "vector a site of its own, or train with pv.fit or pv.variational_em"
        )
    support = fn.support
    while isinstance(support, torch.distributions.constraints.independent):
        support = support.base_constraint
    kinds = (torch.distributions.constraints.real, torch.distributions.constraints.real_vector)
    if not (fn.support.is_discrete or support in kinds):
        raise ContractError(
            f"{what} is continuous and not Gaussian, so that its posterior has no closed form here; make it Gaussian, "
            "or train with pv.fit or pv.variational_em"
        )


def _counted(found: Structure, few: Batch, points: Mapping[str, Tensor]) -> Structure:
    """Learn the numbers of values by enumerating, and that no discrete latent follows a continuous one."""
    z = found.like.new_zeros(len(few[0]), found.dims).requires_grad_()
    with torch.enable_grad():
        sites = dict(contract.sample_sites(_trace(found, few, points, z)))
        for name in found.discrete:
            density = sites[name]["fn"].log_prob(sites[name]["value"])
            if density.requires_grad and torch.autograd.grad(density.sum(), z, allow_unused=True)[0] is not None:
                raise ContractError(
                    f"site '{name}': its probabilities depend on the continuous latents ({', '.join(found.continuous)}"
                    "), which then are not Gaussian given the data; train with pv.fit or pv.variational_em"
                )
    counts = {name: number_of_values(sites[name]) for name in found.discrete}
    whole = {name: site for name, site in sites.items() if in_data(site) and not is_shared(site["fn"])}
    return replace(found, discrete=counts, table_width=_widest(whole))


def _widest(sites: Mapping[str, Site]) -> int:
    """Return how many numbers the widest value of one datum has."""
    return max((prod(site["fn"].event_shape) for site in sites.values()), default=1)


def _trace(structure: Structure, batch: Batch, points: Mapping[str, Tensor], z: Tensor | None = None) -> Any:
    given = {**points, **(structure.by_site(z) if structure.continuous else {})}
    return enumerated_trace(poutine.condition(structure.model, data=given), batch)


def check_data(structure: Structure, batch: Batch, points: Mapping[str, Tensor]) -> None:
    """Raise if data are not of their likelihood's type, lie outside its support, or are fewer than their plate says.

    Args:
        structure: of the program.
        batch: all the data.
        points: values of the global latents.

    Raises:
        TypeError: whole numbers meet a density of real ones.
        ContractError: data lie outside a support, or the plate "data" is larger than they are.
    """
    with torch.no_grad():
        trace = _trace(structure, batch, points, structure.like.new_zeros(len(batch[0]), structure.dims))
    for name, site in contract.observed(trace).items():
        if in_data(site):
            contract.check_whole(name, site)
        if not (site["fn"].support.is_discrete or site["value"].is_floating_point()):
            raise TypeError(
                f"x: site '{name}' ({contract.kind(site['fn'])}) has a density of real numbers, found data in "
                f"{str(site['value'].dtype).removeprefix('torch.')}; convert them: x.float(), or x.double()"
            )
    check_data_support(trace)


def log_densities(
    structure: Structure, batch: Batch, points: Mapping[str, Tensor], z: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the log density of each site of each datum, broadcastable to ``(..., *values, B)``, in nats.

    Args:
        structure: of the program.
        batch: tensors.
        points: values of the global latents.
        z: values of the continuous latents, ``(..., *values, B, dims)``.
    """
    with _unvalidated():
        sites = dict(contract.sample_sites(_trace(structure, batch, points, z)))
        sites |= {name: contract.without_mask(sites[name]) for name in structure.discrete}
        return {name: _log_density(site) for name, site in sites.items() if in_data(site)}


def log_joint(structure: Structure, batch: Batch, points: Mapping[str, Tensor], z: Tensor | None = None) -> Tensor:
    """Return ``log p(x, y, z)`` of each datum, ``(..., *values, B)``, in nats; arguments as for `log_densities`.

    Example:
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> x = torch.randn(4, 6)
        >>> found, points = structure_of(LinearGaussian(x_dim=6, z_dim=2), (x,))
        >>> log_joint(found, (x,), points, torch.zeros(4, 2)).shape
        torch.Size([4])
    """
    total = sum(log_densities(structure, batch, points, z).values())
    return total.expand(torch.broadcast_shapes(total.shape, (*structure.values, len(batch[0]))))


def log_prior(structure: Structure, batch: Batch, points: Mapping[str, Tensor]) -> Tensor:
    """Return the log density of all sites outside the plate "data", ``()``, in nats.

    Args:
        structure: of the program.
        batch: all the data, which such a site may read: the mean of a prior, or a summary that it observes.
        points: values of the global latents.
    """
    with _unvalidated():
        trace = _trace(structure, batch, points, structure.like.new_zeros(len(batch[0]), structure.dims))
        terms = [_log_density(site, site["scale"]) for _, site in contract.sample_sites(trace) if not in_data(site)]
        return sum((term.sum() for term in terms), start=structure.like.new_zeros(()))


def _log_density(site: Site, scale: float = 1.0) -> Tensor:
    return scale_and_mask(fast_log_prob(site["fn"], site["value"]), scale, site["mask"])


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Leave out Pyro's checks of every value and parameter, which cost more than the densities."""
    with pyro.validation_enabled(False):
        yield
