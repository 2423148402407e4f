"""Programs with latents that all data share: densities against SciPy, draws, and Pyro's own inference."""

import pyro
import pytest
import torch
from conjugate import SHARED, N, drawn, like, made
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy import stats

import ppl_vae as pv
from ppl_vae import contract
from ppl_vae.models.bayesian_bernoulli_mixture import BayesianBernoulliMixture
from ppl_vae.models.bayesian_diagonal_mixture import BayesianDiagonalMixture
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from ppl_vae.models.bayesian_linear_regression import BayesianLinearRegression
from ppl_vae.models.beta_bernoulli import BetaBernoulli
from ppl_vae.models.correlated_gaussian import CorrelatedGaussian
from ppl_vae.models.normal_gamma import NormalGamma


@pytest.fixture(params=SHARED)
def name(request):
    return request.param


def test_there_are_such_programs():
    assert len(SHARED) >= 7


def test_sample_draws_every_site_once(name):
    model = made(name)
    draws, again = (pv.sample(model, like=like(model), n=N) for _ in range(2))
    trace = poutine.trace(model).get_trace(*drawn(name)[1])
    assert set(draws) == {site for site, _ in contract.sample_sites(trace)}
    for site, value in draws.items():
        assert torch.equal(value, again[site])
        frames = trace.nodes[site]["cond_indep_stack"]
        assert (value.shape[:1] == (N,)) is any(frame.name == "data" for frame in frames)


def test_the_data_plate_holds_what_each_datum_has_of_its_own(name):
    model, batch = drawn(name)
    trace = poutine.trace(model).get_trace(*batch)
    for site, node in contract.sample_sites(trace):
        if "data" in {frame.name for frame in node["cond_indep_stack"]}:
            assert node["fn"].batch_shape == (N,), site


def test_they_have_priors_and_no_parameters(name):
    model = made(name)
    assert not list(model.parameters())
    assert list(model.buffers())
    assert set(model.state_dict()) == {buffer for buffer, _ in model.named_buffers()}


def test_weights_of_a_datum_refuse_them(name):
    model, batch = drawn(name)
    prior = poutine.block(poutine.uncondition(model), hide=["x", "y"])
    with pytest.raises(pv.ContractError, match="is a global latent"):
        pv.weigh(model, prior, batch)


def test_particles_of_the_shared_latents_stay_apart(name):
    """A plate around the program, as Pyro's vectorised objectives have it, changes no density."""
    model, batch = drawn(name)
    with pyro.plate("particles", 3, dim=-2):
        together = poutine.trace(model).get_trace(*batch)
    together.compute_log_prob()
    for i in range(3):
        values = {}
        for site, node in contract.latents(together).items():
            value = node["value"][i]
            inner = {frame.name for frame in node["cond_indep_stack"]} - {"particles"}
            values[site] = value if inner else value.squeeze(0)
        alone = poutine.trace(poutine.condition(model, data=values)).get_trace(*batch)
        alone.compute_log_prob()
        for site in (*values, "x"):
            found = together.nodes[site]["log_prob"][i]
            torch.testing.assert_close(found.sum(), alone.nodes[site]["log_prob"].sum())


MIXTURES = [BayesianGaussianMixture, BayesianDiagonalMixture, BayesianBernoulliMixture]


LEARNED = [(program, family) for program in MIXTURES for family in (AutoDelta, AutoNormal)]


@pytest.mark.parametrize(("program", "family"), LEARNED)
def test_pyros_inference_runs_and_learns(program, family):
    torch.manual_seed(0)
    model = program(2, 3)
    x = torch.bernoulli(torch.rand(2)[torch.randint(2, (60, 1))]) if program is MIXTURES[2] else 2 * torch.randn(60, 2)
    pyro.set_rng_seed(1)
    guide = family(poutine.block(model, hide=["y"]))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(x) for _ in range(120)]
    assert sum(losses[-20:]) < sum(losses[:20])


