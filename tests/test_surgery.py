"""ELBO surgery: each part against sums and quadrature, its errors, its bracket, and what it refuses."""

import math

import numpy
import odds
import pairs
import pyro
import pyro.distributions as dist
import pytest
import small
import torch
from pyro.distributions.transforms import Planar
from scipy.special import logsumexp
from torch import nn

import ppl_vae as pv
from ppl_vae import crossing
from ppl_vae.guides.exact import Exact
from ppl_vae.guides.normal import Normal
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE

DOUBLE = torch.float64
MARK = {"enumerate": "parallel"}
PARTS = (
    *("elbo", "reconstruction", "mutual_information", "marginal_kl"),
    *("mutual_information_upper", "marginal_kl_lower"),
)
X = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=DOUBLE)
GRID = torch.linspace(-12, 12, 1201, dtype=DOUBLE)
CELL = math.log(24 / 1200)


def expected(log_q, log_prior, log_lik, log_cell=0.0):
    """All parts as sums over points of the latents: densities ``(N, points)``, and the log of a point's measure."""
    log_q, log_prior, log_lik = (numpy.asarray(d.detach()) for d in torch.broadcast_tensors(log_q, log_prior, log_lik))
    n, mass = len(log_q), numpy.exp(log_q + log_cell)
    assert numpy.allclose(mass.sum(1), 1, atol=1e-6)
    aggregate = logsumexp(log_q, 0) - math.log(n)
    rest = numpy.stack([logsumexp(numpy.delete(log_q, i, 0), 0) for i in range(n)]) - math.log(n - 1)
    parts = {
        "elbo": log_prior + log_lik - log_q,
        "reconstruction": log_lik,
        "mutual_information": log_q - aggregate,
        "marginal_kl": aggregate - log_prior,
        "mutual_information_upper": log_q - rest,
        "marginal_kl_lower": rest - log_prior,
    }
    return torch.tensor([(mass * parts[name]).sum() / n for name in PARTS])


def assert_parts(surgery, wanted):
    figures = [getattr(surgery, name) for name in PARTS]
    odds.assert_agree(*(torch.tensor([getattr(f, what) for f in figures]) for what in ("mean", "mc_se")), wanted)


class Bumps(nn.Module):
    """One latent: q(z | x) is normal, its mean and log scale the two columns of x."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(x[..., 0], x[..., 1].exp()))


class Seen(nn.Module):
    """A latent under two noisy views of it."""

    def __init__(self):
        super().__init__()
        self.loc = small.parameter(0.4, -0.2)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc[0], 1.3))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + self.loc, 1.0).to_event(1), obs=x)


BUMPS = torch.tensor([[0.0, 0.0], [0.5, -1.0], [2.0, 0.3], [-2.0, -0.5], [-1.8, -0.7]], dtype=DOUBLE)


def bumps():
    model, z = Seen(), GRID
    log_q = dist.Normal(BUMPS[:, :1], BUMPS[:, 1:].exp()).log_prob(z)
    views = dist.Normal(z.unsqueeze(-1) + model.loc, 1.0).log_prob(BUMPS.unsqueeze(1)).sum(-1)
    return model, Bumps(), BUMPS, expected(log_q, dist.Normal(model.loc[0], 1.3).log_prob(z), views, CELL)


class Plane(nn.Module):
    """Two correlated latents in one site."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.posterior(x))

    def posterior(self, x):
        tril = torch.tensor([[0.6, 0.0], [0.5, 0.4]], dtype=DOUBLE) * (1 + x[:, :1, None].tanh() / 2)
        return dist.MultivariateNormal(x, scale_tril=tril)


class SeenPlane(nn.Module):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.5).to_event(1))
            pyro.sample("x", dist.Normal(z.sin(), 0.5).to_event(1), obs=x)


def square(side=401, half=9.0):
    axis = torch.linspace(-half, half, side, dtype=DOUBLE)
    return torch.cartesian_prod(axis, axis), 2 * math.log(2 * half / (side - 1))


