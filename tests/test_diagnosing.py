"""What a replay says of a batch that gave NaN: the first site, tensor, datum and number, and the repair."""

import copy
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import softplus

import ppl_vae as pv
from ppl_vae.diagnosing import NOTHING_FOUND, explain
from ppl_vae.objectives import NVIL, elbo, iwae
from ppl_vae.optimizers import FusedAdam

ROWS = torch.tensor([17, 4, 32, 8])


class Model(nn.Module):
    """A linear model with a scale of its own for x, a function of z."""

    def __init__(self, scale=torch.ones_like):
        super().__init__()
        self.net, self.scale = nn.Linear(2, 3), scale
        self.register_buffer("never", torch.full((2,), -torch.inf))

    def forward(self, x, observed=None):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            likelihood = dist.Normal(self.net(z), self.scale(self.net(z)))
            mask = torch.tensor(True) if observed is None else observed
            pyro.sample("x", likelihood.mask(mask).to_event(1), obs=x.nan_to_num() if observed is not None else x)


class Guide(nn.Module):
    """A normal whose scale is a function of the sum of a datum, which is its own last number."""

    def __init__(self, scale=softplus):
        super().__init__()
        self.net, self.scale = nn.Linear(3, 2), scale

    def forward(self, x, observed=None):
        h = x.nan_to_num()
        with pyro.plate("data", x.shape[0], dim=-1):
            loc = self.net(h.clamp(-1, 1))
            pyro.sample("z", dist.Normal(loc, self.scale(h[..., -1:]).expand_as(loc)).to_event(1))


def batch(last=0.0):
    """Four data of which the third is out of the ordinary."""
    x = torch.zeros(4, 3)
    x[2, 2] = last
    return x


def step_on(model, guide, objective=elbo, particles=2, **options):
    own = objective.parameters() if isinstance(objective, nn.Module) else ()
    optimizer = FusedAdam([*model.parameters(), *guide.parameters(), *own])
    step = pv.svi_step(model, guide, objective, particles, optimizer=optimizer, compile=False, **options)
    step.prepare(batch())
    return step


def replayed(step, x):
    """Return what is said of a batch that the step has just refused."""
    torch.manual_seed(0)
    assert not step(x).finite
    torch.manual_seed(0)
    return step.explain(x, ROWS)


# Scales of the guide by the last number of a datum, that number, and what is to be said of it.
SCALES = {
    "overflow": (torch.exp, 100.0, "scale of Normal is inf", "softplus for exp"),
    "underflow": (torch.exp, -200.0, "scale of Normal is 0", "put a floor under it"),
    "NaN": (lambda h: (1 - h).sqrt(), 5.0, "scale of Normal is nan", "from overflowing"),
    "negative": (lambda h: 1 - h, 5.0, "scale of Normal is -4", "from overflowing"),
}


@pytest.mark.parametrize("case", SCALES)
@pytest.mark.parametrize("objective", [elbo, iwae], ids=["elbo", "iwae"])
def test_a_scale_of_the_guide_is_named(case, objective):
    scale, last, what, repair = SCALES[case]
    said = replayed(step_on(Model(), Guide(scale), objective), batch(last))
    assert said.startswith("guide: site 'z' (test_diagnosing.py, line ")
    assert f"{what} at datum 2 (row 32 of the data set), particle 0" in said
    assert repair in said


def test_an_estimator_is_replayed_as_it_draws():
    said = replayed(step_on(Model(), Guide(torch.exp), NVIL(x_dim=3)), batch(100.0))
    assert "guide: site 'z'" in said
    assert "scale of Normal is inf at datum 2" in said


def test_a_tensor_of_the_model_is_named():
    model = Model(lambda loc: torch.where(loc > 50, 0.0, 1.0))
    said = replayed(step_on(model, Guide(lambda h: 1 + h.square())), batch(1e4))
    assert said.startswith("model: site 'x' (test_diagnosing.py, line ")
    assert "scale of Normal is 0 at datum 2 (row 32 of the data set)" in said


def test_a_density_that_overflows_is_told_from_its_parameters():
    said = replayed(step_on(Model(), Guide(torch.ones_like)), batch(1e25))
    assert "log density under Normal is -inf at datum 2 (row 32 of the data set), particle 0; it overflows" in said


def test_a_value_outside_the_support_is_told():
    class Rates(Model):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
                pyro.sample("x", dist.Gamma(self.net(z).exp(), 1.0).to_event(1), obs=x + 1)

    said = replayed(step_on(Rates(), Guide(torch.ones_like)), batch(-3.0))
    assert "model: site 'x'" in said
    assert "at datum 2" in said
    assert "the value lies outside the support of Gamma" in said


