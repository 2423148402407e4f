"""Run folders: who may write into them, what stays when writing fails, and what becomes of damaged files."""

import os
import resource
import shutil
import threading
from contextlib import contextmanager

import pairs
import pytest
import torch
from interrupted import RUNS, differences, run, state

import ppl_vae as pv
from ppl_vae import loop, runs
from ppl_vae.archive import UnreadableFile


@pytest.fixture
def pair():
    return pairs.make("vae", "normal")


@pytest.fixture
def often(monkeypatch):
    """Save after every batch."""
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_SAVES", 0.0)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_run_is_replaced_where_that_is_asked_for(pair, tmp_path):
    out = tmp_path / "run"
    pv.fit(pair.model, pair.guide, pair.data(), epochs=2, out=out)
    (out / "reconstructions.png").write_bytes(b"of old parameters")
    pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=out, overwrite=True)
    assert runs.read_metrics(out)["epoch"] == [1]
    assert not (out / "reconstructions.png").exists()


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}, {}], ids=str)
def test_what_no_run_has_written_is_never_touched(pair, tmp_path, options):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"out: .* exists and is not an empty folder"):
        pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=tmp_path, **options)
    assert contents(tmp_path) == before
    pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=tmp_path / "run")
    (tmp_path / "run" / "notes.md").write_text("years of work")
    before = contents(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"holds what no run writes \(notes.md\)"):
        pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=tmp_path / "run", overwrite=True)
    assert contents(tmp_path / "run") == before


def test_a_file_is_no_folder(pair, tmp_path):
    (tmp_path / "run").write_text("something")
    with pytest.raises(FileExistsError, match="run is a file; choose another name"):
        pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=tmp_path / "run", overwrite=True)


def test_two_runs_into_one_folder_are_refused(pair, tmp_path):
    refused = []

    def another(row):
        other = pairs.make("vae", "normal")
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(BlockingIOError, match=r"another run is at work in .*run; wait for its end") as error:
                pv.fit(other.model, other.guide, other.data(), epochs=1, out=tmp_path / "run", **options)
            refused.append(error)

    pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=tmp_path / "run", callbacks=[another])
    assert len(refused) == 2
    assert runs.read_metrics(tmp_path / "run")["epoch"] == [1]
    pv.fit(pair.model, pair.guide, pair.data(), epochs=2, out=tmp_path / "run", resume=True)  # the lock is gone


def interrupted_run(folder):
    """Stop a run after its first epoch."""
    assert not run(RUNS["plain"], folder, stop_after=7, resume=True)
    return folder


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "a bit flipped": lambda content: content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:],
    "empty": lambda content: b"",
    "foreign": lambda content: b"PK\x03\x04 of something else",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_save_before_a_damaged_one_is_gone_on_from(tmp_path, often, damage):
    assert run(RUNS["plain"], tmp_path / "whole")
    folder = interrupted_run(tmp_path / "run")
    last = folder / "last.pt"
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    (folder / "best.pt").write_bytes(b"damaged too")
    with pytest.warns(UserWarning, match=r"last.pt: .*The run goes on from .*previous.pt, saved before it"):
        assert run(RUNS["plain"], folder, resume=True)
    assert differences(state(folder), state(tmp_path / "whole")) == []


def test_where_nothing_is_whole_nothing_is_lost(tmp_path, often):
    folder = interrupted_run(tmp_path / "run")
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"")
    before = contents(folder)
    with pytest.raises(UnreadableFile, match=r"last.pt: "):
        run(RUNS["plain"], folder, resume=True)
    assert contents(folder) == before


def test_a_run_that_never_saved_begins_anew(pair, tmp_path):
    (tmp_path / "run").mkdir()
    runs.write_config(tmp_path / "run", {"epochs": 2})
    result = pv.fit(pair.model, pair.guide, pair.data(), epochs=2, out=tmp_path / "run", resume=True)
    assert result.history["epoch"] == [1, 2]


