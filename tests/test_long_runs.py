"""Nothing piles up over long runs: tensors, open files, memory."""

import importlib
import os
from pathlib import Path

import pytest
import torch

import ppl_vae as pv


@pytest.fixture
def endurance(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("benchmarks.endurance")


def assert_flat(early, late, megabytes):
    assert late["tensors"] == early["tensors"]
    assert late["handles"] == early["handles"]
    if early["resident"] is not None:
        assert late["resident"] - early["resident"] < megabytes


@pytest.mark.parametrize(("compile", "steps"), [(False, 300), (True, 1200)], ids=["eager", "captured"])
def test_steps_hold_on_to_nothing(compile, steps, endurance, uncompiled):  # noqa: A002 - as in the library
    step, x = endurance.prepared(compile)
    found = dict(endurance.marches(step, x, steps, pauses=1))
    assert step.ascent.count == int(compile)
    assert_flat(found[steps // 10], found[steps], megabytes=8)


def test_what_is_held_on_to_is_seen(endurance):
    """The counts can tell: a program that keeps what it draws, and one that opens files."""
    step, x = endurance.prepared(False)
    kept = []
    step.model.register_forward_hook(lambda *_: kept.append((torch.ones(3), os.open(__file__, os.O_RDONLY))))
    step(x)
    before = endurance.footprint()
    for _ in range(20):
        step(x)
    after = endurance.footprint()
    assert after["tensors"] - before["tensors"] == 20
    if before["resident"] is not None:
        assert after["handles"] - before["handles"] == 20
        kept.append((torch.ones(2**24), os.open(__file__, os.O_RDONLY)))  # too large for room that was freed before
        assert endurance.footprint()["resident"] - after["resident"] > 32
    for _, file in kept:
        os.close(file)


def test_epochs_and_validation_hold_on_to_nothing(endurance):
    """A run of many epochs, with validation, the best state kept and a run folder."""

    def trained(epochs):
        (step, x), out = endurance.prepared(False), Path(f"run-{epochs}")
        fit = pv.fit(step.model, step.guide, x, valid=x, epochs=epochs, batch_size=8, out=out, compile=False)
        del step, fit
        return endurance.footprint()

    trained(2)
    few, many = trained(4), trained(40)
    assert_flat(few, many, megabytes=8)
