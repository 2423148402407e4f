"""Numbers that belong to data and particles: of the right distributions, and the same wherever they are drawn."""

import re
import shutil
from collections import Counter

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch._inductor.utils import run_and_get_cpp_code

import ppl_vae as pv
from ppl_vae.noise import GOLDEN, CannotKey, Keyed, _elements, datum_keys, mixed, told_apart

DATA, PARTICLES = 150, 200
ONES = torch.ones(PARTICLES, DATA)
CONTINUOUS = {
    "normal": (dist.Normal(0 * ONES, 1.0), stats.norm()),
    "normal, float64": (dist.Normal(0 * ONES.double(), 1.0), stats.norm()),
    "uniform": (dist.Uniform(0 * ONES, 1.0), stats.uniform()),
    "exponential": (dist.Exponential(ONES), stats.expon()),
    "laplace": (dist.Laplace(0 * ONES, 1.0), stats.laplace()),
    "cauchy": (dist.Cauchy(0 * ONES, 1.0), stats.cauchy()),
    "gamma": (dist.Gamma(3 * ONES, 1.0), stats.gamma(3)),
    "gamma of small shape": (dist.Gamma(0.3 * ONES.double(), 1.0), stats.gamma(0.3)),
    "beta": (dist.Beta(2 * ONES, 0.5), stats.beta(2, 0.5)),
    "beta of small shapes": (dist.Beta(0.1 * ONES.double(), 0.1), stats.beta(0.1, 0.1)),
    "beta of tiny shapes": (dist.Beta(0.02 * ONES, 0.03), stats.beta(0.02, 0.03)),
    "student": (dist.StudentT(4 * ONES), stats.t(4)),
    "gumbel": (dist.Gumbel(0 * ONES, 1.0), stats.gumbel_r()),
}
MASSES = torch.tensor([0.2, 0.0, 0.5, 0.3, 0.0])
DISCRETE = {
    "categorical": dist.Categorical(MASSES.expand(PARTICLES, DATA, 5)),
    "one-hot": dist.OneHotCategorical(MASSES.expand(PARTICLES, DATA, 5)),
}


def keyed(data=DATA, particles=PARTICLES, seed=0):
    x = torch.arange(data).reshape(-1, 1) + torch.linspace(0, 1, 3)
    keys = told_apart(datum_keys((x,)), Counter(), seed)
    return Keyed(keys, torch.arange(particles).expand(data, particles))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_draws_have_the_distribution(name):
    fn, reference = CONTINUOUS[name]
    drawn = keyed()("z", fn)
    assert drawn.dtype is fn.sample().dtype
    at = drawn.double().flatten().numpy()
    # A number that rounds to the border of its support is where that border is.
    at = at[(at > 1e-30) & (at < 1 - 1e-7)] if "tiny" in name else at
    low, high = reference.cdf([1e-30, 1 - 1e-7]) if "tiny" in name else (0.0, 1.0)
    assert stats.kstest(at, lambda v: (reference.cdf(v) - low) / (high - low)).pvalue > odds.FAILURE_RATE


def test_draws_from_a_simplex_stay_inside_it():
    """On its border densities are infinite; a common underflow must not look like a draw from the middle."""
    for alpha in (0.5, 0.1, 0.01):
        z = keyed()("z", dist.Dirichlet(torch.full((PARTICLES, DATA, 3), alpha)))
        assert ((z > 0) & (z < 1)).all()
        beta = keyed()("z", dist.Beta(alpha * ONES, alpha))
        assert dist.Beta(alpha * ONES, alpha).log_prob(beta).isfinite().all()
        assert (beta == 0.5).double().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_low_precision_stay_below_one(dtype):
    drawn = keyed()("z", dist.Uniform(torch.zeros_like(ONES, dtype=dtype), torch.ones_like(ONES, dtype=dtype)))
    assert drawn.dtype is dtype
    assert drawn.max() < 1
    half_a_step = {torch.float16: 2.0**-12, torch.bfloat16: 2.0**-9}[dtype]
    odds.assert_mean(drawn.double().reshape(-1, 1), torch.tensor([0.5 - half_a_step]).double())


