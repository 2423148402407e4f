"""The continuous Bernoulli: what a Bernoulli's likelihood becomes for intensities between zero and one."""

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

__all__ = ["ContinuousBernoulli"]

# Below these the closed forms, differences of large numbers, give way to series (errors below 1e-13 and 1e-8).
NEAR, NEAR_IN_DRAWS = 0.4, 0.01


class ContinuousBernoulli(dist.TorchDistribution):
    """Density on [0, 1] that is an exponential in x.

    ::

        log p(x) = eta x - log((e^eta - 1) / eta)

    Torch's continuous Bernoulli clamps ``sigmoid(eta)``, so that in single precision its density does not integrate
    to one beyond ``|eta| = 12``, and gradients are lost; around ``|eta| = 0.005`` they are differences of large
    numbers. Here neither happens: densities, means and gradients are right to rounding for every eta.

    Args:
        logits: eta, of the batch shape.

    Reference: G. Loaiza-Ganem, J. P. Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", NeurIPS 2019, https://arxiv.org/abs/1907.06845.

    Example:
        >>> ContinuousBernoulli(torch.tensor([-60.0, 0.0, 60.0])).mean
        tensor([0.0167, 0.5000, 0.9833])
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 - torch's own form
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: "ContinuousBernoulli | None" = None) -> "ContinuousBernoulli":
        """Return the distribution with a larger batch."""
        new = self._get_checked_instance(ContinuousBernoulli, _instance)
        new.logits = self.logits.expand(batch_shape)
        super(ContinuousBernoulli, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        size, near, small = self._apart(NEAR)
        # The distance from the end at which the density is highest, which costs |eta| each.
        far = size.log() - (-torch.expm1(-size)).log() - size * torch.where(self.logits > 0, 1 - value, value)
        h2 = (small / 2).square()
        log_sinhc = h2 * (1 / 6 - h2 * (1 / 180 - h2 * (1 / 2835 - h2 * (1 / 37800 - h2 / 467775))))
        return torch.where(near, small * (value - 0.5) - log_sinhc, far)

    @property
    def mean(self) -> Tensor:
        """``1 / (1 - e^-eta) - 1 / eta``."""
        size, near, small = self._apart(NEAR)
        below = 1 / size + torch.exp(-size) / torch.expm1(-size)
        h = small / 2
        h2 = h.square()
        langevin = h * (1 / 3 - h2 * (1 / 45 - h2 * (2 / 945 - h2 * (1 / 4725 - h2 * 2 / 93555))))
        return torch.where(near, (1 + langevin) / 2, torch.where(self.logits > 0, 1 - below, below))

    def rsample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008 - torch's own form
        """Draw by the inverse distribution function, differentiable in the logits."""
        shape, info = self._extended_shape(sample_shape), torch.finfo(self.logits.dtype)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device).clamp(info.eps / 2, 1 - info.eps / 2)
        size, near, small = self._apart(NEAR_IN_DRAWS)
        above = self.logits > 0
        v = torch.where(above, 1 - u, u)  # of the density that falls
        fallen = -torch.log1p(v * torch.expm1(-size)) / size
        far = torch.where(above, 1 - fallen, fallen)
        return torch.where(near, u + u * (1 - u) * small * (0.5 + (1 - 2 * u) * small / 6), far).clamp(0, 1)

    def _apart(self, cut: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``|eta|`` where it is large, where it is small, and eta there; each is harmless elsewhere."""
        near = self.logits.abs() < cut
        return (
            torch.where(near, torch.ones_like(self.logits), self.logits).abs(),
            near,
            torch.where(near, self.logits, torch.zeros_like(self.logits)),
        )
