"""Numbers that people give, looked at where they are given."""

from numbers import Integral
from typing import Any

__all__ = ["positive", "whole", "whole_seed"]


def positive(name: str, value: float) -> float:
    """Return a number if it is positive and finite.

    Args:
        name: what the message calls it.
        value: the number.

    Raises:
        ValueError: it is not.

    Example:
        >>> positive("scale", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: scale: expected a positive number, found -1.0
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a positive number, found {value!r}")
    return float(value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a number of things if it is a whole number, and not too small.

    Args:
        name: what the message calls it.
        value: the number.
        least: the smallest that may be.

    Raises:
        ValueError: it is not.

    Example:
        >>> whole("z_dim", 0)
        Traceback (most recent call last):
        ...
        ValueError: z_dim: expected a whole number of at least 1, found 0
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, found {value!r}")
    return value


def whole_seed(seed: Any) -> int:
    """Return a seed if it is a whole number of 64 bits.

    Args:
        seed: the number.

    Raises:
        ValueError: it is not.

    Example:
        >>> whole_seed(2**70)
        Traceback (most recent call last):
        ...
        ValueError: seed: expected a whole number of 64 bits, found 1180591620717411303424
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed: expected a whole number of 64 bits, found {seed!r}")
    return seed