def test_another_run_is_not_gone_on_with(tmp_path):
    folder = interrupted_run(tmp_path / "run")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"resume: .*run holds a run with batch_size = 4, found 5; go on"):
        run(RUNS["plain"], folder, resume=True, batch_size=5)
    with pytest.raises(ValueError, match=r"resume: .*holds a run with data = '14 rows, \w+', found '16 rows"):
        run(RUNS["normalised"], folder, resume=True)
    assert contents(folder) == before


def test_a_finished_run_can_be_given_more_epochs(tmp_path):
    assert run(RUNS["baselined"], tmp_path / "long", epochs=6)
    assert run(RUNS["baselined"], tmp_path / "run", epochs=2)
    assert run(RUNS["baselined"], tmp_path / "run", epochs=6, resume=True)
    assert differences(state(tmp_path / "run"), state(tmp_path / "long")) == []
    assert run(RUNS["baselined"], tmp_path / "run", epochs=3, resume=True)  # which it has had
    assert runs.read_metrics(tmp_path / "run")["epoch"] == [1, 2, 3, 4, 5, 6]


@contextmanager
def disk_with_room_for(size):
    """Let no file grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_the_run_and_leaves_what_was_there(tmp_path, often):
    assert run(RUNS["plain"], tmp_path / "whole")
    folder = interrupted_run(tmp_path / "run")
    before = contents(folder)
    with (
        disk_with_room_for(5000),
        pytest.raises(OSError, match=r"could not be written \(File too large"),
    ):
        run(RUNS["plain"], folder, resume=True)
    after = contents(folder)
    assert {name: after[name] for name in ("last.pt", "previous.pt", "best.pt", "config.toml")} == {
        name: before[name] for name in ("last.pt", "previous.pt", "best.pt", "config.toml")
    }
    assert after.keys() == before.keys()  # and nothing half-written beside them
    assert run(RUNS["plain"], folder, resume=True)  # with room again
    assert differences(state(folder), state(tmp_path / "whole")) == []


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path):
    runs.append_metrics(tmp_path, {"epoch": 1, "train_bound": -1.0})
    before = (tmp_path / "metrics.csv").read_bytes()
    with disk_with_room_for(len(before) + 3), pytest.raises(OSError, match="too large"):
        runs.append_metrics(tmp_path, {"epoch": 2, "train_bound": -1.0})
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_folder_that_cannot_be_written_stops_before_training(pair, tmp_path, monkeypatch):
    before = {name: p.clone() for name, p in pair.parameters().items()}
    parent = tmp_path / "read_only"
    parent.mkdir()
    parent.chmod(0o500)
    if os.access(parent, os.W_OK):  # the superuser may write everywhere
        shutil.rmtree(parent)
        parent = "/proc/nowhere"
    with pytest.raises(OSError, match=r"nowhere|read_only"):
        pv.fit(pair.model, pair.guide, pair.data(), epochs=1, out=f"{parent}/run")
    assert all(torch.equal(p, before[name]) for name, p in pair.parameters().items())


def test_a_callback_sees_every_row_and_may_end_training(pair):
    rows = []
    result = pv.fit(
        pair.model, pair.guide, pair.data(), epochs=9, callbacks=[lambda row: rows.append(row) or row["epoch"] == 3]
    )
    assert [row["epoch"] for row in rows] == [1, 2, 3] == result.history["epoch"]
    assert result.ended == "a callback ended it"
    assert "a callback ended it" in str(result)


def test_signals_are_heard_in_the_main_thread_alone_and_given_back(pair):
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    failed = []

    def train():
        try:
            pv.fit(pair.model, pair.guide, pair.data(), epochs=1)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert failed == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("content", [{"settings": {}}, [], {"settings": {}, "place": {"epoch": "one"}}], ids=str)
def test_what_is_no_run_is_told_so(tmp_path, content):
    folder = interrupted_run(tmp_path / "run")
    saved = runs.read_last(folder)
    forged = content if isinstance(content, list) else {**saved, **content, "settings": saved["settings"]}
    runs.write_last(folder, forged if forged != saved else {"settings": saved["settings"]})
    with pytest.raises(UnreadableFile, match="what is saved there is of no run of this library"):
        run(RUNS["plain"], folder, resume=True)
