"""Semi-amortised Gaussian guide: an encoder's mean and scale, moved by a few steps up the ELBO of each datum.

Posterior family, for each datum::

    q(z | x) = N(z; m + s a_T, diag((s exp(b_T))^2)),    N(m, diag(s^2)) = encoder(x)
    (a_t, b_t) = (a_(t-1), b_(t-1)) + step_size grad ELBO(m + s a, s exp(b); x),    a_0 = b_0 = 0

Steps are in units of the encoder's scale. Their ELBO has the entropy in closed form, and log p(x, z) at pairs of points
mu +- sigma h, h being rows of a Hadamard matrix, other ones in each step. With as many pairs as the power of two from
z_dim on, that is exact where log p(x, z) is a polynomial of degree three in z; fewer make worse steps, never a bound
that is none. Nothing is drawn, so that q is a function of x and stays one datum's own. Gradients go through the steps.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: Y. Kim, S. Wiseman, A. Miller, D. Sontag, A. Rush, "Semi-Amortized Variational Autoencoders", ICML 2018,
https://arxiv.org/abs/1802.02550; J. Marino, Y. Yue, S. Mandt, "Iterative Amortized Inference", ICML 2018,
https://arxiv.org/abs/1807.09356; A. H. Stroud, "Approximate Calculation of Multiple Integrals", Prentice-Hall 1971.

Example:
    >>> from ppl_vae.guides.semi_amortized import SemiAmortized
    >>> from ppl_vae.models.vae import VAE
    >>> model = VAE(x_dim=6, z_dim=2, hidden=(8,))
    >>> pv.check(model, SemiAmortized(model, x_dim=6, z_dim=2, hidden=(8,), steps=5), torch.ones(3, 6))
"""

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ppl_vae import nets


class SemiAmortized(nn.Module):
    """Guide for models with one continuous latent vector "z" and a density of it and the data in closed form.

    Args:
        model: whose ELBO to go up: a module that takes what the guide takes. Its parameters stay its own.
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the encoder's hidden layers.
        encoder: module from ``(B, x_dim)`` to a diagonal normal with event shape ``(z_dim,)``; an MLP when left out.
        steps: T; none leave what the encoder says.
        step_size: of a step, in units of the encoder's scale.
        pairs: pairs of points in a step, each of which costs two passes through the model and back.

    Raises:
        ValueError: in a run, if the model has no site "z", or another latent beside it.
    """

    def __init__(
        self,
        model: nn.Module,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        encoder: nn.Module | None = None,
        steps: int = 2,
        step_size: float = 0.1,
        pairs: int = 1,
    ):
        super().__init__()
        self.encoder = encoder or nn.Sequential(nets.MLP(x_dim, hidden, 2 * z_dim), nets.ToNormal())
        self.steps, self.step_size, self.pairs = steps, step_size, pairs
        # The bound method, not the module: parameters belong to the program that owns them.
        self.program = model.forward
        signs = torch.ones(1, 1)
        while len(signs) < z_dim:
            signs = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), signs)
        self.register_buffer("signs", signs[:, :z_dim], persistent=False)

    def forward(self, x: Tensor, *rest: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)`` and what else the model takes."""
        first = self.encoder(x).base_dist
        a, b = self._steps(first.loc, first.scale, x, *rest)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(first.loc + first.scale * a, first.scale * b.exp()).to_event(1))

    def _steps(self, *given: Tensor) -> Tensor:
        """Return where the steps lead, ``(2, B, z_dim)``, also where no gradients are taken."""
        taken = torch.is_grad_enabled()
        # Neither particles nor traces of others inside.
        with torch.inference_mode(False), torch.set_grad_enabled(taken), poutine.block():
            loc, scale, *batch = (part.clone() if part.is_inference() else part for part in given)
            moved = torch.zeros_like(loc).expand(2, *loc.shape)
            for step in range(self.steps):
                moved = moved + self.step_size * torch.func.grad(self._elbo)(moved, loc, scale, step, batch)
        return moved

    def _elbo(self, moved: Tensor, loc: Tensor, scale: Tensor, step: int, batch: Sequence[Tensor]) -> Tensor:
        """Return the sum of all data's ELBO in nats, less a constant."""
        signs = self.signs.roll(-step * self.pairs, 0)[: self.pairs].unsqueeze(1)
        z = loc + scale * (moved[0] + moved[1].exp() * torch.cat([signs, -signs]))
        return log_joint(self.program, z, batch).mean(0).sum() + moved[1].sum()


def log_joint(program: Callable, z: Tensor, batch: Sequence[Tensor]) -> Tensor:
    """Return a model's log p(x, z) in nats, ``(S, B)``, at points z ``(S, B, z_dim)``."""
    nodes = poutine.trace(poutine.condition(program, data={"z": z})).get_trace(*batch).nodes
    sites = {name: site for name, site in nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}
    drawn = [name for name, site in sites.items() if not site["is_observed"]]
    if drawn or "z" not in sites:
        raise ValueError(
            f"model: steps up its ELBO take one latent, 'z', drawn by the guide; it has {', '.join(drawn) or 'no z'}"
            f"{' beside' * ('z' in sites)}; take a guide without steps"
        )
    log_probs = [scale_and_mask(s["fn"].log_prob(s["value"]), mask=s["mask"]) for s in sites.values()]
    return sum(log_probs)
