"""Files from the network: whole and with the right checksum, or not at all."""

import hashlib
import ssl
import time
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from ppl_vae.archive import write_atomically
from ppl_vae.progress import Bar, progress_bar

__all__ = ["download"]

# Seconds before another attempt. Whoever is offline is told so soon, and a server that restarts has time to.
WAITS = (1.0, 2.0, 4.0)
TIMEOUT = 30.0  # seconds without a byte
LARGEST = 2**30  # bytes
BLOCK = 2**16
# What is wrong for a while; other answers stay the same however often one asks.
PASSING = {408, 425, 429, 500, 502, 503, 504}
NETWORK = (URLError, ConnectionError, TimeoutError, HTTPException, ssl.SSLError)


def download(url: str, path: Path, sha256: str) -> Path:
    """Download a file, through the proxy that the environment names (``https_proxy``, ``no_proxy``, ...) if any.

    Several processes may download the same file at once: each writes one of its own, and the last one stays.

    Args:
        url: its address.
        path: where to put it; the folder is made. Nothing is there before all of it is.
        sha256: checksum of its content, hexadecimal.

    Returns:
        The path.

    Raises:
        FileNotFoundError: it could not be had, after some attempts where that may help.
        ValueError: what came has another checksum, or is larger than a gigabyte; it is not kept.

    Example:
        >>> download("file:///etc/hosts", tmp_path / "hosts", sha256="0" * 64)
        Traceback (most recent call last):
        ...
        ValueError: url: expected an address that begins with http:// or https://, found 'file:///etc/hosts'
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url: expected an address that begins with http:// or https://, found {url!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = f"or put the file there by hand (SHA-256 {sha256})"
    waits = iter(WAITS)
    while True:
        try:
            write_atomically(path, lambda file: _fetch(url, file, sha256))
            return path
        except NETWORK as error:
            lasting = isinstance(error, HTTPError) and error.code not in PASSING
            if lasting or (wait := next(waits, None)) is None:
                raise FileNotFoundError(
                    f"{path} does not exist and could not be downloaded from {url} ({error}); try again with a "
                    f"connection (behind a proxy, set https_proxy and http_proxy), {by_hand}"
                ) from error
            time.sleep(wait)
        except ValueError as error:
            raise ValueError(f"{url}: {error}; nothing was kept. Try another network, {by_hand} as {path}") from error


def _fetch(url: str, file: IO[bytes], sha256: str) -> None:
    """Write what an address has, and raise unless it is what was expected."""
    digest, got = hashlib.sha256(), 0
    request = Request(url, headers={"User-Agent": "ppl-vae", "Accept-Encoding": "identity"})
    # Made anew, since the opener that urlopen keeps never sees a proxy that is set later, as in a notebook.
    with build_opener().open(request, timeout=TIMEOUT) as response:
        size = _announced(response)
        with progress_bar(url.rsplit("/", 1)[-1], size, None) as bar:
            while block := response.read(BLOCK):
                got += _taken(block, file, digest, bar)
                if got > LARGEST:
                    raise ValueError(f"it is larger than {LARGEST} bytes")
    if size is not None and got < size:  # http.client ends such an answer without a word
        raise IncompleteRead(b"", size - got)
    if digest.hexdigest() != sha256:
        raise ValueError(f"what came ({got} bytes) has SHA-256 {digest.hexdigest()}, expected {sha256}")


def _announced(response: HTTPResponse) -> int | None:
    """Return the size that the server announces, if it does."""
    size = response.headers.get("Content-Length")
    if size is None or not size.isdigit():
        return None
    if int(size) > LARGEST:
        raise ValueError(f"it is said to have {size} bytes, and may have no more than {LARGEST}")
    return int(size)


def _taken(block: bytes, file: IO[bytes], digest: "hashlib._Hash", bar: Bar) -> int:
    file.write(block)
    digest.update(block)
    bar.advance(by=len(block))
    return len(block)
