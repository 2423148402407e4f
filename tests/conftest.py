"""Fixtures that several files use."""

import pytest
import torch._dynamo.config

from ppl_vae import compiling
from ppl_vae.replaying import Replayed


@pytest.fixture
def uncompiled(monkeypatch):
    """Leave graphs as they were captured, since compiling one takes ten seconds."""
    monkeypatch.setattr(compiling, "lower", lambda graph: None)
    # Shapes of so few operations seldom come twice: to remember them takes a quarter of the time of a capture.
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


class Recorder:
    """Keep inputs and outputs in place, as a CUDA graph does."""

    def __init__(self):
        self.recordings = 0

    def __call__(self, run, inputs):
        self.recordings += 1
        outputs = [output.clone() for output in run(*inputs)]

        def replay():
            for output, new in zip(outputs, run(*inputs), strict=True):
                output.copy_(new)

        return replay, outputs


@pytest.fixture
def recorder():
    """Record without a GPU."""
    return Recorder()


@pytest.fixture
def replayed(monkeypatch):
    """Run graphs as a GPU replays them, outputs in one place."""

    def lower(graph):
        graph.run = Replayed(graph.module, graph.fixed, Recorder())

    monkeypatch.setattr(compiling, "lower", lower)
