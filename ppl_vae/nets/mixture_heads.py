"""A head for mixtures of normal distributions."""

from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae.arguments import positive, whole
from ppl_vae.distributions import NormalMixture
from ppl_vae.nets.precision import at_least_single

__all__ = ["ToNormalMixture"]


class ToNormalMixture(nn.Module):
    """Numbers ``(..., components * (2 D + 1))`` to mixtures of diagonal normals with event shape ``(D,)``.

    Each component has a log weight, D means, and D numbers that become standard deviations through a softplus.

    Args:
        components: number of components of each mixture.
        min_scale: added to every standard deviation, in the units of the values.

    Raises:
        ValueError: there is no component, or ``min_scale`` is not positive; the numbers cannot be
            shared out to the components.

    Example:
        >>> encoder = nn.Sequential(pv.nets.MLP(784, (8,), 5 * (2 * 3 + 1)), ToNormalMixture(5))
        >>> d = encoder(torch.zeros(4, 784))
        >>> d.batch_shape, d.event_shape
        (torch.Size([4]), torch.Size([3]))
    """

    def __init__(self, components: int = 5, min_scale: float = 1e-4):
        super().__init__()
        self.components, self.min_scale = whole("components", components), positive("min_scale", min_scale)

    def forward(self, h: Tensor) -> NormalMixture:
        """Return the distribution."""
        each, rest = divmod(h.shape[-1], self.components)
        if rest or each % 2 == 0 or each < 3:
            raise ValueError(
                f"components: expected {self.components} x (2 D + 1) numbers, found {h.shape[-1]}; give the network "
                f"before this head {self.components} * (2 * z_dim + 1) outputs"
            )
        parts = at_least_single(h).unflatten(-1, (self.components, each))
        logits, loc, raw = parts.split([1, each // 2, each // 2], dim=-1)
        return NormalMixture(logits.squeeze(-1), loc, F.softplus(raw) + self.min_scale)
