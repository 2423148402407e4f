"""Annealed importance sampling: unbiased whatever the path, exact where a closed form is known, honest where not."""

import math

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from small import parameter
from torch import nn

import ppl_vae as pv
from ppl_vae.annealing_runs import Settings
from ppl_vae.coordinates import coordinates
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE
from ppl_vae.tempering import ends

DOUBLE = torch.float64
MARK = {"enumerate": "parallel"}
FEW = {"distributions": 4, "chains": 2000, "leapfrog": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LinearGaussian(x_dim=6, z_dim=2).double()


def data(model, n):
    return pv.sample(model, shape=(6,), n=n, seed=11)["x"]


def assert_unbiased(annealing, exact):
    """The mean weight over chains, over p(x), is one: not its logarithm, which is below."""
    ratio = (annealing.log_px - exact).exp()
    odds.assert_agree(ratio, annealing.log_px_error * ratio, torch.ones_like(ratio))


def assert_close(annealing, exact):
    """With many chains of little variance, the estimates agree with what is exactly known."""
    assert annealing.log_px_error.max() < 0.15
    assert_unbiased(annealing, exact)


# Unbiased weights.


class Poor(nn.Module):
    """A guide that is off and too wide."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(torch.full((2,), 0.7, dtype=x.dtype), 1.5).to_event(1))


@pytest.mark.parametrize("start", [None, Poor(), Normal(x_dim=6, z_dim=2, hidden=(8,)).double()])
def test_few_distributions_do_not_bias_the_weights(model, start):
    x = data(model, 4)
    annealing = pv.ais(model, x, start, **FEW)
    assert_unbiased(annealing, model.log_px(x).detach())
    assert (annealing.acceptance > 0.3).all()
    assert (annealing.acceptance < 0.95).all()


def test_the_comparison_can_fail(model):
    x = data(model, 4)
    annealing = pv.ais(model, x, **FEW)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_unbiased(annealing, model.log_px(x).detach() + 0.2)


def test_from_the_posterior_every_weight_is_exact(model):
    x = data(model, 5)
    annealing = pv.ais(model, x, Exact(model), distributions=4, chains=3, leapfrog=2)
    torch.testing.assert_close(annealing.log_px, model.log_px(x).detach())
    torch.testing.assert_close(annealing.ess, torch.full((5,), 3.0, dtype=DOUBLE))


def test_two_distributions_are_importance_sampling(model):
    x = data(model, 5)
    annealing = pv.ais(model, x, Poor(), distributions=2, chains=5000)
    assert_unbiased(annealing, model.log_px(x).detach())
    evaluation = pv.evaluate(model, Poor(), x, particles=5000)
    odds.assert_agree(annealing.ess / evaluation.ess, torch.full((5,), 0.1), torch.ones(5).double())
    assert annealing.acceptance.isnan().all()
    assert annealing.step_size.isnan().all()


def test_more_distributions_raise_the_bound_to_log_px(model):
    x = data(model, 200)
    options = {"chains": 2, "leapfrog": 1, "batch_size": 200}
    few, many = (pv.ais(model, x, distributions=t, **options).log_px for t in (3, 30))
    odds.assert_at_most(few, many)
    odds.assert_at_most(many, model.log_px(x).detach())
    assert (model.log_px(x) - many).mean() < 0.3


# Between two bounds.


def test_log_px_lies_between_the_bounds(model, uncompiled):
    options = {"distributions": 60, "chains": 8, "leapfrog": 2, "compile": True}
    sandwich = pv.bdmc(model, shape=(6,), n=60, **options)
    exact = model.log_px(sandwich.data[0]).detach()
    odds.assert_at_most(sandwich.lower, exact)
    odds.assert_at_most(exact, sandwich.upper)
    assert abs(sandwich.gap) < 0.15
    assert sandwich.gap == pytest.approx((sandwich.upper - sandwich.lower).mean().item())


def test_weights_on_the_way_back_are_unbiased_for_its_inverse(model):
    """One chain for each of many simulated data: E[w' p(x)] = 1."""
    options = {"distributions": 20, "chains": 1, "leapfrog": 1, "batch_size": 4000}  # with fewer, tails are heavy
    sandwich = pv.bdmc(model, shape=(6,), n=4000, **options)
    exact = model.log_px(sandwich.data[0]).detach()
    odds.assert_mean((exact - sandwich.upper).exp().unsqueeze(-1), torch.ones(1).double())
    odds.assert_mean((sandwich.lower - exact).exp().unsqueeze(-1), torch.ones(1).double())
    assert sandwich.lower_error.isnan().all()


def test_a_guide_that_is_the_posterior_closes_the_gap(model):
    sandwich = pv.bdmc(
        model, like=torch.zeros(3, 6).double(), n=7, guide=Exact(model), distributions=3, chains=2, leapfrog=1
    )
    exact = model.log_px(sandwich.data[0]).detach()
    torch.testing.assert_close(sandwich.lower, exact)
    torch.testing.assert_close(sandwich.upper, exact)
    assert sandwich.data[0].shape == (7, 6)


class Labelled(nn.Module):
    """x given a latent and a label, which is observed."""

    def forward(self, x, y):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("y", dist.Bernoulli(torch.full_like(x, 0.3)), obs=y)
            pyro.sample("x", dist.Normal(z + 2 * y, 0.5), obs=x)

    def log_px(self, x, y):
        return dist.Normal(2 * y, 1.25**0.5).log_prob(x) + dist.Bernoulli(torch.tensor(0.3).double()).log_prob(y)


def test_labels_are_simulated_with_the_data():
    like = (torch.zeros(1).double(), torch.zeros(1).double())
    sandwich = pv.bdmc(Labelled(), like=like, n=3000, distributions=6, chains=1, leapfrog=3, batch_size=3000)
    x, y = sandwich.data
    odds.assert_mean(y.unsqueeze(-1), torch.tensor([0.3]).double())
    exact = Labelled().log_px(x, y)
    odds.assert_mean((exact - sandwich.upper).exp().unsqueeze(-1), torch.ones(1).double())


# Latents of other kinds, against closed forms and quadrature.


class GammaPoisson(nn.Module):
    x = torch.tensor([0.0, 2.0, 9.0]).double()

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            rate = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 0.5))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def log_px(self, x):
        return dist.NegativeBinomial(x.new_tensor(2.0), probs=1 / 1.5).log_prob(x)


