"""Data, sizes and types at the edge: right numbers, or an error that says what to do."""

import math

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_chunking import Largest
from torch import nn

import ppl_vae as pv
from ppl_vae.importance import PROBED
from ppl_vae.pairing import SMALL

PAIRS = [
    ("vae", "normal"),
    ("linear_gaussian", "exact"),
    ("linear_gaussian", "normal"),
    ("sigmoid_belief_network", "bernoulli"),
    ("gmvae", "normal"),
    ("hierarchical", "hierarchical"),
]
ROWS = {
    "all zeros": torch.zeros(6, 6),
    "all ones": torch.ones(6, 6),
    "one datum": torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0]]),
    "constant pixels": torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]]).repeat(3, 1),
}
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def pair_of(names, dtype=torch.float64, **sizes):
    pair = pairs.make(*names, sizes=SMALL | sizes)
    return pair.model.to(dtype), pair.guide.to(dtype)


def all_verbs(model, guide, x, particles=2, batch_size=4):
    """Check, train, evaluate, draw and rebuild; every number is finite. Return the evaluation."""
    pv.check(model, guide, x)
    options = {"particles": particles, "epochs": 2, "batch_size": batch_size, "compile": False}
    fit = pv.fit(model, guide, x, pv.objectives.iwae, valid=x, **options)
    assert all(map(math.isfinite, fit.history["train_bound"] + fit.history["valid_bound"]))
    evaluation = pv.evaluate(model, guide, x, particles=20, compile=False)
    assert evaluation.log_px.isfinite().all()
    drawn, means = pv.sample(model, like=x, n=3), pv.reconstruct(model, guide, x)
    assert drawn["x"].shape == (3, *x.shape[1:])
    assert means["x"].shape == x.shape
    assert all(value.isfinite().all() for value in (*drawn.values(), *means.values()))
    if hasattr(model, "log_px") and x.dtype is torch.float64:  # with what is exact, exactly
        exact = model.log_px(x).detach()
        if not [*guide.parameters()]:
            torch.testing.assert_close(evaluation.log_px, exact, rtol=1e-10, atol=1e-9)
        assert torch.allclose(evaluation.log_px, exact, rtol=0.5, atol=5.0)
    return evaluation


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_plain_data_at_the_edge(names, rows):
    all_verbs(*pair_of(names), ROWS[rows].double())


@pytest.mark.parametrize("names", PAIRS[:3], ids="-".join)
def test_a_batch_of_one_is_a_batch(names):
    all_verbs(*pair_of(names), ROWS["constant pixels"].double(), batch_size=1)


@pytest.mark.parametrize("particles", [1, 3000])
def test_one_particle_and_very_many(particles):
    all_verbs(*pair_of(("vae", "normal")), ROWS["all ones"].double(), particles=particles)


@pytest.mark.parametrize("names", PAIRS[:4], ids="-".join)
def test_one_feature(names):
    all_verbs(*pair_of(names, x_dim=1), torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64))


def test_a_million_features_take_the_memory_of_a_few_particles():
    """No tensor has more numbers than two particles of two data, or a layer of the network."""
    width = 10**6
    model, guide = pair_of(("vae", "normal"), torch.float32, x_dim=width, hidden=(2,))
    x = torch.zeros(2, width)
    with Largest() as largest:
        pv.check(model, guide, x)
        pv.fit(model, guide, x, epochs=1, batch_size=1, compile=False)
        assert pv.sample(model, like=x, n=1)["x"].shape == (1, width)
        assert pv.weigh(model, guide, x).log_w.isfinite().all()
    assert largest.size <= 4 * width


def test_evaluations_in_small_chunks_take_the_memory_of_their_probe():
    """In which 64 particles of one datum are drawn side by side, however small a chunk is."""
    width = 10**4
    model, guide = pair_of(("vae", "normal"), torch.float32, x_dim=width, hidden=(2,))
    with Largest() as largest:
        pv.evaluate(model, guide, torch.zeros(2, width), particles=3, chunk=1, batch_size=1, compile=False)
    assert largest.size <= PROBED * width


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("names", [PAIRS[0], PAIRS[2], PAIRS[3]], ids="-".join)
def test_programs_and_data_of_one_type(names, dtype):
    model, guide = pair_of(names, dtype)
    all_verbs(model, guide, ROWS["constant pixels"].to(dtype))
    assert pv.sample(model, like=ROWS["all ones"].to(dtype), n=2)["x"].dtype is dtype


