"""Covariance structures of Gaussian components: parameters, distributions, and their M-steps in closed form.

Each structure is a module made by ``structure(y_dim, x_dim)``. Its parameters are unconstrained (logarithms of
scales, Cholesky factors with logarithms on the diagonal), so that gradients train it as well as EM does.
"""

from typing import NoReturn

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.components import negligible, scatter_matrices, scatter_squares, select, shared_scatter

__all__ = ["Diagonal", "Full", "Spherical", "Tied"]


class Full(nn.Module):
    """A covariance matrix for each component, by its Cholesky factor ``L_k L_k'``.

    Args:
        y_dim: number of components.
        x_dim: number of dimensions.

    Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, section 9.2.2.

    Example:
        >>> Full(3, 2).normal(torch.zeros(3, 2), torch.tensor([0, 2, 2, 1])).batch_shape
        torch.Size([4])
    """

    def __init__(self, y_dim: int, x_dim: int):
        super().__init__()
        self.log_diagonal = nn.Parameter(torch.zeros(y_dim, x_dim))
        self.below = nn.Parameter(torch.zeros(y_dim, x_dim * (x_dim - 1) // 2))

    def normal(self, mean: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return ``N(m_y, L_y L_y')`` for means ``(..., C, D)`` and components y, with event shape ``(D,)``."""
        factor = _triangle(self.log_diagonal, self.below)
        return dist.MultivariateNormal(select(mean, y), scale_tril=select(factor, y, event_dim=2))

    def matrices(self) -> Tensor:
        """Return the covariances, ``(C, D, D)``."""
        factor = _triangle(self.log_diagonal, self.below)
        return factor @ factor.mT

    @torch.no_grad()
    def m_step(
        self, x: Tensor, responsibilities: Tensor, counts: Tensor, mean: Tensor, *, regularization: float = 0.0
    ) -> None:
        """Set the covariances to those of greatest likelihood.

        ::

            Sigma_k = sum_n r_nk (x_n - m_k) (x_n - m_k)' / N_k + regularization I

        Args:
            x: data ``(N, D)``.
            responsibilities: ``(N, C)``.
            counts: ``(C,)``, as `components.moments` gives them.
            mean: ``(C, D)``, likewise.
            regularization: variance added in every direction, in the squared units of x.

        Raises:
            ValueError: a covariance is not positive definite; no parameter has changed then.
        """
        covariance = scatter_matrices(x, responsibilities) / counts[:, None, None]
        factor = _cholesky(_ridged(covariance, regularization), mean, "component {}: its covariance")
        _set_triangle(self.log_diagonal, self.below, factor)


class Tied(nn.Module):
    """One covariance matrix that all components share.

    Args:
        y_dim: number of components.
        x_dim: number of dimensions.

    Reference: as for `Full`, exercise 9.6.

    Example:
        >>> Tied(3, 2).matrices().shape
        torch.Size([3, 2, 2])
    """

    def __init__(self, y_dim: int, x_dim: int):
        super().__init__()
        self.y_dim = y_dim
        self.log_diagonal = nn.Parameter(torch.zeros(x_dim))
        self.below = nn.Parameter(torch.zeros(x_dim * (x_dim - 1) // 2))

    def normal(self, mean: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return ``N(m_y, L L')`` for means ``(..., C, D)`` and components y, with event shape ``(D,)``."""
        return dist.MultivariateNormal(select(mean, y), scale_tril=_triangle(self.log_diagonal, self.below))

    def matrices(self) -> Tensor:
        """Return the covariances, all the same, ``(C, D, D)``."""
        factor = _triangle(self.log_diagonal, self.below)
        return (factor @ factor.mT).expand(self.y_dim, -1, -1)

    @torch.no_grad()
    def m_step(
        self, x: Tensor, responsibilities: Tensor, counts: Tensor, mean: Tensor, *, regularization: float = 0.0
    ) -> None:
        """Set the covariance to that of greatest likelihood; arguments and errors as for `Full.m_step`.

        ::

            Sigma = sum_nk r_nk (x_n - m_k) (x_n - m_k)' / sum_k N_k + regularization I
        """
        covariance = (shared_scatter(x, responsibilities) / counts.sum()).unsqueeze(0)
        factor = _cholesky(_ridged(covariance, regularization), mean, "the covariance that all components share")
        _set_triangle(self.log_diagonal, self.below, factor.squeeze(0))


class Diagonal(nn.Module):
    """A variance for each component and dimension.

    Args:
        y_dim: number of components.
        x_dim: number of dimensions.

    Reference: as for `Full`.

    Example:
        >>> Diagonal(3, 2).normal(torch.zeros(3, 2), torch.tensor([0, 2])).event_shape
        torch.Size([2])
    """

    def __init__(self, y_dim: int, x_dim: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(y_dim, x_dim))

    def normal(self, mean: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return ``N(m_y, diag(s_y^2))`` for means ``(..., C, D)`` and components y, with event shape ``(D,)``."""
        return dist.Normal(select(mean, y), select(self.log_scale.exp(), y)).to_event(1)

    def matrices(self) -> Tensor:
        """Return the covariances, ``(C, D, D)``."""
        return (2 * self.log_scale).exp().diag_embed()

    @torch.no_grad()
    def m_step(
        self, x: Tensor, responsibilities: Tensor, counts: Tensor, mean: Tensor, *, regularization: float = 0.0
    ) -> None:
        """Set the variances to those of greatest likelihood; arguments and errors as for `Full.m_step`.

        ::

            s_kd^2 = sum_n r_nk (x_nd - m_kd)^2 / N_k + regularization
        """
        squares = scatter_squares(x, responsibilities)
        variance = squares / counts.unsqueeze(-1) + regularization
        _check_variances(variance, mean, "component {}: its covariance")
        self.log_scale.copy_(variance.log() / 2)


class Spherical(nn.Module):
    """One variance for each component, the same in every direction.

    Args:
        y_dim: number of components.
        x_dim: number of dimensions.

    Reference: as for `Full`.

    Example:
        >>> Spherical(3, 2).normal(torch.zeros(3, 2), torch.tensor([0, 2])).event_shape
        torch.Size([2])
    """

    def __init__(self, y_dim: int, x_dim: int):
        super().__init__()
        self.x_dim = x_dim
        self.log_scale = nn.Parameter(torch.zeros(y_dim, 1))

    def normal(self, mean: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return ``N(m_y, s_y^2 I)`` for means ``(..., C, D)`` and components y, with event shape ``(D,)``."""
        return dist.Normal(select(mean, y), select(self.log_scale.exp(), y)).to_event(1)

    def matrices(self) -> Tensor:
        """Return the covariances, ``(C, D, D)``."""
        return (2 * self.log_scale).exp().expand(-1, self.x_dim).diag_embed()

    @torch.no_grad()
    def m_step(
        self, x: Tensor, responsibilities: Tensor, counts: Tensor, mean: Tensor, *, regularization: float = 0.0
    ) -> None:
        """Set the variances to those of greatest likelihood; arguments and errors as for `Full.m_step`.

        ::

            s_k^2 = sum_nd r_nk (x_nd - m_kd)^2 / (N_k D) + regularization
        """
        squares = scatter_squares(x, responsibilities).mean(-1, keepdim=True)
        variance = squares / counts.unsqueeze(-1) + regularization
        _check_variances(variance, mean, "component {}: its covariance")
        self.log_scale.copy_(variance.log() / 2)


def _triangle(log_diagonal: Tensor, below: Tensor) -> Tensor:
    """Return lower triangular matrices from their diagonals and what lies below, row by row."""
    factor = log_diagonal.exp().diag_embed()
    i, j = torch.tril_indices(factor.shape[-1], factor.shape[-1], offset=-1, device=factor.device)
    factor[..., i, j] = below
    return factor


def _set_triangle(log_diagonal: Tensor, below: Tensor, factor: Tensor) -> None:
    i, j = torch.tril_indices(factor.shape[-1], factor.shape[-1], offset=-1, device=factor.device)
    log_diagonal.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
    below.copy_(factor[..., i, j])


def _ridged(covariance: Tensor, regularization: float) -> Tensor:
    return covariance + regularization * torch.eye(covariance.shape[-1]).to(covariance)


def _cholesky(covariance: Tensor, mean: Tensor, which: str) -> Tensor:
    """Return Cholesky factors, or say which matrix has none to working precision."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    _check_variances(variance, mean, which)
    factor, info = torch.linalg.cholesky_ex(covariance)
    # What is left of a variance once the dimensions before it are known: nothing but rounding?
    left = factor.diagonal(dim1=-2, dim2=-1).square() / variance
    singular = (info > 0) | ~(left > 4 * torch.finfo(left.dtype).eps).all(-1)
    if singular.any():
        _raise_indefinite(which, singular)
    return factor


def _check_variances(variance: Tensor, mean: Tensor, which: str) -> None:
    """Refuse variances that are zero but for the rounding of the data themselves."""
    flat = negligible(variance, mean)
    if flat.any():
        _raise_indefinite(which, flat.any(-1))


def _raise_indefinite(which: str, failed: Tensor) -> NoReturn:
    raise ValueError(
        f"{which.format(int(failed.nonzero()[0, 0]))} is not positive definite (too few data in it, or dimensions that "
        "are constant or follow from others); give a larger regularization, fewer components, or another start"
    )