def plane():
    (z, cell), x, guide = square(), BUMPS[:4], Plane()
    log_q = torch.stack([guide.posterior(row[None]).log_prob(z) for row in x])
    log_lik = torch.stack([dist.Normal(z.sin(), 0.5).log_prob(row).sum(-1) for row in x])
    return SeenPlane(), guide, x, expected(log_q, dist.Normal(0.0, 1.5).log_prob(z).sum(-1), log_lik, cell)


def line():
    (z, cell), model, guide = square(), small.Line(), small.LineGuide()
    (z1, z2), x = z.unbind(1), X.unsqueeze(1)
    log_q = dist.Normal(guide.slopes[0] * x, guide.log_scales[0].exp()).log_prob(z1)
    log_q = log_q + dist.Normal(guide.slopes[1] * z1, (guide.log_scales[1] + 0.2 * z1).exp()).log_prob(z2)
    log_p = dist.Normal(0.0, 1.0).log_prob(z2)
    log_p = log_p + dist.Normal(model.weights[0] * z2, model.log_scales[0].exp()).log_prob(z1)
    log_lik = dist.Normal((model.weights[1] * z1).sin(), model.log_scales[1].exp()).log_prob(x)
    return model, guide, X, expected(log_q, log_p, log_lik, cell)


def bernoulli(logits, z):
    return dist.Bernoulli(logits=logits).log_prob(z)


def bits():
    model, guide, x = small.Bits(), small.BitsGuide(), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=DOUBLE)
    z, (rows, _) = small.all_mixed_bits(), (x[:, None], None)
    log_q = bernoulli((guide.logits + x.unsqueeze(-1)).unsqueeze(1), z).sum(-1)
    return model, guide, x, expected(log_q, bernoulli(model.prior, z).sum(-1), bernoulli(z @ model.weight, rows))


def choice():
    model, guide, z = small.Choice(), small.ChoiceGuide(), torch.eye(3, dtype=DOUBLE)
    log_q = dist.OneHotCategorical(logits=(guide.logits * (1 + X.unsqueeze(-1))).unsqueeze(1)).log_prob(z)
    log_lik = dist.Normal((z @ model.loc).exp(), 1.0).log_prob(X.unsqueeze(1))
    return model, guide, X, expected(log_q, dist.OneHotCategorical(logits=model.prior).log_prob(z), log_lik)


def layers():
    model, guide, x = small.Layers(), small.LayersGuide(), torch.tensor([0.0, 1.0, 1.0], dtype=DOUBLE)
    z = small.all_layers(1)
    z1, z2 = z["z1"][0], z["z2"][0]
    log_q = bernoulli((guide.logits * x.unsqueeze(-1)).unsqueeze(1), z1).sum(-1)
    log_q = log_q + bernoulli(z1 @ guide.up + 0.2, z2).sum(-1)
    log_p = bernoulli(model.prior, z2).sum(-1) + bernoulli(z2 @ model.middle - 0.3, z1).sum(-1)
    return model, guide, x, expected(log_q, log_p, bernoulli(2 * z1 @ model.weight, x.unsqueeze(1)))


def mixed():
    """Discrete and continuous latents: a sum over bits of integrals."""
    model, guide, y, x = small.Mixed(), small.MixedGuide(), small.all_mixed_bits(), X[:, None, None]
    log_y = bernoulli((guide.logits + 0.5 * X.unsqueeze(-1)).unsqueeze(1), y).sum(-1).unsqueeze(-1)
    log_q = log_y + dist.Normal((y @ guide.slope).unsqueeze(-1) + 0.3 * x, guide.log_scale.exp()).log_prob(GRID)
    log_p = bernoulli(model.prior, y).sum(-1, keepdim=True)
    log_p = log_p + dist.Normal((y @ model.loc).unsqueeze(-1), 1.0).log_prob(GRID)
    loc = model.weight[0] * GRID + (y @ model.weight).unsqueeze(-1)
    log_lik = dist.Normal(loc, 0.7).log_prob(x)
    return model, guide, X, expected(log_q.flatten(1), log_p.flatten(), log_lik.flatten(1), CELL)


