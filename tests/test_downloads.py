"""Downloads: whole and with the right checksum or not at all, from servers that fail, through a proxy."""

import contextlib
import gzip
import hashlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import torchvision

import ppl_vae as pv
from ppl_vae.data import downloads, files
from ppl_vae.data.downloads import download

CONTENT = b"some numbers " * 10_000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Answers(BaseHTTPRequestHandler):
    """Answer from a script: for each path what is to be said, the last of it from then on."""

    def do_GET(self):
        self.server.asked.append(self.path)
        script = self.server.script.get(self.path, [404])
        answer = script.pop(0) if len(script) > 1 else script[0]
        status, content, announced = answer if isinstance(answer, tuple) else (answer, b"", 0)
        if status == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        if announced is not None:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        with contextlib.suppress(OSError):  # who hears enough hangs up
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """Serve on this machine, without a proxy and without waiting between attempts."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(downloads, "WAITS", (0.0, 0.0))
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        running.asked, running.script = [], {}
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def good(content=CONTENT):
    return 200, content, len(content)


def test_what_comes_is_kept_and_its_folder_made(server, tmp_path):
    server.script["/f"] = [good()]
    path = tmp_path / "new" / "folder" / "f"
    assert download(f"{server.url}/f", path, SHA) == path
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


WORSE_AT_FIRST = {
    "unavailable": 503,
    "too many": 429,
    "cut off": (200, CONTENT[:5000], len(CONTENT)),
    "hung up": ("hang up", b"", 0),
}


@pytest.mark.parametrize("first", WORSE_AT_FIRST.values(), ids=WORSE_AT_FIRST)
def test_what_may_pass_is_tried_again(first, server, tmp_path):
    server.script["/f"] = [first, first, good()]
    assert download(f"{server.url}/f", tmp_path / "f", SHA).read_bytes() == CONTENT
    assert server.asked == ["/f"] * 3
    server.script["/f"] = [first]
    with pytest.raises(
        FileNotFoundError, match=rf"g does not exist and could not be downloaded from {server.url}/f \("
    ):
        download(f"{server.url}/f", tmp_path / "g", SHA)
    assert server.asked == ["/f"] * 6
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_waits_grow(server, tmp_path, monkeypatch):
    waited = []
    monkeypatch.undo()
    monkeypatch.setattr(downloads.time, "sleep", waited.append)
    server.script["/f"] = [503]
    with pytest.raises(FileNotFoundError, match="HTTP Error 503"):
        download(f"{server.url}/f", tmp_path / "f", SHA)
    assert waited == sorted({*waited})
    assert 2 <= len(waited) <= 5


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_will_stay_is_told_at_once(status, server, tmp_path):
    server.script["/f"] = [status]
    with pytest.raises(FileNotFoundError, match=rf"HTTP Error {status}.*by hand \(SHA-256 {SHA}\)"):
        download(f"{server.url}/f", tmp_path / "f", SHA)
    assert server.asked == ["/f"]
    assert not list(tmp_path.iterdir())


def test_a_server_that_nobody_hears_of_is_told_with_what_to_do(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/f"
        with pytest.raises(FileNotFoundError, match=r"refused.*behind a proxy, set https_proxy"):
            download(url, tmp_path / "f", SHA)


def test_a_server_that_falls_silent_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(FileNotFoundError, match="timed out"):
            download(f"http://127.0.0.1:{mute.getsockname()[1]}/f", tmp_path / "f", SHA)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("announced", [len(CONTENT) + 1, None])
def test_a_wrong_checksum_leaves_no_file_and_the_earlier_one(announced, server, tmp_path):
    server.script["/f"] = [(200, CONTENT + b"!", announced)]
    with pytest.raises(ValueError, match=rf"{server.url}/f: what came .*has SHA-256 .*, expected {SHA}; nothing was"):
        download(f"{server.url}/f", tmp_path / "f", SHA)
    assert not list(tmp_path.iterdir())
    (tmp_path / "f").write_text("earlier")
    with pytest.raises(ValueError, match=rf"by hand \(SHA-256 {SHA}\) as {tmp_path}/f"):
        download(f"{server.url}/f", tmp_path / "f", SHA)
    assert (tmp_path / "f").read_text() == "earlier"


def test_nothing_fills_the_disk(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST", 100_000)
    server.script |= {"/said": [good()], "/unsaid": [(200, CONTENT, None)]}
    with pytest.raises(ValueError, match="is said to have 130000 bytes, and may have no more than 100000"):
        download(f"{server.url}/said", tmp_path / "f", SHA)
    with pytest.raises(ValueError, match="larger than 100000 bytes"):
        download(f"{server.url}/unsaid", tmp_path / "f", SHA)
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_no_file(server, tmp_path, monkeypatch):
    server.script["/f"] = [good()]
    monkeypatch.setattr(downloads.Bar, "advance", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        download(f"{server.url}/f", tmp_path / "f", SHA)
    assert not list(tmp_path.iterdir())


def test_a_proxy_is_asked_if_the_environment_names_one(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    server.script["http://data.invalid/f"] = [503, good()]
    assert download("http://data.invalid/f", tmp_path / "f", SHA).read_bytes() == CONTENT
    assert server.asked == ["http://data.invalid/f"] * 2
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.script["/g"] = [good()]
    download(f"{server.url}/g", tmp_path / "g", SHA)
    assert server.asked[-1] == "/g"


def test_a_file_that_cannot_be_written_is_no_matter_of_the_network(server, tmp_path):
    server.script["/f"] = [good()]
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError):
        download(f"{server.url}/f", tmp_path / "f", SHA)
    assert server.asked == ["/f"]


def published(monkeypatch, server, name, content):
    """Have a server publish a file, with its checksum known."""
    monkeypatch.setitem(files.SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(files.SOURCES, name, server.url)
    server.script["/" + name.rsplit("/", 1)[-1]] = [good(content)]


@pytest.fixture
def mnist(server, monkeypatch):
    """Publish 60,000 digits of one kind, and 10,000 of another."""
    plain = {}
    for part, n, value in (("train", 60_000, 3), ("t10k", 10_000, 5)):
        images = np.full((n, 28, 28), value, np.uint8)
        images[:, 0, 0] = np.arange(n) % 256
        plain[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 2051, n, 28, 28) + images.tobytes()
        plain[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 2049, n) + bytes([value]) * n
    for name, content in plain.items():
        monkeypatch.setitem(files.SHA256, f"MNIST/raw/{name}", hashlib.sha256(content).hexdigest())
        published(monkeypatch, server, f"MNIST/raw/{name}.gz", gzip.compress(content, 1))
    return plain


def test_mnist_is_downloaded_once_and_read_from_either_form(mnist, server, tmp_path):
    first = pv.data.load("mnist", root=tmp_path)
    assert len(server.asked) == 4
    again = pv.data.load("mnist", root=tmp_path)
    assert len(server.asked) == 4
    for name, content in mnist.items():
        (tmp_path / "MNIST" / "raw" / f"{name}.gz").unlink()
        (tmp_path / "MNIST" / "raw" / name).write_bytes(content)
    for splits in (first, again, pv.data.load("mnist", root=tmp_path)):
        assert [len(x) for x in splits[:3]] == [50_000, 10_000, 10_000]
        row = torch.arange(50_000, 60_000) % 256 / 255
        assert torch.equal(splits.valid[:, 0], row.float())
        assert (splits.test[:, 1] == 5 / 255).all()
        assert splits.info.labels["valid"].unique().tolist() == [3]
        assert splits.info.labels["test"].dtype == torch.int64
    assert len(server.asked) == 4
    for train, images in ((True, torch.cat(splits[:2])), (False, splits.test)):
        assert torch.equal(images, torchvision.datasets.MNIST(tmp_path, train=train).data.flatten(1) / 255)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("how", ["cut off", "changed"])
def test_a_damaged_file_of_mnist_is_named_with_the_repair(suffix, how, mnist, server, tmp_path):
    pv.data.load("mnist", root=tmp_path)
    path = tmp_path / "MNIST" / "raw" / f"t10k-images-idx3-ubyte{suffix}"
    whole = path.read_bytes() if suffix else mnist[path.name]
    path.write_bytes(whole[:1000] if how == "cut off" else whole[:1000] + b"\0" * (len(whole) - 1000))
    with pytest.raises(ValueError, match=rf"root: {path} has SHA-256 .*cut off or changed; remove it"):
        pv.data.load("mnist", root=tmp_path)
    path.unlink()
    assert (pv.data.load("mnist", root=tmp_path).test[:, 1] == 5 / 255).all()


def test_static_mnist_is_downloaded_as_published_what_lacks_of_it(server, tmp_path, monkeypatch):
    rows = "\n".join(" ".join("01"[(i + j) % 2] for j in range(784)) for i in range(3)) + "\n"
    for split in ("train", "valid", "test"):
        published(monkeypatch, server, f"binarized_mnist_{split}.amat", rows.encode())
    pv.data.load("static_mnist", root=tmp_path)
    (tmp_path / "binarized_mnist_valid.amat").unlink()
    splits = pv.data.load("static_mnist", root=tmp_path)
    assert server.asked[3:] == ["/binarized_mnist_valid.amat"]
    assert torch.equal(splits.test[1], torch.arange(1, 785).float() % 2)


def test_what_cannot_be_downloaded_names_the_folder_too(server, tmp_path, monkeypatch):
    for name in files.SOURCES:
        monkeypatch.setitem(files.SOURCES, name, server.url)
    for name in ("mnist", "fashion_mnist", "static_mnist"):
        with pytest.raises(FileNotFoundError, match=rf"root: {tmp_path}.* could not be .*404.*PPL_VAE_DATA or root="):
            pv.data.load(name, root=tmp_path)


BOTH = """
import sys, hashlib
from pathlib import Path
from ppl_vae.data.downloads import download
for name in range(20):
    path = Path(sys.argv[2]) / str(name)
    download(sys.argv[1], path, sys.argv[3])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sys.argv[3]
"""


def test_two_processes_may_download_into_one_folder(server, tmp_path):
    server.script["/f"] = [good()]
    command = [sys.executable, "-c", BOTH, f"{server.url}/f", str(tmp_path), SHA]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, env=dict(os.environ)) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {str(name) for name in range(20)}


def test_every_published_file_has_a_checksum_and_every_checksum_a_file():
    assert files.SOURCES.keys() <= files.SHA256.keys()
    assert all(re.fullmatch(r"https?://[\w.-]+(/[\w~-]+)*", address) for address in files.SOURCES.values())
    others = {name for name in files.SHA256 if name not in files.SOURCES and f"{name}.gz" not in files.SOURCES}
    assert others == {"static_binarized_mnist.npz", *files.CONTENTS}
