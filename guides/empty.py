"""The guide that draws nothing, for models all of whose latents are summed out.

Posterior family, for each datum::

    q() = 1

The model has no latents, or all of them are discrete and marked for enumeration, so that nothing is left to draw. One
particle is enough: its weight is p(x) exactly, and every bound equals log p(x).

| symbol | site | shape |
| ------ | ---- | ----- |
| none   | none |       |

Reference: F. Obermeyer et al., "Tensor Variable Elimination for Plated Factor Graphs", ICML 2019,
https://arxiv.org/abs/1902.03210.

Example:
    >>> from ppl_vae.guides.empty import Empty
    >>> from ppl_vae.models.gaussian_mixture import GaussianMixture
    >>> pv.check(GaussianMixture(x_dim=2), Empty(), torch.zeros(3, 2))
"""

import pyro
from torch import Tensor, nn


class Empty(nn.Module):
    """Guide without latents and without parameters."""

    def forward(self, x: Tensor, *rest: Tensor) -> None:
        """Draw nothing for the data x, ``(B, ...)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pass
