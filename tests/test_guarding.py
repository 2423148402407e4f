"""What is no finite number moves nothing: parameters, state of optimizers, gathered gradients, buffers."""

import copy
from functools import partial

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import step_on
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from small import Bits, BitsGuide
from test_capture import eventful
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ppl_vae as pv
from ppl_vae import guarding
from ppl_vae.learning_rates import LearningRates
from ppl_vae.models.gan import GAN
from ppl_vae.objectives import NVIL, Scheduled, beta_elbo, linear
from ppl_vae.optimizers import FusedAdam
from ppl_vae.updating import Update

SGD = torch.optim.SGD
OPTIMIZERS = {
    "ours": partial(FusedAdam, lr=0.1),
    "adam": partial(torch.optim.Adam, lr=0.1),
    "amsgrad": partial(torch.optim.Adam, lr=0.1, amsgrad=True),
    "fused adam": partial(torch.optim.Adam, lr=0.1, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.1),
    "fused adamw": partial(torch.optim.AdamW, lr=0.1, fused=True),
    "nadam": partial(torch.optim.NAdam, lr=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.9, centered=True),
    "rprop": partial(torch.optim.Rprop, lr=0.1),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9, dampening=0.5),
    "fused momentum": partial(SGD, lr=0.1, momentum=0.9, fused=True),
}
GOOD, BAD = [1.0, -2.0, 0.5], [[torch.nan, 1.0, 1.0], [1.0, torch.inf, 1.0], [-torch.inf, 1.0, 1.0]]
# Gradients of seven batches, of which four are to be refused, the first among them.
BATCHES = [BAD[0], GOOD, BAD[1], [0.3, 0.2, 0.1], BAD[2], BAD[0], [2.0, 1.0, -1.0]]
BOTH = pytest.mark.parametrize("waits", [True, False], ids=["looking", "on the device"])


