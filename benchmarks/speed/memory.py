"""Peak memory of a call, as the kernel counts it."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_megabytes(run: Callable[[], Any]) -> float | None:
    """Return by how much a call raises the resident memory of the process at its highest, in MB.

    None where the kernel does not tell (it takes Linux).
    """
    if not CLEAR.exists():
        return None
    run()  # what stays after a call is not the call's
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # nor is what the allocator keeps for later
    CLEAR.write_text("5")  # the high-water mark starts again from here
    before = _kilobytes("VmRSS")
    run()
    return max(_kilobytes("VmHWM") - before, 0) / 1024


def _kilobytes(name: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name))