VERBS = {
    "check": pv.check,
    "fit": lambda model, guide, x: pv.fit(model, guide, x, epochs=1),
    "evaluate": lambda model, guide, x: pv.evaluate(model, guide, x, particles=2),
    "reconstruct": pv.reconstruct,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_data_of_another_type_are_named_with_the_repair(verb, dtype):
    model, guide = pair_of(("vae", "normal"), torch.float32)
    message = rf"data: x is {dtype} but the parameters are torch.float32; convert one: x.to\(torch.float32\)"
    with pytest.raises(pv.ContractError, match=message):
        VERBS[verb](model, guide, ROWS["all ones"].to(dtype))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("names", [PAIRS[0], PAIRS[3]], ids="-".join)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_whole_numbers_that_a_network_cannot_take_are_named_with_the_repair(verb, names, dtype):
    model, guide = pair_of(names, torch.float32)
    with pytest.raises(pv.ContractError, match=rf"data: x is .*{dtype}|data: x is torch.*x\.to\(torch\.float32\)"):
        VERBS[verb](model, guide, ROWS["all ones"].to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_whole_numbers_that_programs_can_take_count_as_numbers(dtype):
    model, guide = pair_of(("linear_gaussian", "exact"))
    x = ROWS["constant pixels"]
    found = pv.evaluate(model, guide, x.to(dtype), particles=5, compile=False).log_px
    torch.testing.assert_close(found, model.log_px(x.double()).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("verb", VERBS)
def test_an_operation_that_half_precision_lacks_is_named_with_the_repair(verb):
    model, guide = pair_of(("linear_gaussian", "exact"), torch.float16)
    with pytest.raises(pv.ContractError, match=r"data: x is torch\.float16, in which the guide cannot be computed"):
        VERBS[verb](model, guide, ROWS["all ones"].half())


@pytest.mark.parametrize("size", [1e-30, 1e-5, 1e5, 1e30])
def test_numbers_of_any_size_have_their_exact_likelihood(size):
    """Against the normal's log density of the marginal, in float64."""
    model, guide = pair_of(("linear_gaussian", "exact"))
    x = size * torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pv.check(model, guide, x)
    found = pv.evaluate(model, guide, x, particles=5, compile=False).log_px
    torch.testing.assert_close(found, model.log_px(x).detach(), rtol=1e-6, atol=1e-9)


class Rounded(nn.Module):
    """A guide whose means come out one digit apart for one row and for several, as sums in another order may."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            last_digit = 1 + (x.shape[0] > 1) * torch.finfo(x.dtype).eps
            pyro.sample("z", dist.Normal(self.loc + x.sum(-1) * last_digit, 1.0))


class Summed(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[:, 0]), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 6]).to_event(1), obs=x)


@pytest.mark.parametrize(("size", "dtype"), [(1e10, torch.float32), (1e30, torch.float64)])
def test_numbers_whose_digits_are_lost_are_not_blamed_on_the_program(size, dtype):
    x = size * ROWS["all ones"].to(dtype)
    with pytest.raises(pv.ContractError, match=r"guide: site 'z' has numbers as large as .*standardise the data"):
        pv.check(Summed(), Rounded().to(dtype), x)
    pv.check(Summed(), Rounded().to(dtype), x / size)


@pytest.mark.parametrize("verb", ["check", "fit", "evaluate"])
def test_latents_without_elements_are_named(verb):
    model, guide = pair_of(("linear_gaussian", "exact"), z_dim=0)
    with pytest.raises(pv.ContractError, match=r"site 'z' has events of shape \(0,\), which hold nothing"):
        VERBS[verb](model, guide, ROWS["all ones"].double())


@pytest.mark.parametrize("verb", VERBS)
def test_no_data_are_named(verb):
    with pytest.raises(ValueError, match="data: empty"):
        VERBS[verb](*pair_of(("vae", "normal")), torch.zeros(0, 6, dtype=torch.float64))
