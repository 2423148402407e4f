"""Options of bounds and estimators, looked at before they are used."""

from collections.abc import Callable
from math import isnan
from numbers import Real
from typing import Any

from torch import Tensor

from ppl_vae.arguments import whole

__all__ = ["checked", "finite", "positive", "whole"]


def checked(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> Any:
    """Return an option if it is a number of which something holds.

    A tensor is returned as it is: schedules give them, and to look at one would wait for the device.

    Raises:
        TypeError: it is no number.
        ValueError: it does not hold; ``nan`` never does.

    Example:
        >>> checked("beta", 1.5, "a weight from 0 to 1", lambda b: 0 <= b <= 1)
        Traceback (most recent call last):
        ...
        ValueError: beta: expected a weight from 0 to 1, found 1.5
    """
    if isinstance(value, Tensor):
        return value
    message = f"{name}: expected {expected}, found {value!r}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message)
    if isnan(value) or not holds(value):
        raise ValueError(message)
    return value


def finite(value: float) -> bool:
    """Tell whether a number is finite.

    Example:
        >>> finite(1.0), finite(float("inf"))
        (True, False)
    """
    return abs(value) < float("inf")


def positive(value: float) -> bool:
    """Tell whether a number is finite and above zero.

    Example:
        >>> positive(1.0), positive(0.0)
        (True, False)
    """
    return 0 < value < float("inf")
