"""Semi-amortised Gaussian guide: an encoder's mean and scale, moved by a few steps up the ELBO of each datum.

Posterior family, for each datum::

    q(z | x) = N(z; m + s a_T, diag(s exp(b_T))^2),    N(m, diag(s)^2) = encoder(x),    a_0 = b_0 = 0
    (a_t, b_t) = (a_(t-1), b_(t-1)) + step_size g / (1 + |g|),    g = grad ELBO(m + s a_(t-1), s exp(b_(t-1)); x)

The entropy is in closed form, log p(x, z) a mean over `distributions.sign_points`, so that q is a function of x alone.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: Y. Kim et al., "Semi-Amortized Variational Autoencoders", ICML 2018, https://arxiv.org/abs/1802.02550;
J. Marino, Y. Yue, S. Mandt, "Iterative Amortized Inference", ICML 2018, https://arxiv.org/abs/1807.09356.

Example:
    >>> from ppl_vae.guides.semi_amortized import SemiAmortized
    >>> from ppl_vae.models.vae import VAE
    >>> pv.check(model := VAE(x_dim=6, z_dim=2), SemiAmortized(model, x_dim=6, z_dim=2, steps=5), torch.ones(3, 6))
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from ppl_vae import distributions, nets


class SemiAmortized(nn.Module):
    """Guide for models whose one latent is a continuous vector "z".

    Args:
        model: whose ELBO to climb, of what the guide takes. Its parameters stay its own.
        x_dim, z_dim, hidden: numbers of pixels and of latent dimensions; widths of the encoder's hidden layers.
        steps, step_size, pairs: T; the most that a step moves, in units of the encoder's scale; pairs of points in it.
        encoder: module from ``(B, x_dim)`` to a diagonal normal with event shape ``(z_dim,)``; an MLP when left out.
    """

    def __init__(
        self,
        model: nn.Module,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        steps: int = 2,
        step_size: float = 0.2,
        pairs: int = 1,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder or nn.Sequential(nets.MLP(x_dim, hidden, 2 * z_dim), nets.ToNormal())
        self.steps, self.step_size, self.pairs = steps, step_size, pairs
        self.program = model.forward  # the bound method: parameters belong to the program that owns them
        self.register_buffer("points", distributions.sign_points(z_dim), persistent=False)

    def forward(self, x: Tensor, *rest: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)`` and what else the model takes, but for a mask of missing values."""
        if any(part.dtype == torch.bool for part in rest):
            raise ValueError("observed: the encoder would read what is missing in x; take the guide Missing")
        if not isinstance(q := getattr(self.encoder(x), "base_dist", None), torch.distributions.Normal):
            raise TypeError("encoder: expected one that returns a diagonal normal, as those that end in nets.ToNormal")
        a, b = self.climbed(q.loc, q.scale, x, *rest)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(q.loc + q.scale * a, q.scale * b.exp()).to_event(1))

    def climbed(self, loc: Tensor, scale: Tensor, *batch: Tensor) -> Tensor:
        """Return a_T and b_T, ``(2, B, z_dim)``, for the encoder's mean and scale, ``(B, z_dim)`` each, and a batch."""
        moved = torch.zeros_like(loc).expand(2, *loc.shape)
        with poutine.block():  # outer handlers (particles, traces) see nothing of the steps
            for t in range(self.steps):
                points = self.points.roll(-t * self.pairs, 0)[: self.pairs].unsqueeze(1)
                slope = torch.func.grad(self._elbo)(moved, loc, scale, scale * torch.cat([points, -points]), batch)
                moved = moved + self.step_size * slope / (1 + slope.abs())  # through which gradients go
        return moved

    def _elbo(self, moved: Tensor, loc: Tensor, scale: Tensor, both: Tensor, batch: Sequence[Tensor]) -> Tensor:
        z = loc + scale * moved[0] + both * moved[1].exp()
        trace = prune_subsample_sites(poutine.trace(poutine.condition(self.program, data={"z": z})).get_trace(*batch))
        if "z" not in trace or trace.stochastic_nodes:
            raise ValueError(f"model: its latents are not 'z' alone ({trace.stochastic_nodes}); take another guide")
        sites = map(trace.nodes.get, trace.observation_nodes)
        log_p = sum(scale_and_mask(s["fn"].log_prob(s["value"]), mask=s["mask"]) for s in sites)
        return log_p.mean(0).sum() + moved[1].sum()  # of the sum over data each has its own gradient