class BetaBinomial(nn.Module):
    x = torch.tensor([0.0, 4.0, 10.0]).double()

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            p = pyro.sample("z", dist.Beta(x.new_tensor(2.0), 1.5))
            pyro.sample("x", dist.Binomial(10, p), obs=x)

    def log_px(self, x):
        return dist.BetaBinomial(x.new_tensor(2.0), x.new_tensor(1.5), 10).log_prob(x)


class DirichletMultinomial(nn.Module):
    x = torch.tensor([[0.0, 0.0, 5.0], [2.0, 2.0, 1.0], [5.0, 0.0, 0.0]]).double()
    prior = torch.tensor([1.5, 2.0, 3.0]).double()

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            p = pyro.sample("z", dist.Dirichlet(self.prior))
            pyro.sample("x", dist.Multinomial(5, p, validate_args=False), obs=x)

    def log_px(self, x):
        return dist.DirichletMultinomial(self.prior, 5).log_prob(x)


class UniformNormal(nn.Module):
    """A bounded latent, of two values and a scalar, one of them by its logarithm."""

    x = torch.tensor([-2.0, 0.5, 3.5]).double()

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Uniform(x.new_tensor([-1.0, -1.0]), 3.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 0.5), obs=x)

    def log_px(self, x):
        normal = dist.Normal(x, 0.5)
        return ((normal.cdf(x.new_tensor(3.0)) - normal.cdf(x.new_tensor(-1.0))) / 4).log()


class Chain(nn.Module):
    """Two layers of unequal shapes and a scalar: z2 (2, 2) -> z1 (3,) -> x (2,) <- z0 ()."""

    x = torch.tensor([[0.3, -1.0], [2.0, 1.0]]).double()

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.down, self.out = torch.randn(4, 3).double(), torch.randn(3, 2).double()

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2, 2), 1.0).to_event(2))
            z1 = pyro.sample("z1", dist.Normal(z2.flatten(-2) @ self.down, 0.8).to_event(1))
            z0 = pyro.sample("z0", dist.Normal(x.new_zeros(()), 0.5))
            pyro.sample("x", dist.Normal(z1 @ self.out + z0.unsqueeze(-1), 0.7).to_event(1), obs=x)

    def log_px(self, x):
        of_z1 = self.down.mT @ self.down + 0.64 * torch.eye(3)
        covariance = self.out.mT @ of_z1 @ self.out + 0.25 + 0.49 * torch.eye(2)
        return dist.MultivariateNormal(x.new_zeros(2), covariance).log_prob(x)


