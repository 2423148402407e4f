"""Gaussian of unknown mean and precision, two latents that all data share.

Generative process, first once, then for each datum::

    lambda ~ Gamma(a_0, b_0)
    mu ~ N(m_0, 1 / (kappa_0 lambda))
    x ~ N(mu, 1 / lambda)

The posterior is known: a normal and a gamma distribution, in which mu depends on lambda.

| symbol | site        | shape    |
| ------ | ----------- | -------- |
| lambda | "precision" | (x_dim,) |
| mu     | "mean"      | (x_dim,) |
| x      | "x"         | (x_dim,) |

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, section 10.1.3; D. J. C. MacKay,
"Information Theory, Inference, and Learning Algorithms", Cambridge University Press 2003, section 33.5,
https://www.inference.org.uk/itprnn/book.html.

Example:
    >>> from ppl_vae.models.normal_gamma import NormalGamma
    >>> {name: tuple(value.shape) for name, value in pv.sample(NormalGamma(), shape=(1,), n=5).items()}
    {'precision': (1,), 'mean': (1,), 'x': (5, 1)}
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import conjugate_priors


class NormalGamma(nn.Module):
    """Independent dimensions, each with a mean and a precision; numbers or tensors give the priors.

    Args:
        x_dim: number of observed dimensions.
        prior_mean: m_0, ``(x_dim,)``.
        mean_precision: kappa_0, the number of data that the prior mean is worth.
        shape: a_0, ``(x_dim,)``.
        rate: b_0, ``(x_dim,)``, in the squared units of x.
    """

    def __init__(
        self,
        x_dim: int = 1,
        prior_mean: float | Tensor = 0.0,
        mean_precision: float | Tensor = 1.0,
        shape: float | Tensor = 1.0,
        rate: float | Tensor = 1.0,
    ):
        super().__init__()
        self.register_buffer("prior_mean", conjugate_priors.hyper_parameter(prior_mean, x_dim))
        self.register_buffer("mean_precision", conjugate_priors.hyper_parameter(mean_precision))
        self.register_buffer("shape", conjugate_priors.hyper_parameter(shape, x_dim))
        self.register_buffer("rate", conjugate_priors.hyper_parameter(rate, x_dim))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        precision = pyro.sample("precision", dist.Gamma(self.shape, self.rate).to_event(1))
        spread = (self.mean_precision * precision).rsqrt()
        mean = pyro.sample("mean", dist.Normal(self.prior_mean, spread).to_event(1))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()).to_event(1), obs=x)
