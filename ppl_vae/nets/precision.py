"""Where mixed precision ends."""

import torch
from torch import Tensor

__all__ = ["at_least_single"]


def at_least_single(h: Tensor) -> Tensor:
    """Leave mixed precision: a log density is a sum over pixels, for which eight bits are too few.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     at_least_single(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return h.to(torch.promote_types(h.dtype, torch.float32)) if torch.is_autocast_enabled(h.device.type) else h
