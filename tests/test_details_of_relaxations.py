"""Thresholds of noise, and what is drawn on condition of what they decided, by hand."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent, OneHotCategorical

from ppl_vae.objectives.relaxations import inside, tiny, variable

DOUBLE = torch.float64
LOGITS = torch.tensor([[-1.5, 0.2, 2.0], [0.4, -3.0, 0.1]], dtype=DOUBLE)
U = torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.8, 0.2]], dtype=DOUBLE)


def binary():
    return variable("z", Independent(Bernoulli(logits=LOGITS), 1))


def one_hot():
    return variable("z", OneHotCategorical(logits=LOGITS))


def test_a_bit_is_the_sign_of_logistic_noise_on_its_logit():
    site = binary()
    latent = site.latent(U)
    torch.testing.assert_close(latent, LOGITS + (U / (1 - U)).log())
    torch.testing.assert_close(site.mean, 1 / (1 + (-LOGITS).exp()))
    assert torch.equal(site.hard(latent), (1 - site.mean < U).double())
    assert site.hard(torch.zeros(1)) == 0
    torch.testing.assert_close(site.relaxed(latent, 0.3), 1 / (1 + (-latent / 0.3).exp()))


@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_noise_given_a_bit_is_uniform_on_its_side(bit):
    site, value = binary(), torch.full_like(LOGITS, bit)
    off = 1 - site.mean
    wanted = off + U * site.mean if bit else U * off
    torch.testing.assert_close((site.conditional(value, U) - LOGITS).sigmoid(), wanted)


def test_a_corner_is_the_largest_of_gumbel_noise_on_its_logits():
    site = one_hot()
    normalised = LOGITS.log_softmax(-1)
    latent = site.latent(U)
    torch.testing.assert_close(latent, normalised - (-U.log()).log())
    torch.testing.assert_close(site.mean, normalised.exp())
    assert torch.equal(site.hard(latent), torch.nn.functional.one_hot(latent.argmax(-1), 3).double())
    torch.testing.assert_close(site.relaxed(latent, 0.3), (latent / 0.3).softmax(-1))


@pytest.mark.parametrize("corner", [0, 1, 2])
def test_noise_given_a_corner_by_the_exponential_race(corner):
    """Clocks -log u / p: the winner's, over all, is exponential at rate one; the others come after it."""
    site = one_hot()
    value = torch.nn.functional.one_hot(torch.full((2,), corner), 3).double()
    clocks, first = -U.log(), -U[:, corner].log()
    wanted = clocks / site.mean + first.unsqueeze(-1)
    wanted[:, corner] = first
    found = site.conditional(value, U)
    torch.testing.assert_close((-found).exp(), wanted)
    assert torch.equal(site.hard(found), value)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_noise_keeps_as_near_to_its_ends_as_its_type_allows(dtype):
    info = torch.finfo(dtype)
    low, high = inside(torch.tensor([0.0, 1.0], dtype=dtype))
    assert (float(low), float(high)) == (info.tiny, 1 - info.eps)
    assert tiny(torch.zeros(1, dtype=dtype)) == info.tiny
