"""Amortised factorised Bernoulli guide, layer upon layer from the data upward.

Posterior family, for each datum::

    q(z_1 | x)       = Bernoulli(sigmoid(encoder_1(2 x - 1)))
    q(z_l | z_(l-1)) = Bernoulli(sigmoid(encoder_l(2 z_(l-1) - 1))),    l = 2, ..., L

| symbol | site                              | shape    |
| ------ | --------------------------------- | -------- |
| z_l    | "z" (one layer), "z1", "z2", ...  | (z_dim,) |

Reference: A. Mnih, K. Gregor, "Neural Variational Inference and Learning in Belief Networks", ICML
2014, https://arxiv.org/abs/1402.0030.

Example:
    >>> from ppl_vae.guides.bernoulli import Bernoulli
    >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
    >>> pv.check(SigmoidBeliefNetwork(x_dim=6, z_dim=4), Bernoulli(x_dim=6, z_dim=4), torch.ones(3, 6))
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import nets


class Bernoulli(nn.Module):
    """Guide for models with layers of binary latents.

    Args:
        x_dim: number of pixels.
        z_dim: number of latents in a layer.
        hidden: widths of the tanh layers between two layers of variables; none for the linear network.
        layers: number of layers of latents.

    Raises:
        ValueError: there is no layer.
    """

    def __init__(self, x_dim: int = 784, z_dim: int = 200, hidden: Sequence[int] = (), layers: int = 1):
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, found {layers}; a guide that draws nothing is Empty")
        sizes = [x_dim] + [z_dim] * (layers - 1)
        self.encoders = nn.ModuleList(nets.MLP(size, hidden, z_dim, nn.Tanh) for size in sizes)

    def forward(self, x: Tensor) -> None:
        """Draw the latents given x of shape ``(B, x_dim)``."""
        below = x
        with pyro.plate("data", x.shape[0], dim=-1):
            for i, encoder in enumerate(self.encoders, start=1):
                name = "z" if len(self.encoders) == 1 else f"z{i}"
                below = pyro.sample(name, dist.Bernoulli(logits=encoder(2 * below - 1)).to_event(1))
