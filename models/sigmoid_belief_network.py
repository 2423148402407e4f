"""Sigmoid belief network: layers of binary latents, each drawn given the layer above.

Generative process, for each datum::

    z_L ~ Bernoulli(sigmoid(a))
    z_l ~ Bernoulli(sigmoid(decoder_l(2 z_(l+1) - 1))),    l = L-1, ..., 1
    x   ~ Bernoulli(sigmoid(decoder_0(2 z_1 - 1)))

| symbol | site                              | shape    |
| ------ | --------------------------------- | -------- |
| z_l    | "z" (one layer), "z1", "z2", ...  | (z_dim,) |
| x      | "x"                               | (x_dim,) |

Reference: R. Neal, "Connectionist Learning of Belief Networks", Artificial Intelligence 1992,
https://doi.org/10.1016/0004-3702(92)90065-6; A. Mnih, K. Gregor, "Neural Variational Inference and
Learning in Belief Networks", ICML 2014, https://arxiv.org/abs/1402.0030.

Example:
    >>> from ppl_vae.guides.bernoulli import Bernoulli
    >>> from ppl_vae.models.sigmoid_belief_network import SigmoidBeliefNetwork
    >>> model, guide = SigmoidBeliefNetwork(x_dim=6, z_dim=4, layers=2), Bernoulli(x_dim=6, z_dim=4, layers=2)
    >>> sorted(pv.weigh(model, guide, torch.ones(3, 6), particles=5).values)
    ['z1', 'z2']
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import nets


class SigmoidBeliefNetwork(nn.Module):
    """Binary latents under binary pixels.

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
            raise ValueError(f"layers: expected at least 1, found {layers}; a model without latents needs no guide")
        self.prior_logits = nn.Parameter(torch.zeros(z_dim))
        sizes = [x_dim] + [z_dim] * (layers - 1)
        self.decoders = nn.ModuleList(nets.MLP(z_dim, hidden, size, nn.Tanh) for size in sizes)

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        layers = len(self.decoders)
        names = ["z"] if layers == 1 else [f"z{i}" for i in range(1, layers + 1)]
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample(names[-1], dist.Bernoulli(logits=self.prior_logits).to_event(1))
            for name, decoder in zip(names[-2::-1], list(self.decoders)[:0:-1], strict=True):
                z = pyro.sample(name, dist.Bernoulli(logits=decoder(2 * z - 1)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoders[0](2 * z - 1)).to_event(1), obs=x)
