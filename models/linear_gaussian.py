"""Linear-Gaussian model: factor analysis, whose likelihood and posterior are known exactly.

Generative process, for each datum::

    z ~ N(0, I)
    x ~ N(W z + mu, diag(sigma^2))

so that ``x ~ N(mu, W W' + diag(sigma^2))`` and ``z | x ~ N(S W' (x - mu) / sigma^2, S)`` with
``S = (I + W' diag(sigma^-2) W)^-1``.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |
| x      | "x"  | (x_dim,) |

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, sections
2.3.3 and 12.2; D. B. Rubin, D. T. Thayer, "EM algorithms for ML factor analysis", Psychometrika 1982,
https://doi.org/10.1007/BF02293851.

Example:
    >>> from ppl_vae.guides.exact import Exact
    >>> from ppl_vae.models.linear_gaussian import LinearGaussian
    >>> model = LinearGaussian(x_dim=6, z_dim=2).double()
    >>> x = torch.randn(4, 6, dtype=torch.float64)
    >>> log_w = pv.weigh(model, Exact(model), x, particles=3).log_w
    >>> torch.allclose(log_w, model.log_px(x).expand(3, 4))    # p(x, z) / p(z | x) = p(x)
    True
"""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import regression


class LinearGaussian(nn.Module):
    """Factor analysis with one noise scale per dimension of x.

    Args:
        x_dim: number of observed dimensions.
        z_dim: number of factors.
    """

    def __init__(self, x_dim: int = 784, z_dim: int = 20):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(x_dim, z_dim) / z_dim**0.5)
        self.bias = nn.Parameter(torch.zeros(x_dim))
        self.log_scale = nn.Parameter(torch.zeros(x_dim))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.weight.new_zeros(self.weight.shape[1]), 1).to_event(1))
            loc = z @ self.weight.mT + self.bias
            pyro.sample("x", dist.Normal(loc, self.log_scale.exp()).to_event(1), obs=x)

    def log_px(self, x: Tensor) -> Tensor:
        """Return the exact log p(x) in nats, ``(B,)``, of x ``(B, x_dim)``."""
        marginal = dist.LowRankMultivariateNormal(self.bias, self.weight, (2 * self.log_scale).exp())
        return marginal.log_prob(x)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return the exact p(z | x): batch shape ``(B,)``, event shape ``(z_dim,)``."""
        scaled = self.weight / (2 * self.log_scale).exp().unsqueeze(-1)  # (x_dim, z_dim)
        precision = torch.eye(scaled.shape[1]).to(scaled) + self.weight.mT @ scaled
        loc = torch.linalg.solve(precision, ((x - self.bias) @ scaled).unsqueeze(-1)).squeeze(-1)
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    @torch.no_grad()
    def m_step(self, posterior: Mapping[str, dist.TorchDistribution], x: Tensor) -> None:
        """Set W, mu and sigma to the maximum of the expected log p(x, z), for q(z) given for x ``(N, x_dim)``."""
        weight, bias, variance = regression.regress(x, posterior["z"])
        regression.check_variances(variance, x.mean(0))
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.log_scale.copy_(variance.log() / 2)
