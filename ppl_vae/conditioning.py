"""Exact posteriors of each datum's latents at a program's current parameters, by enumeration and Gaussian algebra.

With y the discrete latents of a datum and z the continuous ones, of which log p(x, y, z) is quadratic given y::

    log p(x, y) = log p(x, y, m_y) + dims log(2 pi) / 2 + log|S_y| / 2
    p(z | x, y) = N(m_y, S_y),    S_y^-1 = -d^2 log p(x, y, z) / dz^2,    m_y = S_y d log p(x, y, z) / dz at z = 0
    p(y | x) = p(x, y) / sum_y p(x, y)

Derivatives are autograd's, so that a program says nothing of its own algebra.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppl_vae.batches import Batch
from ppl_vae.contract import ContractError
from ppl_vae.densities import normalised
from ppl_vae.latent_structure import Structure, log_densities, log_joint

__all__ = ["Posterior", "expected_log_joint", "posterior"]

Points = Mapping[str, Tensor]

# Numbers in the widest intermediate result of a chunk of data.
IN_A_CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Posterior:
    """The exact posterior of each datum's latents. Axes are those of a `Structure`'s joint densities.

    Attributes:
        structure: the program's latents.
        log_px: log p(x), ``(N,)``, in nats.
        table: joint probabilities of the discrete latents, ``(*values, N)``.
        loc: means of the continuous latents given the discrete ones, ``(*values, N, dims)``; None without any.
        scale_tril: Cholesky factors of their covariances, ``(*values, N, dims, dims)``, or with 1 in the place of N
            where all data have the same.
    """

    structure: Structure
    log_px: Tensor
    table: Tensor
    loc: Tensor | None = None
    scale_tril: Tensor | None = None

    @property
    def discrete(self) -> dict[str, Tensor]:
        """Site name to the probabilities of each discrete latent alone, ``(N, C)``."""
        axes = range(self.table.dim() - 1)
        return {
            name: self.table.sum([axis for axis in axes if axis != own]).mT if len(axes) > 1 else self.table.mT
            for own, name in zip(reversed(axes), self.structure.discrete, strict=True)
        }

    @property
    def continuous(self) -> dict[str, MultivariateNormal]:
        """Site name to the Gaussian of each continuous latent, of batch shape ``(N, *values)`` in the program's order.

        Given the discrete latents, where there are any. Events are flattened.
        """
        if self.loc is None:
            return {}
        axes = [*reversed(range(self.table.dim()))]
        loc = self.loc.permute(*axes, -1)
        covariance = (self.scale_tril @ self.scale_tril.mT).permute(*axes, -2, -1)
        places = self.structure.by_site(torch.arange(self.structure.dims, device=loc.device))
        at = {name: place.flatten() for name, place in places.items()}
        return {
            name: MultivariateNormal(loc[..., i], covariance[..., i, :][..., i], validate_args=False)
            for name, i in at.items()
        }

    def sites(self) -> dict[str, Tensor | MultivariateNormal]:
        """Return what a model's ``m_step`` is given: `discrete` and `continuous`."""
        return {**self.discrete, **self.continuous}

    def with_responsibilities(self, table: Tensor) -> "Posterior":
        """Return the same with other probabilities ``(N, C)`` of the one discrete latent."""
        return replace(self, table=table.mT)


def posterior(structure: Structure, batch: Batch, points: Points) -> Posterior:
    """Condition on data, a chunk of rows at a time.

    Args:
        structure: of the program.
        batch: data, tensors of N rows.
        points: values of the global latents.

    Raises:
        ContractError: the continuous latents are not Gaussian given the data and the discrete latents.
        FloatingPointError: a log density is NaN, or a datum is impossible.

    Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, sections 2.3.3, 9.2 and 12.2.

    Example:
        >>> from ppl_vae.latent_structure import structure_of
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2).double(), torch.randn(4, 6).double()
        >>> found, points = structure_of(model, (x,))
        >>> torch.allclose(posterior(found, (x,), points).log_px, model.log_px(x))
        True
    """
    n, log_px, table = len(batch[0]), [], []
    gaussians: list[tuple[Tensor, Tensor]] = []
    for rows, few in chunks(structure, batch, structure.width if structure.continuous else structure.table_width):
        if structure.continuous:
            log_p, *gaussian = _gaussian(structure, few, points)
            gaussians.append(tuple(gaussian))
        else:
            with torch.no_grad():
                log_p = log_joint(structure, few, points)
        table = log_p.new_empty(*structure.values, n) if rows.start == 0 else table
        log_px.append(_normalised(structure, log_p, table[..., rows], rows.start))
    return Posterior(structure, torch.cat(log_px), table, *_joined(gaussians))


