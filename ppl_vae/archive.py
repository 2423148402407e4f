"""Files of tensors that can be trusted: written whole or not at all, checked before anything in them is loaded.

The first line, of fixed length, holds magic words, the SHA-256 of all bytes after it, what kind of file it is and of
which version; then comes what ``torch.save`` writes.
"""

import errno
import hashlib
import io
import os
import pickletools
import re
import secrets
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

__all__ = ["UnreadableFile", "read", "sync_folder", "write", "write_atomically"]

MAGIC = b"ppl_vae file, SHA-256 "
DIGEST = 64
# What the checksum covers begins here, so that a changed kind or version is seen as well.
FACTS = "; kind {kind:24}; version {version:6d}\n"
PATTERN = re.compile(rb"; kind ([a-z_]+) *; version  *(\d+)\n")
LENGTH = len(MAGIC) + DIGEST + len(FACTS.format(kind="", version=0))

# Of exactly these types, since torch loads no others without executing what the file says.
PLAIN = {type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size}
LAYOUTS = {torch.strided, torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
# torch itself allows more, some of which make as much memory as a file asks for (a bytearray, a FloatTensor).
FUNCTIONS = {
    *("collections OrderedDict", "__builtin__ set", "__builtin__ complex", "torch Size", "torch device"),
    *("torch.serialization _get_layout", "torch.storage UntypedStorage"),
    *(f"torch._utils _rebuild_{of}" for of in ("parameter", "sparse_tensor", "tensor_v2", "tensor_v3")),
    *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    *(f"torch {kind.__name__}" for kind in torch._storage_classes),
}
DEEPEST = 100
LONGEST_INTEGER = 2000  # bits
LARGEST_REPEATED = 2**30  # bytes


# Errors that come without the name of a file; what is written may come from elsewhere, which has errors of its own.
OF_DISKS = {errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}


class UnreadableFile(ValueError):
    """A file that is damaged, of something else, or of another version; the message says which."""

    def __init__(self, path: str | Path, problem: str):
        super().__init__(f"{path}: {problem}")


def write(path: str | Path, kind: str, version: int, content: Any) -> None:
    """Write tensors and plain values to a file, whole or not at all.

    Args:
        path: the file; an earlier one is replaced when the new one is complete on the disk.
        kind: of file, a word in small letters; `read` asks for the same.
        version: of the form of its content, from 1 on.
        content: dicts, lists, tuples and sets of tensors, parameters, numbers, words, dtypes and devices, of
            exactly these types.

    Raises:
        TypeError: an entry is something else, and could not be read again; the message says which. An earlier file
            stays.

    Example:
        >>> write(tmp_path / "some.pt", "example", 1, {"weights": torch.ones(2), "epoch": 3})
        >>> read(tmp_path / "some.pt", "example", 1)
        {'weights': tensor([1., 1.]), 'epoch': 3}
        >>> write(tmp_path / "some.pt", "example", 1, {"optimizer": [{"lr": abs}]})
        Traceback (most recent call last):
        ...
        TypeError: content: optimizer/0/lr is a builtins.builtin_function_or_method, which could not be read again; ...
    """
    if problem := _unreadable(content):
        raise TypeError(f"content: {problem}")
    facts = FACTS.format(kind=kind, version=version).encode()
    if not PATTERN.fullmatch(facts) or len(MAGIC) + DIGEST + len(facts) != LENGTH:
        raise ValueError(
            f"kind, version: expected at most 24 small letters and a whole number below a million, found {kind!r} and "
            f"{version!r}"
        )
    buffer = io.BytesIO()
    torch.save(content, buffer)
    parts = [facts, buffer.getbuffer()]
    write_atomically(Path(path), lambda file: file.writelines([MAGIC, _sha256(*parts).encode(), *parts]))


def read(path: str | Path, kind: str, version: int) -> Any:
    """Return what `write` wrote, on the CPU; nothing is ever executed, and nothing loaded that was not checked.

    Args:
        path: the file.
        kind: what it is to be.
        version: of which version.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableFile: it was cut off or changed, was written by something else, or is of another kind or version.

    Example:
        >>> _ = (tmp_path / "torn.pt").write_bytes(b"ppl_vae file, SHA-")
        >>> read(tmp_path / "torn.pt", "example", 1)
        Traceback (most recent call last):
        ...
        ppl_vae.archive.UnreadableFile: ...torn.pt: cut off within its first line; ...
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe might never end
        raise UnreadableFile(path, f"a folder or a device, not a file of this library; give the file of the {kind}")
    with path.open("rb") as file:
        facts = _first_line(path, file, kind)
        payload = file.read()
    _check_facts(path, facts, kind, version)
    try:  # the checksum was right, so that somebody meant it
        _check_zip(payload)
    except Exception as error:
        raise UnreadableFile(path, f"not made by this library, though it says so ({error}); do not trust it") from error
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own words advise to execute what the file says
        raise UnreadableFile(path, "not made by this library, though it says so; do not trust it") from error
    if problem := _unreadable(content):
        raise UnreadableFile(path, f"not made by this library, though it says so: {problem}")
    return content


def _sha256(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _first_line(path: Path, file: IO[bytes], kind: str) -> bytes:
    """Check the first line and, by the checksum in it, all the rest; return its facts. The file is put behind it."""
    line = file.read(LENGTH)
    if not line.startswith(MAGIC[: max(len(line), 1)]):
        raise UnreadableFile(
            path, f"not a file of this library: {_foreign(line)}; give the {kind}'s file, or make it anew"
        )
    repair = "restore it from a copy, or remove it and make it anew"
    if len(line) < LENGTH:
        raise UnreadableFile(path, f"cut off within its first line; {repair}")
    digest, facts = line[len(MAGIC) :][:DIGEST], line[len(MAGIC) + DIGEST :]
    found = hashlib.sha256(facts)
    while block := file.read(2**20):
        found.update(block)
    if found.hexdigest().encode() != digest:
        raise UnreadableFile(path, f"damaged: cut off or changed since it was written (its SHA-256 differs); {repair}")
    file.seek(LENGTH)
    return facts


def _foreign(line: bytes) -> str:
    if not line:
        return "it is empty"
    known = {
        b"PK": "a zip archive, as torch.save alone and earlier versions of this library write",
        b"\x80": "a pickle",
    }
    return next((words for start, words in known.items() if line.startswith(start)), f"it begins with {line[:16]!r}")


def _check_facts(path: Path, facts: bytes, kind: str, version: int) -> None:
    """Refuse what is of another kind or version."""
    if not (match := PATTERN.fullmatch(facts)):
        raise UnreadableFile(path, "not made by this library, though it says so: no kind or version in its first line")
    found, number = match[1].decode(), int(match[2])
    if found != kind:
        raise UnreadableFile(path, f"a file of another kind, {found}; give one of kind {kind}")
    if number > version:
        raise UnreadableFile(path, f"of version {number}, newer than {version}, which this library reads; update it")
    if number < version:
        raise UnreadableFile(
            path,
            f"of version {number}, older than {version}, which this library reads; make it anew, or read it with the "
            "version of the library that wrote it",
        )


def _check_zip(payload: bytes) -> None:
    """Raise unless a zip archive is as torch writes it: nothing to expand, and no calls but those of `FUNCTIONS`."""
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        plain = all(e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size for e in entries)
        if not plain or sum(entry.file_size for entry in entries) > len(payload):
            raise ValueError("entries that expand to more than the file holds")
        if len({*names}) < len(names) or any(re.search(r"^[/\\]|\\|:|(^|/)\.\.(/|$)", name) for name in names):
            raise ValueError("names of entries that leave the archive, or come twice")
        for name in names:
            if name.endswith(".pkl"):
                _check_calls(archive.read(name))


def _check_calls(pickled: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and argument not in FUNCTIONS:
            raise ValueError(f"a call of {argument.replace(' ', '.')}")


def _unreadable(content: Any) -> str | None:
    """Return which entry of nested content could not be read again, and why; None if all can."""
    left, seen = [("", content, 0)], set()
    while left:
        place, value, depth = left.pop()
        if id(value) in seen:  # what refers to itself a hundred times over is looked at once
            continue
        seen.add(id(value))
        if problem := _problem(value) if depth < DEEPEST else f"is nested more than {DEEPEST} deep":
            return f"{place or 'all of it'} {problem}"
        left += [(f"{place}/{name}".lstrip("/"), part, depth + 1) for name, part in _parts(value)][::-1]
    return None


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"key {key!r}", key
            yield key, part
    elif isinstance(value, list | tuple | set):
        yield from enumerate(value)


def _problem(value: Any) -> str | None:
    """Return why a value, apart from its parts, could not be read again."""
    kind = type(value)
    if kind in (Tensor, nn.Parameter):
        return _problem_of_tensor(value)
    if kind is int and value.bit_length() > LONGEST_INTEGER:
        return f"is an integer of more than {LONGEST_INTEGER} bits; write its digits as a string"
    if kind in PLAIN or kind in (dict, OrderedDict, list, tuple, set):
        return None
    return (
        f"is a {kind.__module__}.{kind.__qualname__}, which could not be read again; give tensors, numbers, words, or "
        "dicts, lists, tuples and sets of them"
    )


def _problem_of_tensor(value: Tensor) -> str | None:
    if value.is_meta:
        return "is a tensor on the device meta, which holds no numbers; give it values"
    if value.is_nested or value.is_quantized or value.layout not in LAYOUTS:
        return f"is a nested or quantised tensor, or one of layout {value.layout}; make it a plain or a sparse one"
    if vars(value):
        return f"is a tensor with attributes of its own ({', '.join(vars(value))}); write value.detach()"
    if value.layout is torch.strided:
        claimed = value.numel() * value.element_size()
        if claimed > max(value.untyped_storage().nbytes(), LARGEST_REPEATED):
            return f"repeats few numbers to {claimed} bytes; write value.contiguous(), or what is repeated"
    return None


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all: into a temporary one beside it, synced, then renamed.

    A link is replaced and not followed, so that nothing outside the folder is written to.

    Example:
        >>> write_atomically(tmp_path / "notes", lambda file: file.write(b"all"))
        >>> (tmp_path / "notes").read_text()
        'all'
    """
    # A name that nobody can foresee, in a file that must be new: several may write the same, and the last one wins.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in OF_DISKS:
            raise _unwritten(path, error) from error
        raise
    sync_folder(path.parent)


def _unwritten(path: Path, error: OSError) -> OSError:
    """Return what to raise where a file could not be written, of the same kind."""
    words = f"could not be written ({error.strerror or error}); what was there before is as it was"
    return OSError(error.errno, words, str(path))


def sync_folder(folder: Path) -> None:
    """Have the disk remember a renaming, without which a crash may bring the earlier file back."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync folders say so
            raise OSError(
                error.errno, f"written, but not sure to outlast a power cut ({error.strerror})", str(folder)
            ) from error
    finally:
        os.close(descriptor)
