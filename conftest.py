"""Every test and doctest starts from the same random state and an empty parameter store."""

import pyro
import pytest
import torch

import ppl_vae as pv


@pytest.fixture(autouse=True)
def _fresh(doctest_namespace, tmp_path, monkeypatch):
    doctest_namespace.update(pv=pv, torch=torch, tmp_path=tmp_path)
    monkeypatch.chdir(tmp_path)
    pyro.clear_param_store()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors here are small: more threads only wait for each other
    with pyro.validation_enabled(True):
        yield
