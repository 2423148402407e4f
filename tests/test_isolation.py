"""No verb leaves a trace in its process, and none disturbs another."""

import inspect
import itertools
import os
import random
import signal
import warnings

import apart
import matplotlib as mpl
import numpy as np
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_models import GaussianMixture, clusters
from pyro.infer.util import is_validation_enabled
from pyro.poutine.runtime import _PYRO_STACK
from small import Bits, BitsGuide
from torch import nn

import ppl_vae as pv
from ppl_vae import zoo

BITS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)


def world():
    """Return what Python, NumPy, torch, Pyro and matplotlib keep for the whole process."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "precision": torch.get_float32_matmul_precision(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "warnings": list(warnings.filters),
        "matplotlib": dict(mpl.rcParams),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "store": [list(part) for part in pyro.get_param_store().get_state().values()],
        "validation": (
            is_validation_enabled(),
            torch.distributions.Distribution._validate_args,
            pyro.settings.get(),
        ),
        "handlers": list(_PYRO_STACK),
    }


def of_rate(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def gan():
    model, critic = zoo.find("models", "gan")(6, 2, (8,)), nn.Linear(6, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, critic)]
    step = pv.gan_step(model, critic, optimizer=optimizers[0], critic_optimizer=optimizers[1])
    x = torch.rand(12, 6)
    return (model,), lambda: pv.fit(step=step, data=x, epochs=1, batch_size=4)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 1).double()

    def forward(self, x, z):
        return self.net(torch.cat([x.expand(*z.shape[:-1], -1), z], -1)).squeeze(-1)


def adversarial():
    pair, critic = pairs.make("vae", "implicit"), Critic()
    optimizers = [torch.optim.SGD(p, lr=0.1) for p in (pair.parameters().values(), critic.parameters())]
    options = {"optimizer": optimizers[0], "critic_optimizer": optimizers[1]}
    step = pv.adversarial_step(pair.model, pair.guide, critic, **options)
    return (pair.model, pair.guide), lambda: pv.fit(step=step, data=pair.data_set(12), epochs=1, batch_size=4)


def of_pair(call, names=("vae", "normal")):
    def made():
        pair = pairs.make(*names)
        return (pair.model, pair.guide), lambda: call(pair.model, pair.guide, pair.data_set(12))

    return made


def of_mixture(call):
    def made():
        model = GaussianMixture() if call in EM else zoo.find("models", "bayesian_gaussian_mixture")(2, 3).double()
        return (model,), lambda: call(model, clusters(20))

    return made


EM = [
    lambda model, x: pv.em(model, x, iterations=2),
    lambda model, x: pv.fit(step=pv.em_step(model), data=x, epochs=2, batch_size=20),
]
FEW = {"distributions": 5, "chains": 2, "leapfrog": 1}
SHORT = {"epochs": 2, "batch_size": 5}


def observed(x):
    return torch.arange(x.numel()).reshape(x.shape) % 4 != 1


# Every verb that runs programs: what makes the programs, and a call of it.
VERBS = {
    "fit": of_pair(lambda p, q, x: pv.fit(p, q, x, valid=x, out="run", **SHORT)),
    "fit, Pyro's own": of_pair(lambda p, q, x: pv.fit(p, q, x, pyro.infer.Trace_ELBO(), **SHORT)),
    "evaluate": of_pair(lambda p, q, x: pv.evaluate(p, q, x, particles=20, chunk=10, curve=True)),
    "to_arviz": of_pair(lambda p, q, x: pv.evaluate(p, q, x, particles=20).to_arviz()),
    "check": of_pair(pv.check),
    "sample": of_pair(lambda p, q, x: pv.sample(p, like=x, n=3)),
    "reconstruct": of_pair(pv.reconstruct),
    "decode": of_pair(lambda p, q, x: pv.decode(p, {"z": torch.zeros(3, 2, dtype=x.dtype)}, like=x)),
    "impute": of_pair(lambda p, q, x: pv.impute(p, q, x, observed(x), draws=2)),
    "active_units": of_pair(lambda p, q, x: pv.active_units(q, x, draws=3)),
    "elbo_surgery": of_pair(pv.elbo_surgery),
    "aggregate_kl": of_pair(lambda p, q, x: pv.aggregate_kl(q, x, p)),
    "perplexity": of_pair(lambda p, q, x: pv.perplexity(q, x), ("sigmoid_belief_network", "bernoulli")),
    "ais": of_pair(lambda p, q, x: pv.ais(p, x, q, **FEW)),
    "bdmc": of_pair(lambda p, q, x: pv.bdmc(p, x, 3, guide=q, **FEW)),
    "exact_gradient": of_pair(lambda p, q, x: pv.exact_gradient(p, q, x, nodes=2)),
    "gradient_statistics": of_pair(lambda p, q, x: pv.gradient_statistics(p, q, x, draws=4)),
    "variational_em": of_pair(lambda p, q, x: pv.variational_em(p, q, x, **SHORT)),
    "em": of_mixture(EM[0]),
    "em_step": of_mixture(EM[1]),
    "cavi": of_mixture(lambda model, x: pv.cavi(model, x, iterations=2).sample(3)),
    "cavi_step": of_mixture(lambda model, x: pv.fit(step=pv.cavi_step(model), data=x, epochs=2, batch_size=20)),
    "gan_step": gan,
    "adversarial_step": adversarial,
}
# What draws from the caller's own random state, as torch does, or runs no program.
BY_DESIGN = {"weigh", "svi_step", "variational_em_step", "compare", "normal_prior", "registered", "robbins_monro"}
BY_DESIGN |= {"restore"}


def test_every_verb_is_here():
    functions = {name for name in pv.__all__ if inspect.isfunction(getattr(pv, name))}
    assert functions == (functions & VERBS.keys()) | BY_DESIGN
    assert not BY_DESIGN & VERBS.keys()


class Halfway(Exception):
    """Raised by a program in the middle of a verb."""


def counted(programs, fails_at=None):
    """Have programs count their runs, and fail in one of them."""
    runs = itertools.count(1)
    seen = []

    def hook(*_):
        seen.append(next(runs))
        if seen[-1] == fails_at:
            raise Halfway

    for program in programs:
        program.register_forward_pre_hook(hook)
    return seen


def differences(before):
    after = world()
    return {name for name in before if before[name] != after[name]}


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    """What these set as they are first imported (filters of warnings, variables of OpenMP) is theirs."""
    import arviz  # noqa: F401
    import sklearn.cluster  # noqa: F401


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_verb_leaves_the_process_as_it_was(name, monkeypatch, tmp_path):
    programs, call = VERBS[name]()
    seen = counted(programs)
    pyro.param("mine", torch.ones(2))
    before = world()
    call()
    assert differences(before) == set()
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    torch.manual_seed(5)
    programs, call = VERBS[name]()
    counted(programs, fails_at=(len(seen) + 1) // 2)
    before = world()
    with pytest.raises((Halfway, pv.ContractError)):  # some say what it means
        call()
    assert differences(before) == set()


def bits_step(seed, objective=pv.objectives.rloo, **options):
    torch.manual_seed(seed)
    model, guide = Bits(), BitsGuide()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=0.05)
    return pv.svi_step(model, guide, objective, particles=3, optimizer=optimizer, **options)


class Turns:
    """A random state for each of those who take turns."""

    def __init__(self, seed):
        self.state = torch.Generator().manual_seed(seed).get_state()

    def __call__(self, step, x):
        torch.set_rng_state(self.state)
        bound = step(x).bound
        self.state = torch.get_rng_state()
        return bound


def numbers(step):
    return {name: tensor.clone() for name, tensor in step.programs.state_dict().items()}


def test_two_models_that_take_turns_give_what_each_gives_alone():
    alone = []
    for seed in (1, 2):
        step, turn = bits_step(seed), Turns(seed)
        alone.append(([turn(step, BITS) for _ in range(8)], numbers(step)))
    steps, turns, bounds = [bits_step(1), bits_step(2)], [Turns(1), Turns(2)], ([], [])
    for _ in range(8):
        for i in (0, 1):
            bounds[i].append(turns[i](steps[i], BITS))
    for i in (0, 1):
        assert bounds[i] == alone[i][0]
        assert all(torch.equal(tensor, alone[i][1][name]) for name, tensor in numbers(steps[i]).items())


def programs_of_pyros_style(scale):
    """Return a model whose ``pyro.module`` has a name that others use too, and a guide of parameters alone."""
    torch.manual_seed(scale)
    net = nn.Linear(2, 1).double()

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), scale).to_event(1))
            pyro.sample("x", dist.Normal(net(z).squeeze(-1), 1.0), obs=x)

    guide = BitsLike()
    return net, model, guide


class BitsLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(1, 2).double()

    def forward(self, x):
        pyro.module("net", self.encoder)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x.unsqueeze(-1)), 1.0).to_event(1))


def test_modules_that_share_a_name_in_pyros_store_stay_apart():
    def trained(model, guide):
        pv.fit(model, guide, BITS, epochs=3, batch_size=3, seed=1)
        return [p.detach().clone() for p in (*pv.programs.Programs(model, guide).parameters().values(),)]

    alone = [trained(*programs_of_pyros_style(scale)[1:]) for scale in (1.0, 3.0)]
    pyro.clear_param_store()
    pairs_of_both = [programs_of_pyros_style(scale)[1:] for scale in (1.0, 3.0)]
    together = [trained(*pair) for pair in pairs_of_both]
    for one, other in zip(alone, together, strict=True):
        assert len(one) == 4
        assert all(map(torch.equal, one, other))
    assert not pyro.get_param_store().keys()  # empty, as before


def test_what_pyro_param_names_in_two_models_stays_where_its_author_put_it():
    """A tensor of the store is one tensor for all who name it: a verb on one model leaves the other's alone."""

    def model(x):
        level = pyro.param("level", torch.tensor(0.5, dtype=x.dtype))
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(level.expand_as(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("other", torch.zeros_like(x[:1])).expand_as(x), 1.0))

    pyro.param("unrelated", torch.tensor(7.0))
    pv.evaluate(model, guide, BITS, particles=5)
    assert set(pyro.get_param_store().keys()) == {"unrelated", "level", "other"}
    assert pyro.param("unrelated").item() == 7.0
    assert pyro.param("level").item() == 0.5


def test_processes_side_by_side_give_what_one_gives():
    """And one that is fresh draws none of Python's random numbers, nor do libraries that are first imported then."""
    spawn = torch.multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    processes = [spawn.Process(target=apart.train, args=(seed, queue)) for seed in (1, 2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    wanted = {seed: (apart.trained(seed), False) for seed in (1, 2)}
    assert found == wanted
    assert wanted[1] != wanted[2]
