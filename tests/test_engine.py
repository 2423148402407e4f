"""What the loop does besides stepping: averages of parameters, learning rates, early stopping, callbacks."""

from functools import partial

import pairs
import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, OneCycleLR, ReduceLROnPlateau

import ppl_vae as pv
from ppl_vae import guarding, objectives

ROWS, BATCH = 12, 4


@pytest.fixture
def pair():
    return pairs.make("vae", "normal")


def optimizer_of(pair, kind=SGD, lr=0.1):
    return kind(list(pair.parameters().values()), lr=lr)


class Watched:
    """A step that keeps what follows each of its updates."""

    def __init__(self, step, look):
        self.step, self.look, self.seen = step, look, []

    def __getattr__(self, name):
        return getattr(self.step, name)

    def __call__(self, x):
        info = self.step(x)
        self.seen.append(self.look())
        return info


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_that_of_the_parameters_after_each_update(pair, accumulate):
    step = pv.svi_step(pair.model, pair.guide, optimizer=optimizer_of(pair), accumulate=accumulate)
    watched = Watched(step, lambda: {name: p.detach().clone() for name, p in pair.parameters().items()})
    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    pv.fit(step=watched, data=pair.data(ROWS), batch_size=BATCH, epochs=2, ema=0.3)
    expected = before
    for n, after in enumerate(watched.seen[accumulate - 1 :: accumulate]):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * after[name] for name in expected}
    for name, parameter in pair.parameters().items():
        torch.testing.assert_close(parameter.detach(), expected[name], msg=name)


def test_averages_are_what_is_validated_and_kept(pair, tmp_path):
    x, valid = pair.data(ROWS), pair.data(7)
    result = pv.fit(pair.model, pair.guide, x, valid=valid, batch_size=BATCH, epochs=3, ema=0.9, out=tmp_path / "run")
    again = pairs.make("vae", "normal")
    pv.restore(again.model, again.guide, tmp_path / "run")
    step = pv.svi_step(again.model, again.guide, optimizer=optimizer_of(again))
    with pv.programs.forked_random_state(0):
        assert step.bound(valid).mean().item() == pytest.approx(result.best["bound"], rel=1e-12)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan"), "0.9"])
def test_a_decay_out_of_range_is_refused(pair, decay):
    with pytest.raises((ValueError, TypeError), match="ema: expected a number from 0 to 1, 1 excluded"):
        pv.fit(pair.model, pair.guide, pair.data(), ema=decay)


def rates(pair, scheduler, epochs=4, **options):
    """Return the learning rate of every update."""
    optimizer = optimizer_of(pair)
    step = pv.svi_step(pair.model, pair.guide, optimizer=optimizer)
    rate = []
    watched = Watched(step, lambda: rate.append(optimizer.param_groups[0]["lr"]))
    options = {"valid": pair.data(3), "batch_size": BATCH} | options
    result = pv.fit(step=watched, data=pair.data(ROWS), epochs=epochs, scheduler=scheduler, **options)
    return rate, result


def test_schedulers_move_after_each_epoch(pair):
    found, _ = rates(pair, partial(CosineAnnealingLR, T_max=4))
    by_hand = CosineAnnealingLR(SGD([torch.zeros(1, requires_grad=True)], lr=0.1), T_max=4)
    expected = []
    for _ in range(4):
        expected += 3 * [by_hand.get_last_lr()[0]]
        by_hand.optimizer.step()
        by_hand.step()
    assert found[::3] == pytest.approx(expected[::3])
    assert found == pytest.approx(expected)


def test_cycles_are_counted_in_updates(pair):
    found, _ = rates(pair, partial(OneCycleLR, max_lr=0.2, total_steps=13))
    by_hand = OneCycleLR(SGD([torch.zeros(1, requires_grad=True)], lr=0.1), max_lr=0.2, total_steps=13)
    expected = []
    for _ in range(12):
        expected.append(by_hand.get_last_lr()[0])
        by_hand.optimizer.step()
        by_hand.step()
    assert found == pytest.approx(expected)