class Labelled(nn.Module):
    """A label moves both z and x: y -> z -> x, y -> x."""

    def __init__(self, infer=None):
        super().__init__()
        self.logits, self.at, self.shift = small.parameter(0.1, -0.4), small.parameter(-1.0, 1.5), small.parameter(0, 1)
        self.infer = infer or {}

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=self.infer)
            z = pyro.sample("z", dist.Normal(self.at[y], 1.0))
            pyro.sample("x", dist.Normal(z + self.shift[y], 0.5), obs=x)

    def joint(self, x):
        """Log p(y, z) and log p(x | y, z), ``(y, grid)`` and ``(N, y, grid)``."""
        prior = self.logits.log_softmax(0).unsqueeze(1) + dist.Normal(self.at.unsqueeze(1), 1.0).log_prob(GRID)
        return prior, dist.Normal(GRID + self.shift.unsqueeze(1), 0.5).log_prob(x[:, None, None])


class LabelGuide(nn.Module):
    """q(y | x), enumerated, and q(z | x, y)."""

    def __init__(self):
        super().__init__()
        self.weight, self.loc = small.parameter(0.5, -0.9), small.parameter(0.3, -0.4)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=x.unsqueeze(-1) * self.weight), infer=MARK)
            pyro.sample("z", dist.Normal(self.loc[y] + 0.6 * x, 0.5))


class StyleGuide(nn.Module):
    """q(z | x), for a model that sums y out."""

    def __init__(self):
        super().__init__()
        self.slope = small.parameter(0.6)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x, 0.5))


def marked_in_the_guide():
    model, guide = Labelled(MARK), LabelGuide()
    log_y = (X.unsqueeze(-1) * guide.weight).log_softmax(-1).unsqueeze(-1)
    log_q = log_y + dist.Normal(guide.loc.unsqueeze(-1) + 0.6 * X[:, None, None], 0.5).log_prob(GRID)
    log_p, log_lik = model.joint(X)
    return model, guide, X, expected(log_q.flatten(1), log_p.flatten(), log_lik.flatten(1), CELL)


def summed_in_the_model():
    """Here log p(y, z) and log p(x | y, z) hang together, and p(z) is a sum of its own."""
    model, guide = Labelled(MARK), StyleGuide()
    log_q = dist.Normal(guide.slope * X.unsqueeze(1), 0.5).log_prob(GRID)
    log_p, log_lik = model.joint(X)
    log_z = log_p.logsumexp(0)
    return model, guide, X, expected(log_q, log_z, (log_p + log_lik).logsumexp(1) - log_z, CELL)


CASES = [bumps, plane, line, bits, choice, layers, mixed, marked_in_the_guide, summed_in_the_model]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_each_part_is_its_integral(case):
    model, guide, x, wanted = case()
    assert_parts(pv.elbo_surgery(model, guide, x, draws=10_000, chunk=5_000), wanted)


@pytest.mark.parametrize(
    "cut", [{"chunk": 7}, {"chunk": 1, "draws": 30}, {"batch_size": 2}, {"batch_size": 1, "chunk": 450}], ids=str
)
def test_no_cut_biases_a_part(cut):
    model, guide, x, wanted = bumps()
    assert_parts(pv.elbo_surgery(model, guide, x, **{"draws": 200} | cut), wanted)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_parts_add_up_draw_by_draw(case):
    model, guide, x, _ = case()
    surgery = pv.elbo_surgery(model, guide, x, draws=3)
    of = {name: getattr(surgery, name).per_datum for name in PARTS}
    parts = of["reconstruction"] - of["mutual_information"] - of["marginal_kl"]
    torch.testing.assert_close(parts, of["elbo"])
    torch.testing.assert_close(
        of["reconstruction"] - of["mutual_information_upper"] - of["marginal_kl_lower"], of["elbo"]
    )
    torch.testing.assert_close(sum(figure.per_datum for figure in surgery.terms.values()), of["elbo"])
    assert (of["mutual_information"] <= surgery.log_n).all()


