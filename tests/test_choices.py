"""Options of training by name: warm-up, free bits, schedules of the step size, and what does not go together."""

from unittest.mock import Mock

import pytest
import torch

from ppl_vae import choices, guarding, jobs, objectives
from ppl_vae.settings import Settings

SMALL = {"hidden": 8, "z_dim": 2, "epochs": 10, "batch_size": 100}  # 13 batches of 1,257 data


def job(**options):
    return jobs.Job(Settings(**SMALL | options), device="cpu")


def weights(objective, steps):
    """Return the weight of the KL divergence before each of these updates."""
    found = []
    for step in steps:
        objective.step.fill_(step)
        found.append(float(objective.values()["beta"]))
    return found


def test_warm_up_counts_epochs_in_updates():
    rising = job(warm_up=4).objective()
    assert weights(rising, [0, 13, 26, 52, 60]) == [0.0, 0.25, 0.5, 1.0, 1.0]
    halved = job(warm_up=4, accumulate=2).objective()
    assert weights(halved, [0, 13, 26]) == [0.0, 0.5, 1.0]


def test_cycles_rise_in_the_first_half_of_each():
    cyclic = job(warm_up=4, warm_up_cycles=2).objective()
    assert weights(cyclic, [0, 13, 20, 26, 39, 52, 80]) == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    over_all = job(warm_up_cycles=1).objective()
    assert weights(over_all, [0, 65, 129]) == [0.0, 1.0, 1.0]


def test_validation_is_by_the_elbo_itself():
    rising = job(warm_up=4).objective()
    particles = Mock()
    rising.of = lambda particles, beta: beta
    assert float(rising(particles)) == 0.0
    assert float(rising.eval()(particles)) == 1.0


def test_free_bits_are_nats_of_the_floor():
    floored = job(free_bits=0.5).objective()
    assert floored.func is objectives.free_bits
    assert floored.keywords == {"floor": 0.5}
    assert job(objective="free_bits", free_bits=2).objective().keywords == {"floor": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"warm_up": 3, "objective": "iwae"},
            "warm_up: iwae has no weight of its KL divergence that .* elbo and beta_elbo",
        ),
        ({"warm_up_cycles": 3, "objective": "iwae"}, "warm_up_cycles: iwae has no weight"),
        (
            {"free_bits": 1.0, "objective": "iwae"},
            "free_bits: iwae has no KL divergences .* elbo and free_bits",
        ),
        ({"free_bits": 1.0, "warm_up": 3}, "free_bits: it goes without warm_up"),
        ({"free_bits": -1.0}, "free_bits: expected a number of nats, 0 or more, found -1.0"),
        ({"free_bits": float("nan")}, "free_bits: expected a number of nats"),
        ({"warm_up": 11}, "warm_up: 11 epochs are more than the 10 of training"),
        ({"ema": 1.0}, "ema: expected a decay between 0 and 1, such as 0.999, found 1.0"),
        ({"patience": 0}, "patience: expected a positive number, found 0"),
        ({"seeds": 1}, "seeds: expected at least 2, found 1; --seed chooses a single one"),
        ({"lr_schedule": "cosin"}, "lr_schedule: unknown name 'cosin'; there are none, cosine, .*Did you mean cosine"),
        ({"on_fault": "ignore"}, "on_fault: unknown name 'ignore'; there are stop, skip, back-off"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**SMALL | options)


def rates(name, epochs, losses=None):
    """Return the learning rate of each epoch, of one update each."""
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = choices.scheduler(name, epochs, epochs, 0.1)(optimizer)
    found = []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if epoch + 1 < epochs:  # fit leaves out the one after the last update, of which a cycle knows nothing
            schedule.step(*([] if losses is None else [losses[epoch]]))
    return found


def test_schedules_follow_epochs():
    assert choices.scheduler("none", 5, 5, 0.1) is None
    assert rates("cosine", 4) == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
    assert rates("step", 6) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    cycle = rates("one_cycle", 20)
    assert max(cycle) == pytest.approx(0.1, rel=0.05)
    assert cycle[0] < 0.01 > cycle[-1]


@pytest.mark.parametrize("epochs", range(1, 13))
@pytest.mark.parametrize("name", ["cosine", "step", "one_cycle"])
def test_schedules_take_any_number_of_epochs(name, epochs):
    assert all(0 < rate <= 0.1 + 1e-12 for rate in rates(name, epochs))


def test_a_plateau_is_told_in_nats():
    """Not as a share of the best, which torch means for losses that are positive."""
    assert rates("plateau", 30, [-100.0 - 0.005 * epoch for epoch in range(30)])[-1] == 0.1
    assert rates("plateau", 30, [100.0 - 0.005 * epoch for epoch in range(30)])[-1] == 0.1
    assert rates("plateau", 30, [-100.0 + 0.005 * epoch for epoch in range(30)])[-1] < 0.1


def passed(monkeypatch, tmp_path, **options):
    """Return the arguments with which a job calls `fit`."""
    called = Mock()
    monkeypatch.setattr(jobs, "fit", called)
    job(**options).train(tmp_path / "run")
    return called.call_args.kwargs


def test_fit_is_given_what_is_asked_for(monkeypatch, tmp_path):
    found = passed(monkeypatch, tmp_path, ema=0.99, patience=3, lr_schedule="cosine", tensorboard=True)
    assert (found["ema"], found["patience"]) == (0.99, 3)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1)
    assert isinstance(found["scheduler"](optimizer), torch.optim.lr_scheduler.CosineAnnealingLR)
    (callback,) = found["callbacks"]
    callback({"epoch": 1, "train_bound": -1.0})
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_fit_is_given_nothing_else(monkeypatch, tmp_path):
    engine = {"scheduler", "ema", "patience", "callbacks", "resume", "overwrite"}
    found = passed(monkeypatch, tmp_path)
    assert not engine & found.keys()
    assert found["on_fault"] is guarding.stop
    assert passed(monkeypatch, tmp_path, on_fault="skip")["on_fault"] is guarding.skip


@pytest.mark.parametrize("said", ["resume", "overwrite"])
def test_a_run_is_gone_on_with_or_replaced_where_it_is_said(monkeypatch, tmp_path, said):
    called = Mock()
    monkeypatch.setattr(jobs, "fit", called)
    job().train(tmp_path / "run", **{said: True})
    assert called.call_args.kwargs[said] is True
    assert {"resume", "overwrite"} & called.call_args.kwargs.keys() == {said}


@pytest.mark.parametrize("options", [{"warm_up": 2}, {"warm_up_cycles": 2}, {"free_bits": 0.5}], ids=str)
def test_what_is_chosen_trains(options, tmp_path):
    trained = job(epochs=3, **options, compile="false").train(tmp_path / "run")
    bounds = trained.history["valid_bound"]
    assert bounds[-1] > bounds[0]
