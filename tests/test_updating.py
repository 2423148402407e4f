"""Accumulated, clipped and mixed-precision steps, eager and captured."""

import copy

import pairs
import pytest
import torch
from capturing import assert_steps_agree, step_on
from test_capture import eventful, small

import ppl_vae as pv
from ppl_vae.guides.exact import Exact
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE
from ppl_vae.updating import Update

OPTIONS = {
    "clipped": {"clip_norm": 0.1},
    "accumulated": {"accumulate": 3},
    "both": {"accumulate": 2, "clip_norm": 0.1},
    "mixed precision": {"precision": torch.bfloat16},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_captured_steps_are_the_eager_ones(case, uncompiled):
    options = OPTIONS[case]
    # Dropout scales its mask before or after it is applied, which rounds bfloat16 differently.
    programs = small() if "precision" in options else eventful()
    batches = [torch.bernoulli(torch.full((n, 6), 0.4)) for n in (8, 8, 5, 8, 5, 8)]
    eager = step_on(*copy.deepcopy(programs), batches[0], **options)
    captured = step_on(*programs, batches[0], compile=True, **options)
    assert_steps_agree(eager, captured, batches)
    assert captured.ascent.count == 1


def exact_step(**options):
    """A step without noise in its bound: the exact posterior makes every weight p(x)."""
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, pv.svi_step(model, Exact(model), pv.objectives.iwae, 2, optimizer=optimizer, **options)


def test_accumulated_batches_are_one_large_batch():
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).double()
    whole, step = exact_step()
    step(x)
    parts, step = exact_step(accumulate=3)
    before = [p.clone() for p in parts.parameters()]
    for part in (x[:5], x[5:7]):
        step(part)
        assert all(torch.equal(p, b) for p, b in zip(parts.parameters(), before, strict=True))
    step(x[7:])
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_is_accumulated_is_saved():
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).double()
    first, step = exact_step(accumulate=2)
    step(x[:6])
    second, resumed = exact_step(accumulate=2)
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    step(x[6:])
    resumed(x[6:])
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_norm_is_that_of_all_gradients_together():
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (2, 3)]
    update = Update(torch.optim.SGD(parameters, lr=1.0), clip_norm=2.0)
    update(parameters, [torch.full((2,), 3.0), torch.full((3,), -4.0)], rows=1)
    moved = torch.cat([p.detach() for p in parameters])
    assert moved.norm() == pytest.approx(2.0, rel=1e-5)
    assert moved[2] / moved[0] == pytest.approx(-4 / 3)


def test_a_short_gradient_is_left_alone():
    weight = torch.nn.Parameter(torch.zeros(2))
    Update(torch.optim.SGD([weight], lr=1.0), clip_norm=100.0)([weight], [torch.tensor([3.0, 4.0])], rows=1)
    assert weight.tolist() == [-3.0, -4.0]


def test_mixed_precision_computes_products_in_it_and_densities_in_float32():
    pair = pairs.make("vae", "normal")
    model, guide = pair.model.float(), pair.guide.float()
    x = torch.bernoulli(torch.full((5, 6), 0.4))
    found = {}
    for precision in (None, torch.bfloat16):
        step = step_on(*copy.deepcopy((model, guide)), x, precision=precision)
        torch.manual_seed(0)
        found[precision] = step(x)
        assert {p.dtype for p in step.programs.parameters().values()} == {torch.float32}
        assert {p.grad.dtype for p in step.programs.parameters().values()} == {torch.float32}
    assert found[torch.bfloat16].bound.dtype == torch.float32
    assert found[torch.bfloat16].bound != found[None].bound
    assert found[torch.bfloat16].bound == pytest.approx(float(found[None].bound), rel=2e-2)


def test_mixed_precision_trains():
    torch.manual_seed(0)
    model, guide = eventful()
    x = torch.bernoulli(torch.tensor([0.9, 0.1, 0.9, 0.1, 0.9, 0.1]).expand(200, 6))
    result = pv.fit(model, guide, x, epochs=20, batch_size=20, precision=torch.bfloat16, clip_norm=5.0, accumulate=2)
    assert result.history["train_bound"][-1] > result.history["train_bound"][0] + 0.5


REFUSED = {
    "accumulate": ({"accumulate": 0}, "accumulate: expected a whole number of at least 1, found 0"),
    "clip_norm": ({"clip_norm": -1.0}, "clip_norm: expected a positive number or None, found -1.0"),
    "clip_norm by name": ({"clip_norm": "1"}, "clip_norm: expected a positive number or None, found '1'"),
    "precision": ({"precision": torch.float16}, "precision: expected torch.bfloat16 or None, found torch.float16"),
    "Pyro's": ({"objective": pv.pyro_step.RenyiELBO(), "clip_norm": 1.0}, "clip_norm: steps on Pyro's objectives"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case):
    pair, (options, message) = pairs.make("vae", "normal"), REFUSED[case]
    with pytest.raises(ValueError, match=message):
        pv.svi_step(pair.model, pair.guide, optimizer=torch.optim.SGD(pair.model.parameters(), lr=0.1), **options)


class Shares(torch.nn.Module):
    """Autograd gives its two summed parameters one gradient, and a third an expanded one."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 6)
        self.a, self.b, self.c = (torch.nn.Parameter(torch.zeros(6)) for _ in range(3))

    def forward(self, z):
        return pv.nets.ToBernoulli()(self.net(z) + (self.a + self.b) + self.c.sum())


@pytest.mark.parametrize("mode", [False, True])
def test_parameters_with_one_gradient_are_clipped_alike(mode, uncompiled):
    torch.manual_seed(0)
    model = VAE(x_dim=6, z_dim=2, decoder=Shares())
    guide = small()[1]
    step = step_on(model, guide, torch.ones(8, 6), clip_norm=0.01, compile=mode)
    for _ in range(2):
        step(torch.bernoulli(torch.full((8, 6), 0.4)))
    decoder = model.decoder
    assert decoder.a.grad.data_ptr() != decoder.b.grad.data_ptr()
    torch.testing.assert_close(decoder.a.grad, decoder.b.grad)
    torch.testing.assert_close(decoder.a.grad, decoder.net.bias.grad)
    norm = torch.stack([p.grad.norm() for p in step.programs.parameters().values()]).norm()
    assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}], ids=["at once", "accumulated"])
def test_what_is_frozen_stays(options):
    model, guide = small()
    x = torch.bernoulli(torch.full((8, 6), 0.4))
    step = step_on(model, guide, x, **options)
    for _ in range(3):
        step(x)
    model.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    for _ in range(4):
        step(x)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("chunk", [None, 2])
def test_nothing_left_to_train_is_told(chunk):
    pair = pairs.make("vae", "normal")
    step = step_on(pair.model, pair.guide, pair.data(), pv.objectives.iwae, 4, chunk=chunk)
    step(pair.data())
    for parameter in pair.parameters().values():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="optimizer: none of its parameters requires a gradient any more"):
        step(pair.data())


def test_an_optimizer_that_asks_several_times_is_refused():
    model, guide = small()
    step = pv.svi_step(model, guide, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="LBFGS asks for the loss several times"):
        step(torch.ones(8, 6))
