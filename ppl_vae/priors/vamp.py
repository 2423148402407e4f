"""The VampPrior: a mixture of the guide's own posteriors at learned pseudo-inputs."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from ppl_vae.arguments import whole
from ppl_vae.distributions import mixture

__all__ = ["VampPrior"]


class VampPrior(nn.Module):
    """Variational mixture of posteriors.

    ::

        p(z) = sum_k pi_k q(z | u_k),    pi_k = 1 / C unless learned

    The pseudo-inputs u are the prior's parameters; q is the guide's encoder, whose parameters stay the guide's, though
    gradients of the prior reach them too. Move and copy model and guide together. Each step runs the encoder, forward
    and backward, on C pseudo-inputs besides the batch.

    Args:
        encoder: module, or other callable, from ``(C, x_dim)`` to a distribution with batch shape ``(C,)``, such as
            ``guide.encoder`` of `ppl_vae.guides.normal`.
        x_dim: number of pixels.
        components: C, the number of pseudo-inputs.
        inputs: pseudo-inputs to begin with, ``(components, x_dim)``, such as training images a little greyed: one at
            the bound of where data lie is slow to leave it. Uniform noise when left out.
        support: where data lie; ``torch.distributions.constraints.real`` for real-valued data. Other than the unit
            interval it needs ``inputs``.
        logits: log weights ``(components,)``: an ``nn.Parameter`` is learned, a tensor is kept; equal when left out.

    Raises:
        ValueError: ``inputs`` or ``logits`` do not fit, or ``inputs`` lie outside the support or are missing.

    Reference: J. Tomczak, M. Welling, "VAE with a VampPrior", AISTATS 2018, https://arxiv.org/abs/1705.07120.

    Example:
        >>> from ppl_vae.guides.normal import Normal
        >>> from ppl_vae.models.vae import VAE
        >>> guide = Normal(x_dim=6, z_dim=2, hidden=(8,))
        >>> model = VAE(x_dim=6, z_dim=2, hidden=(8,), prior=VampPrior(guide.encoder, x_dim=6, components=3))
        >>> pv.check(model, guide, torch.ones(4, 6))
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Any],
        x_dim: int = 784,
        components: int = 500,
        inputs: Tensor | None = None,
        support: constraints.Constraint = constraints.unit_interval,
        logits: Tensor | None = None,
    ):
        super().__init__()
        # The bound method, not the module: parameters belong to the program that owns them.
        self.encoder = getattr(encoder, "forward", encoder)
        if inputs is None and support is not constraints.unit_interval:
            raise ValueError(f"inputs: expected pseudo-inputs, as data lie in {support}, found none; give some data")
        inputs = torch.rand(whole("components", components), whole("x_dim", x_dim)) if inputs is None else inputs
        logits = torch.zeros(components) if logits is None else logits
        if inputs.shape != (components, x_dim) or logits.shape != (components,):
            raise ValueError(
                f"inputs, logits: expected shapes {(components, x_dim)} and {(components,)}, found "
                f"{tuple(inputs.shape)} and {tuple(logits.shape)}; give components= and x_dim= as they have"
            )
        if not support.check(inputs).all():
            raise ValueError(
                f"inputs: found values from {inputs.min():.4g} to {inputs.max():.4g}, outside the support {support}; "
                "rescale them, or say where data lie by support="
            )
        self.bound = biject_to(support)
        self.unbounded = nn.Parameter(self.bound.inv(inputs.detach()).clone())
        if isinstance(logits, nn.Parameter):
            self.logits = logits
        else:
            self.register_buffer("logits", logits.clone())

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs, ``(C, x_dim)``."""
        return self.bound(self.unbounded)

    def forward(self) -> TorchDistribution:
        """Return p(z)."""
        return mixture(self.logits, self.encoder(self.inputs))
