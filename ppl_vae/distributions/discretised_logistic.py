"""The discretised logistic: a likelihood for grey levels."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

from ppl_vae.arguments import whole

__all__ = ["DiscretisedLogistic", "GreyLevels"]


class GreyLevels(constraints.Constraint):
    """Multiples of ``1 / (levels - 1)`` between zero and one, up to rounding in the type of the data.

    Args:
        levels: number of grey levels, at least two.

    Raises:
        ValueError: there are fewer.

    Example:
        >>> GreyLevels(256).check(torch.tensor([0.0, 0.2, 0.3, 1.0, 1.2]))
        tensor([ True,  True, False,  True, False])
    """

    is_discrete = True
    lower_bound, upper_bound = 0.0, 1.0

    def __init__(self, levels: int):
        self.levels = whole("levels", levels, least=2)

    def check(self, value: Tensor) -> Tensor:
        """Tell where values are levels."""
        steps = value * (self.levels - 1)
        nearest = steps.round()
        allowed = max(1e-3, (self.levels - 1) * torch.finfo(value.dtype).eps) if value.is_floating_point() else 0.0
        return ((steps - nearest).abs() <= allowed) & (nearest >= 0) & (nearest <= self.levels - 1)

    def __repr__(self) -> str:
        return f"multiples of 1/{self.levels - 1} from 0 to 1"


class DiscretisedLogistic(dist.TorchDistribution):
    """Masses that a logistic density puts on bins around grey levels, the outer two bins open.

    With ``F(t) = 1 / (1 + exp(-(t - loc) / scale))`` and ``w = 1 / (levels - 1)``, for ``x = 0, w, 2 w, ..., 1``::

        p(x) = F(x + w/2) - F(x - w/2),    p(0) = F(w/2),    p(1) = 1 - F(1 - w/2)

    which sums to one. The difference is taken in logarithms without cancellation, so that masses and gradients are
    right however far a level lies from the mean: ``log p = log F(x + w/2) + log(1 - F(x - w/2)) +
    log(1 - exp(-w / scale))``.

    Args:
        loc: location, in the units of the data (levels from 0 to 1), broadcast with the scale.
        scale: scale of the logistic in the same units, positive; its standard deviation is 1.81 times that.
        levels: number of grey levels, at least two.

    Raises:
        ValueError: fewer than two levels; with validation, a value that is no level.

    Reference: D. P. Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", NeurIPS 2016,
    https://arxiv.org/abs/1606.04934, appendix; T. Salimans et al., "PixelCNN++: Improving the PixelCNN with
    Discretized Logistic Mixture Likelihood and Other Modifications", ICLR 2017, https://arxiv.org/abs/1701.05517.

    Example:
        >>> d = DiscretisedLogistic(torch.tensor(0.5), torch.tensor(0.1), levels=3)
        >>> d.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
        tensor([0.0759, 0.8483, 0.0759])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 - torch's own form
    has_enumerate_support = True

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = GreyLevels(levels).levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: "DiscretisedLogistic | None" = None) -> "DiscretisedLogistic":
        """Return the distribution with a larger batch."""
        new = self._get_checked_instance(DiscretisedLogistic, _instance)
        new.loc, new.scale, new.levels = self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels
        super(DiscretisedLogistic, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Return the constraint that values are grey levels."""
        return GreyLevels(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass in nats; with validation switched off, of the nearest level."""
        if self._validate_args:
            self._validate_sample(value)
        level = (value * (self.levels - 1)).round()
        up_to = F.logsigmoid(self._standardised(level + 0.5))
        beyond = F.logsigmoid(-self._standardised(level - 0.5))
        width = (-torch.expm1(-1 / (self.scale * (self.levels - 1)))).log()
        inner = up_to + beyond + width
        return torch.where(level <= 0, up_to, torch.where(level >= self.levels - 1, beyond, inner))

    @property
    def mean(self) -> Tensor:
        """``sum_x x p(x)``, as the sum of the probabilities of exceeding each edge, taken in turn to save memory."""
        total = torch.zeros_like(self.loc)
        for level in range(1, self.levels):
            total = total + torch.sigmoid(-self._standardised(level - 0.5))
        return total / (self.levels - 1)

    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008 - torch's own form
        """Draw levels: a logistic variable, rounded to the nearest."""
        with torch.no_grad():
            u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            drawn = self.loc + self.scale * (u.log() - torch.log1p(-u))
            return (drawn * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all levels, along a new first axis."""
        levels = torch.arange(self.levels, dtype=self.loc.dtype, device=self.loc.device) / (self.levels - 1)
        levels = levels.reshape(-1, *[1] * len(self.batch_shape))
        return levels.expand(-1, *self.batch_shape) if expand else levels

    def _standardised(self, level: Tensor | float) -> Tensor:
        """Return the place of a level, or of an edge half-way between two, in scales from the location."""
        return (level / (self.levels - 1) - self.loc) / self.scale
