"""Bernoulli pixels of unknown probability, a latent that all data share.

Generative process, first once, then for each datum::

    mu ~ Beta(a_0, b_0)
    x ~ Bernoulli(mu)

The posterior is known: after N data with s of them on, ``mu ~ Beta(a_0 + s, b_0 + N - s)``.

| symbol | site          | shape    |
| ------ | ------------- | -------- |
| mu     | "probability" | (x_dim,) |
| x      | "x"           | (x_dim,) |

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, section 2.1.1.

Example:
    >>> from ppl_vae.models.beta_bernoulli import BetaBernoulli
    >>> {name: tuple(value.shape) for name, value in pv.sample(BetaBernoulli(), shape=(1,), n=5).items()}
    {'probability': (1,), 'x': (5, 1)}
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import conjugate_priors


class BetaBernoulli(nn.Module):
    """Independent pixels, each with a probability; numbers or tensors give the priors.

    Args:
        x_dim: number of pixels.
        on: a_0, ``(x_dim,)``.
        off: b_0, ``(x_dim,)``.
    """

    def __init__(self, x_dim: int = 1, on: float | Tensor = 1.0, off: float | Tensor = 1.0):
        super().__init__()
        self.register_buffer("on", conjugate_priors.hyper_parameter(on, x_dim))
        self.register_buffer("off", conjugate_priors.hyper_parameter(off, x_dim))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        probability = pyro.sample("probability", dist.Beta(self.on, self.off).to_event(1))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Bernoulli(probability).to_event(1), obs=x)
