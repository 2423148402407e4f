"""Files under the data root, with their checksums."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.downloads import download

__all__ = ["SHA256", "STATIC_MNIST_SOURCE", "arrays", "digits_or_clothes", "static_mnist"]

STATIC_MNIST_SOURCE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"

MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist"
FASHION_MNIST_SOURCE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"

SHA256 = {
    "static_binarized_mnist.npz": "50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5",
    "omniglot28_area.npz": "20ccba886a246c983c0dad98b6333b75a501a5c13c01a7ec5b120d91be3090fe",
    "frey_faces.npz": "3c70375e0a9c4751ad49ad5f1f692bd094c46f133cf4aa8ea77d1cb14e1efcd1",
    "binarized_mnist_train.amat": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "binarized_mnist_valid.amat": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "binarized_mnist_test.amat": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "MNIST/raw/train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "MNIST/raw/train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "MNIST/raw/t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "FashionMNIST/raw/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "FashionMNIST/raw/train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "FashionMNIST/raw/train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}

# Where files with a checksum above are published.
SOURCES = {
    **{f"binarized_mnist_{split}.amat": STATIC_MNIST_SOURCE for split in ("train", "valid", "test")},
    **{name: MNIST_SOURCE for name in SHA256 if name.startswith("MNIST/") and name.endswith(".gz")},
    **{name: FASHION_MNIST_SOURCE for name in SHA256 if name.startswith("FashionMNIST/") and name.endswith(".gz")},
}

ELSEWHERE = "or point PPL_VAE_DATA or root= to the folder that has it"
CONTENTS = {
    "omniglot28_area.npz": "arrays images (32460, 28, 28), drawer, character: Omniglot reduced by area averaging",
    "frey_faces.npz": "array images (1965, 28, 20)",
}


def verified(root: Path, name: str) -> Path:
    """Return the path of a file under the root after comparing its checksum; one that is published is downloaded.

    Raises:
        FileNotFoundError: it is not there, and could not be downloaded.
        ValueError: its SHA-256 differs.
    """
    path = root / name
    if not path.exists() and name in SOURCES:
        return _downloaded(path, name)
    if not path.exists():
        raise FileNotFoundError(
            f"root: {path} does not exist; put the file there ({CONTENTS[name]}; SHA-256 {SHA256[name]}), {ELSEWHERE}"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256[name]:
        again = (
            "remove it, so that it is made or downloaded again"
            if f"{name}.gz" in SOURCES or name in SOURCES
            else ("replace the file")
        )
        raise ValueError(
            f"root: {path} has SHA-256 {found}, expected {SHA256[name]}: it was cut off or changed; {again}"
        )
    return path


def _downloaded(path: Path, name: str) -> Path:
    try:
        return download(f"{SOURCES[name]}/{path.name}", path, SHA256[name])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"root: {error}, {ELSEWHERE}") from error


def arrays(root: Path, name: str) -> dict[str, Any]:
    """Return the arrays of a verified ``.npz`` file; pickled objects are refused."""
    with np.load(verified(root, name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def idx(root: Path, name: str, header: int) -> Tensor:
    """Return the bytes of a file of MNIST's form but for those of its header, from the plain file or the gzipped one.

    They lie where torchvision has them, which would take a plain file with changed bytes as it is.
    """
    if (root / name).exists():
        content = verified(root, name).read_bytes()
    else:
        content = gzip.decompress(verified(root, f"{name}.gz").read_bytes())
    return torch.tensor(np.frombuffer(content, np.uint8, offset=header))


def digits_or_clothes(root: Path, folder: str) -> tuple[Tensor, ...]:
    """Return images ``(N, 28, 28)`` and labels ``(N,)`` of the 60,000, and of the 10,000, under a folder."""
    found = []
    for part in ("train", "t10k"):
        found.append(idx(root, f"{folder}/raw/{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28))
        found.append(idx(root, f"{folder}/raw/{part}-labels-idx1-ubyte", 8).long())
    return tuple(found)


def static_mnist(root: Path) -> dict[str, Tensor]:
    """Return the fixed binarization of MNIST by split, ``(N, 784)``, from either form of its files."""
    text = {split: f"binarized_mnist_{split}.amat" for split in ("train", "valid", "test")}
    packed = "static_binarized_mnist.npz"
    if (root / packed).exists() and not all((root / name).exists() for name in text.values()):
        return {split: torch.as_tensor(np.unpackbits(x, axis=1)) for split, x in arrays(root, packed).items()}
    paths = {split: verified(root, name) for split, name in text.items()}
    return {split: torch.as_tensor(np.loadtxt(path, dtype=np.uint8)) for split, path in paths.items()}