def test_the_data_are_looked_at_first_but_where_they_are_missing():
    x = batch(torch.nan)
    assert "part 0 of the batch is nan at datum 2 (row 32 of the data set)" in replayed(step_on(Model(), Guide()), x)
    model, guide, observed = Model(), Guide(), x.isfinite()
    assert explain(model, guide, elbo, (x, observed), 2) == NOTHING_FOUND
    guide.scale = lambda h: (h + 1).log()
    said = explain(model, guide, elbo, (torch.where(observed, x - 1, x), observed), 2)
    assert "guide: site 'z'" in said


def test_parameters_that_are_spoilt_already_are_named_and_infinite_buffers_are_not():
    step = step_on(Model(), Guide())
    with torch.no_grad():
        step.model.net.bias[1] = torch.inf
    said = step.explain(batch())
    assert said.startswith("parameter model.net.bias has 1 NaN or infinite numbers of 3")
    assert "never" not in said


def test_a_gradient_is_followed_to_the_line_that_it_comes_from():
    model = Model(lambda loc: 1 + (0 * loc).square().sum(-1, keepdim=True).sqrt())
    said = replayed(step_on(model, Guide()), batch())
    assert said.startswith("the gradient of model.net.weight is NaN or infinite, of values that are all finite")
    assert "in test_diagnosing.py, line" in said
    assert ".sqrt()" in said


def test_a_log_prior_is_looked_at():
    model = Model()
    step = step_on(model, Guide(), log_prior=lambda: model.net.bias.sum().log(), data_size=10)
    with torch.no_grad():
        model.net.bias.fill_(-1.0)
    assert replayed(step, batch()).startswith("log prior is nan")


def test_what_a_program_raises_is_explained_by_its_site():
    class Picks(Guide):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("z", dist.OneHotCategorical(logits=self.net(x) * x[:, -1:].exp()))

    class Picked(Model):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(2)))
                pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    step = step_on(Picked(), Picks())
    with pytest.raises(RuntimeError):
        step(batch(100.0))
    said = step.explain(batch(100.0), ROWS)
    assert "guide: site 'z'" in said
    assert "at datum 2 (row 32 of the data set)" in said


def test_nothing_is_said_of_a_sound_batch_and_nothing_is_changed():
    step = step_on(Model(), Guide())
    step(batch())
    before, gradients = copy.deepcopy(step.state_dict()), [p.grad.clone() for p in step.model.parameters()]
    random = torch.get_rng_state()
    assert step.explain(batch(), ROWS) == NOTHING_FOUND
    assert "site 'z'" in step_on(Model(), Guide(torch.exp)).explain(batch(100.0))
    torch.testing.assert_close(step.state_dict(), before, rtol=0, atol=0)
    assert all(torch.equal(p.grad, g) for p, g in zip(step.model.parameters(), gradients, strict=True))
    step.explain(batch(100.0))
    torch.set_rng_state(random)
    step.explain(batch(1e25), ROWS)
    assert torch.equal(torch.get_rng_state(), random)


