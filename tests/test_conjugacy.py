"""Programs that only look conjugate, or that see less of the data than they seem to: none may pass in silence."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_vae as pv

F64 = torch.float64


def t(*numbers):
    return torch.tensor(numbers, dtype=F64)


def summed_shares(x):
    """Linear in the log of no single share, but symmetric in two of them."""
    shares = pyro.sample("shares", dist.Dirichlet(t(1.0, 5.0, 1.0)))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Bernoulli(shares[1] + shares[2]), obs=x)


def mean_of_chances(x):
    with pyro.plate("sides", 2, dim=-1):
        chances = pyro.sample("chances", dist.Beta(t(1.0, 20.0), t(1.0, 1.0)))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Bernoulli(chances.mean()), obs=x)


def large_units(x):
    """A bend that is seen only in units of the data."""
    loc = pyro.sample("loc", dist.Normal(t(0.0).squeeze(), 1e7))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(loc + loc**2 / 1e7, 1e7), obs=x)


def read_together(x):
    with pyro.plate("kinds", 2, dim=-1):
        effects = pyro.sample("effects", dist.Normal(t(0.0, 0.0), 1.0))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(effects.sum(), 1.0), obs=x)


COINS = torch.cat([torch.ones(30, dtype=F64), torch.zeros(10, dtype=F64)])


@pytest.mark.parametrize(
    ("program", "x", "site"),
    [
        (summed_shares, COINS, "shares"),
        (mean_of_chances, COINS, "chances"),
        (large_units, t(1.0, 2.0, 1.5) * 1e7, "loc"),
        (read_together, t(1.0, 2.0, 3.0), "effects"),
    ],
)
def test_what_only_looks_linear_is_refused(program, x, site):
    with pytest.raises(pv.ContractError, match=f"site '{site}'.*not linear"):
        pv.cavi(program, x)


def test_elements_that_a_site_reads_together_are_told_to_be_one_vector():
    with pytest.raises(pv.ContractError, match=r"one vector, by \.to_event\(1\)"):
        pv.cavi(read_together, t(1.0, 2.0, 3.0))


@pytest.mark.parametrize("rows", [5, 7])
def test_a_second_plate_around_data_is_refused(rows):
    def crossed(x):
        with pyro.plate("columns", 7, dim=-1):
            mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        with pyro.plate("data", x.shape[0], dim=-1), pyro.plate("features", 7, dim=-2):
            pyro.sample("x", dist.Normal(mu[:, None], 1.0), obs=x.T)

    with pytest.raises(pv.ContractError, match=r"plate 'features' \(size 7\), a second plate"):
        pv.cavi(crossed, torch.zeros(rows, 7, dtype=F64))


def test_data_of_another_width_are_refused():
    from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture

    with pytest.raises(pv.ContractError, match=r"site 'x': data of shape \(50, 3\)"):
        pv.cavi(BayesianGaussianMixture(2, 3).double(), torch.randn(50, 3, dtype=F64))


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros((), dtype=F64), 1.0))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def test_a_first_batch_of_one_datum_stands_for_no_other():
    torch.manual_seed(0)
    x = torch.randn(30, dtype=F64)
    y = 2 * x + torch.randn(30, dtype=F64)
    one, two = pv.cavi_step(line, data_size=30), pv.cavi_step(line, data_size=30)
    for i in range(30):
        one((x[i : i + 1], y[i : i + 1]))
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(one.bound((x, y)), two.bound((x, y)))
    single = pv.cavi(line, (x[:1], y[:1]))
    assert single.log_density((x, y), draws=5).shape == (30,)


def test_a_prior_that_reads_the_data_is_run_on_all_of_them():
    def centred(x):
        mu = pyro.sample("mu", dist.Normal(x.mean(), 0.1))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    torch.manual_seed(0)
    x = 3 + torch.randn(50, dtype=F64)
    assert float(pv.cavi(centred, x).q["mu"].mean) == pytest.approx(float(x.mean()))


def test_point_may_be_any_iterable():
    from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture

    torch.manual_seed(0)
    model, x = BayesianGaussianMixture(2, 2).double(), torch.randn(40, 2, dtype=F64)
    named = pv.cavi(model, x, point=(site for site in ("weights", "mean", "precision")), iterations=2)
    assert all(isinstance(q, dist.Delta) for q in named.q.values())


def test_parameters_that_are_held_fixed_are_told():
    from ppl_vae.models.gaussian_mixture import GaussianMixture

    torch.manual_seed(0)
    found = pv.cavi(GaussianMixture(2, 2).double(), torch.randn(30, 2, dtype=F64))
    assert any("held as they are (logits, mean" in warning for warning in found.warnings)
    assert not any("held" in warning for warning in pv.cavi(line, (t(1.0, 2.0), t(1.0, 2.0))).warnings)