def test_terms_and_rates_go_by_site():
    layered = pv.elbo_surgery(*layers()[:3])
    assert layered.terms.keys() == {"log p(z1)", "log p(z2)", "log p(x)", "-log q(z1)", "-log q(z2)"}
    for name, rate in layered.rates.items():
        both = -layered.terms[f"log p({name})"].per_datum - layered.terms[f"-log q({name})"].per_datum
        torch.testing.assert_close(rate.per_datum, both)
    assert pv.elbo_surgery(*summed_in_the_model()[:3]).rates == {}  # z has no density apart from y and x


def linear_gaussian(n, seed=0):
    torch.manual_seed(7)
    model = LinearGaussian(x_dim=4, z_dim=2).double()
    return model, pv.sample(model, shape=(4,), n=n, seed=seed)["x"]


def test_the_linear_gaussian_model_in_closed_form():
    model, x = linear_gaussian(40)
    surgery = pv.elbo_surgery(model, Exact(model), x, draws=300)
    posterior, noise = model.posterior(x), (2 * model.log_scale).exp()
    at_mean = dist.Normal(posterior.mean @ model.weight.mT + model.bias, noise.sqrt()).log_prob(x).sum(-1)
    spread = (model.weight.mT / noise @ model.weight @ posterior.covariance_matrix).diagonal(dim1=-2, dim2=-1).sum(-1)
    rate = torch.distributions.kl_divergence(
        posterior, dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    )
    figures = [surgery.reconstruction, surgery.rates["z"]]
    wanted = torch.stack([(at_mean - spread / 2).mean(), rate.mean()]).detach()
    odds.assert_agree(*(torch.tensor([getattr(f, what) for f in figures]) for what in ("mean", "mc_se")), wanted)
    torch.testing.assert_close(surgery.elbo.per_datum, model.log_px(x).detach())
    assert surgery.elbo.mc_se < 1e-12


def test_the_population_lies_in_the_bracket():
    """In expectation over data sets. With exact posteriors the aggregated one is the prior."""
    model, _ = linear_gaussian(1)
    gain = model.weight.mT / (2 * model.log_scale).exp() @ model.weight
    information = torch.logdet(torch.eye(2) + gain).item() / 2
    width = {}
    for n in (6, 60):
        found = [
            pv.elbo_surgery(model, Exact(model), linear_gaussian(n, seed)[1], draws=5, seed=seed) for seed in range(30)
        ]
        of = {name: torch.tensor([getattr(surgery, name).mean for surgery in found]) for name in PARTS}
        exact = torch.full_like(of["elbo"], information)
        odds.assert_at_most(of["mutual_information"], exact)
        odds.assert_at_most(exact, of["mutual_information_upper"])
        odds.assert_at_most(0 * exact, of["marginal_kl"])
        odds.assert_at_most(of["marginal_kl_lower"], 0 * exact)
        width[n] = (of["mutual_information_upper"] - of["mutual_information"]).mean()
    assert width[60] < width[6] / 5
    assert width[60] < 0.4


def assert_errors(found, names, what):
    """Figures of independent runs spread as their errors say; of R runs, a spread is known to 1 / sqrt(2 R - 2)."""
    spread, stated = (
        torch.stack([torch.tensor([getattr(getattr(surgery, name), of) for name in names]) for surgery in found])
        for of in ("mean", what)
    )
    spread = spread.std(0)
    odds.assert_agree(spread, spread / (2 * len(found) - 2) ** 0.5, stated.mean(0))


