"""Whose parameters an optimizer may hold, and what a step of variational EM refuses before anything moves."""

import copy

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_alternating import SGD, Vamp, assert_equal, names_of, step_on
from torch import nn

import ppl_vae as pv
from ppl_vae import alternating, svi
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian


@pytest.fixture
def pair():
    return pairs.make("vae", "normal")


def made_for(pair, **programs):
    return {f"{name}_optimizer": SGD(of.parameters()) for name, of in programs.items()}


STRANGERS = {
    "swapped": (
        lambda pair: made_for(pair, guide=pair.model, model=pair.guide),
        r"^guide_optimizer: it holds model\.decoder\S+, .* and 1 more, which is the model's; leave it to",
    ),
    "both in one": (
        lambda pair: {"model_optimizer": SGD([*pair.model.parameters(), *pair.guide.parameters()])},
        r"^model_optimizer: it holds guide\.encoder\S+, .* which is the guide's; leave it to guide_optimizer",
    ),
    "a stale guide's": (
        lambda pair: made_for(pair, guide=copy.deepcopy(pair.guide)),
        r"^guide_optimizer: it holds no parameter .* make it of guide\.parameters\(\)$",
    ),
    "a stale model's": (
        lambda pair: made_for(pair, model=copy.deepcopy(pair.model)),
        r"^model_optimizer: it holds no parameter .* make it of model\.parameters\(\)$",
    ),
    "a parameter of nobody": (
        lambda pair: {"guide_optimizer": SGD([*pair.guide.parameters(), nn.Parameter(torch.zeros(3))])},
        r"^guide_optimizer: it holds a parameter of shape \(3,\) that neither program has",
    ),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_optimizers_of_other_parameters_are_refused_by_argument(case, pair):
    make, message = STRANGERS[case]
    optimizers, before = make(pair), copy.deepcopy(pair)
    with pytest.raises(ValueError, match=message):
        pv.variational_em(pair.model, pair.guide, pair.data(), **optimizers)
    assert_equal(pair, before)


def test_m_steps_alone_leave_the_guide(pair):
    both = SGD([*pair.model.parameters(), *pair.guide.parameters()])
    step = pv.variational_em_step(pair.model, pair.guide, guide_optimizer=None, model_optimizer=both)
    before = copy.deepcopy(pair)
    with pytest.raises(ValueError, match=r"^model_optimizer: it holds guide\.encoder.*leave it to guide_optimizer"):
        step(pair.data())
    assert_equal(pair, before)
    with pytest.raises(TypeError, match=r"^model_optimizer: expected a torch optimizer, found None"):
        pv.variational_em_step(pair.model, pair.guide, guide_optimizer=None, model_optimizer=None)


class Tied(nn.Module):
    """Whose encoder is its decoder, transposed."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 6)
        self.paid = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)
            pyro.factor("penalty_model", -(self.paid - 1).square().expand(x.shape[0]))

    def guide(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x @ self.decoder.weight, 0.5).to_event(1))


class Encoded(Tied):
    """With an encoder, a penalty on it, and a scale that the log prior alone reads."""

    def __init__(self):
        super().__init__()
        self.encoder, self.log_tau = nn.Linear(6, 2), nn.Parameter(torch.zeros(()))

    def guide(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))
            pyro.factor("penalty_guide", -self.encoder.bias.square().sum().expand(x.shape[0]))

    def log_prior(self):
        return dist.Normal(0.0, self.log_tau.exp()).log_prob(self.decoder.weight).sum()


def test_what_only_a_penalty_or_the_log_prior_of_the_model_reads_is_the_models():
    both, x = Encoded(), torch.rand(20, 6)
    of_model, of_guide = names_of(both.model, both.guide, x)
    assert {*of_model} == {"model.decoder.weight", "model.decoder.bias", "model.paid", "model.log_tau"}
    assert {*of_guide} == {"model.encoder.weight", "model.encoder.bias"}
    pv.variational_em(both.model, both.guide, x, epochs=1, log_prior=both.log_prior)
    assert both.log_tau != 0
    assert both.paid != 0


ASKED = {
    "e_steps": ({"e_steps": 2}, "^e_steps: "),
    "guide_optimizer": ({"guide_optimizer": SGD}, "^guide_optimizer: "),
}


@pytest.mark.parametrize("case", ASKED)
def test_e_steps_of_nothing_are_refused(case):
    asked, message = ASKED[case]
    x, tied, exact = torch.rand(20, 6), Tied(), LinearGaussian(x_dim=6, z_dim=2)
    frozen = Normal(x_dim=6, z_dim=2, hidden=()).requires_grad_(False)
    message += "the guide has no trainable parameter of its own"
    used = r" \(the model's densities use model\.\S+, model\.\S+, model\.\S+, which are the model's then\), so that"
    encoding = Normal(x_dim=6, z_dim=2, hidden=(8,))
    for model, guide, why in (
        (tied.model, tied.guide, used),
        (HoldingVamp(encoding), encoding, used),
        (exact, Exact(exact), ", so that"),
        (exact, frozen, ", so that"),
    ):
        with pytest.raises(ValueError, match=message + why):
            pv.variational_em(model, guide, x.round(), **asked, epochs=1)
        pv.variational_em(model, guide, x.round(), epochs=1)  # nothing was asked


class HoldingVamp(Vamp):
    """Holds the guide, whose encoder is then the model's."""

    def __init__(self, guide):
        super().__init__(guide)
        self.guide = guide


def test_an_estimator_with_parameters_needs_a_guide_with_some():
    model = LinearGaussian(x_dim=6, z_dim=2)
    objective = pv.objectives.NVIL(x_dim=6, hidden=4)
    with pytest.raises(ValueError, match=r"^objective: it has parameters of its own \(objective\."):
        pv.variational_em(model, Exact(model), torch.rand(20, 6), objective=objective)


def test_both_optimizers_are_looked_at_before_either_moves(pair):
    step, x = step_on(pair), pair.data()
    step(x)
    pair.model.requires_grad_(False)
    before = copy.deepcopy(pair)
    with pytest.raises(ValueError, match=r"^model_optimizer: none of its parameters requires a gradient any more"):
        step(x)
    pair.model.requires_grad_(True)
    before.model.requires_grad_(True)
    assert_equal(pair, before)


def test_states_of_other_steps_change_nothing(pair):
    x, twin = pair.data(), pairs.make("vae", "normal")
    full, twins = step_on(pair), step_on(twin)
    full(x)
    alone = pv.variational_em_step(
        pair.model, pair.guide, guide_optimizer=None, model_optimizer=SGD(pair.model.parameters())
    )
    one = pv.svi_step(pair.model, pair.guide, optimizer=SGD([*pair.parameters().values()]))
    part = pv.variational_em_step(
        twin.model,
        twin.guide,
        guide_optimizer=SGD([*twin.guide.parameters()][:2]),
        model_optimizer=SGD(twin.model.parameters()),
    )
    bare = pv.variational_em_step(
        twin.model, twin.guide, guide_optimizer=None, model_optimizer=SGD(twin.model.parameters())
    )
    small = pv.svi_step(twin.model, twin.guide, optimizer=SGD(twin.guide.parameters()))
    before = copy.deepcopy(twin)
    for step, state, message in (
        (twins, alone, "^state: it has programs, m_step, expected programs, e_step, m_step; .* with a guide"),
        (twins, one, "^state: it has programs, optimizer, expected programs, e_step, m_step"),
        (
            bare,
            full,
            "^state: it has programs, e_step, m_step, expected programs, m_step; .* without a guide",
        ),
        (part, full, r"^state: that of guide_optimizer has groups of \[\d+\] parameters, expected \[2\]"),
        (small, one, r"^state: that of optimizer has groups of \[\d+\] parameters, expected \[\d+\]"),
        (small, full, "^state: it has e_step, m_step, programs, and no optimizer"),
    ):
        with pytest.raises(ValueError, match=message):
            step.load_state_dict(copy.deepcopy(state.state_dict()))
        assert_equal(twin, before)


def test_one_look_at_the_programs_is_enough(pair, monkeypatch):
    looks = []
    for module in (alternating, svi):
        monkeypatch.setattr(module, "check", lambda *arguments: looks.append(arguments))
    pv.variational_em(pair.model, pair.guide, pair.data(), epochs=1)
    assert len(looks) == 1
    step_on(pair)(pair.data())
    assert len(looks) == 2
