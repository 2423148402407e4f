"""Heads for values that depend on each other: normals with covariances.

How many numbers they take is no multiple of how many values they make, so each says it as ``in_dim``, the size of
the last axis of a network in front of it.
"""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae import distributions
from ppl_vae.arguments import positive
from ppl_vae.nets.precision import at_least_single

__all__ = ["ToLowRankNormal", "ToMultivariateNormal"]


class ToMultivariateNormal(nn.Module):
    """A mean and a triangle ``(..., in_dim)`` to one normal with a covariance of its own for each datum.

    ::

        N(mu, L L'),    L = diag(s) (I + B),    s = softplus(.) + min_scale,    B strictly lower triangular

    The order of the input is mu, s, then B row by row. As the elements of B are in units of s, a posterior that
    narrows in training keeps its shape. If they stood in L as they are, the inverse of L, by which draws are scored,
    would grow like the power ``z_dim`` of their ratio to a small s, and with it errors of rounding.

    Args:
        z_dim: number of values D.
        min_scale: added to s, the diagonal of L.

    Attributes:
        in_dim: ``2 D + D (D - 1) / 2``.

    Raises:
        ValueError: ``min_scale`` is not positive; the last axis is not ``in_dim``.

    Reference: D. P. Kingma, M. Welling, "An Introduction to Variational Autoencoders", Foundations and Trends in
    Machine Learning 2019, section 2.5.1, https://arxiv.org/abs/1906.02691.

    Example:
        >>> head = ToMultivariateNormal(3)
        >>> encoder = nn.Sequential(pv.nets.MLP(784, (8,), head.in_dim), head)
        >>> encoder(torch.zeros(5, 784)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    def __init__(self, z_dim: int, min_scale: float = 1e-4):
        super().__init__()
        self.z_dim, self.min_scale = z_dim, positive("min_scale", min_scale)
        triangle = z_dim * (z_dim + 1) // 2
        self.in_dim = z_dim + triangle
        # Where each element of L stands in (diagonal, below, zero): one look-up makes the matrix.
        rows, columns = torch.tril_indices(z_dim, z_dim, -1)
        places = torch.full((z_dim, z_dim), triangle)
        places[rows, columns] = torch.arange(z_dim, triangle)
        places.diagonal().copy_(torch.arange(z_dim))
        self.register_buffer("places", places.flatten(), persistent=False)

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        _check_size(h, self.in_dim, f"z_dim = {self.z_dim}")
        h = at_least_single(h)
        loc, raw, below = h[..., : self.z_dim], h[..., self.z_dim : 2 * self.z_dim], h[..., 2 * self.z_dim :]
        parts = torch.cat([torch.ones_like(raw), below, torch.zeros_like(h[..., :1])], -1)
        unit = parts.index_select(-1, self.places).unflatten(-1, (self.z_dim, self.z_dim))
        scale = F.softplus(raw) + self.min_scale
        return distributions.TriangularNormal(loc, scale_tril=scale.unsqueeze(-1) * unit)


class ToLowRankNormal(nn.Module):
    """A mean, scales and a factor ``(..., in_dim)`` to one normal with a low-rank covariance for each datum.

    ::

        N(mu, W W' + diag(s^2)),    s = softplus(.) + min_scale

    The order of the input is mu, what becomes of s, then W ``(D, rank)`` row by row.

    Args:
        z_dim: number of values D.
        rank: columns of W, at least one; D - 1 with a suitable s reach every covariance.
        min_scale: added to every s.

    Attributes:
        in_dim: ``(2 + rank) D``.

    Raises:
        ValueError: the rank is below one; ``min_scale`` is not positive; the last axis is not ``in_dim``.

    Reference: D. J. Rezende, S. Mohamed, D. Wierstra, "Stochastic Backpropagation and Approximate Inference in Deep
    Generative Models", ICML 2014 (there as a precision), https://arxiv.org/abs/1401.4082; V. M.-H. Ong,
    D. J. Nott, M. S. Smith, "Gaussian Variational Approximation With a Factor Covariance Structure", Journal of
    Computational and Graphical Statistics 2018, https://arxiv.org/abs/1701.03208.

    Example:
        >>> head = ToLowRankNormal(20, rank=2)
        >>> encoder = nn.Sequential(pv.nets.MLP(784, (8,), head.in_dim), head)
        >>> encoder(torch.zeros(5, 784)).cov_factor.shape
        torch.Size([5, 20, 2])
    """

    def __init__(self, z_dim: int, rank: int = 4, min_scale: float = 1e-4):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, found {rank!r}; nets.ToNormal is what rank 0 would be")
        self.z_dim, self.rank, self.min_scale = z_dim, rank, positive("min_scale", min_scale)
        self.in_dim = (2 + rank) * z_dim

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        _check_size(h, self.in_dim, f"z_dim = {self.z_dim} and rank = {self.rank}")
        loc, raw, factor = at_least_single(h).split([self.z_dim, self.z_dim, self.rank * self.z_dim], -1)
        scale = F.softplus(raw) + self.min_scale
        return distributions.LowRankNormal(loc, factor.unflatten(-1, (self.z_dim, self.rank)), scale.square())


def _check_size(h: Tensor, in_dim: int, sizes: str) -> None:
    if h.shape[-1] != in_dim:
        raise ValueError(
            f"h: expected a last axis of {in_dim} for {sizes}, found shape {tuple(h.shape)}; give the network "
            "head.in_dim outputs"
        )
