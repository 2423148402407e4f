"""Laws that every model with every guide obeys. A new file in models/ or guides/ is tested by existing."""

import copy
import inspect
import io

import every
import pairs
import pyro
import pytest
import torch
from capturing import assert_steps_agree, step_on
from given import Given
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ppl_vae as pv
from ppl_vae import contract, zoo
from ppl_vae.batches import as_batch
from ppl_vae.estimation import estimate
from ppl_vae.indexing import alike
from ppl_vae.programs import Programs

PAIRS = pairs.names()
VARIED = [*PAIRS, *pairs.variants()]
MEETINGS, SLOW_MEETINGS = every.meetings(), every.slow_meetings()


@pytest.fixture(params=VARIED, ids="-".join)
def pair(request):
    return pairs.make(*request.param)


def meeting(which):
    """Mark a law that holds of pairs with objectives."""
    return pytest.mark.parametrize(
        ("pair", "objective"), which, ids=["-".join([*pair, name]) for pair, name in which], indirect=True
    )


of_each_kind, slow_of_each_kind = meeting(MEETINGS), meeting(SLOW_MEETINGS)


@pytest.fixture(params=every.NAMES)
def objective(request, pair):
    """Every objective that a pair can be trained by; of the others tests/test_applicability.py asks the reason."""
    if reason := every.refusal(request.param, pair):
        pytest.skip(reason)
    return every.make(request.param, pair)


def test_discovery_finds_the_tree():
    for kind in zoo.KINDS:
        assert set(zoo.discover(kind)) == pairs.files(kind)
    shared = pairs.with_global_latents()
    assert {m for m, _ in PAIRS} | shared == pairs.files("models")
    assert shared.isdisjoint(m for m, _ in PAIRS)
    assert {g for _, g in PAIRS} | pairs.without_density() == pairs.files("guides")
    assert len(PAIRS) >= pairs.AT_LEAST


def test_meetings_leave_out_no_objective_no_pair_and_no_path():
    assert {pair for pair, _ in MEETINGS} == set(VARIED)
    everything = {**pv.objectives.every(), **pv.objectives.estimators()}
    for kind in {pairs.kind(*pair) for pair in PAIRS}:
        assert {name for pair, name in MEETINGS if pairs.kind(*pair) == kind} == everything.keys()
    paths = {name: (o.facts.path, o.facts.kl) for name, o in everything.items()}
    assert {paths[name] for name in every.ONE_OF_EACH_KIND} == set(paths.values())


def test_default_sizes_fit_each_other():
    for model, guide in PAIRS:
        program = zoo.find("models", model)
        x_dim, made = inspect.signature(program).parameters["x_dim"].default, program()
        others = {"model": made} if x_dim == 784 else {"model": made, "x_dim": x_dim}
        pair = pairs.Pair(made, zoo.build(zoo.find("guides", guide), others))
        pv.check(pair.model, pair.guide, pair.data(2, x_dim))


def test_check_passes(pair):
    pv.check(pair.model, pair.guide, pair.data())


def event_dims(pair):
    """Return the number of event axes of each of the guide's latents."""
    _, guide = alike(pair.model, pair.guide)
    sites = contract.latents(poutine.trace(guide).get_trace(*as_batch(pair.data())))
    return {name: len(site["fn"].event_shape) for name, site in sites.items()}


def test_weights_have_a_value_for_each_particle_and_datum(pair):
    x = pair.data(5)
    particles = pv.weigh(pair.model, pair.guide, x, particles=3)
    assert particles.log_w.shape[-2:] == (3, 5)  # values that the guide enumerates have axes left of these
    assert particles.log_w.isfinite().all()
    assert len(particles) == 3
    for density in (*particles.log_p.values(), *particles.log_q.values()):
        assert density.shape[-2:] == (3, 5)
    for name in particles.values.keys() - set(particles.enumerated):
        value = particles.values[name]
        assert value.shape[value.dim() - 2 - event_dims(pair)[name] :][:2] == (3, 5)


@of_each_kind
def test_objectives_give_a_number_for_each_datum(pair, objective):
    value, surrogate = estimate(objective, pair.model, pair.guide, pair.data(5), particles=3)
    assert value.shape == surrogate.shape == (5,)
    assert not value.requires_grad


def image_network(in_dim, hidden, out_dim, activation=torch.nn.ReLU, dense=pv.nets.MLP):
    """Return a convolutional network where one end is an image of 2 x 3 pixels."""
    if in_dim == 6:
        return pv.nets.ConvEncoder((2, 3), out_dim)
    return pv.nets.ConvDecoder(in_dim, (2, 3)) if out_dim == 6 else dense(in_dim, hidden, out_dim, activation)


