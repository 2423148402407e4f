"""Fixtures that several files use."""

import pytest

from ppl_vae import compiling


@pytest.fixture
def uncompiled(monkeypatch):
    """Leave graphs as they were captured, since compiling one takes ten seconds."""
    monkeypatch.setattr(compiling, "lower", lambda graph: None)