def state_of(optimizer):
    """Return copies of all that an optimizer keeps, flat."""
    return {(i, n): copy.deepcopy(v) for i, s in optimizer.state_dict()["state"].items() for n, v in s.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


def updated(make, batches, waits=None, values=None, rows=1, **options):
    """Return parameters and the state of an optimizer after gradients, and the update itself."""
    parameters = [nn.Parameter(torch.tensor([1.0, 2.0, 3.0])), nn.Parameter(torch.ones(3, 1))]
    update = Update(make(parameters), **options)
    update.waits = waits
    for i, gradient in enumerate(batches):
        update.clear()
        gradients = [torch.tensor(gradient), 0.5 * torch.tensor(gradient).unsqueeze(1)]
        update(parameters, gradients, rows, [torch.tensor(1.0 if values is None else values[i])])
    return torch.cat([p.detach().reshape(-1) for p in parameters]), state_of(update.optimizer), update


@pytest.mark.parametrize("name", OPTIMIZERS)
@BOTH
def test_refused_gradients_leave_no_trace(name, waits):
    found, state, update = updated(OPTIMIZERS[name], BATCHES, waits)
    plain = updated(OPTIMIZERS[name], [batch for batch in BATCHES if batch not in BAD])
    assert torch.equal(found, plain[0])
    assert_equal(state, plain[1])
    assert (update.faults, update.in_a_row, update.finite) == (4, 0, True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@BOTH
def test_a_bound_that_is_no_number_is_refused_though_gradients_are_finite(value, waits):
    found, state, update = updated(OPTIMIZERS["ours"], [GOOD] * 4, waits, [0.0, value, value, 0.0])
    plain = updated(OPTIMIZERS["ours"], [GOOD] * 2)
    assert torch.equal(found, plain[0])
    assert_equal(state, plain[1])
    assert update.faults == 2


@BOTH
def test_what_is_in_a_row_is_counted(waits):
    update = updated(OPTIMIZERS["ours"], BATCHES[:-1], waits)[2]
    assert (update.faults, update.in_a_row, update.finite) == (4, 2, False)


class Listening(TorchDispatchMode):
    """Refuses to read a number off a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


# Eager ones read their counts of steps, which they keep on the CPU.
@pytest.mark.parametrize("name", ["ours", "fused adam", "fused adamw", "sgd", "momentum"])
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.1}], ids=str)
def test_nobody_waits_for_the_device_after_the_first_step(name, options):
    parameters = [nn.Parameter(torch.ones(3))]
    update = Update(OPTIMIZERS[name](parameters), **options)
    update.waits = False
    for i, gradient in enumerate([GOOD, GOOD, BAD[0], GOOD, BAD[1], BAD[2], GOOD]):
        given = (parameters, [torch.tensor(gradient)], 2, [torch.tensor(0.0)])
        if i < 2:
            update(*given)
        else:
            with Listening():
                update(*given)
    assert update.faults == 3
    assert parameters[0].isfinite().all()


@BOTH
def test_finite_gradients_whose_sum_overflows_are_taken(waits):
    large = [3e38, 3e38, -3e38]
    found, _, update = updated(partial(SGD, lr=1e-38), [large, large], waits)
    wanted = torch.tensor([1.0, 2.0, 3.0]) - 2 * 3 * torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(found[:3], wanted)
    assert update.faults == 0


@pytest.mark.parametrize("name", ["ours", "adam", "fused adam", "momentum"])
@BOTH
def test_finite_gradients_by_which_something_overflows_are_refused(name, waits):
    make = partial(SGD, lr=1e10, momentum=0.9) if name == "momentum" else OPTIMIZERS[name]
    small, large = [1e-9, 1e-9, 1e-9], [1e30, 1.0, 1.0]
    found, state, update = updated(make, [small, large, small], waits)
    plain = updated(make, [small, small])
    assert torch.equal(found, plain[0])
    assert_equal(state, plain[1])
    assert update.faults == 1


@BOTH
def test_finite_gradients_whose_norm_overflows_are_refused_and_not_clipped_to_nothing(waits):
    large = [3e38, 3e38, -3e38]
    make = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)  # which moves by a gradient of zero
    found, state, update = updated(make, [GOOD, large, GOOD], waits, clip_norm=0.1)
    plain = updated(make, [GOOD, GOOD], clip_norm=0.1)
    torch.testing.assert_close(found, plain[0])
    assert_equal(state, plain[1])
    assert update.faults == 1


@BOTH
def test_sparse_gradients_are_looked_at(waits):
    weight = nn.Embedding(4, 2, sparse=True).weight
    update = Update(torch.optim.SparseAdam([weight], lr=0.1))
    update.waits, before = waits, weight.detach().clone()

    def gradient(number):
        return torch.sparse_coo_tensor([[1, 1]], torch.tensor([[1.0, number], [1.0, 1.0]]), (4, 2))

    update([weight], [gradient(torch.nan)], 2)
    assert torch.equal(weight, before)
    update([weight], [gradient(1.0)], 2)
    assert (weight != before).any(1).tolist() == [False, True, False, False]
    assert update.faults == 1


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@BOTH
def test_a_refused_batch_is_left_out_of_what_is_accumulated(clip_norm, waits):
    mixed = [GOOD, BAD[0], [0.3, 0.2, 0.1], BAD[1], BAD[2], GOOD]
    found, _, update = updated(partial(SGD, lr=0.1), mixed, waits, accumulate=3, clip_norm=clip_norm)
    first, second = [[(a + b) / 2 for a, b in zip(GOOD, mixed[2], strict=True)], GOOD]
    plain = updated(partial(SGD, lr=0.1), [first, second], clip_norm=clip_norm)
    torch.testing.assert_close(found, plain[0])
    assert update.faults == 3


@BOTH
def test_refused_batches_alone_make_no_update(waits):
    found, state, update = updated(OPTIMIZERS["ours"], [GOOD, GOOD, *BAD[:2], GOOD, GOOD], waits, accumulate=2)
    plain = updated(OPTIMIZERS["ours"], [GOOD] * 2)
    torch.testing.assert_close(found, plain[0])
    assert state[0, "step"] == 2
    assert update.state_dict() == {"batches": 0, "rows": 0, "gradients": {}}


def bits(seed):
    return torch.bernoulli(torch.full((8, 6), 0.4), generator=torch.Generator().manual_seed(seed))


def spoilt(seed=0):
    x = bits(seed)
    x[3, 2] = torch.nan
    return x


def objective(name):
    if name == "NVIL":
        return NVIL(x_dim=6)
    return Scheduled(beta_elbo, beta=linear(0.0, 1.0, 10)) if name == "scheduled" else pv.objectives.iwae


@pytest.mark.parametrize(
    ("name", "mode"), [("iwae", False), ("scheduled", False), ("NVIL", False), ("scheduled", True)], ids=str
)
@BOTH
def test_a_step_goes_on_as_if_it_had_not_seen_a_refused_batch(name, mode, waits, uncompiled):
    """Of everything that a forward pass may write: running statistics, counts, a buffer replaced, NVIL's averages."""
    programs, of = eventful(), objective(name)
    step = step_on(*programs, bits(0), of, compile=mode)
    twin = step_on(*copy.deepcopy(programs), bits(0), copy.deepcopy(of), compile=mode)
    step.update.waits = twin.update.waits = waits
    step.prepare(bits(0))
    torch.manual_seed(0)
    infos = [step(spoilt())]
    for seed in range(4):
        for one in (step, twin):
            torch.manual_seed(seed)
            one(bits(seed))
        infos.append(step(spoilt(seed)))
    assert not any(info.finite for info in infos)
    assert step.faults == 5
    for found, wanted in zip(step.programs.tensors().values(), twin.programs.tensors().values(), strict=True):
        assert torch.equal(found, wanted)
    assert_equal(state_of(step.optimizer), state_of(twin.optimizer))
    assert step.state_dict().keys() == {"programs", "optimizer"}


class Shifted(nn.Module):
    """Two normal latents, seen after a shift."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z + self.shift, 1.0).to_event(1), obs=x)


class Same(nn.Module):
    """One normal for the latents of all data."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.loc, 1.0).expand([x.shape[0], 2]).to_event(1))


def test_minus_infinity_for_one_datum_is_refused():
    """Also where all gradients are finite: the square of the distance overflows, its slope does not."""
    model, x = Shifted(), torch.ones(4, 2)
    step = step_on(model, Same(), x)
    assert step(x).finite
    before = model.shift.detach().clone()
    info = step(torch.tensor([[1.0, 0.0], [1e25, 1.0]]))
    assert (info.bound, info.finite, step.faults) == (-torch.inf, False, 1)
    assert torch.equal(model.shift, before)


def test_programs_that_raise_leave_no_trace_in_buffers():
    model, guide = eventful()
    step = step_on(model, guide, bits(0))
    step(bits(0))
    before = copy.deepcopy(step.state_dict())
    with pytest.raises(RuntimeError):
        step(bits(0)[:, :5])
    step.programs.modules["model"].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(bits(1))
    torch.testing.assert_close(step.state_dict(), before, rtol=0, atol=0)


def variational_em():
    pair = pairs.make("vae", "normal")
    optimizers = {"guide_optimizer": pair.guide, "model_optimizer": pair.model}
    made = {name: FusedAdam(program.parameters()) for name, program in optimizers.items()}
    return pv.variational_em_step(pair.model, pair.guide, **made, compile=False), pair.data(8)


def gan():
    critic = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = GAN(x_dim=6, z_dim=2, hidden=(8,))
    optimizers = {"optimizer": FusedAdam(model.parameters()), "critic_optimizer": FusedAdam(critic.parameters())}
    return pv.gan_step(model, critic, **optimizers, compile=False), torch.randn(8, 6)


def pyros(objective, pair=None):
    model, guide = pair or (pairs.make("vae", "normal").model, pairs.make("vae", "normal").guide)
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
    return pv.svi_step(model, guide, objective, optimizer=optimizer)


class Constant(BitsGuide):
    """Bits drawn alike for all data: torch refuses to draw them with a probability of NaN."""

    def forward(self, x):
        super().forward(torch.zeros_like(x))


class Blind(Bits):
    """Real data, which may be NaN, around a bit."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight, 1.0), obs=x)


STEPS = {
    "variational_em": variational_em,
    "gan": gan,
    "Trace_ELBO": lambda: (pyros(Trace_ELBO()), pairs.make("vae", "normal").data(8)),
    "TraceGraph_ELBO": lambda: (pyros(TraceGraph_ELBO(), (Blind(), Constant())), torch.ones(3).double()),
}
ROLES = {"variational_em": {"guide_optimizer", "model_optimizer"}, "gan": {"optimizer", "critic_optimizer"}}


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("name", STEPS)
def test_every_step_refuses(name):
    step, x = STEPS[name]()
    assert step(x).finite
    before = copy.deepcopy(step.state_dict())
    wrong = x.clone()
    wrong[1] = torch.nan
    assert not step(wrong).finite
    torch.testing.assert_close(step.state_dict(), before, rtol=0, atol=0)
    assert step.faults > 0
    assert step.in_a_row > 0
    assert step.optimizers().keys() == ROLES.get(name, {"optimizer"})
    assert step(x).finite
    assert step.in_a_row == 0


def test_policies_go_on_or_stop():
    assert not guarding.stop(None, 1)
    assert guarding.skip(None, 100)
    step, policy = variational_em()[0], guarding.back_off(0.5, most=2)
    assert [policy(step, n) for n in (1, 2, 3)] == [True, True, False]
    assert [o.param_groups[0]["lr"] for o in step.optimizers().values()] == [2.5e-4, 2.5e-4]


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("name", ["StepLR", "LambdaLR", "OneCycleLR", "CyclicLR", "CosineAnnealingWarmRestarts"])
def test_backing_off_lasts_under_a_schedule(name, lr):
    options = {
        "StepLR": {"step_size": 2},
        "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
        "OneCycleLR": {"max_lr": 0.2, "total_steps": 10},
        "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2, "cycle_momentum": False},
        "CosineAnnealingWarmRestarts": {"T_0": 3},
    }[name]
    found = []
    for backs_off in (False, True):
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.Adam([weight], lr=copy.deepcopy(lr))
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
        step = pv.svi_step(Shifted(), Same(), optimizer=optimizer)
        rates = []
        for i in range(7):
            optimizer.step()
            scheduler.step()
            if backs_off and i == 2:
                with LearningRates(step, lambda optimizer, made=scheduler: made).lasting():
                    assert guarding.back_off(0.5)(step, 1)
            rates.append(float(optimizer.param_groups[0]["lr"]))
        found.append(rates)
    plain, backed = found
    assert backed[:2] == pytest.approx(plain[:2])
    assert backed[2:] == pytest.approx([rate / 2 for rate in plain[2:]], rel=1e-5)


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"factor": True}, {"most": 0}, {"most": 1.5}], ids=str)
def test_bad_options_are_refused(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name}: expected .* found {value!r}"):
        guarding.back_off(**options)
