"""Files of tensors: written whole or not at all, read only if nothing in them has changed."""

import errno
import hashlib
import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from ppl_vae import archive, runs

X = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
CONTENT = {"state": {"weights": X, "epoch": 3}, "best": {"bound": -1.5}}


@pytest.fixture
def file(tmp_path):
    archive.write(tmp_path / "some.pt", "example", 2, CONTENT)
    return tmp_path / "some.pt"


def claiming(payload, kind="example", version=2):
    """Return bytes with a correct checksum, as anybody can compute it."""
    facts = archive.FACTS.format(kind=kind, version=version).encode()
    return archive.MAGIC + hashlib.sha256(facts + payload).hexdigest().encode() + facts + payload


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


READABLE = {
    "nothing": None,
    "numbers": [True, -(2**1999), 1.5, float("inf"), 1 + 2j],
    "words": ["", "é\ud800\n"],
    "containers": [(), (1,), {1, 2}, set(), OrderedDict(b=1, a=2), {1: 0, (1, "a"): 1, None: 2, 1.5: 3}],
    "torch's own": [torch.Size([1, 2]), torch.device("cuda:1"), torch.bool, torch.bfloat16],
}
TENSORS = {
    **{
        str(kind): torch.ones(2).to(kind) for kind in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint16)
    },
    **{str(kind): torch.ones(2).to(kind) for kind in (torch.bool, torch.int32, torch.uint8, torch.complex64)},
    "parameter": nn.Parameter(X),
    "frozen parameter": nn.Parameter(X, requires_grad=False),
    "with a gradient": X.clone().requires_grad_(),
    "in the graph": X.clone().requires_grad_() * 2,
    "transposed": X.T,
    "part": X[1:, ::2],
    "expanded": torch.zeros(1).expand(5),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "conjugate": torch.tensor([1 + 2j]).conj(),
    "coo": X.to_sparse(),
    "csr": X.to_sparse_csr(),
    "bsr": X.to_sparse_bsr((1, 2)),
}


@pytest.mark.parametrize("content", READABLE.values(), ids=READABLE)
def test_values_come_back_as_they_were(content, tmp_path):
    archive.write(tmp_path / "f", "example", 1, content)
    back = archive.read(tmp_path / "f", "example", 1)
    assert back == content
    assert repr(back) == repr(content)


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_tensors_come_back_as_they_were(tensor, tmp_path):
    archive.write(tmp_path / "f", "example", 1, [tensor])
    (back,) = archive.read(tmp_path / "f", "example", 1)
    assert (type(back), back.dtype, back.layout) == (type(tensor), tensor.dtype, tensor.layout)
    assert torch.equal(back.to_dense().to(torch.complex128), tensor.to_dense().to(torch.complex128))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_a_gpu_come_back_on_the_cpu(tmp_path):
    archive.write(tmp_path / "f", "example", 1, {"dense": X.cuda(), "sparse": X.cuda().to_sparse()})
    back = archive.read(tmp_path / "f", "example", 1)
    assert all(t.device.type == "cpu" and torch.equal(t.to_dense(), X) for t in back.values())


def test_tensors_that_share_memory_share_it_again(tmp_path):
    archive.write(tmp_path / "f", "example", 1, {"all": X, "row": X[0]})
    back = archive.read(tmp_path / "f", "example", 1)
    back["all"].fill_(7.0)
    assert (back["row"] == 7.0).all()


class Number(float):
    pass


def attributed():
    tensor = torch.zeros(1)
    tensor.note = "mine"
    return tensor


def nested(depth):
    content = 0
    for _ in range(depth):
        content = [content]
    return content


