"""Labels as vectors, and classifiers that know some labels."""

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

__all__ = ["OneHot", "held_to"]

# So far below zero that exp is zero, and finite, so that it never meets a zero as an infinity.
DEPTH = 1e4


class OneHot(nn.Module):
    """Labels ``(...)`` to vectors ``(..., y_dim)`` with a one at the label; -1, a missing label, has none.

    Where Pyro validates, as `ppl_vae.check` and so the first batch of a training do, other labels are refused.
    Elsewhere they give NaN, which a captured step shows in its bound.

    Args:
        y_dim: number of classes; labels run from 0 to ``y_dim - 1``.

    Raises:
        ValueError: a label is neither -1 nor the number of a class.

    Example:
        >>> OneHot(3)(torch.tensor([2, -1]))
        tensor([[0., 0., 1.],
                [0., 0., 0.]])
    """

    def __init__(self, y_dim: int):
        super().__init__()
        self.register_buffer("classes", torch.arange(y_dim), persistent=False)
        # A buffer, so that vectors have the program's floating type.
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        """Return the vectors."""
        y = y.unsqueeze(-1)
        match = y == self.classes
        known = match.any(-1, keepdim=True) | (y == -1)
        if is_validation_enabled() and not known.all():
            self._refuse(y[~known])
        return torch.where(known, match.to(self.one.dtype), torch.nan)

    def _refuse(self, wrong: Tensor) -> None:
        listed = ", ".join(map(str, wrong.unique()[:5].tolist()))
        raise ValueError(
            f"y: expected labels from 0 to {len(self.classes) - 1}, or -1 where there is none, found {listed}; count "
            "classes from zero, and give y_dim their number"
        )


def held_to(logits: Tensor, label: Tensor) -> Tensor:
    """Return logits of a class that is the label, where there is one.

    There the label has 0 and the other classes -10,000, whose probability is zero in any floating type: a point mass
    with finite logarithms, so that a sum over classes has one term and its gradient no NaN.

    Args:
        logits: ``(..., y_dim)``, for rows without a label.
        label: vectors of `OneHot`, zero for rows without a label.

    Returns:
        Logits, ``(..., y_dim)``; labelled rows give those passed in a gradient of zero.

    Example:
        >>> held_to(torch.tensor([0.3, 0.7]).log(), torch.tensor([[0.0, 1.0], [0.0, 0.0]])).softmax(-1)
        tensor([[0.0000, 1.0000],
                [0.3000, 0.7000]])
    """
    missing = label.sum(-1, keepdim=True) == 0
    return torch.where(missing, logits, (label - 1) * DEPTH)
