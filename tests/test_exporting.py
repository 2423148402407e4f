"""What ArviZ gets: draws of the exact posterior, marginal log-likelihoods, and groups on which its functions work."""

import warnings

import arviz
import numpy as np
import odds
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.exporting import write_netcdf
from ppl_vae.guides.exact import Exact
from ppl_vae.models.linear_gaussian import LinearGaussian

MARK = {"enumerate": "parallel"}
GROUPS = {
    *("posterior", "posterior_predictive", "observed_data", "prior", "prior_predictive"),
    *("sample_stats", "log_likelihood", "constant_data"),
}


def groups_of(inference):
    """Return the names of groups, of either version's object."""
    names = inference.groups() if callable(inference.groups) else inference.groups
    return {name.strip("/") for name in names} - {""}


class Prior(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))


def test_draws_are_of_the_posterior_whatever_the_guide():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    x = pv.sample(model, shape=(6,), n=1)["x"].expand(200, -1)
    evaluation = pv.evaluate(model, Prior(), x, particles=5000)
    z = torch.as_tensor(evaluation.to_arviz(rows=200)["posterior"]["z"].values)[0]  # (draw, row, 2)
    posterior = model.posterior(x[:1])
    # Draws of one datum are not independent; those of data, which are equal, are.
    odds.assert_mean(z.mean(0), posterior.loc[0])
    second = (z - posterior.loc[0]).unsqueeze(-1) * (z - posterior.loc[0]).unsqueeze(-2)
    odds.assert_mean(second.mean(0).flatten(1), posterior.covariance_matrix[0].flatten())


def test_draws_made_again_are_those_that_were_weighed():
    pair = pairs.make("vae", "normal")
    x = pair.data(7)
    evaluation = pv.evaluate(pair.model, pair.guide, x, particles=30, batch_size=3, chunk=4)
    seen = {}

    class Watching(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                seen["z"] = pyro.sample("z", self.encoder(x))

    pv.evaluate(pair.model, Watching(pair.guide.encoder), x, particles=30, batch_size=7, chunk=30)
    again = evaluation.redraw.posterior(torch.arange(30).expand(7, 30)).latents["z"]
    torch.testing.assert_close(again, seen["z"])


class Mixture(nn.Module):
    """A choice, a latent that it moves, and a number that is seen."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7]).to(x)), infer=self.mark)
            z = pyro.sample("z", dist.Normal(torch.tensor([-1.0, 2.0]).to(x)[y], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)


class Enumerating(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("y", dist.Categorical(logits=torch.stack([-x, x], -1)), infer=MARK)
            pyro.sample("z", dist.Normal(x, 0.6))


class Reading(nn.Module):
    """The same with a latent that follows the choice."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=torch.stack([-x, x], -1)), infer=MARK)
            pyro.sample("z", dist.Normal(x + 0.1 * y, 0.6))


class Summed(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x, 0.6))


@pytest.mark.parametrize(("model", "guide"), [(MARK, Enumerating), (MARK, Reading), (MARK, Summed)])
def test_choices_that_were_summed_out_are_drawn_from_their_posterior(model, guide):
    x = torch.full((300,), 0.4).double()
    evaluation = pv.evaluate(Mixture(model), guide(), x, particles=2000)
    posterior = evaluation.to_arviz(rows=300)["posterior"]
    joint = torch.tensor([0.3, 0.7]).double().log() + dist.Normal(torch.tensor([-1.0, 2.0]), 1.25**0.5).log_prob(x[0])
    y = torch.as_tensor(posterior["y"].values)[0].double()
    odds.assert_mean(y.mean(0).unsqueeze(-1), joint.softmax(0)[1:])
    means = (4 * x[0] + torch.tensor([-1.0, 2.0]).double()) / 5  # of z given y and x
    z = torch.as_tensor(posterior["z"].values)[0]
    odds.assert_mean(z.mean(0).unsqueeze(-1), (joint.softmax(0) * means).sum().unsqueeze(-1))
    odds.assert_mean((y * z).mean(0).unsqueeze(-1), (joint.softmax(0) * means)[1:])


def test_statistics_are_those_of_the_draws():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    x = pv.sample(model, shape=(6,), n=5)["x"]
    inference = pv.evaluate(model, Exact(model), x, particles=50).to_arviz()
    z = torch.as_tensor(inference["posterior"]["z"].values)[0]
    prior, likelihood = dist.Normal(0.0, 1.0), dist.Normal(z @ model.weight.mT + model.bias, model.log_scale.exp())
    lp = prior.log_prob(z).sum(-1) + likelihood.log_prob(x).sum(-1)
    np.testing.assert_allclose(inference["sample_stats"]["lp"].values[0], lp.detach())
    log_px = model.log_px(x).detach().expand(50, 5)
    np.testing.assert_allclose(inference["sample_stats"]["log_weight"].values[0], log_px)


def test_new_data_follow_the_posterior_predictive():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    x = pv.sample(model, shape=(6,), n=1)["x"].expand(300, -1)
    inference = pv.evaluate(model, Exact(model), x, particles=100).to_arviz(rows=300)
    new = torch.as_tensor(inference["posterior_predictive"]["x"].values)[0]
    assert new.shape == (100, 300, 6)
    odds.assert_mean(new.mean(0), (model.posterior(x[:1]).loc @ model.weight.mT + model.bias)[0].detach())
    np.testing.assert_array_equal(inference["observed_data"]["x"].values, x.numpy())
    prior = torch.as_tensor(inference["prior_predictive"]["x"].values)[0].flatten(0, 1)
    odds.assert_mean(prior, model.bias.detach())
    assert set(inference["prior"].data_vars) == {"z"}


