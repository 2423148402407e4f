"""Bernoulli mixture: binary vectors whose pixels are independent within each of several classes.

Generative process, for each datum::

    y ~ Categorical(pi)
    x ~ Bernoulli(mu_y)

y is summed out, so that a weight under `guides/empty.py` is p(x) exactly. Likelihood alone sets a
probability to zero or one where a component's data agree. Such logits are kept finite, at the logarithm of the
smallest normal number: the likelihood of the data is the maximum to rounding, and a new datum that contradicts them
costs about 708 nats a pixel (87 in single precision), where the true value is minus infinity.
`models/bayesian_bernoulli_mixture.py` has priors that keep probabilities inside.

| symbol | site             | shape    |
| ------ | ---------------- | -------- |
| y      | "y" (enumerated) | ()       |
| x      | "x"              | (x_dim,) |

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, section 9.3.3.

Example:
    >>> from ppl_vae.guides.empty import Empty
    >>> from ppl_vae.models.bernoulli_mixture import BernoulliMixture
    >>> model, x = BernoulliMixture(x_dim=2, y_dim=2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    >>> model.m_step({"y": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])}, x)
    >>> pv.weigh(model, Empty(), x).log_w.exp()    # p(x): 1/3 * 1, 2/3 * 1/2, 2/3 * 1/2
    tensor([[0.3333, 0.3333, 0.3333]], ...)
"""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import components


class BernoulliMixture(nn.Module):
    """Mixture of independent Bernoulli pixels.

    Args:
        x_dim: number of pixels.
        y_dim: number of components.
    """

    def __init__(self, x_dim: int = 784, y_dim: int = 10):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(y_dim))
        self.pixel_logits = nn.Parameter(torch.randn(y_dim, x_dim))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            pixels = dist.Bernoulli(logits=components.select(self.pixel_logits, y))
            pyro.sample("x", pixels.to_event(1), obs=x)

    @torch.no_grad()
    def m_step(self, posterior: Mapping[str, Tensor], x: Tensor) -> None:
        """Set all parameters to the maximum of the expected log p(x, y), for p(y | x) given as ``(N, y_dim)``."""
        responsibilities = posterior["y"]
        counts = responsibilities.sum(0)
        components.check_counts(counts)
        x = x.to(responsibilities.dtype)  # it may be bits
        # On and off apart, since one minus a probability next to one is rounding.
        on, off = (responsibilities.mT @ pixel / counts.unsqueeze(-1) for pixel in (x, 1 - x))
        smallest = torch.finfo(on.dtype).tiny
        self.logits.copy_((counts / counts.sum()).log())
        self.pixel_logits.copy_(on.clamp_min(smallest).log() - off.clamp_min(smallest).log())
