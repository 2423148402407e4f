"""Runs that go on: with what they must have in common, from what was left, and where nothing was saved yet."""

import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from interrupted import BATCH, bits, small
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ppl_vae as pv
from ppl_vae import guarding, loop, runs, settings
from ppl_vae.learning_rates import LearningRates
from ppl_vae.streams import current, put_back
from ppl_vae.svi import SVIStep


def fit(out=None, pair=None, data=None, **options):
    pair = pair or small("vae", "normal")
    options = {"epochs": 2, "batch_size": BATCH, "progress": False} | options
    return pv.fit(pair.model, pair.guide, bits() if data is None else data, out=out, **options)


cycle = partial(OneCycleLR, max_lr=1e-2)
OTHERS = {
    "an average": ({}, {"ema": 0.9}, "ema = None, found 0.9"),
    "no average": ({"ema": 0.9}, {}, "ema = 0.9, found None"),
    "validation data": ({}, {"valid": bits(5, 1)}, "valid = None, found '5 rows"),
    "accumulation": ({}, {"accumulate": 2}, "accumulate = 1, found 2"),
    "a norm": ({"clip_norm": 1.0}, {}, "clip_norm = 1.0, found None"),
    "a rate": ({}, {"optimizer": partial(Adam, lr=1e-5)}, "optimizer lr = 0.001, found 1e-05"),
    "an optimizer": ({}, {"optimizer": partial(SGD, lr=1e-3)}, "optimizer momentum = None, found 0"),
    "a scheduler": ({}, {"scheduler": partial(ExponentialLR, gamma=0.5)}, "the run has one for no optimizer"),
    "no scheduler": ({"scheduler": partial(ExponentialLR, gamma=0.5)}, {}, "one for optimizer, found one for none"),
    "a kind": (
        {"scheduler": partial(ExponentialLR, gamma=0.5)},
        {"scheduler": partial(CosineAnnealingLR, T_max=9)},
        "o",
    ),
    "a cycle": ({"scheduler": partial(cycle, total_steps=8)}, {"scheduler": partial(cycle, total_steps=16)}, "steps=8"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_goes_on_with_the_options_that_it_had(case, tmp_path):
    """Refused without a change: a saved state would bring its own in silence, or have none."""
    had, found, words = OTHERS[case]
    fit(tmp_path / "run", **had)
    pair = small("vae", "normal", seed=7)
    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    with pytest.raises(ValueError, match="go on with the same") as error:
        fit(tmp_path / "run", pair, epochs=4, resume=True, **found)
    assert words in str(error.value)
    assert all(torch.equal(p, before[name]) for name, p in pair.parameters().items())


def test_faults_may_be_passed_over_after_they_stopped_a_run(tmp_path):
    fit(tmp_path / "run")
    found = fit(tmp_path / "run", epochs=4, resume=True, on_fault=guarding.skip)
    written = runs.read_metrics(tmp_path / "run")
    for faults in (found.history["faults"], written["faults"]):
        assert faults[2:] == [0, 0]
        assert all(map(math.isnan, faults[:2]))
    assert written["seconds"] == found.history["seconds"]
    assert fit(tmp_path / "run", epochs=5, resume=True).history["epoch"] == [1, 2, 3, 4, 5]


def test_a_run_that_failed_before_it_was_saved_begins_anew(tmp_path):
    def fails(row):
        if row["epoch"] == 2:
            raise RuntimeError("of somebody's own")

    with pytest.raises(RuntimeError, match="own"):
        fit(tmp_path / "run", callbacks=[fails])
    assert not (tmp_path / "run" / runs.LAST).exists()

    def alone(row):
        assert not (tmp_path / "run" / runs.BEST).exists()  # that of the run that failed

    fit(tmp_path / "run", resume=True, callbacks=[alone])
    assert runs.read_metrics(tmp_path / "run")["epoch"] == [1, 2]


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {}], ids=str)
def test_a_run_killed_while_its_first_file_was_written_is_begun_anew(options, tmp_path):
    (tmp_path / ".config.toml.0123abcd.part").write_text("mod")
    fit(tmp_path, **options)
    assert not list(tmp_path.glob("*.part"))


def test_hidden_files_of_others_are_no_run(tmp_path):
    (tmp_path / ".film.part").write_text("half of it")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        fit(tmp_path)
    assert (tmp_path / ".film.part").exists()


