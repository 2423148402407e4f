"""Estimators, priors and paths of annealing where something has no gradient: a part that is frozen, flat or fixed."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from small import Bits, BitsGuide, Layers, LayersGuide
from torch import nn
from unchanged import assert_same, tensors

import ppl_vae as pv
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

F64 = torch.float64
COINS = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)


def optimizer_of(*modules):
    return torch.optim.SGD([p for m in modules for p in m.parameters() if p.requires_grad], lr=0.1)


def test_rebar_leaves_a_layer_that_is_frozen_and_trains_the_other():
    found = []
    for frozen in (False, True):
        model, guide, objective = Layers(), LayersGuide(), pv.objectives.REBAR().double()
        guide.logits.requires_grad_(not frozen)
        step = pv.svi_step(model, guide, objective, optimizer=optimizer_of(model, guide, objective), compile=False)
        before = tensors(guide)
        torch.manual_seed(0)
        step(COINS)
        assert torch.equal(guide.logits, before["logits"]) == frozen
        found.append(guide.up - before["up"])
    assert found[1].any()


def test_a_prior_on_what_has_been_frozen_since_is_told_and_moves_nothing():
    torch.manual_seed(0)
    sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
    model, guide = VAE(**sizes), Normal(**sizes)
    options = {"particles": 4, "chunk": 2, "log_prior": pv.normal_prior(model, scale=1.0), "data_size": 20}
    step = pv.svi_step(model, guide, pv.objectives.iwae, optimizer=optimizer_of(model, guide), **options)
    step(torch.ones(20, 6))
    model.requires_grad_(False)
    before, moving = tensors(model), tensors(guide)
    info = step(torch.ones(20, 6))
    torch.testing.assert_close(info.log_prior, options["log_prior"]() / 20)
    assert_same(model, before)
    assert any(not torch.equal(tensor, moving[name]) for name, tensor in guide.state_dict().items())


def test_a_prior_may_be_a_function_that_is_not_pythons():
    pairs = [(Bits(), BitsGuide()) for _ in range(2)]
    bounds = []
    for (model, guide), prior in zip(pairs, (False, True), strict=True):
        expected = model.prior.sum().detach() / 8
        options = {"log_prior": partial(torch.sum, model.prior), "data_size": 8} if prior else {}
        step = pv.svi_step(model, guide, optimizer=optimizer_of(model, guide), compile=False, **options)
        step.prepare(COINS)
        torch.manual_seed(0)
        info = step(COINS)
        assert (info.log_prior is not None) == prior
        bounds.append(info.bound)
    torch.testing.assert_close(info.log_prior, expected)
    torch.testing.assert_close(*bounds)
    (free, _), (bound, _) = pairs
    torch.testing.assert_close(bound.prior - free.prior, torch.full((2,), 0.1 / 8, dtype=F64))


class Unread(nn.Module):
    """The data say nothing of z, whose prior a mask leaves out: densities without a slope."""

    def __init__(self, masked):
        super().__init__()
        self.masked, self.loc = masked, nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            with pyro.poutine.mask(mask=not self.masked):
                pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)


@pytest.mark.parametrize("masked", [False, True])
def test_annealing_is_exact_where_nothing_follows_the_latents(masked):
    x = torch.linspace(-1, 2, 4, dtype=F64)
    found = pv.ais(Unread(masked), x, distributions=4, chains=3)
    torch.testing.assert_close(found.log_px, dist.Normal(1.0, 1.0).log_prob(x))
