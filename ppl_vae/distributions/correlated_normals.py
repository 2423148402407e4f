"""Normal distributions with correlations, exact in single precision and under autocast.

Torch multiplies matrices in them. Under autocast those products have eight bits, and a draw so rounded, or a
capacitance so rounded, is scored far from where it was drawn when the distribution is narrow.
"""

from contextlib import AbstractContextManager
from math import log, pi

import pyro.distributions as dist
import torch
from torch import Size, Tensor

__all__ = ["LowRankNormal", "TriangularNormal"]


def _in_full(tensor: Tensor) -> AbstractContextManager:
    return torch.autocast(tensor.device.type, enabled=False)


class TriangularNormal(dist.MultivariateNormal):
    """``N(loc, L L')``, torch's multivariate normal, drawn and scored in full precision under autocast too.

    Args:
        loc: mean ``(..., D)``.
        scale_tril: L ``(..., D, D)``, lower triangular with a positive diagonal.

    Example:
        >>> TriangularNormal(torch.zeros(2), scale_tril=torch.eye(2)).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008 - torch's own form
        """Draw, differentiably."""
        with _in_full(self.loc):
            return super().rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        with _in_full(self.loc):
            return super().log_prob(value)


class LowRankNormal(dist.LowRankMultivariateNormal):
    """``N(loc, W W' + diag(d))``, whose densities keep their digits where the diagonal is small.

    With ``A = diag(d)^(-1/2) W`` and ``y = diag(d)^(-1/2) (z - loc)``, the squared distance is a least-squares
    residual::

        y' (I + A A')^-1 y = min_e |y - A e|^2 + |e|^2,    at e = (I + A' A)^-1 A' y

    a sum of squares, to which errors in e add in second order only. Torch subtracts two numbers of size ``|y|^2``,
    which in single precision loses all digits at ``d`` a ten-thousandth of ``W W'``. The small matrix ``I + A' A``, as
    ill-conditioned as ``W W'`` is to ``d``, is factorised in double precision whatever the type of the arguments;
    where it is not positive definite even so, densities are NaN (torch raises, for which it stops a GPU).

    Args:
        loc: mean ``(..., D)``.
        cov_factor: W ``(..., D, rank)``.
        cov_diag: d ``(..., D)``, positive.

    Reference: M. Woodbury, "Inverting modified matrices", Memorandum Report 42, Princeton 1950; G. Golub, C. Van Loan,
    "Matrix Computations", Johns Hopkins 2013, section 6.1, for regularised least squares.

    Example:
        >>> q = LowRankNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3))
        >>> q.covariance_matrix[0]
        tensor([2., 1., 1.])
    """

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, validate_args: bool | None = None):
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], cov_factor.shape[:-2], cov_diag.shape[:-1])
        self.loc, self.cov_diag = loc.expand(*batch_shape, -1), cov_diag.expand(*batch_shape, -1)
        self.cov_factor = cov_factor.expand(*batch_shape, -1, -1)
        # Names that torch's divergences and covariances read.
        self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag = cov_factor, cov_diag
        with _in_full(loc):
            factor, gain = _factorised(self._scaled())
        self._capacitance_tril, self._gain = factor.to(loc.dtype), gain.to(loc.dtype)
        # Past torch's constructor, which would factorise again, in whatever precision autocast leaves it.
        torch.distributions.Distribution.__init__(self, batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: "LowRankNormal | None" = None) -> "LowRankNormal":
        """Return the distribution with a larger batch."""
        new = super().expand(batch_shape, self._get_checked_instance(LowRankNormal, _instance))
        new._gain = self._gain
        return new

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008 - torch's own form
        """Draw, differentiably, with ``rank + D`` normal numbers."""
        with _in_full(self.loc):
            return super().rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        with _in_full(self.loc):
            y = (value - self.loc) / self._unbroadcasted_cov_diag.sqrt()
            e = _times(self._gain, y)
            distance = (y - _times(self._scaled(), e)).square().sum(-1) + e.square().sum(-1)
            # Half the logarithm of the determinant.
            size = self._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            size = size + self._unbroadcasted_cov_diag.log().sum(-1) / 2
            return -0.5 * distance - size - 0.5 * log(2 * pi) * self.event_shape[0]

    def _scaled(self) -> Tensor:
        """Return ``A = diag(d)^(-1/2) W``."""
        return self._unbroadcasted_cov_factor / self._unbroadcasted_cov_diag.sqrt().unsqueeze(-1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _factorised(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return L with ``L L' = I + A' A``, NaN where that is indefinite, and ``(I + A' A)^-1 A'``, in float64."""
    a = a.double()
    factor, info = torch.linalg.cholesky_ex(a.mT @ a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device))
    factor = torch.where((info == 0)[..., None, None], factor, torch.nan)
    return factor, torch.cholesky_solve(a.mT, factor)
