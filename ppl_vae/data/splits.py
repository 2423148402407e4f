"""What loading gives: three tensors and what is known about them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Info", "Splits", "binarize", "on_data"]


@dataclass(frozen=True)
class Info:
    """Facts about a data set.

    Attributes:
        name: its name, as `load` takes it.
        binarization: ``"grey"`` (values in [0, 1]), ``"threshold"``, ``"static"`` (drawn once),
            ``"dynamic"`` (drawn anew in every training batch) or ``"fixed"`` (by the publisher).
        shape: height and width of an image; its pixels stand in this order in a row of the data.
        labels: labels by split, where the set has any.
        source: where it comes from.
        ink: whether large values are ink, to be drawn dark; False for photographs.
    """

    name: str
    binarization: str
    shape: tuple[int, int]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    source: str = ""
    ink: bool = True

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """What is applied to every training batch."""
        return binarize if self.binarization == "dynamic" else None


def binarize(x: Tensor) -> Tensor:
    """Draw zeros and ones with these probabilities; what ``torch.bernoulli`` does, in a third of its time on a CPU.

    Example:
        >>> binarize(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    return (torch.rand_like(x) < x).to(x.dtype)


class Splits(NamedTuple):
    """A data set in three parts, each of shape ``(N, height * width)`` and type float32.

    With dynamic binarization ``train`` holds probabilities, from which `ppl_vae.fit` draws each
    batch anew; ``valid`` and ``test`` are drawn once, by the seed.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    info: Info


def on_data(data: Any) -> str:
    """Return which data a figure is of, in words; nothing for tensors, which have no name.

    Example:
        >>> on_data(torch.zeros(3, 2))
        ''
    """
    if not isinstance(data, Splits):
        return ""
    how = "no" if data.info.binarization == "grey" else data.info.binarization
    return f" on {data.info.name} (test, {how} binarization)"
