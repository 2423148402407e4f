"""Small functions of batches of matrices that families of factors share."""

import math

import torch
from torch import Tensor

__all__ = ["expected_log_det", "log_diagonal", "outer", "positive", "simplex", "symmetric"]


def expected_log_det(df: Tensor, scale_tril: Tensor) -> Tensor:
    """Return ``E log|V|`` of a Wishart.

    Example:
        >>> expected_log_det(torch.tensor(4.0), torch.eye(2))
        tensor(1.8456)
    """
    size = scale_tril.shape[-1]
    halves = (df.unsqueeze(-1) - torch.arange(size, dtype=df.dtype, device=df.device)) / 2
    return torch.digamma(halves).sum(-1) + size * math.log(2) + 2 * log_diagonal(scale_tril)


def log_diagonal(factor: Tensor) -> Tensor:
    """Return the sum of the logarithms on the diagonal: half the log determinant, of a Cholesky factor."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def symmetric(matrix: Tensor) -> Tensor:
    """Return the symmetric part.

    Example:
        >>> symmetric(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        tensor([[0., 1.],
                [1., 0.]])
    """
    return (matrix + matrix.mT) / 2


def outer(vector: Tensor) -> Tensor:
    """Return ``v v'``."""
    return vector.unsqueeze(-1) * vector.unsqueeze(-2)


def positive(matrix: Tensor) -> Tensor:
    """Tell which matrices are positive definite."""
    return torch.linalg.cholesky_ex(matrix)[1] == 0


def simplex(like: Tensor) -> Tensor:
    """Return D + 1 vectors whose mean is zero and whose covariance is the identity: corners of a simplex.

    They are the columns of Helmert's matrix.

    Args:
        like: the identity, ``(D, D)``.

    Example:
        >>> simplex(torch.eye(1)).T
        tensor([[ 1., -1.]])
    """
    size = like.shape[-1]
    k = torch.arange(1, size + 1, dtype=like.dtype, device=like.device)
    rows = like.new_ones(size, size + 1).tril()
    rows.diagonal(1).copy_(-k)
    return ((size + 1) / (k * (k + 1))).sqrt() * rows.mT


def uneven(like: Tensor, k: int) -> Tensor:
    """Return numbers around one, in [0.7, 1.4], that no two elements share and that differ with k; ones for k = 0.

    What is symmetric in its elements, and no linear function, would look like one at a symmetric place.

    Example:
        >>> uneven(torch.zeros(2), 0), bool((uneven(torch.zeros(2), 1) == 1).any())
        (tensor([1., 1.]), False)
    """
    if k == 0:
        return torch.ones_like(like)
    drawn = torch.rand(like.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    return (0.7 + 0.7 * drawn).to(like)


def in_units(a: Tensor, b: Tensor) -> Tensor:
    """Return how far two matrices lie apart, entry by entry, in units of their diagonals.

    Example:
        >>> in_units(torch.diag(torch.tensor([1.0, 100.0])), torch.diag(torch.tensor([1.0, 99.0]))).max()
        tensor(0.0100)
    """
    sizes = torch.maximum(a.diagonal(dim1=-2, dim2=-1).abs(), b.diagonal(dim1=-2, dim2=-1).abs())
    return (a - b).abs() / outer(sizes.sqrt()).clamp_min(torch.finfo(a.dtype).tiny)