CLOSED = [GammaPoisson, BetaBinomial, DirichletMultinomial, UniformNormal, Chain]


@pytest.mark.parametrize("kind", CLOSED)
def test_supports_and_shapes(kind):
    exact = kind().log_px(kind.x)
    annealing = pv.ais(kind(), kind.x, distributions=8, chains=1500, leapfrog=2)
    assert_close(annealing, exact)


class ChainGuide(nn.Module):
    """From the data upward, in another order than the model's."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z1 = pyro.sample("z1", dist.Normal(0.3 * x.mean(-1, keepdim=True).expand(-1, 3), 2.0).to_event(1))
            loc = 0.2 * z1.mean((-1,)).unsqueeze(-1).unsqueeze(-1).expand(*z1.shape[:-1], 2, 2)
            pyro.sample("z2", dist.Normal(loc, 1.2).to_event(2))
            pyro.sample("z0", dist.Normal(x.new_zeros(()), 0.6))


def test_a_hierarchy_from_a_guide():
    annealing = pv.ais(Chain(), Chain.x, ChainGuide(), distributions=8, chains=1500, leapfrog=2)
    assert_close(annealing, Chain().log_px(Chain.x))


class Mixture(nn.Module):
    """A component y, summed out, that moves the prior of z or the likelihood: y -> z -> x or y -> x <- z."""

    x = torch.tensor([-2.0, 0.3, 2.5]).double()

    def __init__(self, through_z, mark=MARK):
        super().__init__()
        self.through_z, self.mark = through_z, mark
        self.logits, self.loc = parameter(0.1, -0.4, 0.6), parameter(-1.0, 0.5, 2.0)

    def densities(self, x, y, z):
        """Return log p(z | y) and log p(x | y, z)."""
        prior = dist.Normal(self.loc[y] if self.through_z else torch.zeros_like(self.loc[y]), 0.7)
        return prior, dist.Normal(z.sin() if self.through_z else z.sin() + self.loc[y], 0.4)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=self.mark)
            z = pyro.sample("z", self.densities(x, y, torch.zeros(()).double())[0])
            pyro.sample("x", self.densities(x, y, z)[1], obs=x)

    def log_px(self, x):
        z = torch.linspace(-9, 9, 4001).double().reshape(-1, 1, 1)
        y = torch.arange(3)
        prior, likelihood = self.densities(x, y, z)
        joint = self.logits.log_softmax(-1) + prior.log_prob(z) + likelihood.log_prob(x.unsqueeze(-1))
        return (joint + math.log(18 / 4000)).logsumexp((0, 2)).detach()


class MixtureGuide(nn.Module):
    """q(y) q(z | y), with y summed out of it, or q(z) alone."""

    def __init__(self, with_y, mark=MARK):
        super().__init__()
        self.with_y, self.mark = with_y, mark

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            loc = torch.zeros_like(x)
            if self.with_y:
                y = pyro.sample("y", dist.Categorical(logits=torch.stack([-x, 0 * x, x], -1)), infer=self.mark)
                loc = 1.5 * (y - 1.0)
            pyro.sample("z", dist.Normal(loc.to(x), 1.5))


@pytest.mark.parametrize("through_z", [True, False])
@pytest.mark.parametrize("start", [None, False, True])
def test_marked_latents_are_summed_out(through_z, start):
    model = Mixture(through_z)
    guide = None if start is None else MixtureGuide(start)
    annealing = pv.ais(model, Mixture.x, guide, distributions=8, chains=1500, leapfrog=2)
    assert_close(annealing, model.log_px(Mixture.x))


def test_what_the_guide_alone_marks_is_summed_out():
    model = Mixture(through_z=True, mark={})
    annealing = pv.ais(model, Mixture.x, MixtureGuide(with_y=True), distributions=8, chains=1500, leapfrog=2)
    assert_close(annealing, model.log_px(Mixture.x))


def test_a_prior_that_hangs_together_with_a_sum_is_summed_too():
    """The base is sum_y p(y) p(z | y)."""
    model = Mixture(through_z=True)
    z = torch.tensor([[[0.2], [1.0], [-0.5]]]).double()
    found = ends(model, None, coordinates(model, (Mixture.x,)), (Mixture.x,), z)
    by_component = model.logits.log_softmax(-1) + dist.Normal(model.loc, 0.7).log_prob(z)
    torch.testing.assert_close(found.log_base, by_component.logsumexp(-1))


class Missing(nn.Module):
    """Pixels are masked where they are missing, and latents of absent rows too."""

    def forward(self, x, observed):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            with pyro.poutine.mask(mask=observed.any(-1)):
                pyro.sample("rest", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pixels = dist.Normal(z, 0.5).mask(observed)
            pyro.sample("x", pixels.to_event(1), obs=torch.where(observed, x, 0.0))
            pyro.factor("penalty_z", 7 * z.sum(-1))


def test_masked_data_and_penalties_do_not_count():
    x = torch.tensor([[1.0, math.nan], [-1.0, 2.0], [math.nan, math.nan]]).double()
    observed = ~x.isnan()
    annealing = pv.ais(Missing(), (x, observed), distributions=8, chains=1500, leapfrog=2)
    by_pixel = dist.Normal(torch.zeros(2).double(), 1.25**0.5).log_prob(x.nan_to_num())
    assert_close(annealing, torch.where(observed, by_pixel, 0.0).sum(-1))


def tilted(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.factor("tilt", z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_factor_counts_as_a_density():
    x = torch.zeros(2).double()
    # The integral of N(z) e^z N(0; z, 1) is N(0; 0, 2) e^(1/4).
    assert_unbiased(pv.ais(tilted, x, **FEW), dist.Normal(0.0, 2**0.5).log_prob(x) + 0.25)
    with pytest.raises(pv.ContractError, match="factor 'tilt': draws of the model do not follow it"):
        pv.bdmc(tilted, like=x, n=3)


# The verb.


def test_a_seed_gives_the_same_numbers(model):
    x = data(model, 5)
    options = {"distributions": 3, "chains": 3, "leapfrog": 1}
    first, again, other = (pv.ais(model, x, seed=seed, **options) for seed in (3, 3, 4))
    for name in ("log_px", "log_px_error", "ess", "acceptance", "step_size"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.log_px, other.log_px)
    one, two = (pv.bdmc(model, shape=(6,), n=4, seed=2, **options) for _ in range(2))
    assert torch.equal(one.upper, two.upper)
    assert torch.equal(one.data[0], two.data[0])


def test_batches_of_other_sizes_differ_by_noise_alone(model):
    x = data(model, 5)
    for batch_size in (2, 5):
        assert_unbiased(pv.ais(model, x, batch_size=batch_size, **FEW), model.log_px(x).detach())


@pytest.mark.parametrize("how", ["ais", "bdmc"])
def test_nothing_is_changed(how):
    torch.manual_seed(0)
    model, guide = LinearGaussian(x_dim=6, z_dim=2), Normal(x_dim=6, z_dim=2, hidden=(8,))
    guide.encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), guide.encoder)
    before = {n: t.clone() for m in (model, guide) for n, t in m.state_dict().items()}
    state = torch.get_rng_state()
    options = {"guide": guide, "distributions": 4, "chains": 2, "leapfrog": 2}
    x = torch.ones(3, 6)
    with torch.inference_mode(how == "ais"):
        pv.ais(model, x, **options) if how == "ais" else pv.bdmc(model, shape=(6,), n=3, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for m in (model, guide) for n, t in m.state_dict().items())
    assert model.training
    assert guide.training
    assert all(p.grad is None for m in (model, guide) for p in m.parameters())
    assert not pyro.get_param_store().keys()


class Tutorial(nn.Module):
    """A model and a guide as methods of one module; the model's bound never meets the encoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 2), nn.Linear(2, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