@pytest.mark.parametrize("names", VARIED, ids="-".join)
def test_programs_work_with_convolutions(names, monkeypatch):
    monkeypatch.setattr(pv.nets, "MLP", image_network)
    test_rows_do_not_depend_on_each_other(pairs.make(*names))


def test_rows_do_not_depend_on_each_other(pair):
    x, events = pair.data(4), event_dims(pair)
    pair.model.eval(), pair.guide.eval()  # running means, as of a codebook, follow all rows that they see
    together = pv.weigh(pair.model, pair.guide, x, particles=3)
    for i in range(4):
        values = {n: v.narrow(-1 - events[n], i, 1) for n, v in together.values.items() if n not in together.enumerated}
        with Given(values):
            alone = pv.weigh(pair.model, pair.guide, pairs.part(x, slice(i, i + 1)), particles=3)
        torch.testing.assert_close(alone.log_w, together.log_w[..., i : i + 1], rtol=1e-10, atol=1e-10)


@of_each_kind
def test_every_parameter_gets_a_gradient(pair, objective):
    estimate(objective, pair.model, pair.guide, pair.data(5), particles=3).surrogate.sum().backward()
    for name, parameter in pair.parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_state_survives_saving_and_loading(pair, request):
    file = io.BytesIO()
    torch.save(Programs(pair.model, pair.guide).state_dict(), file)
    file.seek(0)
    fresh = pairs.make(*request.node.callspec.params["pair"])
    for parameter in fresh.parameters().values():
        parameter.data.normal_()
    Programs(fresh.model, fresh.guide).load_state_dict(torch.load(file, weights_only=True))
    x = pair.data()
    torch.manual_seed(1)
    before = pv.weigh(pair.model, pair.guide, x, particles=2).log_w
    torch.manual_seed(1)
    assert torch.equal(pv.weigh(fresh.model, fresh.guide, x, particles=2).log_w, before)


def test_sample_draws_every_site(pair):
    like = as_batch(pair.data(7))
    draws = pv.sample(pair.model, like=pair.data_set(7), n=7)
    assert draws["x"].shape == like[0].shape
    particles = pv.weigh(pair.model, pair.guide, (draws["x"], *like[1:]))
    assert {*particles.values, *particles.summed} <= set(draws)
    assert set(draws) - {*particles.values, *particles.summed} <= set(pair.arguments)
    assert all(len(value) == 7 for value in draws.values())


def test_reconstruct_gives_the_form_of_the_data(pair):
    batch = as_batch(pair.data(4))
    if not batch[0].is_floating_point():
        pytest.skip("tokens have no mean")
    assert pv.reconstruct(pair.model, pair.guide, batch, particles=2)["x"].shape == batch[0].shape


def pyros_elbo(pair):
    """Return Pyro's usual objective, or, for latents that are to be summed out, the one that does."""
    summed = pv.weigh(pair.model, pair.guide, pair.data()).summed
    return TraceEnum_ELBO(max_plate_nesting=1) if summed else Trace_ELBO()


def batch_for_pyro(pair):
    """Return a batch, which Pyro gives to both programs as it is."""
    if "index" in pair.arguments:
        pytest.skip("only one of the programs takes the rows of the data set")
    return pair.data()


def test_pyro_elbo_module_with_a_torch_optimizer_moves_every_parameter(pair):
    loss, batch = pyros_elbo(pair)(pair.model, pair.guide), as_batch(batch_for_pyro(pair))
    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    loss(*batch).backward()
    optimizer.step()
    assert_all_moved(pair, before)


def test_pyro_svi_moves_every_parameter_of_registered_programs(pair):
    batch = as_batch(batch_for_pyro(pair))
    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    optimizer = pyro.optim.Adam({"lr": 1e-2})
    model, guide = pv.registered(pair.model), pv.registered(pair.guide) if list(pair.guide.parameters()) else pair.guide
    SVI(model, guide, optimizer, pyros_elbo(pair)).step(*batch)
    assert_all_moved(pair, before)


@slow_of_each_kind
def test_fit_moves_every_parameter_and_leaves_pyros_store_empty(pair, objective):
    before = {name: p.detach().clone() for name, p in pair.parameters().items()}
    if pv.objectives.facts(objective).upper:  # fits the guide alone
        before = {name: p for name, p in before.items() if name.startswith("guide")}
        if not before:
            pytest.skip("a guide without parameters")
    pv.fit(pair.model, pair.guide, pair.data_set(11), objective=objective, particles=2, epochs=2, batch_size=5)
    assert_all_moved(pair, before)
    assert not list(pyro.get_param_store().keys())


