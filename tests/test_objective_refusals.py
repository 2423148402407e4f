"""What objectives, and networks and rules for them, are refused by name; and nothing has moved then."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from small import Bits, BitsGuide, Line, LineGuide
from torch import nn
from unchanged import assert_same, tensors

import ppl_vae as pv
from ppl_vae import laboratory, listing, nets

F64 = torch.float64
SIZES = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
X = torch.ones(20, 6)
COINS = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)


def step_on(model, guide, objective, particles=3, **options):
    """Return a step whose optimizer has all parameters."""
    own = objective.parameters() if isinstance(objective, nn.Module) else ()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters(), *own], lr=0.1)
    return pv.svi_step(model, guide, objective, particles, optimizer=optimizer, **options)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.middle, self.decoder = nn.Linear(2, 2), nn.Linear(2, 6)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.middle(z2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z1)).to_event(1), obs=x)


class NoisyGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.up = nn.Linear(6, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z1 = pyro.sample("z1", dist.Normal(self.encoder(x), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(self.up(z1), 1.0).to_event(1))


@pytest.mark.parametrize("objective", [pv.objectives.stl, pv.objectives.dreg])
def test_bounds_that_run_a_guide_of_layers_twice_refuse_noise_in_it(objective):
    model, guide = TwoLayers(), NoisyGuide()
    before = tensors(guide)
    message = rf"objective: {objective.__name__} runs a guide of several layers twice, and site 'z2' .*dropout"
    with pytest.raises(ValueError, match=message):
        pv.fit(model, guide, X, objective=objective, particles=3, epochs=1)
    assert_same(guide, before)
    pv.fit(model, guide, X, epochs=1)


def detached(particles):
    return particles.log_w.detach().mean(0)


def test_a_bound_without_any_gradient_is_refused():
    model, guide = Bits(), BitsGuide()
    before = tensors(model)
    with pytest.raises(
        ValueError, match=r"objective: the guide draws site 'z' without rep.*with_score\(bound, particles"
    ):
        pv.fit(model, guide, COINS, objective=detached, particles=3, epochs=1)
    with pytest.raises(ValueError, match=r"objective: detached has no gradient in any parameter; take \.detach\(\)"):
        laboratory.gradient_statistics(model, guide, COINS, detached, particles=2, draws=8)
    assert_same(model, before)


class Flat(nn.Linear):
    """A network that is given numbers where it wants vectors of one."""

    def __init__(self, outputs):
        super().__init__(1, outputs, dtype=F64)

    def forward(self, x):
        return super().forward(x.unsqueeze(-1))


def network(outputs=1):
    return nets.MLP(2, (4,), outputs).double()


OBJECTIVES = {
    "NVIL, another size": (lambda: pv.objectives.NVIL(x_dim=3), r"NVIL's baseline takes 3 .*found 1.*NVIL\(x_dim=1\)"),
    "NVIL, two numbers": (
        lambda: pv.objectives.NVIL(baseline=Flat(2)),
        r"baseline: expected one .*found \(4, 2\); let",
    ),
    "RELAX, a stranger": (
        lambda: pv.objectives.RELAX(z=network(), y=network()),
        r"RELAX has a network for 'y', which is no discrete site of the guide \(those are z\); leave it out",
    ),
    "RELAX, two numbers": (
        lambda: pv.objectives.RELAX(z=network(2)),
        r"network for site 'z' gives shape \(1, 4, 2\), expected \(1, 4, 1\): one number for each draw and datum",
    ),
}


@pytest.mark.parametrize("which", OBJECTIVES)
def test_networks_of_estimators_that_do_not_fit_are_refused(which):
    make, message = OBJECTIVES[which]
    model, guide, objective = Bits(), BitsGuide(), make().double()
    before = tensors(model), tensors(guide), tensors(objective)
    with pytest.raises(ValueError, match=message):
        step_on(model, guide, objective, particles=1)(COINS)
    for module, own in zip((model, guide, objective), before, strict=True):
        assert_same(module, own)


def test_a_baseline_that_raises_is_named():
    objective = pv.objectives.NVIL(baseline=nn.Linear(7, 1).double())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as raised:
        step_on(Bits(), BitsGuide(), objective, particles=1)(COINS)
    assert "(objective: NVIL's baseline on x of shape (4,), torch.float64)" in raised.value.__notes__


def test_a_rule_of_too_many_nodes_is_refused():
    with pytest.raises(ValueError, match=r"nodes: expected at most 100, .*found 101"):
        listing.expected_bound(pv.objectives.elbo, Line(), LineGuide(), COINS, nodes=101)
    listing.expected_bound(pv.objectives.elbo, Line(), LineGuide(), COINS, nodes=100)
