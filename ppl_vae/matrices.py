"""Small functions of batches of matrices."""

import torch
from torch import Tensor

__all__ = ["log_diagonal", "outer", "positive", "symmetric"]


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