@pytest.mark.parametrize("name", DISCRETE)
def test_choices_have_their_masses(name):
    drawn = keyed()("z", DISCRETE[name])
    codes = drawn.argmax(-1) if name == "one-hot" else drawn
    counts = torch.bincount(codes.flatten(), minlength=5)
    assert counts[MASSES == 0].sum() == 0
    there = MASSES > 0
    expected = MASSES[there].double().numpy() * counts.sum().item()
    assert stats.chisquare(counts[there].numpy(), expected).pvalue > odds.FAILURE_RATE


def test_bits_have_their_chances():
    p = torch.tensor([0.1, 0.5, 0.9]).double()
    drawn = keyed()("z", dist.Bernoulli(p.expand(PARTICLES, DATA, 3)).to_event(1))
    odds.assert_mean(drawn.flatten(0, 1), p)


@pytest.mark.parametrize(
    "lag", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2)], ids=["particle", "datum", "place", "pair"]
)
def test_neighbours_are_independent(lag):
    z = keyed()("z", dist.Normal(torch.zeros(PARTICLES, DATA, 4).double(), 1.0).to_event(1))
    near = [slice(step, None) for step in lag]
    far = [slice(None, -step or None) for step in lag]
    products = z[near[0], near[1], near[2]] * z[far[0], far[1], far[2]]
    odds.assert_mean(products.reshape(-1, 1), torch.zeros(1).double())
    squares = (z[near[0], near[1], near[2]].square() - 1) * (z[far[0], far[1], far[2]].square() - 1)
    odds.assert_mean(squares.reshape(-1, 1), torch.zeros(1).double())


def test_sites_and_seeds_draw_other_numbers():
    fn = dist.Normal(0 * ONES, 1.0)
    first = keyed()("z", fn)
    assert torch.equal(first, keyed()("z", fn))
    others = keyed()("y", fn), keyed(seed=1)("z", fn)
    for other in others:
        odds.assert_mean((first * other).double().reshape(-1, 1), torch.zeros(1).double())


