"""Hierarchical VAE: layers of Gaussian latent vectors, each drawn given the layer above.

Generative process, for each datum::

    z_L ~ p(z_L), N(0, I) unless told otherwise
    z_l ~ N(mu_l(z_(l+1)), diag(sigma_l(z_(l+1))^2)),    l = L-1, ..., 1
    x   ~ p(x | z_1) = decoder(z_1)

| symbol | site                              | shape    |
| ------ | --------------------------------- | -------- |
| z_l    | "z" (one layer), "z1", "z2", ...  | (z_dim,) |
| x      | "x"                               | (x_dim,) |

Reference: D. J. Rezende, S. Mohamed, D. Wierstra, "Stochastic Backpropagation and Approximate Inference in Deep
Generative Models", ICML 2014, https://arxiv.org/abs/1401.4082; Y. Burda, R. Grosse, R. Salakhutdinov, "Importance
Weighted Autoencoders", ICLR 2016, https://arxiv.org/abs/1509.00519, for its networks of two layers.

Example:
    >>> from ppl_vae.guides.ladder import Ladder
    >>> from ppl_vae.models.hierarchical import Hierarchical
    >>> model = Hierarchical(x_dim=6, z_dim=2, hidden=(8,), layers=3)
    >>> guide = Ladder(model, x_dim=6, z_dim=2, hidden=(8,))
    >>> list(pv.weigh(model, guide, torch.ones(4, 6), particles=5).values)
    ['z3', 'z2', 'z1']
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import nets, priors


class Hierarchical(nn.Module):
    """Layers of continuous latents; one layer is `ppl_vae.models.vae.VAE`.

    Args:
        x_dim: number of pixels.
        z_dim: number of latent dimensions in a layer.
        hidden: widths of the hidden layers of each network.
        layers: number of layers of latents, unless `conditionals` say it.
        prior: module that returns p(z_L), from `ppl_vae.priors`; standard normal when left out.
        conditionals: modules from ``(..., z_dim)`` to p(z_l | z_(l+1)), l = 1 first, one fewer than layers; MLPs with
            diagonal normals when left out. Layers may differ in size.
        decoder: module from ``(..., z_dim)`` to a distribution with event shape ``(x_dim,)``;
            an MLP with Bernoulli pixels when left out.

    Attributes:
        names: the latent sites, from the data upward.

    Raises:
        ValueError: there is no layer.
    """

    def __init__(
        self,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        layers: int = 2,
        prior: nn.Module | None = None,
        conditionals: Sequence[nn.Module] | None = None,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, found {layers}; a model without latents needs no guide")
        normals = [nn.Sequential(nets.MLP(z_dim, hidden, 2 * z_dim), nets.ToNormal()) for _ in range(layers - 1)]
        self.prior = prior or priors.StandardNormal(z_dim)
        self.conditionals = nn.ModuleList(normals if conditionals is None else conditionals)
        self.decoder = decoder or nn.Sequential(nets.MLP(z_dim, hidden, x_dim), nets.ToBernoulli())
        layers = len(self.conditionals) + 1
        self.names = ["z"] if layers == 1 else [f"z{i}" for i in range(1, layers + 1)]

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, x_dim)``."""
        z = None
        with pyro.plate("data", x.shape[0], dim=-1):
            for name in reversed(self.names):
                z = pyro.sample(name, self.conditional(name, z))
            pyro.sample("x", self.decoder(z), obs=x)

    def conditional(self, name: str, above: Tensor | None) -> dist.TorchDistribution:
        """Return p(z_l | z_(l+1)) of the layer ``name`` given the one above, p(z_L) where there is none (``None``)."""
        return self.prior() if above is None else self.conditionals[self.names.index(name)](above)
