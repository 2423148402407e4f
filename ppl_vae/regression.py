"""Regression on latents that are known with uncertainty: the M-step of linear-Gaussian models."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppl_vae.components import negligible

__all__ = ["check_variances", "regress"]


@torch.no_grad()
def regress(x: Tensor, z: Distribution) -> tuple[Tensor, Tensor, Tensor]:
    """Return the affine map from latents to data of greatest expected likelihood, and what it leaves.

    With C_z and C_xz the covariances over the data of the latents' means, and of x and these::

        W    = C_xz (C_z + mean_n Cov[z_n])^-1
        b    = mean_n x_n - W mean_n E[z_n]
        s_d^2 = mean_n E[(x_nd - w_d' z_n - b_d)^2]

    W and b are the maximum jointly. The squares are summed as squares, so that small noise does not cancel.

    Args:
        x: data ``(N, D)``.
        z: posterior of the latents: batch shape ``(N,)``, event shape ``(K,)``, with a covariance matrix.

    Returns:
        Weight ``(D, K)``, bias ``(D,)`` and mean squared residual ``(D,)``.

    Reference: D. B. Rubin, D. T. Thayer, "EM algorithms for ML factor analysis", Psychometrika 1982,
    https://doi.org/10.1007/BF02293851; C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006,
    section 12.2.2.

    Example:
        >>> z = torch.distributions.MultivariateNormal(torch.tensor([[0.0], [1.0]]), torch.zeros(1, 1) + 1e-12)
        >>> weight, bias, variance = regress(torch.tensor([[3.0], [5.0]]), z)
        >>> weight.item(), bias.item()    # the line through both points
        (2.0, 3.0)
    """
    covariance = z.covariance_matrix.mean(0)
    z_centre, x_centre = z.mean.mean(0), x.mean(0)
    latent, data = z.mean - z_centre, x - x_centre
    second = latent.mT @ latent / len(x) + covariance
    weight = torch.linalg.solve(second, latent.mT @ data / len(x)).mT
    variance = (data - latent @ weight.mT).square().mean(0) + ((weight @ covariance) * weight).sum(-1)
    return weight, x_centre - weight @ z_centre, variance


def check_variances(variance: Tensor, mean: Tensor) -> None:
    """Refuse a dimension that keeps no noise, where the likelihood grows without bound.

    Args:
        variance: mean squared residual of each dimension, ``(D,)``.
        mean: mean of the data, ``(D,)``.

    Raises:
        ValueError: naming the first such dimension.
    """
    for d in negligible(variance, mean).nonzero().flatten().tolist()[:1]:
        raise ValueError(
            f"x: dimension {d} is constant or follows exactly from the latents (what they leave has the variance "
            f"{variance[d]:.1e}); take such dimensions out of the data, or give the model fewer latents"
        )