def test_the_errors_are_those_that_other_seeds_and_data_show():
    model, guide, x, _ = bumps()
    assert_errors([pv.elbo_surgery(model, guide, x, draws=20, seed=seed) for seed in range(35)], PARTS, "mc_se")
    runs = [pv.elbo_surgery(*linear_gaussian_pair(60, seed), seed=seed) for seed in range(35)]
    assert_errors(runs, ("elbo", "reconstruction", "mutual_information", "marginal_kl"), "se")


def linear_gaussian_pair(n, seed):
    model, x = linear_gaussian(n, seed)
    return model, Narrow(model), x


class Narrow(nn.Module):
    """The exact posterior, off by a little."""

    def __init__(self, model):
        super().__init__()
        self.posterior = model.posterior

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            exact = self.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(exact.mean + 0.5, exact.covariance_matrix))


def test_one_draw_shows_no_error_by_draws():
    surgery = pv.elbo_surgery(*bumps()[:3])
    assert math.isnan(surgery.elbo.mc_se)
    assert surgery.to_dict()["elbo"]["mc_se"] is None
    assert "unknown" in str(surgery)


@pytest.mark.parametrize("kind", ["tuple", "dataset", "loader", "shuffled"])
def test_data_come_in_every_form(kind):
    pair = pairs.make("linear_gaussian", "normal")
    x = pair.data(10)
    dataset = torch.utils.data.TensorDataset(x)
    forms = {
        "tuple": (x,),
        "dataset": Rows(x),
        "loader": torch.utils.data.DataLoader(dataset, batch_size=4),
        "shuffled": torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True),
    }
    wanted = pv.elbo_surgery(pair.model, Exact(pair.model), x, draws=2)
    found = pv.elbo_surgery(pair.model, Exact(pair.model), forms[kind], draws=2, batch_size=3)
    if kind != "shuffled":  # with the same noise
        torch.testing.assert_close(found.mutual_information.per_datum, wanted.mutual_information.per_datum)
    assert found.elbo.mean == pytest.approx(wanted.elbo.mean)


class Rows(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def test_a_data_set_is_its_test_part():
    digits = pv.data.load("digits", binarize="static")
    surgery = pv.elbo_surgery(*pairs.digits_vae(), digits)
    assert surgery.n == len(digits.test)
    assert pv.active_units(pairs.digits_vae()[1], digits).n == len(digits.test)


def test_nothing_is_changed():
    model, guide = VAE(x_dim=6, z_dim=2, hidden=(8,)), Normal(x_dim=6, z_dim=2, hidden=(8,))
    guide.encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), guide.encoder)
    x = torch.ones(10, 6)
    before = {n: t.clone() for m in (model, guide) for n, t in m.state_dict().items()}
    state = torch.get_rng_state()
    for call in (
        lambda: pv.elbo_surgery(model, guide, x).elbo.mean,
        lambda: pv.aggregate_kl(guide, x, model).value.mean,
        lambda: pv.active_units(guide, x).variances["z"].sum(),
    ):
        assert call() == call()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for m in (model, guide) for n, t in m.state_dict().items())
    assert model.training
    assert guide.training
    assert all(p.grad is None for m in (model, guide) for p in m.parameters())


def test_rows_are_scored_a_batch_at_a_time(monkeypatch):
    sizes, log_given = [], crossing.log_given

    def noted(guide, batch, values):
        found = log_given(guide, batch, values)
        sizes.append(tuple(found.shape))
        return found

    monkeypatch.setattr(crossing, "log_given", noted)
    pv.elbo_surgery(Seen(), Bumps(), BUMPS.repeat(20, 1), batch_size=7, chunk=12, draws=5)
    assert max(draws for draws, _ in sizes) <= 12
    assert max(rows for _, rows in sizes) <= 7
    assert sum(draws * rows for draws, rows in sizes) == 5 * 100 * 100


# The aggregated posterior against any prior.


