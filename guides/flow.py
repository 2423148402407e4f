"""Amortised normalising flow: normal noise from an encoder, then transforms that the encoder conditions.

Posterior family, for each datum::

    u ~ N(mu(x), diag(sigma(x)^2))
    z = f_L(... f_1(u; c(x)) ...; c(x)),    log q(z | x) = log N(u) - sum_l log |det df_l|,    q = encoder(x)

With the default transform this is the inverse autoregressive flow, which draws and scores its draws in one
pass; `elementwise=nets.flows.spline` makes it the neural spline flow. Objectives that score draws anew (`stl`,
`dreg`, wake-sleep) take ``z_dim`` passes a transform then; `transform=nets.flows.coupling` needs two.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: D. P. Kingma, T. Salimans, R. Jozefowicz, X. Chen, I. Sutskever, M. Welling, "Improving
Variational Inference with Inverse Autoregressive Flow", NeurIPS 2016, https://arxiv.org/abs/1606.04934;
C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, "Neural Spline Flows", NeurIPS 2019,
https://arxiv.org/abs/1906.04032.

Example:
    >>> from ppl_vae.guides.flow import Flow
    >>> guide = Flow(x_dim=6, z_dim=2, hidden=(8,), layers=1)
    >>> guide.encoder(torch.zeros(4, 6)).event_shape
    torch.Size([2])
"""

from collections.abc import Callable, Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets


class Flow(nn.Module):
    """Guide for models with one continuous latent vector "z".

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the hidden layers of the encoder and of each transform's network.
        layers: number of transforms.
        context: how many numbers each transform is told about x.
        transform: makes the transforms: `nets.flows.autoregressive` or `nets.flows.coupling`.
        elementwise: the function of one dimension: `nets.flows.affine` or `nets.flows.spline`.
        encoder: module from ``(B, x_dim)`` to a distribution with event shape ``(z_dim,)``;
            an MLP with `nets.ToFlow`, of all the above, when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        layers: int = 2,
        context: int = 64,
        transform: Callable[..., nn.Module] = nets.flows.autoregressive,
        elementwise: nets.flows.Elementwise = nets.flows.affine,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder or nn.Sequential(
            nets.MLP(x_dim, hidden, 2 * z_dim + context),
            nets.ToFlow(z_dim, context, hidden, layers, transform, elementwise),
        )

    def forward(self, x: Tensor) -> None:
        """Draw z given x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(x))
