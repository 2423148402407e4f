"""Bayesian linear regression: coefficients and the precision of the noise are latents that all data share.

Generative process, first once, then for each datum::

    w ~ N(m_0, (lambda_0 I)^-1)
    lambda ~ Gamma(a_0, b_0)
    x ~ N(w' u, 1 / lambda)

The response is the data x; a batch is ``(x, u)`` with covariates u that are given. For an intercept, give these a
column of ones.

| symbol | site           | shape            |
| ------ | -------------- | ---------------- |
| w      | "coefficients" | (covariate_dim,) |
| lambda | "precision"    | ()               |
| x      | "x"            | ()               |

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, sections 3.3 and 10.3;
J. Drugowitsch, "Variational Bayesian inference for linear and logistic regression", 2013,
https://arxiv.org/abs/1310.5438.

Example:
    >>> from ppl_vae.models.bayesian_linear_regression import BayesianLinearRegression
    >>> covariates = torch.randn(5, 2)
    >>> draws = pv.sample(BayesianLinearRegression(2), like=(torch.zeros(5), covariates), n=5)
    >>> {name: tuple(value.shape) for name, value in draws.items()}
    {'coefficients': (2,), 'precision': (), 'x': (5,)}
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import conjugate_priors


class BayesianLinearRegression(nn.Module):
    """Linear regression whose coefficients and noise are independent a priori; numbers or tensors give the priors.

    Args:
        covariate_dim: number of covariates.
        prior_mean: m_0, ``(covariate_dim,)``.
        prior_precision: lambda_0, of each coefficient.
        shape: a_0 of the noise's precision.
        rate: b_0 of the noise's precision, in the squared units of x.
    """

    def __init__(
        self,
        covariate_dim: int = 2,
        prior_mean: float | Tensor = 0.0,
        prior_precision: float | Tensor = 1.0,
        shape: float | Tensor = 1.0,
        rate: float | Tensor = 1.0,
    ):
        super().__init__()
        self.register_buffer("prior_mean", conjugate_priors.hyper_parameter(prior_mean, covariate_dim))
        self.register_buffer("prior_precision", conjugate_priors.hyper_parameter(prior_precision, covariate_dim))
        self.register_buffer("shape", conjugate_priors.hyper_parameter(shape))
        self.register_buffer("rate", conjugate_priors.hyper_parameter(rate))

    def forward(self, x: Tensor, covariates: Tensor) -> None:
        """Generate the response x of shape ``(B,)`` given covariates of shape ``(B, covariate_dim)``."""
        prior = dist.MultivariateNormal(self.prior_mean, precision_matrix=self.prior_precision.diag_embed())
        coefficients = pyro.sample("coefficients", prior)
        precision = pyro.sample("precision", dist.Gamma(self.shape, self.rate))
        with pyro.plate("data", x.shape[0], dim=-1):
            loc = (covariates * coefficients).sum(-1)
            pyro.sample("x", dist.Normal(loc, precision.rsqrt()), obs=x)