def test_a_method_of_a_module_is_a_model():
    tutorial = Tutorial()
    found = pv.ais(tutorial.model, torch.ones(3, 6), distributions=4, chains=2, leapfrog=2)
    assert found.log_px.isfinite().all()
    assert "Tutorial.model" in str(found)


@pytest.mark.parametrize("form", ["tuple", "dataset", "loader", "splits"])
def test_data_come_in_every_form(model, form):
    x = data(model, 5)
    dataset = torch.utils.data.TensorDataset(x)
    info = pv.data.splits.Info("digits", "static", (2, 3))
    forms = {
        "tuple": (x,),
        "dataset": dataset,
        "loader": torch.utils.data.DataLoader(dataset, batch_size=2),
        "splits": pv.data.splits.Splits(x[:0], x[:0], x, info),
    }
    found = pv.ais(model, forms[form], Exact(model), distributions=2, chains=2, batch_size=2)
    torch.testing.assert_close(found.log_px, model.log_px(x).detach())
    assert ("on digits (test, static binarization)" in str(found)) == (form == "splits")


def test_the_sentences_for_a_paper(model):
    x = data(model, 5)
    found = pv.ais(model, x, distributions=5, chains=3, leapfrog=2, seed=7)
    for part in (
        "Log-likelihood of LinearGaussian: ",
        "standard error over N = 5 data",
        "by annealed importance sampling with 3 chains per datum through 5 distributions from the prior to the",
        "posterior, with 2 leapfrog steps of Hamiltonian Monte Carlo at each (",
        "effective number of chains is",
    ):
        assert part in str(found)
    assert found.to_dict().items() >= {"n": 5, "seed": 7, "chains": 3, "start": "the prior"}.items()
    assert found.to_dict()["log_px"] == found.mean
    one = pv.ais(model, x[:1], Poor(), distributions=2, chains=1)
    assert "± unknown" in str(one)
    assert "1 chain per datum through 2 distributions from the guide Poor to the posterior; the" in str(one)
    assert "accepted" not in str(one)
    assert one.to_dict()["mc_se"] is None
    assert one.to_dict()["acceptance"] is None
    both = pv.bdmc(model, shape=(6,), n=4, distributions=5, chains=3, leapfrog=2)
    assert "on N = 4 data simulated from it: between" in str(both)
    assert "by bidirectional Monte Carlo with 3 chains" in str(both)
    assert both.to_dict()["gap"] == both.gap
    assert pv.bdmc(model, shape=(6,), n=1, distributions=3, chains=1, leapfrog=1).to_dict()["gap_se"] is None