def test_a_folder_stays_where_it_was_when_a_callback_goes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    fit("run", callbacks=[lambda row: os.chdir(tmp_path / "elsewhere")])
    assert len(runs.read_metrics(tmp_path / "run")["epoch"]) == 2
    fit("~/run")
    assert (tmp_path / "home" / "run" / runs.BEST).exists()
    pair = small("vae", "normal", seed=4)
    pv.restore(pair.model, pair.guide, Path("~/run"))


def test_milestones_are_saved_and_taken_up(tmp_path):
    rate = partial(MultiStepLR, milestones=[1, 3], gamma=0.1)
    fit(tmp_path / "run", scheduler=rate, optimizer=partial(SGD, lr=1.0))
    fit(tmp_path / "run", scheduler=rate, optimizer=partial(SGD, lr=1.0), epochs=4, resume=True)
    saved = runs.read_last(tmp_path / "run")
    assert saved["rates"]["optimizer"]["_last_lr"] == pytest.approx([1e-2])


def test_smaller_rates_last_under_schedules_in_turn():
    optimizer = SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)

    def in_turn(optimizer):
        parts = [LambdaLR(optimizer, lambda epoch: 1.0) for _ in range(2)]
        return SequentialLR(optimizer, parts, milestones=[2])

    class Step:
        def optimizers(self):
            return {"optimizer": optimizer}

    rates = LearningRates(Step(), in_turn)
    with rates.lasting():
        guarding.back_off()(Step(), 1)
    optimizer.step()
    for _ in range(4):
        rates.after_epoch(0.0)
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_loader_of_validation_data_has_the_same_order_in_each_epoch(monkeypatch):
    seen, bound = [], SVIStep.bound
    monkeypatch.setattr(SVIStep, "bound", lambda step, x: (seen.append(x[0]), bound(step, x))[1])
    generator = torch.Generator().manual_seed(2)
    fit(valid=DataLoader(TensorDataset(bits(9, 1)), 9, shuffle=True, generator=generator), epochs=3)
    assert torch.equal(seen[-1], seen[-2])
    assert torch.equal(seen[-2], seen[-3])


class Once(IterableDataset):
    def __init__(self):
        self.left = iter(list(bits()))

    def __iter__(self):
        return self.left


class OfNoLength:
    def __iter__(self):
        return iter([[0, 1, 2], [3, 4]])


def test_loaders_that_give_nothing_are_told_so():
    with pytest.raises(ValueError, match="data: the loader gives no batch; with drop_last=True"):
        fit(data=DataLoader(TensorDataset(bits(3)), BATCH, drop_last=True))
    with pytest.raises(ValueError, match="data: epoch 2 had no batches"):
        fit(data=DataLoader(Once(), BATCH))


def test_a_sampler_need_not_know_its_length():
    assert len(fit(data=DataLoader(TensorDataset(bits()), batch_sampler=OfNoLength())).history["epoch"]) == 2


def test_means_of_large_data_keep_their_digits():
    class Told:
        def __call__(self, x):
            return pv.Info(bound=torch.tensor(16777217.0 / 3))  # whose sums have no room for odd numbers in float32

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    result = pv.fit(step=Told(), data=torch.zeros(999, 1), batch_size=1, epochs=1)
    assert result.history["train_bound"][0] == pytest.approx(float(torch.tensor(16777217.0 / 3)), rel=1e-13)


def test_saving_takes_no_more_than_a_share_of_the_time(tmp_path, monkeypatch):
    clock, saves = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])

    def slow(folder, content):
        saves.append(clock[0])
        clock[0] += 30.0

    monkeypatch.setattr(runs, "write_last", slow)
    passed = [lambda row: clock.__setitem__(0, clock[0] + 25.0)]
    fit(tmp_path / "run", epochs=40, batch_size=14, callbacks=passed)
    assert len(saves) == 3  # of 1000 seconds: the first one after 25, one 600 later, and the last one


def test_random_states_of_devices_that_are_not_here_are_left_out(monkeypatch):
    put, state = [], current()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.append(device))
    put_back(state | {"cuda:0": state["cpu"], "cuda:3": state["cpu"]})
    assert put == ["cuda:0"]


def test_settings_are_read_as_utf_8(tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_bytes('out = "läufe"'.encode())
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, encoding=None: read(path, encoding or "latin-1"))
    assert settings.read(tmp_path / "own.toml") == {"out": "läufe"}
