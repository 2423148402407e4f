"""Vector-quantised variational autoencoder: codes that name vectors of a codebook, pushed through a network.

Generative process, for each datum::

    c_i ~ p(c), uniform over the codes unless told otherwise,    i = 1, ..., positions
    x   ~ p(x | c) = decoder(e_1, ..., e_positions),             e_i the codebook's vector of c_i

| symbol | site | shape              |
| ------ | ---- | ------------------ |
| c      | "c"  | (positions, codes) |
| x      | "x"  | (x_dim,)           |

Reference: A. van den Oord, O. Vinyals, K. Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017,
https://arxiv.org/abs/1711.00937; A. Razavi, A. van den Oord, O. Vinyals, "Generating Diverse High-Fidelity
Images with VQ-VAE-2", NeurIPS 2019, https://arxiv.org/abs/1906.00446.

Example:
    >>> from ppl_vae.guides.nearest_code import NearestCode
    >>> from ppl_vae.models.vq_vae import VQVAE
    >>> model = VQVAE(x_dim=6, z_dim=2, positions=3, codes=8, hidden=(8,))
    >>> guide = NearestCode(model, x_dim=6, hidden=(8,))
    >>> list(pv.weigh(model, guide, torch.ones(4, 6)).penalties)
    ['penalty_commitment']
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import nets, priors


class VQVAE(nn.Module):
    """Codes of a codebook; the likelihood is whatever distribution the decoder returns.

    The codebook is the model's, and learns from what `guides.nearest_code.NearestCode` assigns to its vectors.

    Args:
        x_dim: number of pixels.
        z_dim: size of a code vector.
        positions: number of codes of a datum.
        codes: number of vectors in the codebook.
        hidden: widths of the decoder's hidden layers.
        codebook: `nets.AveragedCodebook` when left out; `nets.LearnedCodebook` moves by gradients.
        prior: module that returns p(c), from `ppl_vae.priors`; uniform when left out.
        decoder: module from ``(..., positions, z_dim)`` to a distribution with event shape ``(x_dim,)``, such as
            ``nn.Sequential(GridDecoder(z_dim, (28, 28)), ToBernoulli())``; an MLP with Bernoulli pixels when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 8,
        positions: int = 4,
        codes: int = 32,
        hidden: Sequence[int] = (400,),
        codebook: nn.Module | None = None,
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.positions, self.z_dim = positions, z_dim
        self.codebook = codebook or nets.AveragedCodebook(codes, z_dim)
        self.prior = prior or priors.UniformCodes(positions, codes)
        self.decoder = decoder or nn.Sequential(
            nn.Flatten(-2), nets.MLP(positions * z_dim, hidden, x_dim), nets.ToBernoulli()
        )

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            c = pyro.sample("c", self.prior())
            pyro.sample("x", self.decoder(self.codebook(c)), obs=x)