def test_replicates_spread_as_the_monte_carlo_error_says():
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    x = pv.sample(model, shape=(6,), n=1)["x"].expand(400, -1)

    class Wider(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                q = model.posterior(x)
                pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=1.3 * q.scale_tril))

    evaluation = pv.evaluate(model, Wider(), x, particles=2000)
    assert evaluation.replicates.shape == (400, 100)
    ratio = evaluation.replicates.var(1) / evaluation.log_px_error.square()
    odds.assert_mean(ratio.unsqueeze(-1), torch.tensor([0.99]).double())  # a bootstrap of 100 groups: 1 - 1 / 100
    gap = evaluation.replicates.mean(1) - evaluation.log_px
    assert gap.abs().max() < evaluation.log_px_error.max()


@pytest.fixture(scope="module")
def evaluations():
    digits = pv.data.load("digits", binarize="static")
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        model, guide = pairs.digits_vae()
        pv.fit(model, guide, digits, epochs=1 + 2 * seed, compile=False)
        made.append(pv.evaluate(model, guide, digits, particles=200))
    return made


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def test_arvizs_functions_work_on_it(evaluations):
    import matplotlib as mpl

    mpl.use("Agg")
    inferences = [evaluation.to_arviz() for evaluation in evaluations]
    assert groups_of(inferences[0]) == GROUPS
    loo = quietly(arviz.loo, inferences[0], pointwise=True)
    elpd = float(getattr(loo, "elpd_loo", None) or loo.elpd)
    total = float(evaluations[0].log_px.sum())
    assert elpd == pytest.approx(total, abs=len(evaluations[0]) * evaluations[0].log_px_error.mean().item())
    assert quietly(arviz.plot_khat, loo) is not None
    table = quietly(arviz.compare, dict(zip(("short", "longer"), inferences, strict=True)))
    assert list(table.index) == ["longer", "short"]
    draw = getattr(arviz, "plot_ppc", None) or arviz.plot_ppc_dist
    assert quietly(draw, inferences[0]) is not None


def test_netcdf_files_hold_all_of_it(evaluations, tmp_path):
    path = tmp_path / "evaluation.nc"
    write_netcdf(evaluations[0], path, rows=5)
    read = arviz.from_netcdf(path)
    assert groups_of(read) == GROUPS
    np.testing.assert_array_equal(read["constant_data"]["log_px"].values, evaluations[0].log_px.numpy())
    assert read["posterior"]["z"].shape == (1, 100, 5, 4)
    assert read["log_likelihood"].attrs["particles"] == 200
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.nc"]


def test_a_loaded_evaluation_gives_what_it_has(tmp_path):
    pair = pairs.make("vae", "normal")
    out = tmp_path / "evaluation.pt"
    pv.evaluate(pair.model, pair.guide, pair.data(), particles=30, out=out)
    assert groups_of(pv.Evaluation.load(out).to_arviz()) == {"log_likelihood", "constant_data"}


def test_programs_that_were_trained_on_are_refused():
    pair = pairs.make("vae", "normal")
    evaluation = pv.evaluate(pair.model, pair.guide, pair.data(), particles=30)
    next(pair.guide.parameters()).data.add_(0.1)
    with pytest.raises(RuntimeError, match="the programs have changed"):
        evaluation.to_arviz()


def test_data_that_were_changed_are_refused():
    pair = pairs.make("vae", "normal")
    x = pair.data(6)
    evaluation = pv.evaluate(pair.model, pair.guide, x, particles=30)
    x.copy_(1 - x)
    with pytest.raises(RuntimeError, match="the data have changed"):
        evaluation.to_arviz()


def test_what_leave_one_out_makes_of_replicates_is_the_estimate():
    """The harmonic mean of replicates is what ``az.loo`` estimates; unshifted, it would lie below log p(x)."""
    torch.manual_seed(0)
    model = LinearGaussian(x_dim=6, z_dim=2).double()
    x = 2 * pv.sample(model, shape=(6,), n=50)["x"]
    evaluation = pv.evaluate(model, Prior(), x, particles=200)
    r = evaluation.replicates
    torch.testing.assert_close(-((-r).logsumexp(1) - torch.tensor(100.0).log()), evaluation.log_px)
    loo = quietly(arviz.loo, evaluation.to_arviz())
    elpd = float(getattr(loo, "elpd_loo", None) or loo.elpd)
    assert abs(elpd / 50 - evaluation.mean) < 2 * evaluation.mc_se


def test_a_fit_has_its_history_too():
    digits = pv.data.load("digits", binarize="static")
    model, guide = pairs.digits_vae()
    fit = pv.fit(model, guide, digits, epochs=2, compile=False)
    inference = fit.to_arviz(particles=100, rows=3)
    assert groups_of(inference) == GROUPS
    np.testing.assert_allclose(inference["constant_data"]["valid_bound"].values, fit.history["valid_bound"])
    assert inference["posterior"].sizes["row"] == 3
    assert "validation data" in inference["posterior"].attrs["subject"]
    assert inference["constant_data"].sizes["datum"] == len(digits.valid)
