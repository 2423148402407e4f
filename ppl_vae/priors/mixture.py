"""Mixtures of normal distributions as priors."""

import torch
from torch import Tensor, nn

from ppl_vae.arguments import whole
from ppl_vae.distributions import NormalMixture

__all__ = ["FixedMixtureOfNormals", "MixtureOfNormals"]


class MixtureOfNormals(nn.Module):
    """A learned mixture of diagonal normals.

    ::

        p(z) = sum_c pi_c N(z; mu_c, diag(sigma_c^2))

    Weights, means and scales are parameters: equal weights, means drawn from N(0, I) and unit scales to begin with.
    `ppl_vae.models.gmvae` is the same prior with the component as a latent that programs and people can see.

    Args:
        z_dim: number of latent dimensions.
        components: C, the number of components.

    Reference: N. Dilokthanakul et al., "Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders",
    2016, https://arxiv.org/abs/1611.02648; "MoG" in J. Tomczak, M. Welling, "VAE with a VampPrior", AISTATS 2018,
    https://arxiv.org/abs/1705.07120.

    Example:
        >>> MixtureOfNormals(z_dim=3, components=5)().event_shape
        torch.Size([3])
    """

    def __init__(self, z_dim: int = 20, components: int = 10):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(whole("components", components)))
        self.loc = nn.Parameter(torch.randn(components, whole("z_dim", z_dim)))
        self.log_scale = nn.Parameter(torch.zeros(components, z_dim))

    def forward(self) -> NormalMixture:
        """Return p(z)."""
        return NormalMixture(self.logits, self.loc, self.log_scale.exp())


class FixedMixtureOfNormals(nn.Module):
    """A given mixture of diagonal normals, which is not trained; it is saved with the model.

    Args:
        logits: unnormalised log weights, ``(C,)``.
        loc: means ``(C, z_dim)``.
        scale: standard deviations ``(C, z_dim)``, in the units of z.

    Raises:
        ValueError: the shapes do not fit each other, or a scale is not positive.

    Example:
        >>> corners = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])
        >>> FixedMixtureOfNormals(torch.zeros(2), corners, torch.ones(2, 2))().mean
        tensor([0., 0.])
    """

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor):
        super().__init__()
        NormalMixture(logits, loc, scale, validate_args=True)
        for name, tensor in {"logits": logits, "loc": loc, "scale": scale}.items():
            self.register_buffer(name, tensor.detach().clone())

    def forward(self) -> NormalMixture:
        """Return p(z)."""
        return NormalMixture(self.logits, self.loc, self.scale)
