"""What is called after each epoch."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppl_vae import callbacks


def shown(folder, name):
    """Return the steps and values that TensorBoard shows."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_rows_are_written_for_tensorboard(tmp_path):
    note = callbacks.tensorboard(tmp_path / "events")
    assert not (tmp_path / "events").exists()  # a run folder is empty before the first row
    for epoch in (1, 2):
        assert note({"epoch": epoch, "train_bound": -20.0 - epoch, "valid_bound": -30.0, "seconds": 1.0}) is None
    assert shown(tmp_path / "events", "train_bound") == [(1, -21.0), (2, -22.0)]
    assert shown(tmp_path / "events", "valid_bound") == [(1, -30.0), (2, -30.0)]


def test_a_run_that_goes_on_replaces_what_was_written_of_later_epochs(tmp_path):
    first = callbacks.tensorboard(tmp_path)
    for epoch in (1, 2, 3):
        first({"epoch": epoch, "train_bound": 0.0})
    second = callbacks.tensorboard(tmp_path)
    for epoch in (2, 3, 4):
        second({"epoch": epoch, "train_bound": 1.0})
    assert shown(tmp_path, "train_bound") == [(1, 0.0), (2, 1.0), (3, 1.0), (4, 1.0)]


def test_without_tensorboard_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(callbacks, "find_spec", {"tensorboard": None}.get)
    with pytest.raises(ValueError, match=r"tensorboard: it is not installed; pip install 'ppl-vae\[tensorboard\]'"):
        callbacks.tensorboard(tmp_path)
