"""Normalising flows as priors, turned so that the density of any z takes one pass."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import nn

from ppl_vae.distributions import NormalizingFlow
from ppl_vae.nets import flows
from ppl_vae.priors.normal import StandardNormal

__all__ = ["AutoregressiveFlow", "CouplingFlow"]


class AutoregressiveFlow(nn.Module):
    """A masked autoregressive flow.

    With noise u ~ N(0, I), in each layer::

        u_i = f(z_i; h_i(z_1, ..., z_(i-1)))

    The density takes one pass, which is what training asks of a prior; a draw takes ``z_dim`` passes a
    layer.

    Args:
        z_dim: number of latent dimensions.
        hidden: widths of the hidden layers of each layer's network; empty for linear maps, which make
            a normal distribution with any covariance.
        layers: number of layers.
        elementwise: the function f of one dimension, `nets.flows.affine` or `nets.flows.spline`.

    Reference: G. Papamakarios, T. Pavlakou, I. Murray, "Masked Autoregressive Flow for Density
    Estimation", NeurIPS 2017, https://arxiv.org/abs/1705.07057; as a prior, X. Chen et al., "Variational
    Lossy Autoencoder", ICLR 2017, https://arxiv.org/abs/1611.02731.

    Example:
        >>> AutoregressiveFlow(3)().log_prob(torch.zeros(5, 2, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        z_dim: int = 20,
        hidden: Sequence[int] = (64,),
        layers: int = 4,
        elementwise: flows.Elementwise = flows.affine,
    ):
        super().__init__()
        self.noise = StandardNormal(z_dim)
        self.transform = flows.autoregressive(z_dim, 0, hidden, layers, elementwise).inv

    def forward(self) -> dist.TorchDistribution:
        """Return p(z)."""
        return NormalizingFlow(self.noise(), self.transform())


class CouplingFlow(nn.Module):
    """A flow of coupling layers, of which density and draw both take a pass or two a layer.

    With noise u ~ N(0, I), in each layer, with halves a and b that change places::

        u_a = f(z_a; h_a),    u_b = f(z_b; h_b(z_a))

    Args:
        z_dim: number of latent dimensions.
        hidden: widths of the hidden layers of each layer's network.
        layers: number of layers; two let each dimension follow each half.
        elementwise: the function f of one dimension, `nets.flows.affine` or `nets.flows.spline`.

    Reference: L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density Estimation Using Real NVP", ICLR 2017,
    https://arxiv.org/abs/1605.08803; C. Durkan et al., "Neural Spline Flows", NeurIPS 2019,
    https://arxiv.org/abs/1906.04032.

    Example:
        >>> CouplingFlow(3, elementwise=pv.nets.flows.spline)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        z_dim: int = 20,
        hidden: Sequence[int] = (64,),
        layers: int = 6,
        elementwise: flows.Elementwise = flows.affine,
    ):
        super().__init__()
        self.noise = StandardNormal(z_dim)
        self.transform = flows.coupling(z_dim, 0, hidden, layers, elementwise).inv

    def forward(self) -> dist.TorchDistribution:
        """Return p(z)."""
        return NormalizingFlow(self.noise(), self.transform())
