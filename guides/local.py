"""Local mean-field guide: a free mean and scale for each datum, without a network.

Posterior family, for each datum::

    q(z) = N(z; mu_n, diag(sigma_n^2)),    n being its row in the training data

Nothing is shared between data, so that nothing is lost by amortisation; the best of these q is never worse than any
diagonal normal that an encoder gives. New data have no row: fit a guide of their own to them, the model held fixed.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |

Reference: M. Hoffman, D. Blei, C. Wang, J. Paisley, "Stochastic Variational Inference", JMLR 2013,
https://arxiv.org/abs/1206.7051, for local parameters; C. Cremer, X. Li, D. Duvenaud, "Inference Suboptimality in
Variational Autoencoders", ICML 2018, https://arxiv.org/abs/1801.03558, for what amortisation loses.

Example:
    >>> from ppl_vae.guides.local import Local
    >>> from ppl_vae.models.vae import VAE
    >>> x, model, guide = torch.ones(40, 6), VAE(x_dim=6, z_dim=2), Local(size=40, z_dim=2)
    >>> fit = pv.fit(model, guide, x, epochs=2)
    >>> pv.weigh(model, guide, (x, torch.arange(40)), particles=3).log_w.shape
    torch.Size([3, 40])
"""

import pyro
import torch
from torch import Tensor, nn

from ppl_vae import nets


class Local(nn.Module):
    """Guide for models with one continuous latent vector "z", and for the data that it was fitted to.

    It begins at N(0, I). Adam goes on moving the rows that a minibatch has not; a table with ``sparse=True`` under
    ``torch.optim.SparseAdam`` stays where it is (see ``help(pv.fit)``).

    Args:
        size: N, the number of data. A row beyond is refused: "give it at least ... rows".
        z_dim: number of latent dimensions.
        table: module from rows ``(B,)`` to ``(B, 2 z_dim)``, means and scales before a softplus; an embedding when
            left out. For minibatches pass ``nn.Embedding(N, 2 * z_dim, sparse=True)``.
    """

    def __init__(self, size: int = 1000, z_dim: int = 20, table: nn.Module | None = None):
        super().__init__()
        one = torch.tensor(1.0).expm1().log()  # the softplus of it is one
        start = torch.cat([torch.zeros(size, z_dim), one.expand(size, z_dim)], -1)
        self.table = table or nn.Embedding(size, 2 * z_dim, _weight=start)
        self.head = nets.ToNormal()

    def forward(self, x: Tensor, index: Tensor) -> None:
        """Draw z of the data x, ``(B, x_dim)``, that stand in these rows of the training data, ``(B,)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.head(self.table(index)))