def chunks(structure: Structure, batch: Batch, width: int) -> Iterator[tuple[slice, Batch]]:
    """Yield the data so few rows at a time that what is computed of them stays small.

    Args:
        structure: of the program.
        batch: data.
        width: how many numbers are computed of a datum and values of its discrete latents.
    """
    size = max(1, IN_A_CHUNK // (math.prod(structure.values) * width))
    for start in range(0, len(batch[0]), size):
        rows = slice(start, min(start + size, len(batch[0])))
        yield rows, tuple(part[rows] for part in batch)


def _normalised(structure: Structure, log_p: Tensor, table: Tensor, start: int) -> Tensor:
    """Write p(y | x) to the table, and return log p(x), ``(B,)``."""
    flat = log_p.reshape(-1, log_p.shape[-1])
    shares, log_px = normalised(flat, 0)
    if not log_px.isfinite().all():
        _refuse(structure, flat, log_px, start)
    table.copy_(shares.reshape(log_p.shape))
    return log_px


def _refuse(structure: Structure, log_p: Tensor, log_px: Tensor, start: int) -> None:
    """Say which datum has no probability, and given what."""
    row = int((~log_px.isfinite()).nonzero()[0])
    table = log_p[:, row].reshape(structure.values)
    wrong = table.isnan().nonzero()
    given = zip(structure.discrete, reversed(wrong[0].tolist()), strict=True) if len(wrong) else ()
    named = ", ".join(f"{name} = {value}" for name, value in given)
    raise FloatingPointError(
        f"x: log p(x) of row {start + row} is {float(log_px[row])}{named and ' given ' + named}; either the datum is "
        "impossible under the model, or a scale has shrunk to zero (fewer components, a floor under scales, or a prior "
        "prevent that)"
    )


def _gaussian(structure: Structure, batch: Batch, points: Points) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``log p(x, y)``, and mean and Cholesky factor of the Gaussian of z given x and y, of a few data."""
    at_zero, slope, _ = _expansion(structure, batch, points)
    _, _, precision = _expansion(structure, tuple(part[:1] for part in batch), points, second=True)
    found = _if_quadratic(structure, batch, points, at_zero, slope, precision)
    if found is None:  # data differ in their curvature, as where parts of them are masked
        _, _, precision = _expansion(structure, batch, points, second=True)
        found = _if_quadratic(structure, batch, points, at_zero, slope, precision)
    if found is None:
        raise ContractError(_not_quadratic(structure, batch, points))
    return found


def _expansion(
    structure: Structure, batch: Batch, points: Points, second: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Expand the joint density at z = 0: value, gradient and, if asked for, minus the Hessian."""
    z = structure.like.new_zeros(*structure.values, len(batch[0]), structure.dims).requires_grad_()
    with torch.enable_grad():
        value = log_joint(structure, batch, points, z)
        (slope,) = torch.autograd.grad(value.sum(), z, create_graph=second)
        if not second:
            return value.detach(), slope, None
        return value.detach(), slope.detach(), -_jacobian(slope, z)


def _jacobian(slope: Tensor, z: Tensor) -> Tensor:
    """Return the derivative of each datum's slope in its own z, ``(..., dims, dims)``."""
    columns = [_derivative(slope[..., i], z) for i in range(z.shape[-1])]
    matrix = torch.stack(columns, -1)
    return (matrix + matrix.mT) / 2  # symmetric but for rounding


def _derivative(value: Tensor, z: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(z)
    (found,) = torch.autograd.grad(value.sum(), z, retain_graph=True, allow_unused=True, materialize_grads=True)
    return found


def _if_quadratic(
    structure: Structure, batch: Batch, points: Points, at_zero: Tensor, slope: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return what `_gaussian` does if the expansion holds at a draw from the Gaussian that it implies."""
    factor, info = torch.linalg.cholesky_ex(precision)
    if info.any():
        return None
    tril = torch.linalg.cholesky(torch.cholesky_inverse(factor))
    loc = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
    # One draw in units of the posterior, the same for all data, which differ in their means.
    noise = torch.randn(structure.dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(loc)
    z = loc + tril @ noise
    with torch.no_grad():
        there = log_joint(structure, batch, points, z)
    rise = (slope * z).sum(-1) - (precision @ z.unsqueeze(-1)).squeeze(-1).mul(z).sum(-1) / 2
    if not _agree(there, at_zero + rise, at_zero.abs() + rise.abs() + there.abs()):
        return None
    log_volume = structure.dims * math.log(2 * math.pi) / 2 + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return there + noise.square().sum() / 2 + log_volume, loc, tril


def _agree(one: Tensor, other: Tensor, size: Tensor) -> bool:
    """Tell whether densities are equal but for rounding, impossible values included."""
    near = (one - other).abs() <= torch.finfo(one.dtype).eps ** 0.5 * (1 + size)
    return bool((near | (one == other)).all())


def _not_quadratic(structure: Structure, batch: Batch, points: Points) -> str:
    """Say which site keeps the continuous latents from being Gaussian."""
    z = structure.like.new_zeros(*structure.values, len(batch[0]), structure.dims).requires_grad_()
    other = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(z)
    there = log_densities(structure, batch, points, other)
    latents = ", ".join(f"'{name}'" for name in structure.continuous)
    for name, value in log_densities(structure, batch, points, z).items():
        slope = _slope(value, z)
        along = (slope * other).sum(-1)
        rise = along.detach() + (_derivative(along, z) * other).sum(-1) / 2
        if not _agree(there[name] + torch.zeros_like(rise), value + rise, value.abs() + rise.abs() + there[name].abs()):
            coarse = (
                "; rounding may look so: compute in float64, model.double()" if value.dtype != torch.float64 else ""
            )
            return (
                f"site '{name}': its log density is not quadratic in {latents}, which then are not Gaussian given the "
                "data; make locations linear in the latents and scales free of them, or train with pv.fit or "
                f"pv.variational_em{coarse}"
            )
    return (
        f"site {latents}: the joint density is quadratic, but does not fall in every direction, so that there is no "
        "posterior; give each continuous latent a Gaussian prior (or compute in float64, if scales are far apart)"
    )


def _slope(value: Tensor, z: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(z)
    return torch.autograd.grad(value.sum(), z, create_graph=True, allow_unused=True, materialize_grads=True)[0]


def _joined(gaussians: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Put chunks together; factors that all data share stay one."""
    if not gaussians:
        return ()
    locs, factors = zip(*gaussians, strict=True)
    loc = torch.cat(locs, -2)
    if all(f.shape[-3] == 1 and torch.equal(f, factors[0]) for f in factors):
        return loc, factors[0]
    whole = [f.expand(*f.shape[:-3], m.shape[-2], *f.shape[-2:]) for f, m in zip(factors, locs, strict=True)]
    return loc, torch.cat(whole, -3)


def expected_log_joint(structure: Structure, batch: Batch, found: Posterior, points: Points) -> Iterator[Tensor]:
    """Yield ``sum_n E_q[log p(x_n, y, z)]`` of a chunk of data after another, differentiable in the parameters.

    The expectation over z is the mean over ``m +- sqrt(dims) L e_i``, with L the Cholesky factor: exact for quadratic
    functions, whatever the parameters, as long as log p stays quadratic in z.

    Args:
        structure: of the program.
        batch: data.
        found: q, of the same data.
        points: values of the global latents.

    Reference: S. Julier, J. Uhlmann, "Unscented Filtering and Nonlinear Estimation", Proceedings of the IEEE 2004,
    https://doi.org/10.1109/JPROC.2003.823141.

    Example:
        >>> from ppl_vae.latent_structure import structure_of
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2).double(), torch.randn(4, 6).double()
        >>> found, points = structure_of(model, (x,))
        >>> q = posterior(found, (x,), points)
        >>> expected = sum(expected_log_joint(found, (x,), q, points))
        >>> torch.allclose(expected + q.continuous["z"].entropy().sum(), q.log_px.sum())  # the bound is tight
        True
    """
    for rows, few in chunks(structure, batch, structure.width * max(1, 2 * structure.dims)):
        z = None if found.loc is None else _sigma_points(found, rows)
        density = log_joint(structure, few, points, z)
        density = density if z is None else density.mean(0)
        share = found.table[..., rows]
        yield (share * density.masked_fill(share == 0, 0.0)).sum()


def _sigma_points(found: Posterior, rows: slice) -> Tensor:
    """Return points of equal weight with the moments of each Gaussian, ``(2 * dims, *values, B, dims)``."""
    loc, tril = found.loc[..., rows, :], found.scale_tril
    tril = tril if tril.shape[-3] == 1 else tril[..., rows, :, :]
    steps = (math.sqrt(loc.shape[-1]) * tril).movedim(-1, 0)
    return torch.cat([loc + steps, loc - steps])