def test_standard_errors():
    log_px = torch.tensor([-1.0, -2.0, -4.0, -5.0], dtype=DOUBLE)
    one, error = torch.ones(4), torch.full((4,), 0.2, dtype=DOUBLE)
    found = pv.annealing.Annealing(log_px, error, one, one, one, Settings(3, 5, 2, "the prior", 0))
    assert found.mean == -3.0
    assert found.se == pytest.approx(math.sqrt(10 / 3) / 2)
    assert found.mc_se == pytest.approx(0.1)


def test_monte_carlo_error_is_the_spread_over_runs(model):
    x = data(model, 10)
    options = {"distributions": 8, "chains": 60, "leapfrog": 2, "batch_size": 300}
    runs = pv.ais(model, x.repeat(30, 1), **options)  # one datum's copies have chains of their own
    stated = runs.log_px_error.reshape(30, 10).square().mean(0).sqrt()
    ratio = runs.log_px.reshape(30, 10).std(0) / stated
    odds.assert_agree(ratio.mean(), torch.tensor((2 * 29 * 10) ** -0.5), torch.tensor(1.0))


def test_the_vae_agrees_with_importance_sampling():
    torch.manual_seed(0)
    model, guide = VAE(x_dim=6, z_dim=2, hidden=(8,)).double(), Normal(x_dim=6, z_dim=2, hidden=(8,)).double()
    x = pv.sample(model, shape=(6,), n=20, seed=3)["x"]
    evaluation = pv.evaluate(model, guide, x, particles=5000)
    annealing = pv.ais(model, x, distributions=6, chains=200, leapfrog=1)
    error = (evaluation.log_px_error.square() + annealing.log_px_error.square()).sqrt()
    odds.assert_agree(annealing.log_px, error, evaluation.log_px)
