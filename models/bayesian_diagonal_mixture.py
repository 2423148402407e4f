"""Bayesian mixture of diagonal Gaussians: a mean and a precision for each component and dimension, as latents.

Generative process, first once, then for each datum::

    pi ~ Dirichlet(alpha_0)
    lambda_kd ~ Gamma(a_0, b_0),    mu_kd ~ N(m_0d, 1 / (kappa_0 lambda_kd)),    k = 1, ..., y_dim
    y ~ Categorical(pi)
    x ~ N(mu_y, diag(1 / lambda_y))

| symbol   | site             | shape                   |
| -------- | ---------------- | ----------------------- |
| pi       | "weights"        | (y_dim,)                |
| lambda_k | "precision"      | (x_dim,), y_dim of them |
| mu_k     | "mean"           | (x_dim,), y_dim of them |
| y        | "y" (enumerated) | ()                      |
| x        | "x"              | (x_dim,)                |

Reference: K. P. Murphy, "Machine Learning: A Probabilistic Perspective", MIT Press 2012, sections 4.6.3.7 and 11.4.2.

Example:
    >>> from ppl_vae.models.bayesian_diagonal_mixture import BayesianDiagonalMixture
    >>> model, x = BayesianDiagonalMixture(x_dim=2, y_dim=3), torch.randn(5, 2)
    >>> sorted(model.m_step({"y": torch.rand(5, 3).softmax(-1)}, x))    # the step of MAP EM
    ['mean', 'precision', 'weights']
"""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import components, conjugate_priors


class BayesianDiagonalMixture(nn.Module):
    """Mixture of diagonal normals with conjugate priors; numbers or tensors give the priors.

    Args:
        x_dim: number of observed dimensions.
        y_dim: number of components.
        concentration: alpha_0, ``(y_dim,)``.
        prior_mean: m_0, ``(x_dim,)``.
        mean_precision: kappa_0, the number of data that the prior mean is worth.
        shape: a_0, ``(x_dim,)``.
        rate: b_0, ``(x_dim,)``, in the squared units of x.
    """

    def __init__(
        self,
        x_dim: int = 2,
        y_dim: int = 3,
        concentration: float | Tensor = 1.0,
        prior_mean: float | Tensor = 0.0,
        mean_precision: float | Tensor = 1.0,
        shape: float | Tensor = 1.0,
        rate: float | Tensor = 1.0,
    ):
        super().__init__()
        self.register_buffer("concentration", conjugate_priors.hyper_parameter(concentration, y_dim))
        self.register_buffer("prior_mean", conjugate_priors.hyper_parameter(prior_mean, x_dim))
        self.register_buffer("mean_precision", conjugate_priors.hyper_parameter(mean_precision))
        self.register_buffer("shape", conjugate_priors.hyper_parameter(shape, x_dim))
        self.register_buffer("rate", conjugate_priors.hyper_parameter(rate, x_dim))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        weights = pyro.sample("weights", dist.Dirichlet(self.concentration))
        with pyro.plate("components", self.concentration.shape[0], dim=-1):
            precision = pyro.sample("precision", dist.Gamma(self.shape, self.rate).to_event(1))
            spread = (self.mean_precision * precision).rsqrt()
            mean = pyro.sample("mean", dist.Normal(self.prior_mean, spread).to_event(1))
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
            scale = components.select(precision, y).rsqrt()
            pyro.sample("x", dist.Normal(components.select(mean, y), scale).to_event(1), obs=x)

    @torch.no_grad()
    def m_step(self, posterior: Mapping[str, Tensor], x: Tensor) -> Mapping[str, Tensor]:
        """Return the globals that maximise E[log p(x, y | globals)] + log p(globals), for p(y | x) ``(N, y_dim)``."""
        counts = posterior["y"].sum(0)
        held = conjugate_priors.with_prior_mean(x, posterior["y"], self.prior_mean, self.mean_precision)
        _, mean = components.moments(*held)
        rate = self.rate + components.scatter_squares(*held) / 2
        return {
            "weights": conjugate_priors.dirichlet_mode(self.concentration, counts),
            "precision": conjugate_priors.positive(self.shape + (counts.unsqueeze(-1) - 1) / 2, "shape") / rate,
            "mean": mean,
        }
