"""Gaussian mixture: each datum comes from one of several normal distributions.

Generative process, for each datum::

    y ~ Categorical(pi)
    x ~ N(mu_y, Sigma_y)

y is summed out, so that a weight under `guides/empty.py` is p(x) exactly.

| symbol | site           | shape    |
| ------ | -------------- | -------- |
| y      | "y" (enumerated) | ()     |
| x      | "x"            | (x_dim,) |

Reference: A. P. Dempster, N. M. Laird, D. B. Rubin, "Maximum Likelihood from Incomplete Data via the EM
Algorithm", JRSS B 1977, section 4.3, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x.

Example:
    >>> from ppl_vae.guides.empty import Empty
    >>> from ppl_vae.models.gaussian_mixture import GaussianMixture
    >>> model, x = GaussianMixture(x_dim=2, y_dim=3), torch.randn(5, 2)
    >>> pv.weigh(model, Empty(), x).log_w.shape    # log p(x)
    torch.Size([1, 5])
    >>> model.m_step({"y": torch.rand(5, 3).softmax(-1)}, x)
"""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import components, covariances


class GaussianMixture(nn.Module):
    """Mixture of normal distributions with a choice of covariances.

    Args:
        x_dim: number of observed dimensions.
        y_dim: number of components.
        covariance: makes the structure of covariances: `covariances.Full`, `Tied`, `Diagonal`, `Spherical`.
        regularization: variance that each M-step adds in every direction, in the squared units of x.
    """

    def __init__(
        self,
        x_dim: int = 2,
        y_dim: int = 3,
        covariance: Callable[[int, int], nn.Module] = covariances.Full,
        regularization: float = 1e-6,
    ):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(y_dim))
        self.mean = nn.Parameter(torch.randn(y_dim, x_dim))
        self.covariance = covariance(y_dim, x_dim)
        self.regularization = regularization

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            pyro.sample("x", self.covariance.normal(self.mean, y), obs=x)

    @torch.no_grad()
    def m_step(self, posterior: Mapping[str, Tensor], x: Tensor) -> None:
        """Set all parameters to the maximum of the expected log p(x, y), for p(y | x) given as ``(N, y_dim)``."""
        counts, mean = components.moments(x, posterior["y"])
        components.check_counts(counts)
        self.covariance.m_step(x, posterior["y"], counts, mean, regularization=self.regularization)
        self.logits.copy_((counts / counts.sum()).log())
        self.mean.copy_(mean)
