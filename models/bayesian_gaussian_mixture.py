"""Bayesian Gaussian mixture: weights, means and precisions are latents that all data share.

Generative process, first once, then for each datum::

    pi ~ Dirichlet(alpha_0)
    Lambda_k ~ Wishart(W_0, nu_0),    mu_k ~ N(m_0, (kappa_0 Lambda_k)^-1),    k = 1, ..., y_dim
    y ~ Categorical(pi)
    x ~ N(mu_y, Lambda_y^-1)

| symbol        | site             | shape                         |
| ------------- | ---------------- | ----------------------------- |
| pi            | "weights"        | (y_dim,)                      |
| Lambda_k      | "precision"      | (x_dim, x_dim), y_dim of them |
| mu_k          | "mean"           | (x_dim,), y_dim of them       |
| y             | "y" (enumerated) | ()                            |
| x             | "x"              | (x_dim,)                      |

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, section 10.2.

Example:
    >>> from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
    >>> {site: tuple(value.shape) for site, value in pv.sample(BayesianGaussianMixture(), shape=(2,), n=5).items()}
    {'weights': (3,), 'precision': (3, 2, 2), 'mean': (3, 2), 'y': (5,), 'x': (5, 2)}
"""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import components, conjugate_priors


class BayesianGaussianMixture(nn.Module):
    """Mixture of normal distributions with conjugate priors; numbers or tensors give the priors.

    Args:
        x_dim: number of observed dimensions.
        y_dim: number of components.
        concentration: alpha_0, ``(y_dim,)``.
        prior_mean: m_0, ``(x_dim,)``.
        mean_precision: kappa_0, the number of data that the prior mean is worth.
        degrees_of_freedom: nu_0, above x_dim - 1; ``x_dim + 2`` when left out.
        scatter: W_0^-1, ``(x_dim, x_dim)``; the identity when left out.
    """

    def __init__(
        self,
        x_dim: int = 2,
        y_dim: int = 3,
        concentration: float | Tensor = 1.0,
        prior_mean: float | Tensor = 0.0,
        mean_precision: float | Tensor = 1.0,
        degrees_of_freedom: float | Tensor | None = None,
        scatter: Tensor | None = None,
    ):
        super().__init__()
        nu, w = degrees_of_freedom, torch.eye(x_dim) if scatter is None else scatter
        self.register_buffer("concentration", conjugate_priors.hyper_parameter(concentration, y_dim))
        self.register_buffer("prior_mean", conjugate_priors.hyper_parameter(prior_mean, x_dim))
        self.register_buffer("mean_precision", conjugate_priors.hyper_parameter(mean_precision))
        self.register_buffer("degrees_of_freedom", conjugate_priors.hyper_parameter(x_dim + 2 if nu is None else nu))
        self.register_buffer("scatter", conjugate_priors.hyper_parameter(w, x_dim, x_dim))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        weights = pyro.sample("weights", dist.Dirichlet(self.concentration))
        with pyro.plate("components", self.concentration.shape[0], dim=-1):
            wishart = conjugate_priors.Wishart(self.degrees_of_freedom, precision_matrix=self.scatter)
            precision = pyro.sample("precision", wishart)
            scaled = self.mean_precision * precision
            mean = pyro.sample("mean", dist.MultivariateNormal(self.prior_mean, precision_matrix=scaled))
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
            chosen = components.select(precision, y, event_dim=2)
            pyro.sample("x", dist.MultivariateNormal(components.select(mean, y), precision_matrix=chosen), obs=x)

    @torch.no_grad()
    def m_step(self, posterior: Mapping[str, Tensor], x: Tensor) -> Mapping[str, Tensor]:
        """Return the globals that maximise E[log p(x, y | globals)] + log p(globals), for p(y | x) ``(N, y_dim)``."""
        counts = posterior["y"].sum(0)
        held = conjugate_priors.with_prior_mean(x, posterior["y"], self.prior_mean, self.mean_precision)
        _, mean = components.moments(*held)
        factor = torch.linalg.cholesky(self.scatter + components.scatter_matrices(*held))
        freedom = conjugate_priors.positive(self.degrees_of_freedom + counts - x.shape[1], "degrees_of_freedom")
        precision = freedom[:, None, None] * torch.cholesky_inverse(factor)
        weights = conjugate_priors.dirichlet_mode(self.concentration, counts)
        return {"weights": weights, "precision": precision, "mean": mean}
