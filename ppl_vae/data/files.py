"""Files under the data root, with their checksums."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SHA256", "STATIC_MNIST_SOURCE", "arrays", "static_mnist"]

STATIC_MNIST_SOURCE = "H. Larochelle, http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"

SHA256 = {
    "static_binarized_mnist.npz": "50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5",
    "omniglot28_area.npz": "20ccba886a246c983c0dad98b6333b75a501a5c13c01a7ec5b120d91be3090fe",
    "frey_faces.npz": "3c70375e0a9c4751ad49ad5f1f692bd094c46f133cf4aa8ea77d1cb14e1efcd1",
    "binarized_mnist_train.amat": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "binarized_mnist_valid.amat": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "binarized_mnist_test.amat": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}

CONTENTS = {
    "static_binarized_mnist.npz": "arrays train, valid, test: the pixels of the .amat files, eight to a byte",
    "omniglot28_area.npz": "arrays images (32460, 28, 28), drawer, character: Omniglot reduced by area averaging",
    "frey_faces.npz": "array images (1965, 28, 20)",
}


def verified(root: Path, name: str) -> Path:
    """Return the path of a file under the root after comparing its checksum.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: its SHA-256 differs.
    """
    path = root / name
    if not path.exists():
        raise FileNotFoundError(
            f"root: {path} does not exist; put the file there ({CONTENTS.get(name, name)}; SHA-256 {SHA256[name]}), "
            "or point PPL_VAE_DATA or root= to the folder that has it"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256[name]:
        raise ValueError(f"root: {path} has SHA-256 {found}, expected {SHA256[name]}; replace the file")
    return path


def arrays(root: Path, name: str) -> dict[str, Any]:
    """Return the arrays of a verified ``.npz`` file; pickled objects are refused."""
    with np.load(verified(root, name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def static_mnist(root: Path) -> dict[str, Tensor]:
    """Return the fixed binarization of MNIST by split, ``(N, 784)``, from either form of its files."""
    text = {split: f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")}
    if all((root / name).exists() for name in text.values()):
        rows = {split: np.loadtxt(verified(root, name), dtype=np.uint8) for split, name in text.items()}
        return {split: torch.as_tensor(x) for split, x in rows.items()}
    if not (root / "static_binarized_mnist.npz").exists():
        raise FileNotFoundError(
            f"root: {root} holds neither static_binarized_mnist.npz nor {', '.join(text.values())}; download the "
            f"three .amat files from {STATIC_MNIST_SOURCE}/ into it, or point PPL_VAE_DATA or root= elsewhere"
        )
    packed = arrays(root, "static_binarized_mnist.npz")
    return {split: torch.as_tensor(np.unpackbits(packed[split], axis=1)) for split in text}
