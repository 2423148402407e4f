"""Points at which functions of normal variables are averaged."""

import torch
from torch import Tensor

__all__ = ["sign_points"]


def sign_points(dim: int) -> Tensor:
    """Return points of +-1 that, together with their negatives, average like a standard normal vector.

    They are the first columns of a Hadamard matrix of the power of two from ``dim`` on::

        E f(z) = sum_i (f(h_i) + f(-h_i)) / 2 n,    z ~ N(0, I),    i = 1, ..., n

    exactly where f is a polynomial of degree three or less. Fewer of the points have the means, the variances and all
    odd moments exactly, and some of the covariances not.

    Args:
        dim: number of variables.

    Returns:
        ``(n, dim)``.

    Raises:
        ValueError: there is no variable.

    Reference: A. H. Stroud, "Approximate Calculation of Multiple Integrals", Prentice-Hall 1971.

    Example:
        >>> sign_points(3)
        tensor([[ 1.,  1.,  1.],
                [ 1., -1.,  1.],
                [ 1.,  1., -1.],
                [ 1., -1., -1.]])
    """
    if dim < 1:
        raise ValueError(f"dim: expected at least 1 variable, found {dim}")
    points = torch.ones(1, 1)
    while len(points) < dim:
        points = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), points)
    return points[:, :dim]
