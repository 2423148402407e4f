"""Load a data set by name, with a fixed split, binarized as asked."""

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data import files
from ppl_vae.data.splits import Info, Splits

__all__ = ["binarized", "describe", "load", "names"]

Images = dict[str, Tensor]  # split name to (N, height, width), values in [0, 1]
Labels = dict[str, Tensor]


def load(name: str, root: str | Path | None = None, binarize: str | None = None, seed: int = 0) -> Splits:
    """Load a data set.

    `describe` tells of each its splits (train / valid / test, always the same rows) and its origin.

    Args:
        name: one of `names`.
        root: folder of the data; the environment variable ``PPL_VAE_DATA`` when left out, and
            ``~/.cache/ppl_vae`` without it.
        binarize: None leaves the set as published (grey values in [0, 1]; binary for
            ``static_mnist``). ``"threshold"``: 1 above one half. ``"static"``: each pixel drawn once
            with its grey value as probability. ``"dynamic"``: the same, but drawn anew for every
            training batch by `ppl_vae.fit`; valid and test are drawn once.
        seed: seeds the draws of valid and test, and of train where they are static.

    Returns:
        `Splits`: float32 tensors ``(N, height * width)``, and what is known about them.

    Raises:
        ValueError: unknown name or binarization, or a file with a wrong checksum.
        FileNotFoundError: a file is not under the root and could not be downloaded; the message says which and whence.

    Reference: static binarization of MNIST: R. Salakhutdinov, I. Murray, "On the Quantitative
    Analysis of Deep Belief Networks", ICML 2008; H. Larochelle, I. Murray, "The Neural
    Autoregressive Distribution Estimator", AISTATS 2011. Dynamic: Y. Burda, R. Grosse, R.
    Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, https://arxiv.org/abs/1509.00519.

    Example:
        >>> digits = pv.data.load("digits", binarize="static")
        >>> digits.test.shape, digits.info.shape, digits.info.binarization
        (torch.Size([360, 64]), (8, 8), 'static')
    """
    if name not in _SETS:
        raise ValueError(f"data set: unknown name {name!r}; there are {', '.join(names())}")
    folder = Path(root or os.environ.get("PPL_VAE_DATA") or Path.home() / ".cache" / "ppl_vae").expanduser()
    images, labels, published, source = _SETS[name].load(folder)
    height, width = images["train"].shape[1:]
    flat = {split: x.reshape(len(x), -1).float() for split, x in images.items()}
    info = Info(name, published, (height, width), labels, source, ink=name != "frey_faces")
    return binarized(Splits(**flat, info=info), binarize, seed)


def binarized(splits: Splits, how: str | None, seed: int = 0) -> Splits:
    """Return a data set binarized, as `load` does it.

    Args:
        splits: a data set as published.
        how: None, ``"threshold"``, ``"static"`` or ``"dynamic"`` (see `load`).
        seed: seeds the draws.

    Raises:
        ValueError: unknown binarization, or a set that is binary already.

    Example:
        >>> binarized(pv.data.load("digits"), "threshold").train.unique()
        tensor([0., 1.])
    """
    published = splits.info.binarization
    if how is None or how == published:
        return splits
    known = ("threshold", "static", "dynamic")
    if how not in known:
        raise ValueError(f"binarize: expected {', '.join(known)} or nothing, found {how!r}")
    if published != "grey":
        raise ValueError(f"binarize: {splits.info.name} is binary already ({published}); load it without")
    parts = _drawn({"train": splits.train, "valid": splits.valid, "test": splits.test}, how, seed)
    return Splits(**parts, info=replace(splits.info, binarization=how))


def names() -> list[str]:
    """Return the names that `load` knows.

    Example:
        >>> names()[0]
        'digits'
    """
    return list(_SETS)


def describe(name: str) -> str:
    """Return a line about a data set: its splits, and where it comes from.

    Example:
        >>> describe("digits")
        '1,257 / 180 / 360 images of 8 x 8, from scikit-learn; no download'
    """
    return _SETS[name].summary


