"""Active units and perplexity: against closed forms, without bias by draws, over data in every form."""

import math

import odds
import pyro
import pyro.distributions as dist
import pytest
import small
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import nn

import ppl_vae as pv
from ppl_vae.guides.relaxed import Relaxed
from ppl_vae.latents import collapse

DOUBLE = torch.float64
X = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=DOUBLE)


class Linear(nn.Module):
    """z ~ N(A x, 1): three units, of which the last does not move."""

    def __init__(self):
        super().__init__()
        weight = torch.tensor([[1.0, 0.5], [0.04, -0.02], [0.0, 0.0]], dtype=DOUBLE)
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x @ self.weight.mT, 1.0).to_event(1))


def rows(n=37):
    return torch.randn(n, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(3)) + 5


@pytest.mark.parametrize("batch_size", [1, 5, 36, 100])
def test_means_in_closed_form_give_the_variance_exactly(batch_size):
    guide, x = Linear(), rows()
    found = pv.active_units(guide, x, batch_size=batch_size)
    exact = (x @ guide.weight.mT).var(0).detach()
    torch.testing.assert_close(found.variances["z"], exact, atol=1e-12, rtol=1e-10)
    assert found.active["z"].tolist() == [True, False, False]
    assert (found.count, found.units, found.n) == (1, 3, 37)
    assert "Active units: 1 of 3 of 'z'" in str(found)
    assert found.to_dict() == {"sites": {"z": {"active": 1, "units": 3}}, "threshold": 0.01, "n": 37}
    assert pv.active_units(guide, x, threshold=1e-5).count == 2


def squashed(x):
    """A distribution without a mean in closed form."""
    with pyro.plate("data", x.shape[0], dim=-1):
        base = dist.Normal(x, 1.0)
        pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.TanhTransform()]))


def test_means_of_draws_leave_no_bias():
    """With two draws their variance is as large as what is looked for."""
    at, weights = (torch.as_tensor(v) for v in hermegauss(60))
    exact = ((X.unsqueeze(1) + at).tanh() @ (weights / weights.sum())).var()
    runs = [pv.active_units(squashed, X, draws=2, seed=seed).variances["z"] for seed in range(300)]
    odds.assert_mean(torch.stack(runs), exact)


def test_upper_layers_are_averaged_over_the_layers_that_they_are_drawn_from():
    guide = small.LineGuide()
    slopes = guide.slopes.detach()
    runs = [pv.active_units(guide, X, draws=2, seed=seed).variances for seed in range(300)]
    torch.testing.assert_close(runs[0]["z1"], (slopes[0] * X).var())
    odds.assert_mean(torch.stack([run["z2"] for run in runs]), (slopes.prod() * X).var())


def test_what_is_marked_for_enumeration_is_drawn():
    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=x), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(x + 2 * y, 1.0))

    runs = [pv.active_units(guide, X, draws=4, seed=seed).variances for seed in range(200)]
    torch.testing.assert_close(runs[0]["y"], X.sigmoid().var())
    odds.assert_mean(torch.stack([run["z"] for run in runs]), (X + 2 * X.sigmoid()).var())


@pytest.mark.parametrize("kind", ["tuple", "dataset", "loader"])
def test_data_come_in_every_form(kind):
    x = rows()
    dataset = torch.utils.data.TensorDataset(x)
    forms = {"tuple": (x,), "dataset": dataset, "loader": torch.utils.data.DataLoader(dataset, batch_size=4)}
    torch.testing.assert_close(
        pv.active_units(Linear(), forms[kind], batch_size=3).variances["z"],
        pv.active_units(Linear(), x).variances["z"],
    )


