"""Lightning's Trainer drives our programs and objectives."""

import copy
from functools import partial

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae as pv

lightning = pytest.importorskip("lightning")

from ppl_vae.lightning import LightningSVI  # noqa: E402 - only where Lightning is

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
SGD = partial(torch.optim.SGD, lr=1e-2)


def small(name="vae", guide="normal"):
    pair = pairs.make(name, guide)
    return pair.model.float(), pair.guide.float()


def loader(x, size):
    return DataLoader(TensorDataset(x), batch_size=size)


def bits(n):
    return torch.bernoulli(torch.full((n, 6), 0.4), generator=torch.Generator().manual_seed(0))


def trainer(**options):
    return lightning.Trainer(accelerator="cpu", devices=1, **QUIET, **options)


class Seed(lightning.Callback):
    """The loader takes a random number before the first batch."""

    def on_train_batch_start(self, *args):
        torch.manual_seed(0)


@pytest.mark.parametrize("objective", [pv.objectives.elbo, pv.objectives.iwae, pv.objectives.dreg])
def test_a_step_is_that_of_svi_step(objective):
    x, ours = bits(8), small()
    theirs = copy.deepcopy(ours)
    step = pv.svi_step(*ours, objective, 3, optimizer=SGD([p for m in ours for p in m.parameters()]), compile=False)
    svi = LightningSVI(*theirs, objective, particles=3, optimizer=SGD)
    step.prepare(x)
    svi._check_once((x,))
    torch.manual_seed(0)
    bound = step(x).bound
    run = trainer(max_steps=1, callbacks=[Seed()])
    run.fit(svi, loader(x, 8))
    assert run.callback_metrics["train_bound"] == pytest.approx(float(bound), rel=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        for p, q in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_estimators_with_parameters_and_schedules():
    nvil = pv.objectives.NVIL(x_dim=6, hidden=4)
    before = copy.deepcopy(nvil.state_dict())
    svi = LightningSVI(*small("sigmoid_belief_network", "bernoulli"), nvil, particles=2)
    trainer(max_epochs=1).fit(svi, loader(bits(20), 5))
    assert all(not torch.equal(t, before[name]) for name, t in nvil.state_dict().items())
    warm_up = pv.objectives.Scheduled(pv.objectives.beta_elbo, beta=pv.objectives.linear(0.0, 1.0, steps=10))
    trainer(max_epochs=2, accumulate_grad_batches=2).fit(LightningSVI(*small(), warm_up), loader(bits(20), 5))
    assert warm_up.step == 4  # updates, not batches


def test_validation_and_checkpoints(tmp_path):
    svi = LightningSVI(*small(), pv.objectives.iwae, particles=2)
    run = trainer(max_epochs=2)
    run.fit(svi, loader(bits(20), 5), loader(bits(10), 5))
    assert run.callback_metrics["valid_bound"] < 0
    run.test(svi, loader(bits(10), 5), verbose=False)
    assert run.callback_metrics["test_bound"] < 0
    run.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    fresh = LightningSVI(*small(), pv.objectives.iwae, particles=2)
    fresh.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), svi.parameters(), strict=True))


def test_parameters_that_no_module_holds_are_refused():
    class Declares(torch.nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                loc = pyro.param("loc", torch.zeros(2))
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    pyro.clear_param_store()
    run, svi = trainer(max_steps=1), LightningSVI(small()[0], Declares())
    with pytest.raises(ValueError, match=r"pyro\.param loc: no module holds it"):
        run.fit(svi, loader(bits(8), 8))
    pyro.clear_param_store()


def test_misfits_are_named():
    for loaders in ([loader(bits(8), 8)], [loader(bits(8), 8)] * 2):  # before a first look at held-out data, too
        svi = LightningSVI(small()[0], small("sigmoid_belief_network", "bernoulli")[1])
        with pytest.raises(pv.ContractError, match="site 'z'"):
            trainer(max_steps=1).fit(svi, *loaders)
    with pytest.raises(TypeError, match=r"neither holds an nn\.Module"):
        LightningSVI(lambda x: None, lambda x: None)


class Local(torch.nn.Module):
    """A mean for each datum."""

    def __init__(self, rows):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(rows, 2))

    def forward(self, x, index):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.loc[index], 1.0).to_event(1))


def test_rows_that_come_with_the_data_go_to_the_program_that_names_them():
    model, guide = pairs.make("linear_gaussian", "normal").model.float(), Local(20)
    data = TensorDataset(torch.randn(20, 6), torch.arange(20))
    trainer(max_epochs=1).fit(LightningSVI(model, guide), DataLoader(data, batch_size=5))
    assert guide.loc.abs().amax(1).min() > 0


def test_gradients_that_are_no_numbers_move_nothing():
    model, guide = small()
    x = bits(20)
    x[13] = torch.nan
    svi = LightningSVI(model, guide, optimizer=SGD)
    starts = []

    class Keep(lightning.Callback):
        def on_train_batch_start(self, *args):
            starts.append({name: p.clone() for name, p in svi.state_dict().items()})

    with pytest.raises(FloatingPointError, match="data: part 0 of the batch is nan at datum 3"):
        trainer(max_epochs=1, callbacks=[Keep()]).fit(svi, loader(x, 5))
    assert len(starts) == 3  # the third batch is refused
    assert all(torch.equal(p, starts[-1][name]) for name, p in svi.state_dict().items())
