"""What generated programs have found, each by itself."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv
from ppl_vae.divergences import closed_kl

X = torch.ones(3, 2)


def normal(z=None):
    return dist.Normal(torch.zeros(2) if z is None else z, 1.0).to_event(1)


def pair(likelihood=lambda z, observed: normal(z), in_model=lambda z: None, in_guide=lambda z: None):
    """Return a model of z and x, and its guide, each with more statements."""

    def model(x, observed=None):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", normal())
            pyro.sample("x", likelihood(z, observed), obs=x)
            in_model(z)

    def guide(x, observed=None):
        with pyro.plate("data", x.shape[0], dim=-1):
            in_guide(pyro.sample("z", normal()))

    return model, guide


def test_penalties_of_one_name_in_both_programs_add_up():
    def cost(size):
        return lambda z: pyro.factor("penalty_cost", size + 0 * z.sum(-1))

    drawn = pv.weigh(*pair(in_model=cost(5.0), in_guide=cost(2.0)), X, particles=4)
    torch.testing.assert_close(drawn.penalties["penalty_cost"], torch.full((4, 3), 3.0))


VECTORS = {
    "correlated": lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "independent": lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "simplex": lambda: dist.Dirichlet(torch.ones(2)),
}


@pytest.mark.parametrize("vectors", [2, 3])
@pytest.mark.parametrize("kind", VECTORS)
def test_a_mask_over_vectors_passes(kind, vectors):
    """Two or three vectors a datum, each of two numbers, of which some are missing."""
    x, observed = torch.full((3, vectors, 2), 0.5), torch.rand(3, vectors) > 0.3

    def likelihood(z, observed):
        return VECTORS[kind]().expand(observed.shape).mask(observed).to_event(1)

    pv.check(*pair(likelihood), (x, observed))


def test_a_mask_says_nothing_of_data_of_another_shape():
    """Of as many axes as the data that it is of."""

    def model(x, observed, w):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", normal())
            pyro.sample("x", dist.Normal(z, 1.0).mask(observed).to_event(1), obs=x)
            pyro.sample("w", dist.Normal(torch.zeros(5), 1.0).to_event(1), obs=w)

    batch = X, torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 5)
    pv.check(model, lambda x, observed, w: pair()[1](x), batch)


def test_divergences_of_bits_given_enumerated_values():
    """Torch's needs both batch shapes to be the same."""
    q, p = dist.Bernoulli(torch.tensor([0.2, 0.7])), dist.Bernoulli(torch.tensor([[0.5, 0.1], [0.3, 0.9], [0.6, 0.4]]))
    found = closed_kl(q, p)
    wanted = torch.stack([closed_kl(q, dist.Bernoulli(row)) for row in p.probs])
    torch.testing.assert_close(found, wanted)
    assert found.shape == (3, 2)


def test_unsigned_counts_are_refused_where_they_wrap_round():
    counts = torch.tensor([[1, 2], [0, 4], [3, 3]], dtype=torch.uint8)
    model, guide = pair(lambda z, observed: dist.Geometric(logits=z).to_event(1))
    with pytest.raises(pv.ContractError, match=r"site 'x': .* torch.uint8, and Geometric goes wrong .*x.to\("):
        pv.check(model, guide, counts)
    pv.check(model, guide, counts.float())
    pv.check(model, guide, counts.long())


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool])
def test_bits_that_are_no_floating_numbers_are_refused_by_name(kind):
    model, guide = pair(lambda z, observed: dist.Bernoulli(logits=z).to_event(1))
    with pytest.raises(pv.ContractError, match=f"site 'x': its data are {kind}, and Bernoulli has no density of such"):
        pv.check(model, guide, X.to(kind))


def test_a_parameter_that_is_no_number_is_named():
    model, guide = (torch.nn.Linear(2, 2) for _ in range(2))
    torch.nn.init.constant_(guide.bias, torch.nan)
    programs = pair(lambda z, observed: normal(model(z)), in_guide=lambda z: guide(z))
    with pytest.raises(pv.ContractError, match=r"parameter guide.*bias: 2 of its 2 values are NaN"):
        pv.check(*programs, X)