def assert_all_moved(pair, before):
    now = pair.parameters()
    for name, parameter in before.items():
        assert not torch.equal(parameter, now[name]), f"{name} did not move"


class Watch(TorchDispatchMode):
    """Record the operations on tensors."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


@of_each_kind
def test_loss_and_gradients_never_wait_for_the_device(pair, objective):
    """A number read off a tensor would stop a GPU at every step, and capture altogether."""
    x, parameters = pair.data(), list(pair.parameters().values())
    with pyro.validation_enabled(False), Watch() as watch:
        value = estimate(objective, pair.model, pair.guide, x, particles=3).surrogate.mean()
        torch.autograd.grad(value, parameters)
    assert "aten.mul.Tensor" in watch.seen
    assert "aten._local_scalar_dense.default" not in watch.seen


def pretend_gpu(program):
    """Put stand-ins of a GPU's tensors, which only a `FakeTensorMode` can make, for those of a program."""
    for module in program.modules() if isinstance(program, torch.nn.Module) else ():
        for tensors in (module._parameters, module._buffers):
            there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
            for name, tensor in there.items():
                stand_in = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                parameter = isinstance(tensor, torch.nn.Parameter)
                tensors[name] = torch.nn.Parameter(stand_in, tensor.requires_grad) if parameter else stand_in


def zeros(outputs, inputs, *_, **__):
    """Return zeros in place of gradients, in their form."""
    return [torch.zeros_like(tensor) for tensor in ([inputs] if isinstance(inputs, torch.Tensor) else inputs)]


@slow_of_each_kind
def test_a_loss_on_a_gpu_is_on_it_altogether(pair, objective, monkeypatch):
    """Stand-ins refuse operations that mix devices, as the device would. Gradients take one, so they are zero here."""
    monkeypatch.setattr(torch.autograd, "grad", zeros)
    x = pair.data()
    with FakeTensorMode(), pyro.validation_enabled(False):
        for program in (pair.model, pair.guide, objective):
            pretend_gpu(program)
        x = tuple(torch.empty(part.shape, dtype=part.dtype, device="cuda") for part in as_batch(x))
        found = estimate(objective, pair.model, pair.guide, x, particles=3)
    assert (found.surrogate.device.type, found.value.device.type) == ("cuda", "cuda")


def test_stand_ins_refuse_a_mixture_of_devices():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="two devices"):
        torch.empty(3, device="cuda") + torch.empty(3)


@slow_of_each_kind
def test_captured_steps_are_the_eager_ones(pair, objective, uncompiled):
    """One graph for batches of every size; the state of objectives moves with it."""
    other, others_objective = copy.deepcopy((pair, objective))
    eager = step_on(pair.model, pair.guide, pair.data(), objective, 3)
    captured = step_on(other.model, other.guide, pair.data(), others_objective, 3, compile=True)
    assert_steps_agree(eager, captured, [pair.data(5), pair.data(4), pair.data(7)])
    assert captured.ascent.count == 1


# Every option that is a number.
OPTIONS = [
    ("renyi", "alpha"),
    ("dreg", "alpha"),
    ("cubo", "n"),
    ("ciwae", "beta"),
    ("beta_elbo", "beta"),
    ("free_bits", "floor"),
    ("ovis", "gamma"),
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_options_on_a_schedule_are_not_read_off_the_device(name, option, uncompiled):
    pair, (start, end) = pairs.make("vae", "normal"), (1.0, 2.0) if option == "n" else (0.2, 0.9)
    scheduled = pv.objectives.Scheduled(
        pv.objectives.every()[name], **{option: pv.objectives.linear(start, end, steps=10)}
    )
    test_loss_and_gradients_never_wait_for_the_device(pair, scheduled.double())
    test_captured_steps_are_the_eager_ones(pair, scheduled, uncompiled)


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_docstrings_say_what_a_program_is(kind):
    for name, program in zoo.discover(kind).items():
        text = " ".join(inspect.getdoc(inspect.getmodule(program)).split())
        for part in ("| symbol | site | shape", "Reference:", "Example:", ">>>", "for each datum::"):
            assert part in text, f"{kind}/{name}.py lacks {part!r}"


@pytest.mark.parametrize("kind", zoo.KINDS)
def test_programs_stay_short(kind):
    for name in pairs.files(kind):
        assert len((pairs.ROOT / kind / f"{name}.py").read_text().splitlines()) <= 90, name
