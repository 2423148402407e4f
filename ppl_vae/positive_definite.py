"""A bijection from vectors to positive definite matrices, and a support that has it."""

import math

import torch
from torch import Size, Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform

__all__ = ["POSITIVE_DEFINITE", "PositiveDefiniteFromVector"]


class PositiveDefiniteFromVector(Transform):
    """Bijection from vectors to positive definite matrices ``L L'``, the logarithms of L's diagonal in the vector.

    ::

        log |J| = D log 2 + sum_i (D - i + 2) log L_ii,    i = 1, ..., D

    Neither torch nor Pyro has one, which Pyro's autoguides and chains need.

    Reference: R. Muirhead, "Aspects of Multivariate Statistical Theory", Wiley 1982, theorem 2.1.9.

    Example:
        >>> vector = torch.tensor([0.0, 2.0, 0.0])
        >>> matrix = PositiveDefiniteFromVector()(vector)
        >>> matrix
        tensor([[1., 2.],
                [2., 5.]])
        >>> PositiveDefiniteFromVector().inv(matrix)
        tensor([0., 2., 0.])
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefiniteFromVector)

    def _call(self, x: Tensor) -> Tensor:
        factor = self._factor(x)
        return factor @ factor.mT

    def _factor(self, x: Tensor) -> Tensor:
        size = self._size(x.shape[-1])
        i, j = torch.tril_indices(size, size, device=x.device)
        factor = x.new_zeros(*x.shape[:-1], size, size)
        factor[..., i, j] = torch.where(i == j, x.exp(), x)
        return factor

    def _inverse(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        i, j = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        entries = factor[..., i, j]
        return torch.where(i == j, entries.clamp_min(torch.finfo(y.dtype).tiny).log(), entries)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of the volume's change, ``(...)``."""
        size = y.shape[-1]
        i, j = torch.tril_indices(size, size, device=x.device)
        weights = torch.arange(size + 1, 1, -1, dtype=x.dtype, device=x.device)
        return size * math.log(2) + (x[..., i == j] * weights).sum(-1)

    def forward_shape(self, shape: Size) -> Size:
        """Return the shape of matrices from that of vectors."""
        size = self._size(shape[-1])
        return Size([*shape[:-1], size, size])

    def inverse_shape(self, shape: Size) -> Size:
        """Return the shape of vectors from that of matrices."""
        return Size([*shape[:-2], shape[-1] * (shape[-1] + 1) // 2])

    @staticmethod
    def _size(length: int) -> int:
        return (math.isqrt(8 * length + 1) - 1) // 2


class _PositiveDefinite(type(constraints.positive_definite)):
    """Torch's support of positive definite matrices, with a bijection to it."""


@transform_to.register(_PositiveDefinite)
@biject_to.register(_PositiveDefinite)
def _from_vector(constraint: constraints.Constraint) -> Transform:
    return PositiveDefiniteFromVector()


POSITIVE_DEFINITE = _PositiveDefinite()
