"""The step of generative adversarial networks: the best critic, both losses, known dynamics, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, twins
from torch import nn

import ppl_vae as pv
from ppl_vae.adversarial import minimax, non_saturating
from ppl_vae.models.gan import GAN
from ppl_vae.models.vae import VAE

F64 = torch.float64
PI = torch.tensor([0.5, 0.3, 0.1, 0.1], dtype=F64)
P = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)


def sgd(module, lr=0.1):
    return torch.optim.SGD(module.parameters(), lr=lr)


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=1e-2)


def rows(shares):
    """Return ten one-hot codes, each as often as its share says, so that their means are expectations."""
    return torch.eye(len(shares), dtype=F64).repeat_interleave((10 * shares).round().long(), 0)


def divergence(p, q):
    return (p * (p / q).log()).sum()


def jsd(p, q):
    return (divergence(p, (p + q) / 2) + divergence(q, (p + q) / 2)) / 2


class Shifted(nn.Module):
    """Draws rows that are given, all of them moved by one parameter."""

    def __init__(self, given):
        super().__init__()
        self.given, self.shift = given, nn.Parameter(torch.zeros(given.shape[1], dtype=F64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Delta(self.given + self.shift, event_dim=1), obs=x)


def test_the_trained_critic_is_the_best_one_and_the_value_that_of_the_divergence():
    model, critic = Shifted(rows(P)), nn.Linear(4, 1, bias=False).double()
    step = pv.gan_step(model, critic, optimizer=sgd(model, lr=0.0), critic_optimizer=sgd(critic, lr=8.0))
    for _ in range(80):
        info = step(rows(PI))
    found = torch.sigmoid(critic.weight[0])
    torch.testing.assert_close(found.detach(), PI / (PI + P), rtol=0, atol=1e-10)
    value = -2 * math.log(2) + 2 * jsd(PI, P)
    torch.testing.assert_close(info.bound, value, rtol=0, atol=1e-10)
    torch.testing.assert_close(info.penalties["critic_loss"], -value, rtol=0, atol=1e-10)
    torch.testing.assert_close(step.bound(rows(PI)).mean(), value, rtol=0, atol=1e-10)


def test_the_minimax_slope_vanishes_as_the_critic_becomes_sure_and_the_other_does_not():
    logits = torch.tensor([-60.0, -5.0, 0.0, 5.0], dtype=F64, requires_grad=True)
    (of_minimax,) = torch.autograd.grad(minimax(logits).sum(), logits)
    (of_other,) = torch.autograd.grad(non_saturating(logits).sum(), logits)
    sure = torch.sigmoid(logits).detach()
    torch.testing.assert_close(of_minimax, -sure, rtol=1e-12, atol=0)
    torch.testing.assert_close(of_other, sure - 1, rtol=1e-12, atol=0)
    assert -1e-25 < of_minimax[0] < 0
    assert of_other[0] == pytest.approx(-1, abs=1e-25)


@pytest.mark.parametrize("slope", [0.3, 8.0])
@pytest.mark.parametrize(("loss", "rate"), [(minimax, lambda d: d), (non_saturating, lambda d: 1 - d)])
def test_a_generator_moves_as_far_as_the_closed_form_says(loss, rate, slope):
    model, critic = Shifted(torch.full((2, 1), -3.0, dtype=F64)), nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(critic.weight, slope)
    optimizers = {"optimizer": sgd(model, lr=1.0), "critic_optimizer": sgd(critic, lr=0.0)}
    pv.gan_step(model, critic, loss=loss, **optimizers)(torch.zeros(2, 1, dtype=F64))
    moved = slope * rate(torch.sigmoid(torch.tensor(-3.0 * slope, dtype=F64)))
    torch.testing.assert_close(model.shift.detach(), moved.expand(1), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("loss", "climbed"),
    [(minimax, lambda p: 2 * jsd(PI, p)), (non_saturating, lambda p: divergence(p, PI) - 2 * jsd(PI, p))],
)
def test_with_the_best_critic_a_generator_follows_a_divergence_to_the_same_place(loss, climbed):
    logits = P.log().requires_grad_()
    p = logits.softmax(0)
    best = (PI / P).log()
    (found,) = torch.autograd.grad(p @ loss(best), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(climbed(p), logits)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert found.norm() > 0.01
    at_rest = PI.log().requires_grad_()
    (slope,) = torch.autograd.grad(at_rest.softmax(0) @ loss(torch.zeros(4, dtype=F64)), at_rest)
    assert slope.norm() < 1e-15


def test_two_points_circle_each_other():
    """The Dirac GAN: data at zero, a generator at theta, a critic T = psi x."""
    model, critic = Shifted(torch.zeros(1, 1, dtype=F64)), nn.Linear(1, 1, bias=False).double()
    theta, psi, lr = 1.0, 0.0, 0.3
    nn.init.constant_(model.shift, theta)
    nn.init.constant_(critic.weight, psi)
    step = pv.gan_step(model, critic, optimizer=sgd(model, lr), critic_optimizer=sgd(critic, lr), loss=minimax)
    radii, signs = [], []
    for _ in range(100):
        step(torch.zeros(1, 1, dtype=F64))
        psi -= lr * theta / (1 + math.exp(-psi * theta))
        theta += lr * psi / (1 + math.exp(-psi * theta))
        assert model.shift.item() == pytest.approx(theta, abs=1e-9)
        assert critic.weight.item() == pytest.approx(psi, abs=1e-9)
        radii.append(math.hypot(theta, psi))
        signs.append(theta > 0)
    assert min(radii) > 0.8  # it comes no nearer
    assert sum(one != other for one, other in zip(signs[1:], signs, strict=False)) >= 3


def noisy():
    torch.manual_seed(0)
    return GAN(x_dim=6, z_dim=2, hidden=(8,)).double(), pv.nets.MLP(6, (8,), 1).double()


def step_of(programs, optimizer=adam, **options):
    model, critic = programs
    return pv.gan_step(model, critic, optimizer=optimizer(model), critic_optimizer=optimizer(critic), **options)


def test_a_step_goes_on_from_its_state():
    x = torch.randn(5, 6, dtype=F64)
    whole, first, second = (step_of(noisy(), critic_steps=2) for _ in range(3))
    torch.manual_seed(1)
    bounds = [whole(x).bound for _ in range(4)]
    torch.manual_seed(1)
    again = [first(x).bound for _ in range(2)]
    second.load_state_dict(first.state_dict())
    again += [second(x).bound for _ in range(2)]
    assert again == bounds
    with pytest.raises(ValueError, match="expected critic_optimizer, optimizer, programs"):
        second.load_state_dict({"programs": {}})


def test_the_loop_keeps_the_epoch_of_the_smallest_value():
    x = torch.randn(20, 6, dtype=F64)
    fit = pv.fit(step=step_of(noisy()), data=x, valid=x[:7], epochs=6, batch_size=8)
    assert {"train_bound", "valid_bound", "generator_loss", "critic_loss"} <= fit.history.keys()
    assert fit.best["bound"] == min(fit.history["valid_bound"])
    assert fit.trained is None  # there is no guide to evaluate with


def test_the_loop_tells_the_step_how_many_batches_are_to_come(monkeypatch):
    step, planned = step_of(noisy(), critic_steps=2), []
    monkeypatch.setattr(step, "plan", lambda *given: planned.append(given))
    pv.fit(step=step, data=torch.randn(20, 6, dtype=F64), valid=torch.randn(9, 6, dtype=F64), epochs=3, batch_size=8)
    assert planned == [(9, 6)]


def test_a_captured_step_does_what_an_eager_one_does(uncompiled):
    one, other = twins(noisy)
    eager, captured = (step_of(p, sgd, compile=c) for p, c in ((one, False), (other, True)))
    assert_steps_agree(eager, captured, [torch.randn(n, 6, dtype=F64) for n in (5, 5, 3)])
    assert captured.graphs == 2


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3, 2))
        self.register_buffer("shares", torch.ones(3) / 3)

    def forward(self, x, y):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(self.shares), obs=y)
            pyro.sample("x", dist.Normal(self.loc[y], 0.1).to_event(1), obs=x)


def test_a_draw_without_reparameterisation_is_fine_where_nothing_trains_through_it():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))
            self.labels = []

        def forward(self, x, y):
            self.labels.append(y)
            return (self.weight[y] * x).sum(-1)

    critic, y = Critic(), torch.tensor([0, 0, 0, 1])
    step = step_of((Labelled(), critic), compile=False)
    step((torch.randn(4, 2), y))
    assert any(torch.equal(label, y) for label in critic.labels)
    assert not all(torch.equal(label, y) for label in critic.labels)


class ReadsData(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, dtype=F64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(self.weight * x, 1.0).to_event(1), obs=x)


class Weighed(Shifted):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            x = pyro.sample("x", dist.Delta(self.given + self.shift, event_dim=1), obs=x)
            pyro.factor("tilt", x.sum(-1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (VAE(6, 2, (8,)).double(), r"site 'x' \(Bernoulli\) is drawn without reparameterisation"),
        (ReadsData(), "site 'x': what it draws depends on x itself"),
        (Weighed(torch.zeros(5, 6, dtype=F64)), "factor 'tilt'"),
    ],
)
def test_what_cannot_be_played_is_refused_by_name_before_anything_moves(model, message):
    critic = pv.nets.MLP(6, (8,), 1).double()
    step = step_of((model, critic))
    before = {name: tensor.clone() for name, tensor in step.programs.state_dict().items()}
    with pytest.raises(pv.ContractError, match=message):
        step(torch.ones(5, 6, dtype=F64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.programs.state_dict().items())


def test_critics_and_optimizers_are_looked_at():
    model, critic = noisy()
    x = torch.randn(5, 6, dtype=F64)
    with pytest.raises(pv.ContractError, match=r"critic: expected a logit for each datum, shape \(5,\)"):
        step_of((model, pv.nets.MLP(6, (8,), 2).double()))(x)
    with pytest.raises(ValueError, match=r"critic_optimizer: it holds model\.\S+, .* leave it to optimizer"):
        pv.gan_step(model, critic, optimizer=adam(model), critic_optimizer=adam(model))(x)
    with pytest.raises(TypeError, match=r"critic_optimizer: expected a torch optimizer over critic\.parameters"):
        pv.gan_step(model, critic, optimizer=adam(model), critic_optimizer=1e-3)
    with pytest.raises(TypeError, match=r"critic: expected an nn\.Module"):
        pv.gan_step(model, torch.sum, optimizer=adam(model), critic_optimizer=adam(critic))
    with pytest.raises(TypeError, match="loss: expected a function of logits"):
        step_of((model, critic), loss="minimax")
    with pytest.raises(TypeError, match="loss: expected numbers for logits, a tensor, found NoneType"):
        step_of((model, critic), loss=lambda logits: None)(x)
    with pytest.raises(RuntimeError) as raised:
        step_of((model, pv.nets.MLP(5, (8,), 1).double()))(x)
    assert "critic on (5, 6) torch.float64" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match="critic_steps"):
        step_of((model, critic), critic_steps=0)
    model.idle = nn.Parameter(torch.zeros(1, dtype=F64))
    with pytest.raises(pv.ContractError, match=r"optimizer: model\.idle has no part"):
        step_of((model, critic))(x)


def test_a_generator_without_noise_is_drawn_from_and_has_no_density():
    model = GAN(x_dim=6, z_dim=2, hidden=(8,), likelihood=pv.nets.ToDelta())
    drawn = pv.sample(model, shape=(6,), n=3)
    torch.testing.assert_close(model.generator(drawn["z"]).detach(), drawn["x"])
    with pytest.raises(pv.ContractError, match="site 'x' is a deterministic likelihood"):
        pv.ais(model, torch.zeros(3, 6), distributions=3)
