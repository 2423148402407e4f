"""Priors made of the guide's posteriors of the training data: the aggregated posterior, and exemplars."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.arguments import positive
from ppl_vae.distributions import mixture

__all__ = ["Exemplar", "OneScale"]


class Exemplar(nn.Module):
    """The mean of the posteriors of all exemplars, such as the training data.

    ::

        p(z) = 1/N sum_n kernel(q(z | x_n))

    With the guide's posteriors as they are this is the aggregated posterior, which of all priors makes the mean ELBO of
    the exemplars largest, and overfits: each of them has a component of its own, so that the bound of training data
    tells nothing about test data. With `OneScale` it is the prior of the Exemplar VAE, which is trained by leaving out
    the component of the datum itself (`without`).

    The encoder's parameters stay the guide's, though gradients of the prior reach them too; move and copy model and
    guide together. Each step runs the encoder, forward and backward, on all N exemplars besides the batch, unless
    ``subset`` is given: then each call in training mode takes so many, drawn without replacement. Their mean density is
    an unbiased estimate of p(z) and, by Jensen's inequality, its logarithm is in expectation at most log p(z): a bound
    that held still holds in expectation. In evaluation mode all exemplars are taken. Each draw has a number for
    each exemplar in memory, so that many exemplars ask for a smaller ``pv.evaluate(..., chunk=)``.

    Args:
        encoder: module, or other callable, from ``(N, ...)`` to a distribution with batch shape ``(N,)``, such as
            ``guide.encoder`` of `ppl_vae.guides.normal`.
        exemplars: ``(N, ...)``, in the type that the encoder takes. They are not saved with the model; a program that
            is loaded is given them again.
        kernel: module from the posteriors to the components; the posteriors themselves when left out.
        subset: how many exemplars a call in training mode takes, from 2 to N; all when left out.

    Raises:
        ValueError: there are fewer than two exemplars, or a subset is no part of them.

    Reference: M. Hoffman, M. Johnson, "ELBO surgery", NIPS workshop on Advances in Approximate Bayesian Inference 2016,
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf; J. Tomczak, M. Welling, "VAE with a VampPrior",
    AISTATS 2018, section 2, https://arxiv.org/abs/1705.07120; S. Norouzi, D. J. Fleet, M. Norouzi, "Exemplar VAE:
    Linking Generative Models, Nearest Neighbor Retrieval, and Data Augmentation", NeurIPS 2020,
    https://arxiv.org/abs/2004.04795.

    Example:
        >>> from ppl_vae.guides.normal import Normal
        >>> guide, x = Normal(x_dim=6, z_dim=2, hidden=(8,)), torch.rand(50, 6)
        >>> prior = Exemplar(guide.encoder, x)
        >>> abs(float(pv.aggregate_kl(guide, x, prior()))) < 1e-5
        True
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Any],
        exemplars: Tensor,
        kernel: nn.Module | None = None,
        subset: int | None = None,
    ):
        super().__init__()
        n = exemplars.shape[0]
        if n < 2:
            raise ValueError(f"exemplars: found {n}; give at least two, so that one can be left out")
        if subset is not None and not 2 <= subset <= n:
            raise ValueError(
                f"subset: expected a whole number from 2 to {n}, the number of exemplars, found {subset!r}"
            )
        # The bound method, not the module: parameters belong to the program that owns them.
        self.encoder = getattr(encoder, "forward", encoder)
        self.kernel = kernel or nn.Identity()
        self.subset = subset
        self.register_buffer("exemplars", exemplars, persistent=False)
        self.register_buffer("rows", torch.arange(n), persistent=False)
        # Exemplars may be tokens or grey levels; weights are not whole numbers.
        dtype = exemplars.dtype if exemplars.is_floating_point() else None
        self.register_buffer("logits", torch.zeros(n, dtype=dtype, device=exemplars.device), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return p(z)."""
        rows = self._taken()
        return mixture(self.logits[: rows.shape[0]], self._components(rows))

    def without(self, index: Tensor) -> TorchDistribution:
        """Return the prior of each datum without its own component, for a program that names ``index``.

        ::

            p_i(z) = 1/(N-1) sum_(n != i) kernel(q(z | x_n))

        Args:
            index: which exemplar each datum is, ``(B,)``; -1 for one that is none.

        Returns:
            A distribution with batch shape ``(B,)``.

        Example:
            >>> prior = Exemplar(lambda x: dist.Normal(x, 0.1).to_event(1), torch.tensor([[0.0], [5.0]]))
            >>> prior.without(torch.tensor([0, 1, -1])).mean.squeeze(-1)
            tensor([5.0000, 0.0000, 2.5000])
        """
        rows = self._taken()
        own = index.unsqueeze(-1) == rows
        logits = self.logits[: rows.shape[0]].expand(own.shape).masked_fill(own, -math.inf)
        return mixture(logits, self._components(rows))

    def _taken(self) -> Tensor:
        if self.subset is None or not self.training:
            return self.rows
        return torch.randperm(self.rows.shape[0], device=self.rows.device)[: self.subset]

    def _components(self, rows: Tensor) -> Any:
        return self.kernel(self.encoder(self.exemplars if rows is self.rows else self.exemplars[rows]))


class OneScale(nn.Module):
    """Normals about the means of other distributions, with one learned standard deviation for all.

    Args:
        scale: standard deviation to begin with, in the units of z.

    Raises:
        ValueError: the scale is not positive.

    Example:
        >>> posteriors = dist.Normal(torch.zeros(5, 3), 2.0).to_event(1)
        >>> OneScale(0.5)(posteriors).variance[0]
        tensor([0.2500, 0.2500, 0.2500], ...)
    """

    def __init__(self, scale: float = 0.5):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(positive("scale", scale)).log())

    def forward(self, components: Any) -> TorchDistribution:
        """Return the normals."""
        loc = components.mean
        return dist.Normal(loc, self.log_scale.exp()).to_event(len(components.event_shape))