def test_aggregate_kl_is_the_marginal_kl_of_the_models_prior():
    for case in (line, marked_in_the_guide, summed_in_the_model, mixed):
        model, guide, x, wanted = case()
        found = pv.aggregate_kl(guide, x, model, draws=3000)
        figures = [found.value, found.lower]
        exact = wanted[[PARTS.index("marginal_kl"), PARTS.index("marginal_kl_lower")]]
        odds.assert_agree(*(torch.tensor([getattr(f, what) for f in figures]) for what in ("mean", "mc_se")), exact)


def test_aggregate_kl_and_surgery_draw_alike():
    model, guide, x, _ = marked_in_the_guide()
    cut = pv.elbo_surgery(model, guide, x, draws=4)
    found = pv.aggregate_kl(guide, x, model, draws=4)
    torch.testing.assert_close(found.value.per_datum, cut.marginal_kl.per_datum)
    torch.testing.assert_close(found.lower.per_datum, cut.marginal_kl_lower.per_datum)


def test_aggregate_kl_takes_a_distribution_or_a_program_of_latents_alone():
    prior = dist.StudentT(3.0, torch.tensor(0.5, dtype=DOUBLE), 2.0)

    def program(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", prior)

    log_q = dist.Normal(BUMPS[:, :1], BUMPS[:, 1:].exp()).log_prob(GRID)
    wanted = expected(log_q, prior.log_prob(GRID), 0 * GRID, CELL)[PARTS.index("marginal_kl")]
    found = pv.aggregate_kl(Bumps(), BUMPS, prior, draws=2000)
    odds.assert_agree(torch.tensor([float(found)]), torch.tensor([found.value.mc_se]), wanted)
    assert float(pv.aggregate_kl(Bumps(), BUMPS, program, draws=2000)) == pytest.approx(float(found))
    assert "KL of the aggregated posterior from the prior" in str(found)
    assert found.to_dict()["n"] == 5


def test_posteriors_that_do_not_overlap():
    """Uniform ones, all apart: log q(z) is that of one over N, and without the own component there is nothing."""

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Uniform(x, x + 1))

    found = pv.aggregate_kl(guide, torch.tensor([0.0, 2.0, 4.0]), dist.Uniform(-10.0, 10.0), draws=2)
    assert float(found) == pytest.approx(math.log(20 / 3), rel=1e-6)
    assert found.lower.mean == -math.inf
    assert found.to_dict()["lower"]["mean"] is None


# In words.


