"""Probabilistic PCA: a linear-Gaussian model with the same noise in every direction.

Generative process, for each datum::

    z ~ N(0, I)
    x ~ N(W z + mu, sigma^2 I)

so that ``x ~ N(mu, W W' + sigma^2 I)`` and ``z | x ~ N(M^-1 W' (x - mu), sigma^2 M^-1)`` with
``M = W' W + sigma^2 I``. Its maximum is known: the principal axes of the data.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |
| x      | "x"  | (x_dim,) |

Reference: M. E. Tipping, C. M. Bishop, "Probabilistic Principal Component Analysis", JRSS B 1999,
https://doi.org/10.1111/1467-9868.00196.

Example:
    >>> from ppl_vae.models.probabilistic_pca import ProbabilisticPCA
    >>> model, x = ProbabilisticPCA(x_dim=6, z_dim=2), torch.randn(100, 6)
    >>> before = model.log_px(x).mean()
    >>> model.maximise_likelihood(x)
    >>> bool(model.log_px(x).mean() > before)
    True
"""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import regression


class ProbabilisticPCA(nn.Module):
    """Factor analysis with one noise scale for all dimensions of x.

    Args:
        x_dim: number of observed dimensions.
        z_dim: number of principal axes.
    """

    def __init__(self, x_dim: int = 784, z_dim: int = 20):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(x_dim, z_dim) / z_dim**0.5)
        self.bias = nn.Parameter(torch.zeros(x_dim))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.weight.new_zeros(self.weight.shape[1]), 1).to_event(1))
            loc = z @ self.weight.mT + self.bias
            pyro.sample("x", dist.Normal(loc, self.log_scale.exp()).to_event(1), obs=x)

    def log_px(self, x: Tensor) -> Tensor:
        """Return the exact log p(x) in nats, ``(B,)``, of x ``(B, x_dim)``."""
        noise = (2 * self.log_scale).exp().expand_as(self.bias)
        return dist.LowRankMultivariateNormal(self.bias, self.weight, noise).log_prob(x)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return the exact p(z | x): batch shape ``(B,)``, event shape ``(z_dim,)``."""
        noise = (2 * self.log_scale).exp()
        m = self.weight.mT @ self.weight + noise * torch.eye(self.weight.shape[1]).to(self.weight)
        loc = torch.linalg.solve(m, ((x - self.bias) @ self.weight).unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, precision_matrix=m / noise)

    @torch.no_grad()
    def m_step(self, posterior: Mapping[str, dist.TorchDistribution], x: Tensor) -> None:
        """Set W, mu and sigma to the maximum of the expected log p(x, z), for q(z) given for x ``(N, x_dim)``."""
        weight, bias, variance = regression.regress(x, posterior["z"])
        self._set(weight, bias, variance.mean())

    @torch.no_grad()
    def maximise_likelihood(self, x: Tensor) -> None:
        """Set W, mu and sigma to the global maximum of the likelihood of x ``(N, x_dim)``, in closed form."""
        values, vectors = torch.linalg.eigh(torch.cov(x.mT, correction=0).reshape(2 * x.shape[1:]))
        rest = max(x.shape[1] - self.weight.shape[1], 0)
        variance = values[:rest].mean()  # a mean over none is nan, which is refused
        self._set(vectors[:, rest:] * (values[rest:] - variance).clamp_min(0).sqrt(), x.mean(0), variance)

    def _set(self, weight: Tensor, bias: Tensor, variance: Tensor) -> None:
        if not variance > 4 * torch.finfo(weight.dtype).eps * weight.square().mean():
            raise ValueError(f"x: {weight.shape[1]} axes leave no noise, so there is no maximum; give fewer (z_dim)")
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.log_scale.copy_(variance.log() / 2)
