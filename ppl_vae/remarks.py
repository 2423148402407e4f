"""Warnings that point to the line of a person's program that led to them."""

import sys
import warnings
from contextlib import __file__ as stdlib
from pathlib import Path

import pyro
import torch

__all__ = ["WITHIN", "remark"]

# Folders of code that is not a person's.
WITHIN = tuple(str(Path(file).parent) for file in (torch.__file__, pyro.__file__, stdlib, __file__))


def remark(text: str) -> None:
    """Warn, from the first line on the way here that belongs neither to this library nor to torch, Pyro or Python.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     remark("compile: ...")
        >>> str(caught[0].message), caught[0].filename.endswith("remarks.py")
        ('compile: ...', False)
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(WITHIN):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