WRONG = {
    "a function": ({"state": {"groups": [{"lr": len}]}}, r"state/groups/0/lr is a builtins\.builtin_function"),
    "NumPy's float": ({"lr": [np.float64(1.0)]}, r"lr/0 is a numpy\.float64"),
    "an array": ({"state": (1, np.zeros(2))}, r"state/1 is a numpy\.ndarray"),
    "a kind of float": ([Number(1.0)], r"0 is a .*Number"),
    "a named tuple": ({"p": namedtuple("Point", "x")(1)}, r"p is a .*Point"),
    "a counter": ({"c": Counter("a")}, r"c is a collections\.Counter"),
    "bytes": ({"b": b"x"}, r"b is a builtins\.bytes"),
    "a key": ({"a": {len: 1}}, r"a/key .*is a builtins\.builtin_function"),
    "a module": (nn.Linear(1, 1), r"all of it is a torch\.nn\.modules\.linear\.Linear"),
    "a meta tensor": ({"m": torch.zeros(2, device="meta")}, r"m is a tensor on the device meta"),
    "a tensor's note": ({"t": attributed()}, r"t is a tensor with attributes of its own \(note\).*detach"),
    "a large integer": ({"n": 2**5000}, r"n is an integer of more than 2000 bits"),
    "lists in lists": ({"d": nested(5000)}, r"d/0/0.* is nested more than 100 deep"),
    "one number, often": ({"z": torch.zeros(1).expand(2**40)}, r"z repeats few numbers to \d+ bytes.*contiguous"),
    "a nested tensor": ({"n": torch.nested.nested_tensor([X, X[1:]])}, r"n is a nested or quantised tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_could_not_be_read_again_is_refused_before_it_replaces_a_good_file(case, file):
    content, message = WRONG[case]
    before = file.read_bytes()
    with pytest.raises(TypeError, match=rf"content: {message}"):
        archive.write(file, "example", 2, content)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_kinds_and_versions_are_words_and_numbers_of_a_fixed_length(tmp_path):
    for kind, version in (("Example", 1), ("a" * 25, 1), ("", 1), ("a b", 1), ("ok", 10**6), ("ok", -1)):
        with pytest.raises(ValueError, match="kind, version: expected at most 24 small letters"):
            archive.write(tmp_path / "f", kind, version, 0)
    assert not list(tmp_path.iterdir())


def test_every_cut_is_found(file):
    whole = file.read_bytes()
    for length in {*range(1, 200), *range(200, len(whole), 97), len(whole) - 1}:
        file.write_bytes(whole[:length])
        with pytest.raises(archive.UnreadableFile, match=r"some\.pt: (cut off within its first line|damaged)"):
            archive.read(file, "example", 2)


def test_every_changed_bit_is_found(file):
    whole = bytearray(file.read_bytes())
    for place in {*range(200), *range(200, len(whole), 31)}:
        whole[place] ^= 1 << place % 8
        file.write_bytes(whole)
        with pytest.raises(archive.UnreadableFile, match=r"damaged|not a file of this library"):
            archive.read(file, "example", 2)
        whole[place] ^= 1 << place % 8


def test_bytes_after_the_end_are_found(file):
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(archive.UnreadableFile, match="damaged"):
        archive.read(file, "example", 2)


FOREIGN = {
    "empty": (b"", "it is empty"),
    "of torch": (saved(CONTENT), "a zip archive, as torch.save alone and earlier versions of this library write"),
    "pickle": (pickle.dumps(CONTENT), "a pickle"),
    "safetensors": (b"\x02\0\0\0\0\0\0\0{}", r"it begins with b'\\x02"),
    "text": (b"not a checkpoint", "it begins with b'not a checkpoint'"),
    "long line": (b"a" * 10**6, "it begins with b'aaaaaaaaaaaaaaaa'"),
    "no facts": (claiming(b"").replace(b"; kind", b"; Kind"), "damaged"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_of_others_are_told_apart(case, tmp_path):
    content, message = FOREIGN[case]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(archive.UnreadableFile, match=rf"f: .*{message}"):
        archive.read(tmp_path / "f", "example", 1)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        archive.read(tmp_path / "none", "example", 1)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(archive.UnreadableFile, match="a folder or a device"):
            archive.read(path, "example", 1)


def test_other_kinds_and_versions_say_what_to_do(file):
    for kind, version, message in (
        ("other", 2, "a file of another kind, example; give one of kind other"),
        ("example", 1, "of version 2, newer than 1, which this library reads; update it"),
        ("example", 3, "of version 2, older than 3, which this library reads; make it anew"),
    ):
        with pytest.raises(archive.UnreadableFile, match=message):
            archive.read(file, kind, version)


def test_a_right_checksum_over_something_else_is_not_trusted(tmp_path):
    facts = b"x" * len(archive.FACTS.format(kind="", version=0))
    line = archive.MAGIC + hashlib.sha256(facts).hexdigest().encode() + facts
    for content in (line, claiming(b"", "example", 2), claiming(b"PK\x03\x04"), claiming(pickle.dumps(CONTENT))):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(archive.UnreadableFile, match="f: not made by this library, though it says so"):
            archive.read(tmp_path / "f", "example", 2)


def rewritten(change):
    """Return what torch saves with its entries changed by ``change(name, bytes)``, which gives the new ones."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(CONTENT))) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            for entry, content, how in change(name, old.read(name)):
                new.writestr(entry, content, how)
    return out.getvalue()


FORGED = {
    "as it was": (lambda n, c: [(n, c, zipfile.ZIP_STORED)], None),
    "compressed": (lambda n, c: [(n, c, zipfile.ZIP_DEFLATED)], "entries that expand"),
    "outside": (lambda n, c: [("../" + n, c, zipfile.ZIP_STORED)], "names of entries that leave"),
    "at the root": (lambda n, c: [("/" + n, c, zipfile.ZIP_STORED)], "names of entries that leave"),
    "another call": (lambda n, c: [(n, c.replace(b"OrderedDict", b"Counter"), zipfile.ZIP_STORED)], "a call of coll"),
}


@pytest.mark.parametrize("case", FORGED)
def test_entries_are_looked_at_before_they_are_loaded(case, tmp_path):
    change, message = FORGED[case]
    (tmp_path / "f").write_bytes(claiming(rewritten(change)))
    if message is None:
        assert torch.equal(archive.read(tmp_path / "f", "example", 2)["state"]["weights"], X)
        return
    with pytest.raises(archive.UnreadableFile, match=message):
        archive.read(tmp_path / "f", "example", 2)


@pytest.mark.parametrize("content", [{"x": bytearray(3)}, {"x": Counter("a")}], ids=repr)
def test_what_torch_would_load_and_write_refuses_is_not_read_either(content, tmp_path):
    (tmp_path / "f").write_bytes(claiming(saved(content)))
    with pytest.raises(archive.UnreadableFile, match="not made by this library"):
        archive.read(tmp_path / "f", "example", 2)


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_an_error_leaves_the_earlier_file_and_no_other(failing, file, monkeypatch):
    before = file.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        with pytest.raises(OSError, match="No space"):
            archive.write_atomically(file, lambda part: (part.write(b"half"), fail()))
    else:
        monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (type(file), "replace")), fail)
        with pytest.raises(OSError, match="No space"):
            archive.write(file, "example", 2, CONTENT)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    path, done, fsync, replace = tmp_path / "f", [], os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda d: (done.append(os.readlink(f"/proc/self/fd/{d}")), fsync(d)))
    monkeypatch.setattr(type(path), "replace", lambda a, b: (done.append("renamed"), replace(a, b))[1])
    archive.write(path, "example", 1, CONTENT)
    assert len(done) == 3
    assert done[0].endswith(".part")
    assert done[1:] == ["renamed", str(tmp_path)]


def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_alone(descriptor):
        if os.path.isdir(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    archive.write(tmp_path / "f", "example", 1, CONTENT)
    assert archive.read(tmp_path / "f", "example", 1)["best"] == CONTENT["best"]


def test_links_are_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "f").symlink_to(tmp_path / "mine")
    archive.write(tmp_path / "f", "example", 1, CONTENT)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "f").is_symlink()


def test_files_have_the_permissions_of_other_files(file, tmp_path):
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_run_folders_write_by_the_same_function():
    assert runs.write_atomically is archive.write_atomically


def test_what_would_fill_memory_when_it_is_read_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(claiming(saved({"state": {"weights": torch.zeros(1).expand(2**40)}})))
    with pytest.raises(
        archive.UnreadableFile, match=r"though it says so: state/weights repeats few numbers to 4398046511104"
    ):
        archive.read(tmp_path / "f", "example", 2)