class Codes(nn.Module):
    """Two positions with one codebook of four, and a one-hot code of three."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.grid = nn.Parameter(2 * torch.randn(2, 4, dtype=DOUBLE, generator=generator))
        self.alone = nn.Parameter(torch.randn(3, dtype=DOUBLE, generator=generator))

    def logits(self, x):
        return self.grid * x[:, None, None], self.alone * x[:, None]

    def forward(self, x):
        grid, alone = self.logits(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("c", dist.Categorical(logits=grid).to_event(1))
            pyro.sample("y", dist.OneHotCategorical(logits=alone))


def exp_entropy(p):
    return (-(p * p.log()).sum(-1)).exp()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_perplexity_is_that_of_the_mean_distribution(batch_size):
    guide = Codes()
    found = pv.perplexity(guide, X, batch_size=batch_size, draws=2)
    grid, alone = (logits.softmax(-1).detach() for logits in guide.logits(X))
    torch.testing.assert_close(found.positions["c"], exp_entropy(grid.mean(0)))
    assert found.values["c"] == pytest.approx(float(exp_entropy(grid.mean((0, 1)))))
    assert found.values["y"] == pytest.approx(float(exp_entropy(alone.mean(0))))
    assert found.used == {"c": len(grid.argmax(-1).unique()), "y": len(alone.argmax(-1).unique())}
    assert found.codes == {"c": 4, "y": 3}
    assert f"'c' {found.values['c']:.1f} ({found.used['c']} of 4 codes used)" in str(found)
    assert found.to_dict()["y"] == {"perplexity": found.values["y"], "used": found.used["y"], "codes": 3, "n": 4}


def coded(logits):
    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("c", dist.OneHotCategorical(logits=logits[x.long()]))

    return guide


def test_perplexity_runs_from_one_to_the_number_of_codes():
    x = torch.arange(5.0)
    each, one = coded(1e4 * torch.eye(5)), coded(1e4 * torch.eye(5)[[2] * 5])
    assert pv.perplexity(each, x).values["c"] == pytest.approx(5.0)
    assert pv.perplexity(each, x).used["c"] == 5
    assert pv.perplexity(one, x).values["c"] == pytest.approx(1.0)
    assert pv.perplexity(one, x).used["c"] == 1


def test_relaxed_codes_count_as_the_nearest_corner():
    torch.manual_seed(0)
    guide = Relaxed(shape=(4, 4), channels=(3,), codes=5)
    x = torch.rand(7, 16)
    fn = guide.encoder(x)
    found = pv.perplexity(guide, x)
    probs = fn.base_dist.logits.detach().double().softmax(-1).mean((0, 1))
    assert found.values["c"] == pytest.approx(float(torch.special.entr(probs).sum().exp()))
    assert found.codes == {"c": 5}
    often = torch.nn.functional.one_hot(fn.sample((5000,)).argmax(-1), 5).double().mean((1, 2))
    odds.assert_mean(often, probs)


def test_codes_drawn_below_others_are_averaged_over_them():
    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(probs=0.3 + 0 * x))
            pyro.sample("c", dist.Categorical(probs=torch.stack([0.1 + 0.8 * y, 0.9 - 0.8 * y], -1)))

    p = torch.tensor([0.7 * 0.1 + 0.3 * 0.9, 0.7 * 0.9 + 0.3 * 0.1])
    found = pv.perplexity(guide, torch.zeros(50), draws=2000, sites=["c"])
    assert found.values.keys() == {"c"}
    assert found.values["c"] == pytest.approx(float(exp_entropy(p)), abs=0.01)


def test_nothing_is_changed():
    guide, state = Codes().train(), torch.get_rng_state()
    assert pv.perplexity(guide, X).values == pv.perplexity(guide, X).values
    assert torch.equal(torch.get_rng_state(), state)
    assert guide.training


def with_a_label(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("y", dist.Categorical(logits=torch.stack([x, -x], -1)))
        pyro.sample("z", dist.Normal(x, 1.0))


def heavy(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Cauchy(x, 1.0))


REFUSALS = {
    "a label has no units": (
        lambda: pv.active_units(with_a_label, X),
        pv.ContractError,
        "site 'y': a Categorical has no mean.*pv.perplexity.*sites=",
    ),
    "a Cauchy has no mean": (lambda: pv.active_units(heavy, X), pv.ContractError, "site 'z': a Cauchy has no mean"),
    "a continuous latent has no codes": (
        lambda: pv.perplexity(with_a_label, X),
        pv.ContractError,
        "site 'z': a Normal gives no finite list of codes",
    ),
    "no such site": (lambda: pv.perplexity(with_a_label, X, sites=["c"]), ValueError, "expected some of y, z, found c"),
    "no site": (lambda: pv.active_units(with_a_label, X, sites=[]), ValueError, "expected some of y, z, found none"),
    "no latent": (lambda: pv.active_units(lambda x: None, X), pv.ContractError, "guide: it draws no latent"),
    "the model for the guide": (
        lambda: pv.active_units(small.Line(), X),
        pv.ContractError,
        "guide: site 'x' is observed",
    ),
    "one datum": (lambda: pv.active_units(Linear(), rows(1)), ValueError, "data: found 1 rows"),
    "no data": (lambda: pv.active_units(Linear(), rows(0)), ValueError, r"data: empty \(no rows\)"),
    "one draw": (lambda: pv.active_units(Linear(), rows(), draws=1), ValueError, "draws: .* at least 2, found 1"),
    "no draw": (lambda: pv.perplexity(Codes(), X, draws=0), ValueError, "draws: .* at least 1, found 0"),
    "a threshold below zero": (lambda: pv.active_units(Linear(), rows(), threshold=-1.0), ValueError, "threshold"),
    "a class": (lambda: pv.perplexity(Codes, X), pv.ContractError, "guide: expected a Pyro program.*pass an instance"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_counted_is_refused_by_name(name):
    call, kind, message = REFUSALS[name]
    with pytest.raises(kind, match=message):
        call()


def test_named_sites_are_looked_at_alone():
    found = pv.active_units(with_a_label, X, sites=["z"])
    torch.testing.assert_close(found.variances["z"], X.var())
    assert pv.perplexity(with_a_label, X, sites=["y"]).codes == {"y": 2}


def test_the_alarm_goes_by_units_and_by_information():
    active = torch.tensor([True, True, False, False])
    assert collapse({"z": active}, 1.0, {}) == ""
    few = torch.tensor([True, False, False, False])
    assert "3 of 4 units of 'z' are inactive (rate 0.25 nats)" in collapse({"z": few}, 1.0, {"z": 0.25})
    assert "carry 0.09 nats" in collapse({"z": active}, 0.09, {})
    assert collapse({}, math.log(1.1), {}) == ""
