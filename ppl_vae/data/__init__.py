"""Data sets with fixed splits and binarization by name."""

from ppl_vae.data.loading import binarized, describe, load, names
from ppl_vae.data.splits import Info, Splits, binarize

__all__ = ["Info", "Splits", "binarize", "binarized", "describe", "load", "names"]
