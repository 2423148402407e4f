"""Two correlated Gaussian latents that all data share: the textbook case of what mean field leaves out.

Generative process, first once, then for each datum::

    z1 ~ N(0, 1)
    z2 ~ N(rho z1, 1 - rho^2)
    x ~ N(z1 + z2, s^2)

The posterior is a Gaussian of mean ``Lambda^-1 (sum_n x_n / s^2) 1`` and precision ::

    Lambda = [[1, -rho], [-rho, 1]] / (1 - rho^2) + N / s^2 [[1, 1], [1, 1]]

The best factorised approximation has the same mean and the variances ``1 / Lambda_11`` and ``1 / Lambda_22``, which are
smaller than the posterior's own.

| symbol | site | shape |
| ------ | ---- | ----- |
| z1     | "z1" | ()    |
| z2     | "z2" | ()    |
| x      | "x"  | (1,)  |

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, section 10.1.2.

Example:
    >>> from ppl_vae.models.correlated_gaussian import CorrelatedGaussian
    >>> posterior = CorrelatedGaussian(correlation=0.0).posterior(torch.tensor([[3.0]]))
    >>> posterior.mean, posterior.precision_matrix
    (tensor([1., 1.]), tensor([[2., 1.],
            [1., 2.]]))
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import conjugate_priors


class CorrelatedGaussian(nn.Module):
    """A sum of two latents, observed with noise.

    Args:
        correlation: rho, of the two a priori, between -1 and 1.
        scale: s, standard deviation of the noise.
    """

    def __init__(self, correlation: float | Tensor = 0.5, scale: float | Tensor = 1.0):
        super().__init__()
        self.register_buffer("correlation", conjugate_priors.hyper_parameter(correlation))
        self.register_buffer("scale", conjugate_priors.hyper_parameter(scale))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, 1)``."""
        z1 = pyro.sample("z1", dist.Normal(torch.zeros_like(self.scale), torch.ones_like(self.scale)))
        z2 = pyro.sample("z2", dist.Normal(self.correlation * z1, (1 - self.correlation.square()).sqrt()))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal((z1 + z2).unsqueeze(-1), self.scale).to_event(1), obs=x)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return the exact p(z1, z2 | x) of all data x ``(N, 1)`` together: event shape ``(2,)``."""
        rho, both = self.correlation, torch.ones(2, 2).to(x)
        prior = torch.stack([1 + 0 * rho, -rho, -rho, 1 + 0 * rho]).reshape(2, 2) / (1 - rho.square())
        precision = prior + x.shape[0] / self.scale.square() * both
        loc = torch.linalg.solve(precision, x.sum() / self.scale.square() * both[0])
        return dist.MultivariateNormal(loc, precision_matrix=precision)
