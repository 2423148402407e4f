"""The continuous latents of a datum as one vector of real numbers, whatever their shapes and supports."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Size, Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from ppl_vae import contract
from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError, Site
from ppl_vae.programs import Program, own_parameters

__all__ = ["Coordinates", "Latent", "coordinates"]


@dataclass(frozen=True)
class Latent:
    """One latent site.

    Attributes:
        transform: from real numbers onto its support.
        event: its event shape.
        like: one value of it, for type and device.
    """

    transform: Transform
    event: Size
    like: Tensor

    @property
    def real(self) -> Size:
        """Shape of its real coordinates (a simplex has one less than it has values)."""
        return self.transform.inverse_shape(self.event)

    @property
    def size(self) -> int:
        """The number of its real coordinates."""
        return self.real.numel()


@dataclass(frozen=True)
class Coordinates:
    """A map between the latents of a model and vectors of real numbers u.

    With z = T(u) site by site, a density of z becomes one of u::

        log f(u) = log f(z) + log |dT / du|

    Attributes:
        latents: site name to `Latent`.

    Reference: A. Kucukelbir et al., "Automatic Differentiation Variational Inference", JMLR 2017,
    https://arxiv.org/abs/1603.00788, section 2.3.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> space = coordinates(VAE(), (torch.ones(4, 784),))
        >>> values, log_jacobian = space.values(torch.zeros(3, 4, 20))
        >>> values["z"].shape, log_jacobian.shape
        (torch.Size([3, 4, 20]), torch.Size([3, 4]))
    """

    latents: Mapping[str, Latent]

    def values(self, position: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the latents at real vectors ``(K, B, D)``, and the log-Jacobian ``(K, B)``."""
        values, log_jacobian = {}, position.new_zeros(position.shape[:2])
        parts = position.split([latent.size for latent in self.latents.values()], dim=-1)
        for (name, latent), part in zip(self.latents.items(), parts, strict=True):
            real = part.reshape(*part.shape[:2], *latent.real).to(latent.like.dtype)
            values[name] = latent.transform(real)
            log_jacobian = log_jacobian + _per_datum(latent.transform.log_abs_det_jacobian(real, values[name]))
        return values, log_jacobian

    def position(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the real vectors ``(K, B, D)`` of latents ``(K, B, *event)``."""
        parts = [latent.transform.inv(values[name]) for name, latent in self.latents.items()]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], dim=-1)

    def stand_in(self, *batch: Tensor) -> None:
        """Draw the latents, as a guide would, from nothing in particular.

        It makes a pair with the model where draws are given by a rule; its density means nothing.
        """
        with pyro.plate(contract.DATA_PLATE, batch[0].shape[0], dim=-1):
            for name, latent in self.latents.items():
                zeros = torch.zeros(latent.real, dtype=latent.like.dtype, device=latent.like.device)
                noise = dist.Normal(zeros, 1.0).to_event(zeros.dim())
                pyro.sample(name, dist.TransformedDistribution(noise, [latent.transform]))


def coordinates(model: Program, batch: Batch, summed: Collection[str] = ()) -> Coordinates:
    """Find the coordinates of a model's continuous latents.

    Args:
        model: Pyro program.
        batch: tensors.
        summed: latents that are summed out, beside those that the model marks for it.

    Returns:
        `Coordinates`.

    Raises:
        ContractError: a latent is discrete and not summed out, a point mass, has a support that real
            numbers cannot be mapped onto, or one that depends on data or on other latents; or
            there is no latent.

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", x.shape[0], dim=-1):
        ...         rate = pyro.sample("rate", pyro.distributions.Gamma(2.0, 1.0))
        ...         pyro.sample("x", pyro.distributions.Poisson(rate), obs=x)
        >>> coordinates(model, (torch.ones(4),)).values(torch.zeros(1, 4, 1))[0]["rate"]
        tensor([[1., 1., 1., 1.]])
    """
    # Of one datum, so that they hold for batches of any size.
    sites = _moving(model, tuple(part[:1] for part in batch), summed)
    if not sites:
        raise ContractError(
            "model: it draws no continuous latent to move; where everything is summed out, pv.evaluate with a guide "
            "that draws nothing gives log p(x) exactly"
        )
    found = Coordinates({name: _latent(name, site) for name, site in sites.items()})
    with pyro.plate(contract.PARTICLE_PLATE, 2, dim=-2):
        drawn = _moving(model, batch, summed)
    for name, latent in found.latents.items():
        _check_fixed(name, latent, drawn[name])
    return found


def _moving(model: Program, batch: Batch, summed: Collection[str]) -> dict[str, Site]:
    with own_parameters(), torch.no_grad():
        drawn = contract.latents(poutine.trace(model).get_trace(*batch))
    return {name: site for name, site in drawn.items() if not (contract.is_marked(site) or name in summed)}


def _latent(name: str, site: Site) -> Latent:
    fn = site["fn"]
    kind = contract.kind(fn)
    if isinstance(contract.innermost(fn), dist.Delta):
        raise ContractError(
            f"site '{name}' is a point mass (Delta) in the model, which has no density; make it pyro.deterministic"
        )
    try:
        discrete, transform = fn.support.is_discrete, None if fn.support.is_discrete else biject_to(fn.support)
    except NotImplementedError as error:
        raise ContractError(
            f"site '{name}': real numbers cannot be mapped onto its support ({kind}), which gradients need to move it; "
            "draw a latent with another support, or use pv.evaluate"
        ) from error
    if discrete:
        raise ContractError(
            f"site '{name}' is a discrete latent ({kind}), which gradients cannot move; sum it out: mark it with "
            "infer={'enumerate': 'parallel'}, each element of a vector as a site of its own (pv.evaluate takes it as "
            "it is)"
        )
    return Latent(transform, fn.event_shape, site["value"].reshape(-1)[:1].detach())


def _check_fixed(name: str, latent: Latent, site: Site) -> None:
    """A support is the same for all data and all values of other latents."""
    ones = latent.like.new_ones(latent.real)
    with torch.no_grad():
        here, there = latent.transform(ones), biject_to(site["fn"].support)(ones)
    if not torch.allclose(*torch.broadcast_tensors(here, there)):
        raise ContractError(
            f"site '{name}': its support ({contract.kind(site['fn'])}) depends on the data or on other latents; draw "
            "it from a fixed support, and move and scale it afterwards"
        )


def _per_datum(log_jacobian: Tensor) -> Tensor:
    return log_jacobian.flatten(2).sum(-1) if log_jacobian.dim() > 2 else log_jacobian
