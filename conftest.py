"""Every test and doctest starts from the same random state and an empty parameter store."""

import signal

import pyro
import pytest
import torch

import ppl_vae as pv

# A shell has what it runs in the background ignore Ctrl-C, which tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tensors here are small, and other workers run beside this one: more threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh(doctest_namespace, tmp_path, monkeypatch):
    doctest_namespace.update(pv=pv, torch=torch, tmp_path=tmp_path)
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    torch.manual_seed(0)
    with pyro.validation_enabled(True):
        yield
