"""Have a graph compiled by torch's inductor."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ppl_vae.parallel import LostWorker
from ppl_vae.remarks import remark
from ppl_vae.rewriting import rewrite

# It takes seconds to import.
if TYPE_CHECKING:
    from ppl_vae.capture import Graph

__all__ = ["lower"]


def lower(graph: "Graph") -> None:
    """Have a graph compiled; leave it as it is, with a warning, where there is no compiler.

    Compiled graphs draw the random numbers that eager programs draw. torch keeps them on disk, in
    ``TORCHINDUCTOR_CACHE_DIR``, for the next run.
    """
    try:
        from torch._guards import TracingContext, tracing

        with _compiler_kept_quiet(), torch.no_grad(), tracing(TracingContext(graph.mode)):
            # It takes seconds to import, and may be missing parts.
            from torch._inductor import compile as inductor

            inputs = [stand_in.detach() for stand_in in graph.inputs]
            if inputs[-1].device.type == "cpu":
                rewrite(graph.module)
            graph.run = inductor(graph.module, inputs, options={"fallback_random": True})
    except LostWorker:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        remark(
            f"compile: graphs run uncompiled, at less speed, since the compiler failed: {type(error).__name__}: "
            f"{first[:300]}. On a CPU it needs a C++ compiler such as g++"
        )


@contextmanager
def _compiler_kept_quiet() -> Iterator[None]:
    """Keep back what the compiler says of itself, on which no user of this library can act."""
    noisy = logging.getLogger("torch.utils.cpp_extension")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")
            yield
    finally:
        noisy.setLevel(level)
