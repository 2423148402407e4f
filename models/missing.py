"""VAE of data with missing values: what was not observed is integrated out of the likelihood.

Generative process, for each datum::

    z ~ p(z), N(0, I) unless told otherwise
    x_d ~ p(x_d | z) = decoder(z)_d, independently for all d
    p(x_observed | z) = prod_(d observed) p(x_d | z)

Values are missing at random. Those of x that stand in missing places are never read; they may be NaN.

| symbol | site | shape    |
| ------ | ---- | -------- |
| z      | "z"  | (z_dim,) |
| x      | "x"  | (x_dim,) |

Reference: P.-A. Mattei, J. Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets", ICML
2019, https://arxiv.org/abs/1812.02633; A. Nazabal, P. Olmos, Z. Ghahramani, I. Valera, "Handling Incomplete
Heterogeneous Data using VAEs", Pattern Recognition 2020, https://arxiv.org/abs/1807.03653.

Example:
    >>> from ppl_vae.guides.missing import Missing as Guide
    >>> from ppl_vae.models.missing import Missing
    >>> model, guide, x = Missing(x_dim=6, z_dim=2), Guide(x_dim=6, z_dim=2), torch.ones(4, 6)
    >>> x[:, 0] = torch.nan
    >>> fit = pv.fit(model, guide, (x, x.isfinite()), objective=pv.objectives.iwae, particles=5, epochs=1)
    >>> pv.impute(model, guide, (x, x.isfinite()), x.isfinite(), draws=3).draws.shape
    torch.Size([3, 4, 6])
"""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae import distributions, nets, priors


class Missing(nn.Module):
    """Deep latent Gaussian model of which some values are not observed.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions.
        hidden: widths of the decoder's hidden layers.
        prior: module that returns p(z), from `ppl_vae.priors`; standard normal when left out.
        decoder: module from ``(..., z_dim)`` to independent elements with event shape ``(x_dim,)``;
            an MLP with Bernoulli pixels when left out.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        prior: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        self.prior = prior or priors.StandardNormal(z_dim)
        self.decoder = decoder or nn.Sequential(nets.MLP(z_dim, hidden, x_dim), nets.ToBernoulli())

    def forward(self, x: Tensor, observed: Tensor) -> None:
        """Generate x ``(B, x_dim)``, of which only what is True in ``observed`` ``(B, x_dim)`` counts."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", distributions.partly_observed(self.decoder(z), observed), obs=x)
