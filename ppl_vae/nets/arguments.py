"""Arguments of networks, heads and priors, looked at where they are made."""

from numbers import Integral

__all__ = ["positive", "size"]


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


def size(name: str, value: int) -> int:
    """Return a number of dimensions, components or codes if it is a whole number of at least 1.

    Args:
        name: what the message calls it.
        value: the number.

    Raises:
        ValueError: it is not.

    Example:
        >>> size("z_dim", 0)
        Traceback (most recent call last):
        ...
        ValueError: z_dim: expected a whole number of at least 1, found 0
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, found {value!r}")
    return int(value)