def test_an_impossible_particle_is_no_fault_where_the_bound_is_finite():
    """A bound on several particles is finite if one of them is possible."""

    class Half(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
                pyro.factor("positive", torch.where(z[..., 0] > 0, 0.0, -torch.inf))
                pyro.sample("x", dist.Normal(z[..., :1], torch.ones(3)).to_event(1), obs=x)

    assert explain(Half(), Guide(), iwae, (batch(),), 50) == NOTHING_FOUND


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_steps_on_pyros_objectives_explain_too():
    model, guide = Model(), Guide(torch.exp)
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
    step = pv.svi_step(model, guide, Trace_ELBO(), optimizer=optimizer)
    step(batch())
    assert "guide: site 'z'" in replayed(step, batch(100.0))
    assert "scale of Normal is inf at datum 2" in step.explain(batch(100.0))


def test_variational_em_names_what_its_steps_meet():
    model, guide = Model(), Guide(torch.exp)
    optimizers = {"guide_optimizer": FusedAdam(guide.parameters()), "model_optimizer": FusedAdam(model.parameters())}
    step = pv.variational_em_step(model, guide, compile=False, **optimizers)
    step(batch())
    assert "scale of Normal is inf at datum 2 (row 32" in replayed(step, batch(100.0))
    assert step.explain(batch()) == NOTHING_FOUND


def test_a_player_is_named():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("x", dist.Normal(self.shift.expand(x.shape), 1.0).to_event(1), obs=x)

    class Critic(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 0 * x[:, -1:].exp()

    model, critic = Draws(), Critic(3, 1)
    optimizers = {"optimizer": FusedAdam(model.parameters()), "critic_optimizer": FusedAdam(critic.parameters())}
    step = pv.gan_step(model, critic, **optimizers, compile=False)
    step.prepare(batch())
    assert replayed(step, batch(100.0)).startswith("critic_optimizer: the loss is nan")
    assert step.explain(batch()) == NOTHING_FOUND


# Two biases at which the slope of a steep prior is infinite, and finite with a square that is not.
SLOPES = {
    0.1: r"the gradient of model\.net\.bias is NaN or infinite, of values that are all finite: it overflows in the",
    0.01: r"the gradient of model\.net\.bias has numbers as large as 2\.0e\+38, finite, but not their squares.*float64",
}


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("bias", SLOPES)
def test_a_gradient_that_overflows_of_finite_numbers_is_told_from_one_that_is_nan(bias, clip_norm):
    model = Model()
    nn.init.zeros_(model.net.bias)
    prior = {"log_prior": lambda: -(1e20 * model.net.bias[0]).square(), "data_size": 1}
    step = step_on(model, Guide(), clip_norm=clip_norm, **prior)
    with torch.no_grad():
        model.net.bias.fill_(bias)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert re.match(SLOPES[bias], replayed(step, batch()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_a_mixture_overflows_by_is_told_part_by_part():
    class Mixed(Model):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
                parts = dist.Normal(self.net(z).unsqueeze(-1).expand(*z.shape[:-1], 3, 2), 1.0)
                mixture = dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(3, 2)), parts)
                pyro.sample("x", mixture.to_event(1), obs=x)

    said = replayed(step_on(Mixed(), Guide(torch.ones_like)), batch(1e25))
    assert "log density under MixtureSameFamily is -inf at datum 2 (row 32 of the data set), particle 0" in said
    assert "logits of the Categorical in it from -0.6931 to -0.6931" in said
    assert "scale of the Normal in it from 1 to 1" in said


def test_logits_that_overflow_are_named():
    class Coins(Model):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
                logits = self.net(z) * x[..., -1:].exp()
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=(x > 0).to(x))

    said = replayed(step_on(Coins(), Guide(torch.ones_like)), batch(100.0))
    assert "model: site 'x'" in said
    assert "logits of Bernoulli is " in said
    assert "at datum 2 (row 32 of the data set)" in said
    assert "keep what it is made of from growing" in said


class Checked(dist.Normal):
    """A person's own: it looks at its scale when it draws, and at what it drew."""

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008 - torch's own default
        if not (self.scale > 0).all():
            raise ValueError("scale: not above zero")
        drawn = super().rsample(sample_shape)
        if drawn.abs().max() > 50:
            raise ValueError("drawn: beyond all bounds")
        return drawn


class Draws(Guide):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            loc = self.net(x.clamp(-1, 1)) + x[:, -1:].clamp_min(0)
            pyro.sample("z", Checked(loc, self.scale(x[:, -1:]).expand_as(loc)).to_event(1))


def raised_on(step, last):
    """Return what is said of a batch on which the programs raise, and assert that nothing moved."""
    before = {name: tensor.clone() for name, tensor in step.programs.tensors().items()}
    with pytest.raises(ValueError, match=r":"):
        step(batch(last))
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.programs.tensors().items())
    return step.explain(batch(last), ROWS)


def test_what_a_distribution_raises_is_told_with_the_parameter_that_is_wrong_or_alone():
    said = raised_on(step_on(Model(), Draws(lambda h: 1 + h)), -3.0)
    assert "guide: site 'z'" in said
    assert "scale of Checked is -2 at datum 2 (row 32 of the data set); keep" in said
    assert said.endswith("(ValueError: scale: not above zero)")
    said = raised_on(step_on(Model(), Draws(torch.ones_like)), 100.0)
    assert said.startswith("guide: site 'z'")
    assert said.endswith(": the programs fail there: ValueError: drawn: beyond all bounds")


class Careful(Model):
    """It looks at its latents, as a person might."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            if (x > 1000).any():
                raise ValueError("x: too large")
            if z.isnan().any():
                raise ValueError("z: not a number")
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


def test_what_programs_raise_between_sites_is_told_with_the_fault_that_came_before_or_alone():
    said = raised_on(step_on(Careful(), Guide(lambda h: (1 - h).sqrt())), 5.0)
    assert "guide: site 'z'" in said
    assert "scale of Normal is nan at datum 2 (row 32 of the data set)" in said
    assert said.endswith("(then the programs fail: ValueError: z: not a number)")
    said = raised_on(step_on(Careful(), Guide(torch.ones_like)), 2000.0)
    assert said == "the programs fail on this batch: ValueError: x: too large"


def test_the_loop_tells_the_cause_beside_what_was_raised():
    data, model = torch.cat([batch(), batch(2000.0)]), Careful()
    with pytest.raises(ValueError, match="x: too large") as raised:
        pv.fit(model, Guide(torch.ones_like), data, epochs=1, batch_size=1, compile=False)
    assert (
        "the programs fail on this batch: ValueError: x: too large. The batch moved nothing"
        in raised.value.__notes__[0]
    )