class PriorGuide(nn.Module):
    """Nothing of x goes into z."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2, dtype=DOUBLE))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))


def test_a_collapsed_posterior_is_named():
    model, x = linear_gaussian(50)
    surgery = pv.elbo_surgery(model, PriorGuide(), x)
    for figure in (surgery.mutual_information, surgery.mutual_information_upper, surgery.marginal_kl):
        torch.testing.assert_close(figure.per_datum, torch.zeros(50).double())
    assert surgery.alarm.startswith(
        "posterior collapse: 2 of 2 units of 'z' are inactive (rate 0.00 nats); the latents"
    )
    assert surgery.alarm in str(surgery)
    assert surgery.to_dict()["active_units"]["sites"] == {"z": {"active": 0, "units": 2}}
    assert pv.elbo_surgery(model, Exact(model), x).alarm == ""


def test_codes_are_no_units():
    """Means of one-hot codes change little each, and yet the codes may tell all data apart."""
    surgery = pv.elbo_surgery(*choice()[:3])
    assert surgery.units is None
    assert surgery.to_dict()["active_units"] is None
    assert pv.elbo_surgery(*marked_in_the_guide()[:3]).units.variances.keys() == {"z"}


def test_an_information_of_log_n_is_said_to_mean_little():
    x = torch.stack([torch.arange(8.0), torch.full((8,), -5.0)], 1).double()
    surgery = pv.elbo_surgery(Seen(), Bumps(), x)
    assert surgery.saturated
    assert surgery.mutual_information.mean == pytest.approx(math.log(8))
    assert "within log 2 of log N = 2.079" in str(surgery)
    assert surgery.mutual_information_upper.mean > 100
    wide = pv.elbo_surgery(Seen(), Bumps(), x * torch.tensor([1.0, 0.0]))
    assert not wide.saturated
    assert "log 2" not in str(wide)


def test_the_table_has_every_figure():
    surgery = pv.elbo_surgery(*bumps()[:3], draws=4)
    text = str(surgery)
    for name in ("elbo", "reconstruction", "mutual_information", "marginal_kl"):
        assert f"{getattr(surgery, name).mean:.4f}" in text
        assert f"{getattr(surgery, name).mc_se:.4f}" in text
    for name, figure in surgery.terms.items():
        assert name in text
        assert f"{figure.mean:.4f}" in text
    assert f"between {surgery.mutual_information.mean:.3f} and {surgery.mutual_information_upper.mean:.3f}" in text
    assert "5 data, 4 draws each" in text


# What is refused.


def conditional(x, y):
    """A prior that reads the label."""
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def encoder(x, y=None):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x, 1.0))


def plain(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def point(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Delta(x))


def auxiliary(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        a = pyro.sample("a", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(a))


def scaled(x):
    with pyro.plate("data", x.shape[0], dim=-1), pyro.poutine.scale(scale=0.5):
        pyro.sample("z", dist.Normal(x, 1.0))


def noisy(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x + torch.randn(x.shape), 1.0))


def nothing(x):
    pass


def without_inverse(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        flow = Planar(2)
        flow.bias.data, flow.u.data, flow.w.data = torch.ones(1), torch.ones(2), torch.ones(2)
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(x.unsqueeze(-1), 1.0).expand([len(x), 2]), [flow]))


def other_name(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("y", dist.Normal(x, 1.0))


def broken(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x, torch.where(x > 5, 0.0, 1.0)))


ROWS = torch.linspace(-1, 1, 8)
NORMAL = dist.Normal(0.0, 1.0)
REFUSALS = {
    "a prior that reads the data": (
        lambda: pv.elbo_surgery(conditional, encoder, (ROWS, ROWS)),
        pv.ContractError,
        "site 'z': its prior reads the data",
    ),
    "the same, its labels sorted": (
        lambda: pv.aggregate_kl(encoder, (ROWS, (ROWS > 0).float()), conditional, batch_size=2),
        pv.ContractError,
        "site 'z': its prior reads the data",
    ),
    "a point": (lambda: pv.elbo_surgery(plain, point, ROWS), pv.ContractError, "site 'z' is a point mass"),
    "a point under a prior": (lambda: pv.aggregate_kl(point, ROWS, NORMAL), pv.ContractError, "no density at other"),
    "auxiliary": (lambda: pv.elbo_surgery(plain, auxiliary, ROWS), pv.ContractError, "site 'a' of the guide is auxil"),
    "scaled": (lambda: pv.elbo_surgery(plain, scaled, ROWS), pv.ContractError, "site 'z' has a scale of its own"),
    "scaled under a prior": (lambda: pv.aggregate_kl(scaled, ROWS, NORMAL), pv.ContractError, "scale of its own"),
    "noise of its own": (lambda: pv.aggregate_kl(noisy, ROWS, NORMAL), pv.ContractError, "something random or kept"),
    "no inverse": (
        lambda: pv.aggregate_kl(without_inverse, ROWS, dist.Normal(torch.zeros(2), 1.0).to_event(1)),
        pv.ContractError,
        "scores its own draws only",
    ),
    "no latent": (lambda: pv.aggregate_kl(nothing, ROWS, NORMAL), pv.ContractError, "guide: it draws no latent"),
    "another name": (
        lambda: pv.elbo_surgery(plain, other_name, ROWS),
        pv.ContractError,
        "site 'z' is latent in the model, but the guide never samples it",
    ),
    "another name than the prior's": (
        lambda: pv.aggregate_kl(other_name, ROWS, plain),
        pv.ContractError,
        "site 'z' is latent in the model, but the guide never samples it",
    ),
    "the model for the guide": (lambda: pv.aggregate_kl(plain, ROWS, NORMAL), pv.ContractError, "is this the model"),
    "a prior of another shape": (
        lambda: pv.aggregate_kl(encoder, ROWS, dist.Normal(torch.zeros(2), 1.0)),
        pv.ContractError,
        r"prior: it has batch shape \(2,\) and event shape \(\)",
    ),
    "a distribution for two latents": (
        lambda: pv.aggregate_kl(small.LineGuide(), X, NORMAL),
        TypeError,
        "prior: one distribution for the latents z1, z2",
    ),
    "a class": (lambda: pv.aggregate_kl(Bumps, BUMPS, NORMAL), pv.ContractError, "pass an instance"),
    "a scale of zero": (
        lambda: pv.aggregate_kl(broken, torch.tensor([0.0, 9.0]), NORMAL),
        FloatingPointError,
        "site 'z': log density is NaN or infinite",
    ),
    "a prior that ends": (
        lambda: pv.aggregate_kl(encoder, ROWS, dist.Uniform(-0.1, 0.1)),
        ValueError,
        "prior: the guide draws 'z' outside its support",
    ),
    "one datum": (lambda: pv.elbo_surgery(plain, encoder, ROWS[:1]), ValueError, "data: found one datum"),
    "no data": (lambda: pv.elbo_surgery(plain, encoder, ROWS[:0]), ValueError, r"data: empty \(no rows\)"),
    "no draws": (lambda: pv.elbo_surgery(plain, encoder, ROWS, draws=0), ValueError, "draws: expected a whole number"),
    "half a draw": (lambda: pv.aggregate_kl(encoder, ROWS, NORMAL, draws=0.5), ValueError, "draws: expected a whole"),
    "no chunk": (lambda: pv.elbo_surgery(plain, encoder, ROWS, chunk=0), ValueError, "chunk: expected a whole number"),
    "batches of none": (
        lambda: pv.elbo_surgery(plain, encoder, ROWS, batch_size=0),
        ValueError,
        "batch_size: expected",
    ),
    "dropped data": (
        lambda: pv.elbo_surgery(
            plain, encoder, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ROWS), 3, drop_last=True)
        ),
        ValueError,
        "drops its last batch",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_cut_is_refused_by_name(name):
    call, kind, message = REFUSALS[name]
    with pytest.raises(kind, match=message):
        call()


def test_a_part_that_is_no_number_names_the_datum():
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z * torch.where(x > 5, torch.nan, 1.0), 1.0), obs=x)

    x = torch.tensor([0.0, 1.0, 2.0, 9.0, 1.0])
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="elbo: NaN for datum 3"):
        pv.elbo_surgery(model, encoder, x, batch_size=2)


@pytest.mark.parametrize("names", pairs.with_every_program(), ids="-".join)
def test_every_pair_is_cut(names):
    pair = pairs.make(*names)
    if not pv.weigh(pair.model, pair.guide, pair.data()).values:
        with pytest.raises(pv.ContractError, match="guide: it draws no latent"):
            pv.elbo_surgery(pair.model, pair.guide, pair.data(12))
        return
    if names[0] in ("conditional", "semi_supervised", "text_to_image"):  # priors that read the data
        with pytest.raises(pv.ContractError, match="its prior reads the data"):
            pv.elbo_surgery(pair.model, pair.guide, pair.data(12))
        return
    surgery = pv.elbo_surgery(pair.model, pair.guide, pair.data(12), draws=2)
    rate = surgery.mutual_information.per_datum + surgery.marginal_kl.per_datum
    torch.testing.assert_close(surgery.reconstruction.per_datum - rate, surgery.elbo.per_datum)
    assert surgery.units is None or surgery.units.n == 12  # codes have none
    found = pv.aggregate_kl(pair.guide, pair.data(12), pair.model, draws=2)
    torch.testing.assert_close(found.value.per_datum, surgery.marginal_kl.per_datum)
