"""Arguments of networks, heads and priors, looked at where they are made."""

__all__ = ["positive"]


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