@pytest.mark.parametrize("program", MIXTURES)
def test_vectorised_particles_are_the_same_bound(program):
    torch.manual_seed(0)
    model, x = program(2, 3).double(), torch.ones(6, 2).double()
    guide = AutoDelta(poutine.block(model, hide=["y"]))
    guide(x)
    losses = [
        TraceEnum_ELBO(num_particles=3, vectorize_particles=vectorised, max_plate_nesting=1).loss(model, guide, x)
        for vectorised in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_conjugate_programs_run_under_pyros_elbo():
    for program in (NormalGamma, BetaBernoulli):
        torch.manual_seed(0)
        model = program()
        x = pv.sample(model, shape=(1,), n=50)["x"]
        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        losses = [svi.step(x) for _ in range(150)]
        assert sum(losses[-30:]) < sum(losses[:30])


def densities(model, values, *batch):
    """Return the summed log density of each site at given values."""
    data = {name: torch.as_tensor(value) for name, value in values.items()}
    trace = poutine.trace(poutine.condition(model, data=data)).get_trace(*batch)
    trace.compute_log_prob()
    return {name: node["log_prob"].sum().item() for name, node in contract.sample_sites(trace)}


def one_draw(model, *batch):
    draws = pv.sample(model, like=batch, n=len(batch[0]), seed=3)
    x = draws.pop("x")
    return x, {name: value.numpy() for name, value in draws.items()}


def assert_densities(model, values, batch, wanted):
    found = densities(model, values, *batch)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(float(value), rel=1e-9, abs=1e-9), name


def test_gaussian_mixtures_densities_are_scipys():
    scatter = torch.tensor([[2.0, 0.3], [0.3, 1.0]])
    options = {"concentration": torch.tensor([1.0, 2.0, 3.0]), "prior_mean": torch.tensor([1.0, -1.0])}
    model = BayesianGaussianMixture(2, 3, **options, mean_precision=0.5, degrees_of_freedom=6.0, scatter=scatter)
    model.double()
    x, v = one_draw(model, torch.zeros(N, 2).double())
    w0, m0 = torch.linalg.inv(model.scatter).numpy(), model.prior_mean.numpy()
    covariance = [torch.linalg.inv(torch.as_tensor(p)).numpy() for p in v["precision"]]
    wanted = {
        "weights": stats.dirichlet([1, 2, 3]).logpdf(v["weights"] / v["weights"].sum()),
        "precision": sum(stats.wishart(6, w0).logpdf(p) for p in v["precision"]),
        "mean": sum(
            stats.multivariate_normal(m0, c / 0.5).logpdf(m) for m, c in zip(v["mean"], covariance, strict=True)
        ),
        "y": sum(torch.as_tensor(v["weights"]).log()[k] for k in v["y"]),
        "x": sum(
            stats.multivariate_normal(v["mean"][k], covariance[k]).logpdf(row)
            for k, row in zip(v["y"], x.numpy(), strict=True)
        ),
    }
    assert_densities(model, v, (x,), wanted)


def test_diagonal_mixtures_densities_are_scipys():
    model = BayesianDiagonalMixture(2, 3, 2.0, prior_mean=1.0, mean_precision=0.5, shape=3.0, rate=2.0).double()
    x, v = one_draw(model, torch.zeros(N, 2).double())
    wanted = {
        "weights": stats.dirichlet([2, 2, 2]).logpdf(v["weights"] / v["weights"].sum()),
        "precision": stats.gamma(3, scale=0.5).logpdf(v["precision"]).sum(),
        "mean": stats.norm(1, (0.5 * v["precision"]) ** -0.5).logpdf(v["mean"]).sum(),
        "y": sum(torch.as_tensor(v["weights"]).log()[k] for k in v["y"]),
        "x": stats.norm(v["mean"][v["y"]], v["precision"][v["y"]] ** -0.5).logpdf(x.numpy()).sum(),
    }
    assert_densities(model, v, (x,), wanted)


def test_bernoulli_mixtures_densities_are_scipys():
    model = BayesianBernoulliMixture(4, 3, concentration=2.0, on=1.5, off=2.5).double()
    x, v = one_draw(model, torch.zeros(N, 4).double())
    wanted = {
        "weights": stats.dirichlet([2, 2, 2]).logpdf(v["weights"] / v["weights"].sum()),
        "probability": stats.beta(1.5, 2.5).logpdf(v["probability"]).sum(),
        "y": sum(torch.as_tensor(v["weights"]).log()[k] for k in v["y"]),
        "x": stats.bernoulli(v["probability"][v["y"]]).logpmf(x.numpy()).sum(),
    }
    assert_densities(model, v, (x,), wanted)


def test_linear_regressions_densities_are_scipys():
    model = BayesianLinearRegression(3, prior_mean=0.5, prior_precision=2.0, shape=3.0, rate=2.0).double()
    covariates = torch.randn(N, 3).double()
    x, v = one_draw(model, torch.zeros(N).double(), covariates)
    wanted = {
        "coefficients": stats.norm(0.5, 2**-0.5).logpdf(v["coefficients"]).sum(),
        "precision": stats.gamma(3, scale=0.5).logpdf(v["precision"]),
        "x": stats.norm(covariates.numpy() @ v["coefficients"], v["precision"] ** -0.5).logpdf(x.numpy()).sum(),
    }
    assert_densities(model, v, (x, covariates), wanted)


def test_normal_gammas_densities_are_scipys():
    model = NormalGamma(2, prior_mean=1.0, mean_precision=0.5, shape=3.0, rate=2.0).double()
    x, v = one_draw(model, torch.zeros(N, 2).double())
    wanted = {
        "precision": stats.gamma(3, scale=0.5).logpdf(v["precision"]).sum(),
        "mean": stats.norm(1, (0.5 * v["precision"]) ** -0.5).logpdf(v["mean"]).sum(),
        "x": stats.norm(v["mean"], v["precision"] ** -0.5).logpdf(x.numpy()).sum(),
    }
    assert_densities(model, v, (x,), wanted)


def test_beta_bernoullis_densities_are_scipys():
    model = BetaBernoulli(2, on=1.5, off=2.5).double()
    x, v = one_draw(model, torch.zeros(N, 2).double())
    wanted = {
        "probability": stats.beta(1.5, 2.5).logpdf(v["probability"]).sum(),
        "x": stats.bernoulli(v["probability"]).logpmf(x.numpy()).sum(),
    }
    assert_densities(model, v, (x,), wanted)


def test_the_correlated_gaussians_posterior_obeys_bayes_rule():
    model = CorrelatedGaussian(correlation=0.7, scale=2.0).double()
    x = torch.randn(N, 1).double()
    posterior, gaps = model.posterior(x), []
    for z1, z2 in torch.randn(4, 2).double().tolist():
        found = densities(model, {"z1": torch.tensor(z1).double(), "z2": torch.tensor(z2).double()}, x)
        assert found["z1"] == pytest.approx(stats.norm.logpdf(z1))
        assert found["z2"] == pytest.approx(stats.norm(0.7 * z1, (1 - 0.49) ** 0.5).logpdf(z2))
        assert found["x"] == pytest.approx(stats.norm(z1 + z2, 2).logpdf(x.numpy()).sum())
        gaps.append(sum(found.values()) - posterior.log_prob(torch.tensor([z1, z2]).double()).item())
    prior = 3 * torch.ones(N, N).double() * (2 + 2 * 0.7) / 3 + 4 * torch.eye(N).double()
    evidence = stats.multivariate_normal(torch.zeros(N).numpy(), prior.numpy()).logpdf(x[:, 0].numpy())
    assert gaps == pytest.approx([evidence] * 4, abs=1e-6)
