"""Every model with every guide that fits it, as the library finds them, and what tests ask of them besides."""

from collections import Counter
from collections.abc import Hashable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import zoo
from ppl_vae.pairing import SMALL, Names, Pair, fits, make, names, variants, with_global_latents

__all__ = ["AT_LEAST", "SMALL", "Pair", "fits", "make", "names", "variants", "with_global_latents"]

ROOT = Path(__file__).parents[1]

# A smaller number means that discovery, not the library, has shrunk.
AT_LEAST = 50


def part(batch: Tensor | tuple[Tensor, ...], rows: slice) -> Tensor | tuple[Tensor, ...]:
    """Return some rows of a batch."""
    return batch[rows] if torch.is_tensor(batch) else tuple(tensor[rows] for tensor in batch)


@cache
def kind(*names: str) -> Hashable:
    """Return what the library tells pairs apart by: the ways in which latents are drawn, one or several by each."""
    pair = make(*names)
    drawn = pv.weigh(pair.model, pair.guide, pair.data())
    ways = ["enumerated" if z in drawn.enumerated else "scored" if z in drawn.score else "path" for z in drawn.values]
    found = Counter(ways + ["summed"] * len(drawn.summed))
    return frozenset((way, min(count, 2)) for way, count in found.items())


def without_density() -> set[str]:
    """Return the names of the guides that are not to be weighed, and say so."""
    return {name for name in zoo.discover("guides") if _refused(name)}


def _refused(guide: str) -> bool:
    try:
        pair = make("vae", guide)
        pv.weigh(pair.model, pair.guide, pair.data())
    except pv.ContractError as error:
        return "density is not known" in str(error)
    except (TypeError, ValueError):
        return False
    return False


def one_of_each_kind() -> list[Names]:
    """Return the names of a pair of every kind that there is, with a guide to train if one has it, best a plain one."""
    last = sorted(names(), key=lambda pair: (any(True for _ in make(*pair).guide.parameters()), pair[1] == "normal"))
    return list({kind(*pair): pair for pair in last}.values())


@cache
def with_every_program() -> list[Names]:
    """Return the names of few pairs in which every model and every guide is that is in any pair."""
    everything, chosen = names(), []
    for pair in sorted(everything, key=lambda pair: pair[0] != "vae"):
        models, guides = ({found[i] for found in chosen} for i in (0, 1))
        if pair[0] not in models or pair[1] not in guides:
            chosen.append(pair)
    return chosen


def files(kind: str) -> set[str]:
    """Return the names of the program files of a kind, read from the tree."""
    return {path.stem for path in (ROOT / kind).glob("*.py")} - {"__init__"}


def digits_vae() -> tuple[nn.Module, nn.Module]:
    """Return an untrained VAE and guide for the 8 x 8 digits."""
    torch.manual_seed(0)
    sizes = {"x_dim": 64, "z_dim": 4, "hidden": (32,)}
    return zoo.find("models", "vae")(**sizes), zoo.find("guides", "normal")(**sizes)
