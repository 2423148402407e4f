"""Ladder guide: what the data say of each layer, weighed by precision against what the model says from above.

Posterior family, for each datum::

    d_l                 = encoder_l(d_(l-1)),    N(m_l, v_l) = estimate_l(d_l),    d_0 = x,    l = 1, ..., L
    q(z_L | x)          = N(z_L; m_L, v_L)
    q(z_l | z_(l+1), x) = N(z_l; (m_l / v_l + mu_l / s_l) / (1 / v_l + 1 / s_l), 1 / (1 / v_l + 1 / s_l)),    l < L

with the mean mu_l and the variances s_l of the model's own p(z_l | z_(l+1)): the product of both normals. The way up is
deterministic, latents are drawn on the way down, in the model's order, so that KLs have closed forms layer by layer.

| symbol | site                              | shape    |
| ------ | --------------------------------- | -------- |
| z_l    | "z" (one layer), "z1", "z2", ...  | (z_dim,) |

Reference: C. K. Sonderby et al., "Ladder Variational Autoencoders", NeurIPS 2016, https://arxiv.org/abs/1602.02282
(without its batch normalisation, which would make posteriors depend on the rest of a batch). Warm up the divergence, as
there, or upper layers stay unused: ``objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0, 1, 1500))``.

Example:
    >>> from ppl_vae.guides.ladder import Ladder
    >>> from ppl_vae.models.hierarchical import Hierarchical
    >>> pv.weigh(model := Hierarchical(layers=3), Ladder(model), torch.ones(4, 784), kl=True).kl.keys()
    dict_keys(['z3', 'z2', 'z1'])
"""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae import nets


class Ladder(nn.Module):
    """Guide for models with layers of continuous latents, which shares the model's way down.

    Args:
        model: a model with ``names`` and ``conditional(name, above)``, as `ppl_vae.models.hierarchical` has them. The
            parameters of its conditionals stay its own, and learn from the guide's draws too.
        x_dim: number of pixels.
        z_dim: number of latent dimensions in a layer.
        hidden: widths of each encoder's layers; the last one is that of d_l.
        encoders: modules from ``(B, x_dim)`` to d_1, from d_1 to d_2, ...; MLPs when left out.
        estimates: modules from d_l to a diagonal normal; linear when left out.

    Raises:
        TypeError: the model has no conditionals.
        ValueError: there are more or fewer encoders or estimates than layers of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        x_dim: int = 784,
        z_dim: int = 20,
        hidden: Sequence[int] = (400,),
        encoders: Sequence[nn.Module] | None = None,
        estimates: Sequence[nn.Module] | None = None,
    ):
        super().__init__()
        if not callable(getattr(model, "conditional", None)):
            raise TypeError(f"model: {type(model).__name__} has no conditional(name, above); take models.hierarchical")
        # The bound method, not the module: parameters belong to the program that owns them.
        self.conditional, self.names = model.conditional, list(model.names)
        width = [x_dim, *hidden][-1]
        sizes = [x_dim] + [width] * (len(self.names) - 1)
        mlps = [nn.Sequential(nets.MLP(size, hidden[:-1], width), nn.ReLU()) for size in sizes]
        normals = [nn.Sequential(nn.Linear(width, 2 * z_dim), nets.ToNormal()) for _ in sizes]
        self.encoders = nn.ModuleList(mlps if encoders is None else encoders)
        self.estimates = nn.ModuleList(normals if estimates is None else estimates)
        if {len(self.encoders), len(self.estimates)} != {len(sizes)}:
            raise ValueError(f"encoders, estimates: {len(self.encoders)} and {len(self.estimates)} for {self.names}")

    def forward(self, x: Tensor) -> None:
        """Draw the latents given x of shape ``(B, x_dim)``, from the top down."""
        d, z, found = x, None, []
        for encoder, estimate in zip(self.encoders, self.estimates, strict=True):
            found.append(estimate(d := encoder(d)))
        with pyro.plate("data", x.shape[0], dim=-1):
            for name, q in zip(reversed(self.names), reversed(found), strict=True):
                z = pyro.sample(name, q if z is None else product(q, self.conditional(name, z)))


def product(*normals: dist.TorchDistribution) -> dist.TorchDistribution:
    """Return the normal whose density is proportional to the product of diagonal normals' densities."""
    precision = sum(1 / normal.variance for normal in normals)
    loc = sum(normal.mean / normal.variance for normal in normals) / precision
    return dist.Normal(loc, precision.rsqrt()).to_event(1)
