"""Data sets: fixed splits, binarization as named, checksums."""

import hashlib
import os

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import ppl_vae as pv
from ppl_vae.data import files

SIZES = {
    "digits": (1257, 180, 360, (8, 8)),
    "mnist": (50_000, 10_000, 10_000, (28, 28)),
    "fashion_mnist": (50_000, 10_000, 10_000, (28, 28)),
    "static_mnist": (50_000, 10_000, 10_000, (28, 28)),
    "omniglot": (22_722, 1_623, 8_115, (28, 28)),
    "frey_faces": (1_565, 200, 200, (28, 20)),
}
HERE = ["digits", *(SIZES if os.environ.get("PPL_VAE_DATA") else [])]


@pytest.mark.parametrize("name", dict.fromkeys(HERE))
def test_sets_have_their_sizes_and_values(name):
    splits = pv.data.load(name)
    *sizes, shape = SIZES[name]
    assert [len(x) for x in splits[:3]] == sizes
    assert splits.info.shape == shape
    for x in splits[:3]:
        assert x.shape[1] == shape[0] * shape[1]
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert x.max() <= 1
    for split, labels in splits.info.labels.items():
        assert len(labels) == len(getattr(splits, split))
    assert splits.info.binarization == ("fixed" if name == "static_mnist" else "grey")
    assert "{:,} / {:,} / {:,}".format(*sizes) in pv.data.describe(name)


def test_every_set_is_tested():
    assert set(SIZES) == set(pv.data.names())


def test_digits_are_those_of_scikit_learn():
    known, rows = load_digits(), torch.arange(1797) % 10
    read = pv.data.load("digits")
    for split, chosen in (("train", rows > 2), ("valid", rows == 2), ("test", rows < 2)):
        images = torch.as_tensor(known.data / 16, dtype=torch.float32)
        assert torch.equal(getattr(read, split), images[chosen])
        assert torch.equal(read.info.labels[split], torch.as_tensor(known.target)[chosen])


def test_digits_are_split_without_overlap_and_always_alike():
    first, again = pv.data.load("digits"), pv.data.load("digits")
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    rows = [tuple(row) for x in first[:3] for row in x.tolist()]
    assert len(set(rows)) == len(rows) == 1797


def test_static_binarization_is_drawn_once_by_the_seed():
    static, again, other = (pv.data.load("digits", binarize="static", seed=s) for s in (0, 0, 1))
    for a, b, c in zip(static[:3], again[:3], other[:3], strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert set(a.unique().tolist()) == {0.0, 1.0}
    assert static.info.transform is None


def test_dynamic_binarization_keeps_training_probabilities_and_the_static_test_set():
    dynamic, static = (pv.data.load("digits", binarize=how) for how in ("dynamic", "static"))
    assert torch.equal(dynamic.train, pv.data.load("digits").train)
    assert torch.equal(dynamic.test, static.test)
    assert torch.equal(dynamic.valid, static.valid)
    assert dynamic.info.transform is pv.data.binarize


def test_binarized_pixels_have_their_grey_value_as_mean():
    grey, static = pv.data.load("digits"), pv.data.load("digits", binarize="static")
    n = grey.train.numel()
    error = (grey.train * (1 - grey.train)).sum().sqrt() / n
    assert abs(static.train.mean() - grey.train.mean()) < 5 * error


def test_threshold_cuts_at_one_half():
    grey, cut = pv.data.load("digits"), pv.data.load("digits", binarize="threshold")
    assert torch.equal(cut.train, (grey.train > 0.5).float())


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="data set: unknown name 'cifar'; there are digits, mnist"):
        pv.data.load("cifar")
    with pytest.raises(ValueError, match="binarize: expected threshold, static, dynamic or nothing, found 'yes'"):
        pv.data.load("digits", binarize="yes")


@pytest.mark.parametrize("name", ["omniglot", "frey_faces"])
def test_a_missing_file_says_which_and_where(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"root: {tmp_path}.*npz.*PPL_VAE_DATA or.*root="):
        pv.data.load(name, root=tmp_path)


def test_a_wrong_checksum_is_refused(tmp_path):
    np.savez(tmp_path / "frey_faces.npz", images=np.zeros((1965, 28, 20), np.uint8))
    with pytest.raises(ValueError, match=r"has SHA-256 .*, expected 3c70375e"):
        pv.data.load("frey_faces", root=tmp_path)


def made(monkeypatch, tmp_path, name, **arrays):
    """Write a small file and take its checksum for the right one."""
    np.savez(tmp_path / name, **arrays)
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setitem(files.SHA256, name, digest)


def test_frey_faces_are_split_in_order_of_time(monkeypatch, tmp_path):
    frames = np.arange(1965) % 256
    images = np.broadcast_to(frames[:, None, None], (1965, 28, 20)).astype(np.uint8)
    made(monkeypatch, tmp_path, "frey_faces.npz", images=images)
    faces = pv.data.load("frey_faces", root=tmp_path)
    stacked = torch.cat(faces[:3])[:, 0] * 255
    torch.testing.assert_close(stacked, torch.as_tensor(frames).float())


def test_omniglot_is_split_by_drawer(monkeypatch, tmp_path):
    drawer = np.arange(40, dtype=np.uint8) % 20
    images = np.broadcast_to(drawer[:, None, None], (40, 28, 28)).astype(np.uint8)
    made(monkeypatch, tmp_path, "omniglot28_area.npz", images=images, drawer=drawer, character=np.arange(40))
    omniglot = pv.data.load("omniglot", root=tmp_path)
    assert [sorted(set((x[:, 0] * 255).round().int().tolist())) for x in omniglot[:3]] == [
        list(range(14)),
        [14],
        list(range(15, 20)),
    ]


def test_static_mnist_reads_both_forms_of_its_files(monkeypatch, tmp_path):
    bits = {s: np.random.default_rng(i).integers(0, 2, (3, 784)) for i, s in enumerate(("train", "valid", "test"))}
    packed = {s: np.packbits(x.astype(np.uint8), axis=1) for s, x in bits.items()}
    made(monkeypatch, tmp_path, "static_binarized_mnist.npz", **packed)
    from_npz = pv.data.load("static_mnist", root=tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    for split, x in bits.items():
        name = f"binarized_mnist_{split}.amat"
        np.savetxt(text / name, x, fmt="%d")
        monkeypatch.setitem(files.SHA256, name, hashlib.sha256((text / name).read_bytes()).hexdigest())
    from_text = pv.data.load("static_mnist", root=text)
    for split, x in bits.items():
        assert torch.equal(getattr(from_npz, split), torch.as_tensor(x).float())
        assert torch.equal(getattr(from_text, split), torch.as_tensor(x).float())
    with pytest.raises(ValueError, match="binary already"):
        pv.data.load("static_mnist", root=tmp_path, binarize="dynamic")


def test_the_environment_names_the_root(monkeypatch, tmp_path):
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        pv.data.load("frey_faces")