def _drawn(x: Images, how: str, seed: int) -> Images:
    if how == "threshold":
        return {split: (values > 0.5).float() for split, values in x.items()}
    generator = torch.Generator().manual_seed(seed)
    # Test and valid are drawn first, so that they are the same under static and dynamic.
    drawn = {split: torch.bernoulli(x[split], generator=generator) for split in ("test", "valid")}
    train = x["train"] if how == "dynamic" else torch.bernoulli(x["train"], generator=generator)
    return {"train": train, "valid": drawn["valid"], "test": drawn["test"]}


Loaded = tuple[Images, Labels, str, str]


def _digits(root: Path) -> Loaded:
    # As sklearn.datasets.load_digits reads it; to import that takes a second.
    package = Path(find_spec("sklearn").origin).parent
    table = torch.as_tensor(np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", delimiter=","))
    x, y = table[:, :-1].reshape(-1, 8, 8) / 16, table[:, -1].long()
    # Every tenth row, since the rows run writer by writer.
    tenth = torch.arange(len(x)) % 10
    rows = {"train": tenth > 2, "valid": tenth == 2, "test": tenth < 2}
    parts = {split: x[chosen] for split, chosen in rows.items()}
    return parts, {split: y[chosen] for split, chosen in rows.items()}, "grey", "scikit-learn load_digits (UCI)"


def _as_mnist(folder: str, origin: str) -> Callable[[Path], Loaded]:
    def load_set(root: Path) -> Loaded:
        images, y, test_images, test_y = files.digits_or_clothes(root, folder)
        cut = {"train": images[:50_000], "valid": images[50_000:], "test": test_images}
        labels = {"train": y[:50_000], "valid": y[50_000:], "test": test_y}
        return {split: x / 255 for split, x in cut.items()}, labels, "grey", origin

    return load_set


def _static_mnist(root: Path) -> Loaded:
    parts = files.static_mnist(root)
    return (
        {split: x.reshape(-1, 28, 28) for split, x in parts.items()},
        {},
        "fixed",
        f"H. Larochelle, {files.STATIC_MNIST_SOURCE}",
    )


def _omniglot(root: Path) -> Loaded:
    arrays = files.arrays(root, "omniglot28_area.npz")
    x, drawer = torch.as_tensor(arrays["images"]) / 255, torch.as_tensor(arrays["drawer"])
    y = torch.as_tensor(arrays["character"].astype("int64"))
    rows = {"train": drawer < 14, "valid": drawer == 14, "test": drawer > 14}
    parts = {split: x[chosen] for split, chosen in rows.items()}
    return parts, {split: y[chosen] for split, chosen in rows.items()}, "grey", "Lake et al. 2015, 28 x 28 by area"


def _frey_faces(root: Path) -> Loaded:
    x = torch.as_tensor(files.arrays(root, "frey_faces.npz")["images"]) / 255
    # In order of time: neighbouring frames are nearly alike, and a random split would leak them.
    return {"train": x[:1565], "valid": x[1565:1765], "test": x[1765:]}, {}, "grey", "B. Frey, S. Roweis"


class _Set(NamedTuple):
    summary: str
    load: Callable[[Path], Loaded]


_SPLIT = "50,000 / 10,000 / 10,000 images of 28 x 28"

_SETS = {
    "digits": _Set("1,257 / 180 / 360 images of 8 x 8, from scikit-learn; no download", _digits),
    "mnist": _Set(f"{_SPLIT}, downloaded into the data root", _as_mnist("MNIST", files.MNIST_SOURCE)),
    "fashion_mnist": _Set(
        f"{_SPLIT}, of clothes, downloaded likewise", _as_mnist("FashionMNIST", files.FASHION_MNIST_SOURCE)
    ),
    "static_mnist": _Set(f"{_SPLIT}, binary as published, downloaded likewise", _static_mnist),
    # By area averaging, so not the chardata.mat on which likelihoods were published.
    "omniglot": _Set(
        "22,722 / 1,623 / 8,115 images of 28 x 28, not the IWAE paper's, split by drawer, from the data root",
        _omniglot,
    ),
    "frey_faces": _Set("1,565 / 200 / 200 images of 28 x 20, in order of time, from the data root", _frey_faces),
}
