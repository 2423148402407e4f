"""Numbers that belong to data and particles, and the draws that are made of them, computed by hand."""

import math
from collections import Counter

import pyro.distributions as dist
import pytest
import torch
from splitmix import ALL, GOLDEN, finaliser, signed, word

from ppl_vae.noise import RULES, Keyed, datum_keys, mixed, told_apart

DOUBLE = torch.float64


def test_the_hash_is_splitmix64():
    """Against the numbers that its authors' program gives for the seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    states = torch.tensor([signed(1234567 + n * GOLDEN & ALL) for n in range(1, 6)])
    assert [number & ALL for number in mixed(states).tolist()] == known


def test_keys_are_made_of_all_that_a_datum_holds():
    first, second = torch.tensor([[3, -4, 5]]), torch.tensor([[1.5]], dtype=DOUBLE)
    bits = int(second.view(torch.int64))
    total = 0
    for i, words in enumerate(([3, -4, 5], [bits])):
        places = sum(finaliser(held + place * GOLDEN) for place, held in enumerate(words))
        total = finaliser(total + word(f"part {i}")) + places
    assert datum_keys((first, second)).tolist() == [signed(finaliser(total))]


def test_equal_data_are_told_apart_by_their_turn():
    times = Counter()
    found = torch.cat([told_apart(torch.tensor(keys), times, seed=3) for keys in ([7, 7], [8, 7])])
    wanted = [signed(finaliser(key + finaliser(turn * GOLDEN + word("seed 3")))) for key, turn in TURNS]
    assert found.tolist() == wanted


TURNS = [(7, 0), (7, 1), (8, 0), (7, 2)]


def words(key, number, site, count, draw=1):
    stream = finaliser(finaliser(key + finaliser((number + 1) * GOLDEN)) + word(site))
    start = finaliser(stream + draw * 2**40)
    return [finaliser(start + n * GOLDEN) for n in range(1, count + 1)]


KEYS, NUMBERS = torch.tensor([11, -12]), torch.tensor([[4, 5, 6]] * 2)


def drawn(fn):
    return Keyed(KEYS, NUMBERS)("z", fn)


def by_hand(make, count):
    """Numbers ``(K, B, n)`` made of the words of each particle and datum."""
    rows = [[make(words(key, number, "z", count)) for key in KEYS.tolist()] for number in NUMBERS[0].tolist()]
    return torch.tensor(rows, dtype=DOUBLE)


def uniform(found):
    return [(number >> 11) * 2.0**-53 for number in found]


def normal(found):
    pairs = []
    for number in found:
        radius = math.sqrt(-2 * math.log(((number >> 32) + 0.5) / 2**32))
        angle = 2 * math.pi * (number & 2**32 - 1) / 2**32
        pairs += [radius * math.cos(angle), radius * math.sin(angle)]
    return pairs


ZEROS = torch.zeros(3, 2, 3, dtype=DOUBLE)


@pytest.mark.parametrize(
    ("fn", "wanted"),
    [
        (dist.Uniform(ZEROS - 1, ZEROS + 3), lambda: 4 * by_hand(uniform, 3) - 1),
        (dist.Normal(ZEROS - 1, ZEROS + 3), lambda: 3 * by_hand(normal, 2)[..., :3] - 1),
        (dist.Exponential(ZEROS + 3), lambda: -(1 - by_hand(uniform, 3)).log() / 3),
        (dist.Cauchy(ZEROS - 1, ZEROS + 3), lambda: 3 * (math.pi * (by_hand(uniform, 3) - 0.5)).tan() - 1),
        (dist.Bernoulli(ZEROS + 0.3), lambda: (by_hand(uniform, 3) < 0.3).double()),
    ],
    ids=["uniform", "normal", "exponential", "Cauchy", "Bernoulli"],
)
def test_draws_are_made_of_these_words(fn, wanted):
    torch.testing.assert_close(drawn(fn.to_event(1)), wanted(), rtol=1e-12, atol=1e-12)


def test_choices_invert_the_distribution_function():
    masses = torch.tensor([0.0, 0.2, 0.5, 0.3, 0.0], dtype=DOUBLE)
    found = drawn(dist.Categorical(masses.expand(3, 2, 5)))
    wanted = torch.bucketize(by_hand(uniform, 1).squeeze(-1), masses.cumsum(0), right=True)
    assert torch.equal(found, wanted)


class Drawn(dist.Normal):
    """A normal that is drawn by ``torch.normal``, as in graphs."""

    def rsample(self, sample_shape=()):
        return torch.normal(self.loc.expand(self.shape()), self.scale.expand(self.shape()))


def test_normals_of_tensors_are_made_of_these_words():
    found = drawn(Drawn(ZEROS - 1, ZEROS + 3).to_event(1))
    torch.testing.assert_close(found, 3 * by_hand(normal, 2)[..., :3] - 1, rtol=1e-12, atol=1e-12)


def log_gamma(key, number, alpha):
    """Marsaglia and Tsang's draw of one number: of sixteen attempts the last that is accepted."""
    small = alpha < 1
    d = alpha + small - 1 / 3
    c, log_drawn = 1 / math.sqrt(9 * d), math.log(d)
    for attempt in range(16):
        z = normal(words(key, number, "z", 1, draw=2 * attempt + 1))[0]
        u = 1 - uniform(words(key, number, "z", 1, draw=2 * attempt + 2))[0]
        v = (1 + c * z) ** 3
        if v > 0 and math.log(u) < z * z / 2 + d - d * v + d * math.log(v):
            log_drawn = math.log(d * v)
    boost = math.log(1 - uniform(words(key, number, "z", 1, draw=33))[0]) / alpha
    return log_drawn + boost if small else log_drawn


@pytest.mark.parametrize("alpha", [0.05, 0.9, 1.0, 30.0])
def test_gammas_are_made_of_these_words(alpha):
    shape = torch.full((60, 2), alpha, dtype=DOUBLE)  # so many that some last attempts fail
    found = Keyed(KEYS, torch.arange(60).expand(2, 60))("z", dist.Gamma(shape, torch.ones_like(shape)))
    wanted = [[log_gamma(key, number, alpha) for key in KEYS.tolist()] for number in range(60)]
    torch.testing.assert_close(found.log(), torch.tensor(wanted, dtype=DOUBLE))


class Edge:
    """Numbers as near to one as rounding may bring them."""

    name = "z"

    def uniform(self, shape, dtype):
        return torch.ones(shape, dtype=dtype)


def test_rounding_chooses_nothing_without_mass():
    masses = torch.tensor([[0.2, 0.8, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]], dtype=DOUBLE)
    assert RULES["multinomial"](Edge(), masses, 1, True).flatten().tolist() == [1, 3, 0]


def test_a_chance_of_zero_is_never_taken():
    class Zero(Edge):
        def uniform(self, shape, dtype):
            return torch.zeros(shape, dtype=dtype)

    assert RULES["bernoulli"](Zero(), torch.tensor([0.0, 1e-30])).tolist() == [0.0, 1.0]
    assert RULES["bernoulli"](Edge(), torch.tensor([1.0 - 1e-7])).tolist() == [0.0]