FAMILIES = {
    "normal": lambda k, b: dist.Normal(torch.zeros(k, b, 3), 1.0).to_event(1),
    "bits": lambda k, b: dist.Bernoulli(torch.full((k, b, 3), 0.4)).to_event(1),
    "categorical": lambda k, b: dist.Categorical(MASSES.expand(k, b, 5)),
    "codes": lambda k, b: dist.OneHotCategorical(MASSES.expand(k, b, 3, 5)).to_event(1),
    "labels": lambda k, b: dist.Categorical(MASSES.expand(k, b, 2, 3, 5)).to_event(2),
    "dirichlet": lambda k, b: dist.Dirichlet(torch.ones(k, b, 3)),
    "mixture": lambda k, b: dist.MixtureSameFamily(
        dist.Categorical(MASSES.expand(k, b, 5)), dist.Normal(torch.arange(5.0).expand(k, b, 5), 1.0)
    ),
    "full covariance": lambda k, b: dist.MultivariateNormal(torch.zeros(k, b, 2), torch.eye(2)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_datum_draws_depends_on_nothing_beside_it(family):
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    keys, make = datum_keys((x,)), FAMILIES[family]
    whole = Keyed(keys, torch.arange(6).expand(7, 6))("z", make(6, 7))
    some = torch.tensor([5, 2, 3])
    numbers = torch.tensor([[4, 1], [0, 5], [3, 3]])  # each datum's own particles
    apart = Keyed(datum_keys((x[some],)), numbers)("z", make(2, 3))
    torch.testing.assert_close(apart, whole[numbers.T, some])


def test_values_that_a_guide_enumerates_draw_apart():
    fn = dist.Normal(torch.zeros(2, PARTICLES, DATA).double(), 1.0)
    z = keyed()("z", fn)
    assert z.shape == (2, PARTICLES, DATA)
    odds.assert_mean((z[0] * z[1]).reshape(-1, 1), torch.zeros(1).double())


def test_keys_follow_the_content():
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    keys = datum_keys((x,))
    assert keys[0] == keys[2]
    assert keys[0] != keys[1]
    assert torch.equal(datum_keys((x[1:],)), keys[1:])
    labelled = datum_keys((x, torch.tensor([0, 1, 2])))
    assert len(labelled.unique()) == 3
    for dtype in (torch.float64, torch.bfloat16, torch.uint8, torch.bool, torch.int64):
        assert len(datum_keys((x.to(dtype),)).unique()) == 2


def test_many_sparse_data_have_keys_of_their_own():
    """Binary images differ in few bits, and those are the high ones of a float."""
    x = torch.eye(784).repeat(2, 1)
    x[784:, 0] = 1.0
    assert len(datum_keys((x,)).unique()) == 2 * 784 - 1  # the first of both halves are equal


def test_hashing_spreads_every_bit():
    words = torch.arange(4096)
    for bit in range(0, 64, 7):
        flips = mixed(words) ^ mixed(words ^ (1 << bit))
        ones = torch.stack([(flips >> i) & 1 for i in range(64)], -1).double()
        odds.assert_mean(ones, torch.full((64,), 0.5).double())


def test_draws_that_cannot_be_keyed_are_named():
    with pytest.raises(CannotKey, match="site 'z' draws by poisson"):
        keyed()("z", dist.Poisson(ONES))


def test_the_callers_random_state_does_not_move():
    state = torch.get_rng_state()
    keyed()("z", dist.Gamma(0.5 * ONES, 1.0))
    assert torch.equal(torch.get_rng_state(), state)


class OfOnes(dist.Normal):
    """It draws in ways of its own, one of which is handed to it."""

    def __init__(self, loc, noise, **options):
        self.noise = noise
        super().__init__(loc, 1.0, **options)

    def expand(self, batch_shape, _instance=None):
        return OfOnes(self.loc.expand(batch_shape), self.noise)

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008 - torch's own default
        return self.loc + self.noise(torch.Size(sample_shape) + self.loc.shape)


def without_replacement(shape):
    drawn = torch.multinomial(torch.ones(shape.numel(), 3), 2, replacement=False)
    return drawn[:, 0].reshape(shape).float() - 1


WAYS = {
    "in common": (
        lambda shape: torch.randn(7).mean() + torch.zeros(shape),
        r"draws numbers of shape \(7,\) for a batch",
    ),
    "without replacement": (without_replacement, "draws without replacement"),
}


@pytest.mark.parametrize("way", WAYS)
def test_draws_that_belong_to_no_datum_are_said(way):
    noise, message = WAYS[way]

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", OfOnes(x / 2, noise))

    with pytest.warns(
        UserWarning, match=f"evaluate: site 'z' {message}.*, so that results depend on batch_size, chunk"
    ):
        evaluation = pv.evaluate(model, guide, torch.zeros(4), particles=20)
    assert evaluation.log_px.isfinite().all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("n", [20, 25, 64, 200])
def test_the_place_of_a_number_is_no_index_arithmetic_of_the_compiler(n):
    """There its product would overflow a signed number of C++, and loops lose their ends."""
    streams = torch.randint(-(2**62), 2**62, (3, 5))
    found, code = run_and_get_cpp_code(torch.compile(_elements, fullgraph=True, dynamic=False), streams, n)
    assert torch.equal(found, _elements(streams, n))
    assert torch.equal(found, mixed(streams.unsqueeze(-1) + torch.arange(1, n + 1) * GOLDEN))
    assert "kernel" in code
    assert not re.search(r"\d{12,}L?\)* *\* *x\d", code)