def test_a_plateau_is_one_of_the_validation_bound(pair):
    found, result = rates(pair, partial(ReduceLROnPlateau, patience=0, factor=0.5), epochs=8)
    expected, rate, best = [], 0.1, -float("inf")
    for bound in result.history["valid_bound"]:
        expected.append(rate)
        rate, best = (rate, bound) if bound > best + 1e-4 * abs(best) or best == -float("inf") else (rate / 2, best)
    assert found[::3] == pytest.approx(expected)
    assert min(found) < 0.1


def test_schedulers_by_the_name_of_an_optimizer(pair):
    optimizers = {"guide_optimizer": Adam(pair.guide.parameters()), "model_optimizer": Adam(pair.model.parameters())}
    step = pv.variational_em_step(pair.model, pair.guide, **optimizers)
    pv.fit(step=step, data=pair.data(), epochs=3, scheduler={"guide_optimizer": partial(ExponentialLR, gamma=0.1)})
    assert [o.param_groups[0]["lr"] for o in optimizers.values()] == pytest.approx([1e-5, 1e-3])


WRONG = {
    "no scheduler": ({"scheduler": lambda optimizer: 3}, TypeError, "scheduler: expected a function from an optimizer"),
    "a rate": ({"scheduler": 0.1}, TypeError, "scheduler: expected a function from an optimizer"),
    "an unknown optimizer": (
        {"scheduler": {"critic_optimizer": partial(ExponentialLR, gamma=0.1)}},
        ValueError,
        "scheduler: no optimizer is called 'critic_optimizer'; there are optimizer",
    ),
    "too short a cycle": (
        {"scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=7), "batch_size": 4, "epochs": 4},
        ValueError,
        "scheduler: OneCycleLR has total_steps=7, and there are 8 updates",
    ),
    "patience without validation": ({"patience": 3}, ValueError, "patience: it looks at the bound of validation data"),
    "no patience": ({"patience": 0, "valid": torch.ones(2, 6).double()}, ValueError, "patience: expected a whole"),
    "a callback that is none": ({"callbacks": [3]}, TypeError, "callbacks: expected functions of a row"),
    "resume without a folder": ({"resume": True}, ValueError, "resume: it is about the run in a folder"),
    "overwrite without a folder": ({"overwrite": True}, ValueError, "overwrite: it is about the run in a folder"),
    "both": ({"resume": True, "overwrite": True, "out": "run"}, ValueError, "resume, overwrite: one goes on"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_named_and_change_nothing(pair, case, tmp_path):
    options, kind, message = WRONG[case]
    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    with pytest.raises(kind, match=message):
        pv.fit(pair.model, pair.guide, pair.data(), **{"epochs": 1, **options})
    assert all(torch.equal(p, before[name]) for name, p in pair.parameters().items())
    assert list(tmp_path.iterdir()) == []


class Scripted:
    """A step whose validation bounds are given; its objective is a schedule of so many steps."""

    def __init__(self, bounds, warm_up=0):
        self.bounds, self.epochs = bounds, 0
        beta = objectives.linear(0.0, 1.0, steps=max(warm_up, 1))
        self.objective = objectives.Scheduled(objectives.beta_elbo, beta=beta) if warm_up else objectives.elbo

    def __call__(self, x):
        self.epochs += 1
        if isinstance(self.objective, objectives.Scheduled):
            self.objective.advance()
        return pv.Info(bound=torch.tensor(-1.0))

    def bound(self, x):
        return torch.full((len(x[0]),), self.bounds[self.epochs - 1])

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


def test_training_ends_when_the_validation_bound_gets_no_better():
    x, step = torch.zeros(4, 1), Scripted([-5.0, -2.0, -4.0, -3.0, -1.0])
    result = pv.fit(step=step, data=x, valid=x, epochs=5, patience=2)
    assert result.history["valid_bound"] == [-5.0, -2.0, -4.0, -3.0]
    assert result.best == {"epoch": 2, "bound": -2.0}
    assert result.ended == "no better validation bound for 2 epochs"


class Faulty(Scripted):
    """Refuses some batches, by number."""

    def __init__(self, refused):
        super().__init__([])
        self.refused, self.asked = refused, []

    def __call__(self, x):
        self.epochs += 1
        self.asked.append(float(x[0][0, 0]))
        bad = self.epochs in self.refused
        return pv.Info(bound=torch.tensor(float("nan") if bad else float(x[0].mean())), finite=torch.tensor(not bad))


def test_refused_batches_are_left_out_of_means_and_counted():
    x, step = torch.arange(6.0).unsqueeze(1), Faulty({2, 5})
    result = pv.fit(step=step, data=x, epochs=2, batch_size=2, on_fault=guarding.skip)
    assert result.history["faults"] == [1, 1]
    assert all(0 <= bound <= 5 for bound in result.history["train_bound"])
    assert "faults" not in pv.fit(step=Faulty(set()), data=x, epochs=2).history


def test_policies_hear_how_many_were_refused_in_a_row():
    heard, x = [], torch.zeros(5, 1)
    pv.fit(step=Faulty({2, 3, 5, 7}), data=x, epochs=2, batch_size=1, on_fault=lambda step, n: heard.append(n) or True)
    assert heard == [1, 2, 1, 1]


def test_an_epoch_without_any_good_batch_stops():
    x = torch.zeros(4, 1)
    with pytest.raises(FloatingPointError, match="every batch of epoch 2 was NaN or infinite"):
        pv.fit(step=Faulty({3, 4}), data=x, epochs=3, batch_size=2, on_fault=guarding.skip)


def test_smaller_learning_rates_last_under_a_schedule(pair):
    x = pair.data(ROWS)
    optimizer = optimizer_of(pair)
    step = pv.svi_step(pair.model, pair.guide, optimizer=optimizer)
    seen, calls = [], []

    class Sometimes(Watched):
        def __call__(self, x):
            calls.append(1)
            info = super().__call__(x)
            return pv.Info(info.bound, finite=torch.tensor(len(calls) != 5))

    watched = Sometimes(step, lambda: seen.append(optimizer.param_groups[0]["lr"]))
    scheduler = partial(LambdaLR, lr_lambda=lambda epoch: 1.0)
    pv.fit(step=watched, data=x, batch_size=BATCH, epochs=4, scheduler=scheduler, on_fault=guarding.back_off())
    assert seen == [0.1] * 5 + [0.05] * 7


@pytest.mark.parametrize(("warm_up", "epochs"), [(0, 3), (4, 5), (6, 7)])
def test_epochs_of_a_warm_up_do_not_count(warm_up, epochs):
    x, step = torch.zeros(4, 1), Scripted([-1.0, *[-2.0] * 20], warm_up)
    result = pv.fit(step=step, data=x, valid=x, epochs=20, patience=2)
    assert len(result.history["epoch"]) == epochs


def test_the_bound_that_is_trained_stands_beside_the_one_that_is_compared(pair):
    warm_up = objectives.Scheduled(objectives.beta_elbo, beta=objectives.linear(0.0, 1.0, steps=4))
    result = pv.fit(pair.model, pair.guide, pair.data(ROWS), warm_up, epochs=3, batch_size=BATCH)
    bound, annealed = (result.history[name] for name in ("train_bound", "annealed_bound"))
    assert annealed[0] > bound[0]  # the KL weighs less
    assert annealed[2] == bound[2]


def test_an_error_of_the_programs_says_where_it_came_from():
    """Bernoulli draws by probabilities that are NaN raise, and do not wait for the bound."""
    pair = pairs.make("sigmoid_belief_network", "bernoulli")
    step = pv.svi_step(pair.model, pair.guide, pv.objectives.reinforce, optimizer=optimizer_of(pair))
    watched = Watched(step, lambda: next(pair.guide.parameters()).data.fill_(torch.nan))
    with pytest.raises(RuntimeError) as error:
        pv.fit(step=watched, data=torch.ones(9, 6).double(), batch_size=3, epochs=1)
    assert "parameter guide." in error.value.__notes__[0]
