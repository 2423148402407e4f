"""Numbers that people give, looked at where they are given."""

from numbers import Integral
from typing import Any, get_args, get_type_hints

__all__ = ["check_fields", "check_kind", "positive", "whole", "whole_seed"]


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


LARGEST = 10**12
KINDS = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}


def check_fields(record: Any) -> None:
    """Look at the fields of a dataclass whose hints are texts, numbers and truth values, or these and None.

    Raises:
        TypeError, ValueError: as `check_kind`.

    Example:
        >>> from dataclasses import make_dataclass
        >>> check_fields(make_dataclass("Settings", [("epochs", int)])("many"))
        Traceback (most recent call last):
        ...
        TypeError: epochs: expected a whole number, found 'many'
    """
    for name, hint in get_type_hints(type(record)).items():
        check_kind(name, getattr(record, name), get_args(hint) or (hint,))


def check_kind(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    """Raise if a value is of none of these kinds; a whole number is a number, a truth value is none.

    Raises:
        TypeError: likewise.
        ValueError: it is a number that cannot be meant.

    Example:
        >>> check_kind("epochs", True, (int,))
        Traceback (most recent call last):
        ...
        TypeError: epochs: expected a whole number, found True
    """
    allowed = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
        expected = next(words for kind, words in KINDS.items() if kind in kinds)
        raise TypeError(f"{name}: expected {expected}, found {value!r:.60}")
    if isinstance(value, int) and abs(value) > LARGEST:  # it may be too long to be written
        raise ValueError(f"{name}: expected a number of at most {LARGEST:,}, found a larger one")


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
