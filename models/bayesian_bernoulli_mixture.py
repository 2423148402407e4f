"""Bayesian Bernoulli mixture: weights and probabilities of pixels are latents that all data share.

Generative process, first once, then for each datum::

    pi ~ Dirichlet(alpha_0)
    mu_kd ~ Beta(a_0, b_0),    k = 1, ..., y_dim
    y ~ Categorical(pi)
    x ~ Bernoulli(mu_y)

| symbol | site             | shape                   |
| ------ | ---------------- | ----------------------- |
| pi     | "weights"        | (y_dim,)                |
| mu_k   | "probability"    | (x_dim,), y_dim of them |
| y      | "y" (enumerated) | ()                      |
| x      | "x"              | (x_dim,)                |

With ``a_0 = b_0 = 2`` the step of MAP EM adds one pixel on and one off to each component's counts (Laplace).

Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", Springer 2006, sections 2.1.1, 9.3.3 and 10.2.

Example:
    >>> from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
    >>> model, x = BayesianBernoulliMixture(x_dim=2, y_dim=1), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    >>> model.m_step({"y": torch.ones(2, 1)}, x)["probability"]
    tensor([[0.5000, 0.7500]])
"""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import components, conjugate_priors


class BayesianBernoulliMixture(nn.Module):
    """Mixture of independent Bernoulli pixels with conjugate priors; numbers or tensors give the priors.

    Args:
        x_dim: number of pixels.
        y_dim: number of components.
        concentration: alpha_0, ``(y_dim,)``.
        on: a_0, ``(x_dim,)``.
        off: b_0, ``(x_dim,)``.
    """

    def __init__(
        self,
        x_dim: int = 784,
        y_dim: int = 10,
        concentration: float | Tensor = 1.0,
        on: float | Tensor = 2.0,
        off: float | Tensor = 2.0,
    ):
        super().__init__()
        self.register_buffer("concentration", conjugate_priors.hyper_parameter(concentration, y_dim))
        self.register_buffer("on", conjugate_priors.hyper_parameter(on, x_dim))
        self.register_buffer("off", conjugate_priors.hyper_parameter(off, x_dim))

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        weights = pyro.sample("weights", dist.Dirichlet(self.concentration))
        with pyro.plate("components", self.concentration.shape[0], dim=-1):
            probability = pyro.sample("probability", dist.Beta(self.on, self.off).to_event(1))
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Bernoulli(components.select(probability, y)).to_event(1), obs=x)

    @torch.no_grad()
    def m_step(self, posterior: Mapping[str, Tensor], x: Tensor) -> Mapping[str, Tensor]:
        """Return the globals that maximise E[log p(x, y | globals)] + log p(globals), for p(y | x) ``(N, y_dim)``."""
        responsibilities = posterior["y"]
        counts, on = responsibilities.sum(0), responsibilities.mT @ x.to(responsibilities.dtype)
        beta = torch.stack([self.on.expand_as(on), self.off.expand_as(on)], -1)
        pixels = torch.stack([on, counts.unsqueeze(-1) - on], -1)
        return {
            "weights": conjugate_priors.dirichlet_mode(self.concentration, counts),
            "probability": conjugate_priors.dirichlet_mode(beta, pixels, "on and off")[..., 0],
        }
