"""Where annealing may start: which programs, data and numbers are refused, by name, and which chains have no weight."""

import odds
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian

MARK = {"enumerate": "parallel"}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LinearGaussian(x_dim=6, z_dim=2).double()


def data(model, n):
    return pv.sample(model, shape=(6,), n=n, seed=11)["x"]


@pytest.mark.parametrize(
    ("name", "value", "least"), [("distributions", 1, 2), ("chains", 0, 1), ("leapfrog", 0, 1), ("chains", 2.0, 1)]
)
def test_counts_that_are_too_small_are_refused(model, name, value, least):
    for verb, first in ((pv.ais, torch.zeros(2, 6).double()), (pv.bdmc, torch.zeros(2, 6).double())):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least {least}, found {value}"):
            verb(model, first, **{name: value})


def test_other_arguments_that_cannot_be_used(model):
    x = data(model, 3)
    with pytest.raises(ValueError, match="data: empty"):
        pv.ais(model, x[:0])
    with pytest.raises(ValueError, match="schedule: expected 10 temperatures that ascend from 0 to 1, found 10 from"):
        pv.ais(model, x, distributions=10, schedule=lambda n: torch.linspace(0.1, 1, n))
    with pytest.raises(ValueError, match="compile: expected"):
        pv.ais(model, x, compile="yes")
    with pytest.raises(ValueError, match="like, shape: give exactly one"):
        pv.bdmc(model)
    with pytest.raises(pv.ContractError, match="parameters are torch"):
        pv.ais(model, x.float())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=2, drop_last=True)
    with pytest.raises(ValueError, match="drops its last batch"):
        pv.ais(model, loader)


def plated(draw):
    """Return a model that draws z by a function of x, and sees it through noise."""

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = draw(x)
            pyro.sample("x", dist.Normal(z.to(x), 1.0), obs=x)

    return model


def globally(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def noiseless(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Delta(z), obs=x)


def on_a_sphere(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.ProjectedNormal(x.new_ones(2)))
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)


def mixed_up(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z - z.mean(), 1.0), obs=x)


def nothing_continuous(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Bernoulli(torch.full_like(x, 0.5)), infer=MARK)
        pyro.sample("x", dist.Normal(y, 1.0), obs=x)


REFUSED = {
    "discrete": (
        plated(lambda x: pyro.sample("k", dist.Poisson(torch.ones_like(x)))),
        r"site 'k' is a discrete latent \(Poisson\).*infer=\{'enumerate': 'parallel'\}",
    ),
    "moving support": (
        plated(lambda x: pyro.sample("u", dist.Uniform(0.0, 1 + x.abs()))),
        r"site 'u': its support \(Uniform\) depends on the data or on other latents",
    ),
    "point mass": (plated(lambda x: pyro.sample("d", dist.Delta(x))), "site 'd' is a point mass .*deterministic"),
    "global": (globally, "site 'mu' is a global latent"),
    "noiseless": (noiseless, "site 'x' is a deterministic likelihood .* give it noise"),
    "sphere": (on_a_sphere, r"site 'z': real numbers cannot be mapped onto its support \(ProjectedNormal\)"),
    "mixing": (mixed_up, "something mixes particles or data"),
    "nothing": (nothing_continuous, "it draws no continuous latent to move"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_annealed_are_refused_by_name(case):
    model, message = REFUSED[case]
    with pytest.raises(pv.ContractError, match=message):
        pv.ais(model, torch.tensor([0.3, -1.2, 2.0]))


def test_a_discrete_vector_is_refused_by_name():
    pair = pairs.make("sigmoid_belief_network", "bernoulli")
    for guide in (None, pair.guide):
        with pytest.raises(pv.ContractError, match=r"site 'z' is a discrete latent \(Bernoulli\)"):
            pv.ais(pair.model, pair.data(), guide)


def point_guide(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Delta(x[:, :2]).to_event(1))


def implicit_guide(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        noise = pyro.sample("eps", dist.Normal(x.new_zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(noise.tanh()).to_event(1))


class WithoutDensity(dist.Normal):
    def log_prob(self, value):
        raise NotImplementedError


def sampler_guide(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", WithoutDensity(x.new_zeros(2), 1.0).to_event(1))


@pytest.mark.parametrize(("guide", "site"), [(point_guide, "z"), (implicit_guide, "eps"), (sampler_guide, "z")])
def test_guides_without_a_density_are_refused_by_name(model, guide, site):
    message = f"site '{site}': the guide draws it without a density of its own .*leave it out"
    with pytest.raises(pv.ContractError, match=message):
        pv.ais(model, data(model, 3), guide)


def summed(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Bernoulli(torch.full_like(x, 0.5)), infer=MARK)
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def drawn(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Bernoulli(torch.full_like(x, 0.5)))
        pyro.sample("z", dist.Normal(y, 1.0))


def test_other_guides_that_do_not_fit(model):
    with pytest.raises(pv.ContractError, match="event shape"):
        pv.ais(model, data(model, 3), Normal(x_dim=6, z_dim=3).double())
    with pytest.raises(pv.ContractError, match="site 'y' is summed out of the model, but the guide draws it"):
        pv.ais(summed, torch.zeros(3), drawn)


class Broken(nn.Module):
    """A scale that is not a number for one datum, at the latent or at the data."""

    def __init__(self, site):
        super().__init__()
        self.site = site

    def forward(self, x):
        scales = {"z": torch.ones_like(x), "x": torch.ones_like(x)}
        scales[self.site] = torch.where(x > 1e3, torch.inf, 1.0)
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), scales["z"]))
            pyro.sample("x", dist.Normal(z.tanh(), scales["x"] * 0 + scales["x"]), obs=x)


def test_starts_that_are_impossible_name_the_site_and_the_datum():
    x = torch.zeros(9)
    x[7] = 1e4
    for site in ("z", "x"):
        with pytest.raises(FloatingPointError, match=f"site '{site}': log density is NaN or infinite for datum 7"):
            pv.ais(Broken(site), x, distributions=4, chains=2, leapfrog=2, batch_size=4)


class Window(nn.Module):
    """The datum is in [z, z + 1]: most chains start where it has no density."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.factor("x", torch.where((z <= x) & (x <= z + 1), 0.0, -torch.inf))


def test_chains_without_density_have_weight_zero():
    x = torch.tensor([0.5, -0.5]).double()
    normal = dist.Normal(x.new_zeros(()), 1.0)
    annealing = pv.ais(Window(), x, distributions=8, chains=4000, leapfrog=3)
    ratio = annealing.log_px.exp() / (normal.cdf(x) - normal.cdf(x - 1))
    odds.assert_agree(ratio, annealing.log_px_error * ratio, torch.ones_like(ratio))


def test_a_datum_without_any_weight_is_refused():
    x = torch.tensor([0.5, 40.0])
    with pytest.raises(FloatingPointError, match="datum 1: of its 50 chains all have zero weight"):
        pv.ais(Window(), x, distributions=4, chains=50, leapfrog=2)
