"""Latents summed out exactly: against TraceEnum_ELBO at the same seed, against sums by hand, with every bound."""

import every
import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from given import Given
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from small import parameter
from torch import nn

import ppl_vae as pv
from ppl_vae import objectives
from ppl_vae.estimation import estimate
from ppl_vae.expectation_maximization import ExactEM

DOUBLE = torch.float64
MARK = {"enumerate": "parallel"}
X = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=DOUBLE)


class Mixture(nn.Module):
    """Gaussian mixture of three, its component summed out."""

    def __init__(self):
        super().__init__()
        self.logits, self.loc, self.log_scale = parameter(0.1, -0.4, 0.6), parameter(-1.0, 0.5, 2.0), parameter(0.1)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=MARK)
            pyro.sample("x", dist.Normal(self.loc[y], self.log_scale.exp()), obs=x)

    def log_px(self, x):
        by_component = dist.Normal(self.loc, self.log_scale.exp()).log_prob(x.unsqueeze(-1))
        return (self.logits.log_softmax(-1) + by_component).logsumexp(-1)


class Nothing(nn.Module):
    """A guide with nothing to draw."""

    def forward(self, x):
        pass


class ComponentGuide(nn.Module):
    """q(y | x), enumerated in the guide."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = parameter(0.5, -0.2, 0.3), parameter(0.2, 0.1, -0.3)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("y", dist.Categorical(logits=x.unsqueeze(-1) * self.weight + self.bias), infer=MARK)


class SemiSupervised(nn.Module):
    """Label y, style z, x given both."""

    def __init__(self, infer=None):
        super().__init__()
        self.logits, self.loc, self.weight = parameter(0.1, -0.4, 0.6), parameter(-1.0, 0.5, 2.0), parameter(0.7, -0.3)
        self.infer = infer or {}

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=self.infer)
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(self.loc[y] + self.weight[0] * z + self.weight[1], 0.5), obs=x)


class LabelThenStyle(nn.Module):
    """q(y | x) enumerated, q(z | x, y) drawn for each value."""

    def __init__(self):
        super().__init__()
        self.label = ComponentGuide()
        self.loc, self.log_scale = parameter(0.3, -0.2, 0.6), parameter(-0.4)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            logits = x.unsqueeze(-1) * self.label.weight + self.label.bias
            y = pyro.sample("y", dist.Categorical(logits=logits), infer=MARK)
            pyro.sample("z", dist.Normal(self.loc[y] + 0.4 * x, self.log_scale.exp()))


class StyleAlone(nn.Module):
    """q(z | x), for a model that sums y out."""

    def __init__(self):
        super().__init__()
        self.slope, self.log_scale = parameter(0.4), parameter(-0.4)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x, self.log_scale.exp()))


class TwoSites(nn.Module):
    """y1 -> y2 -> x, both discrete."""

    def __init__(self, first=None, second=None):
        super().__init__()
        self.logits, self.loc = parameter(0.1, -0.4), parameter(-1.0, 0.5, 2.0)
        self.table = nn.Parameter(torch.tensor([[0.5, -0.1, 0.3], [-0.6, 0.2, 0.9]], dtype=DOUBLE))
        self.first, self.second = first or {}, second or {}

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y1 = pyro.sample("y1", dist.Categorical(logits=self.logits), infer=self.first)
            y2 = pyro.sample("y2", dist.Categorical(logits=self.table[y1]), infer=self.second)
            pyro.sample("x", dist.Normal(self.loc[y2] + 0.5 * y1, 0.8), obs=x)

    def log_px(self, x):
        y1, y2 = torch.arange(2)[:, None, None], torch.arange(3)[:, None]
        joint = self.logits.log_softmax(-1)[y1] + self.table.log_softmax(-1)[y1, y2]
        return (joint + dist.Normal(self.loc[y2] + 0.5 * y1, 0.8).log_prob(x)).logsumexp((0, 1))


class TwoSitesGuide(nn.Module):
    def __init__(self, names=("y1", "y2"), infer=MARK):
        super().__init__()
        self.first, self.names, self.infer = parameter(0.3, -0.1), names, infer
        table = torch.tensor([[0.2, 0.1, -0.3], [0.4, -0.5, 0.1]], dtype=DOUBLE)
        self.table = nn.Parameter(table, requires_grad="y2" in names)

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            logits = self.first * x.unsqueeze(-1)
            y1 = pyro.sample("y1", dist.Categorical(logits=logits), infer=self.infer) if "y1" in self.names else 0
            if "y2" in self.names:
                pyro.sample("y2", dist.Categorical(logits=self.table[y1]), infer=self.infer)


PAIRS = {
    "mixture, in the model": (Mixture, Nothing),
    "mixture, in the guide": (Mixture, ComponentGuide),
    "semi-supervised, in the guide": (SemiSupervised, LabelThenStyle),
    "semi-supervised, in the model": (lambda: SemiSupervised(MARK), StyleAlone),
    "two sites, in the guide": (TwoSites, TwoSitesGuide),
    "two sites, in the model": (lambda: TwoSites(MARK, MARK), Nothing),
    "two sites, one in each": (lambda: TwoSites({}, MARK), lambda: TwoSitesGuide(("y1",))),
    "two sites, one drawn": (lambda: TwoSites({}, MARK), lambda: TwoSitesGuide(("y1",), {})),
    "two sites, marked in both": (lambda: TwoSites(MARK, MARK), TwoSitesGuide),
}


def parameters_of(*programs):
    return [p for program in programs for p in program.parameters() if p.requires_grad]


@pytest.fixture(params=PAIRS)
def pair(request):
    model, guide = PAIRS[request.param]
    return model(), guide()


def test_check_passes(pair):
    pv.check(*pair, X)


@pytest.mark.parametrize("particles", [1, 4])
def test_elbo_is_trace_enum_elbo(pair, particles):
    """In value and gradient, at the same seed."""
    parameters = parameters_of(*pair)
    theirs = TraceEnum_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(5)
    wanted = -theirs.differentiable_loss(*pair, X)
    torch.manual_seed(5)
    ours = estimate(objectives.elbo, *pair, X, particles)
    torch.testing.assert_close(ours.value.sum(), wanted.detach())
    drawn_discretely = bool(pv.weigh(*pair, X).score)
    for name, a, b in zip(
        parameters,
        torch.autograd.grad(ours.surrogate.sum(), parameters, allow_unused=True),
        torch.autograd.grad(wanted, parameters, allow_unused=True),
        strict=True,
    ):
        a, b = (torch.zeros_like(name) if g is None else g for g in (a, b))
        if not drawn_discretely:  # DiCE leaves zero-mean terms out that elbo keeps
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_pv_elbo_is_trace_enum_elbo_for_svi(pair):
    theirs = TraceEnum_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    losses = []
    for loss in (pv.ELBO(objectives.elbo, 3), theirs):
        torch.manual_seed(5)
        losses.append(loss.loss(*pair, X))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("model", [Mixture, lambda: TwoSites(MARK, MARK)], ids=["mixture", "two sites"])
@pytest.mark.parametrize("name", objectives.every())
def test_with_nothing_left_to_draw_every_bound_is_log_px(model, name):
    model = model()
    bound = objectives.every()[name]
    particles = 2
    value, surrogate = estimate(bound, model, Nothing(), X, particles)
    torch.testing.assert_close(value, model.log_px(X).detach())
    sign = -1 if bound.facts.upper else 1
    found = torch.autograd.grad(sign * surrogate.sum(), parameters_of(model))
    for ours, wanted in zip(found, torch.autograd.grad(model.log_px(X).sum(), parameters_of(model)), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_the_model_side_sum_is_the_rao_blackwellised_weight():
    """log w = log sum_y p(y) p(z) p(x | y, z) - log q(z | x), by hand at the same draws."""
    model, guide = SemiSupervised(MARK), StyleAlone()
    torch.manual_seed(0)
    drawn = pv.weigh(model, guide, X, particles=5)
    z = drawn.values["z"]
    by_label = dist.Normal(model.loc[:, None, None] + model.weight[0] * z + model.weight[1], 0.5).log_prob(X)
    likelihood = (model.logits.log_softmax(-1)[:, None, None] + by_label).logsumexp(0)
    prior = dist.Normal(0.0, 1.0).log_prob(z)
    q = dist.Normal(guide.slope * X, guide.log_scale.exp()).log_prob(z)
    torch.testing.assert_close(drawn.log_w, likelihood + prior - q)
    assert set(drawn.log_p) == {"y, x", "z"}
    assert drawn.summed == ("y",)


def test_summing_out_lowers_the_variance_of_the_weights():
    torch.manual_seed(0)
    summed = pv.weigh(SemiSupervised(MARK), StyleAlone(), X, particles=5000).log_w
    drawn = pv.weigh(SemiSupervised(), BothDrawn(), X, particles=5000).log_w
    assert (summed.var(0) < drawn.var(0)).all()
    # Both estimate log p(x).
    for log_w in (summed, drawn):
        assert log_w.shape == (5000, 4)
    gap = (summed.logsumexp(0) - drawn.logsumexp(0)).abs()
    assert gap.max() < 0.3


class BothDrawn(StyleAlone):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x, self.log_scale.exp()))
            pyro.sample("y", dist.Categorical(logits=torch.zeros(3, dtype=DOUBLE)))


def test_guide_enumeration_gives_the_expectation_over_labels():
    """Every bound of the form sum m f(w) is the average over draws of y, in expectation over y alone."""
    model, guide = SemiSupervised(), LabelThenStyle()
    torch.manual_seed(0)
    drawn = pv.weigh(model, guide, X, particles=3)
    assert drawn.log_w.shape == (3, 3, 4)
    assert drawn.enumerated == ("y",)
    torch.testing.assert_close(drawn.log_mean(torch.zeros_like(drawn.log_w)), torch.zeros(4, dtype=DOUBLE))
    q = drawn.log_q["y"].exp()
    torch.testing.assert_close(objectives.elbo(drawn), (q * drawn.log_w).sum(0).mean(0))
    torch.testing.assert_close(objectives.iwae(drawn), (q * drawn.log_w.exp()).sum(0).mean(0).log())
    torch.testing.assert_close(
        objectives.renyi(drawn, alpha=0.5), 2 * (q * (drawn.log_w / 2).exp()).sum(0).mean(0).log()
    )


# Estimators that tell draws apart; and those for Bernoulli and one-hot sites, which a Categorical is not.
NEED_DRAWS = {"dreg", "piwae"}
NEED_RELAXATION = {"dreg", *objectives.estimators()} - {"NVIL", "WakeSleep", "EUBO"}


@pytest.mark.parametrize("name", every.NAMES)
def test_objectives_work_with_enumeration_or_say_why_not(name, pair):
    """What a guide enumerates, in every objective: a finite gradient for all parameters, or an error with a repair."""
    model, guide = pair
    objective = objectives.every().get(name) or made(name, guide)
    drawn = pv.weigh(model, guide, X)
    if (drawn.enumerated and name in NEED_DRAWS) or (drawn.score and name in NEED_RELAXATION):
        with pytest.raises(ValueError, match=r"enumerate.*mark it in the model|site 'y1' is .*use vimco|with vimco"):
            estimate(objective, model, guide, X, 4)
        return
    value, surrogate = estimate(objective, model, guide, X, 4)
    assert value.shape == (4,)
    assert value.isfinite().all()
    found = torch.autograd.grad(surrogate.sum(), parameters_of(model, guide), allow_unused=True)
    assert all(g.isfinite().all() for g in found if g is not None)


def made(name, guide):
    options = {"NVIL": {"x_dim": 1}, "EUBO": {"posterior": guide}}
    return objectives.estimators()[name](**options.get(name, {})).double()


UNBIASED = [
    "elbo",
    "elbo_kl",
    "reinforce",
    "rloo",
    "renyi",
    "vimco",
    "ovis",
    "free_bits",
    "beta_elbo",
    "score_function",
]


@pytest.mark.parametrize("name", UNBIASED)
def test_gradients_with_one_site_drawn_and_one_summed_are_unbiased(name):
    """y1 drawn in the guide, y2 summed out of the model: all outcomes of two draws of y1."""
    model, guide = TwoSites({}, MARK), TwoSitesGuide(("y1",), {})
    bound = objectives.every()[name]
    draws = torch.cartesian_prod(torch.arange(2), torch.arange(2)).T
    x = torch.full((4,), 0.7, dtype=DOUBLE)
    with Given({"y1": draws}):
        drawn = pv.weigh(model, guide, x, 2, **bound.facts.weighing)
    chance = drawn.log_q["y1"].sum(0).exp()
    torch.testing.assert_close(chance.sum().item(), 1.0)
    fields = {"log_p": drawn.log_p, "log_q": drawn.log_q, "values": drawn.values, "summed": drawn.summed}
    plain = bound(pv.Particles(**fields, kl=drawn.kl, path=drawn.path))
    parameters = [*parameters_of(model), guide.first]
    exact = torch.autograd.grad((chance * plain).sum(), parameters, retain_graph=True)
    found = torch.autograd.grad((chance.detach() * bound(drawn)).sum(), parameters)
    for ours, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["elbo", "reinforce", "rloo", "vimco", "renyi", "score_function"])
def test_gradients_with_draws_below_enumerated_values_are_unbiased(name):
    """y1 enumerated in the guide, y2 drawn for each of its values: both values' draws, all outcomes, K = 2."""
    model, guide = TwoSites(), DrawnBelow()
    bound = objectives.every()[name]
    outcomes = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (value of y1, particle), one draw each
    draws = outcomes.T.reshape(2, 2, -1)
    x = torch.full((draws.shape[-1],), 0.7, dtype=DOUBLE)
    with Given({"y2": draws}):
        drawn = pv.weigh(model, guide, x, 2, **bound.facts.weighing)
    assert drawn.log_w.shape == draws.shape
    chance = drawn.log_q["y2"].sum((0, 1)).exp()
    torch.testing.assert_close(chance.sum().item(), 1.0)
    plain = bound(
        pv.Particles(log_p=drawn.log_p, log_q=drawn.log_q, values=drawn.values, enumerated=("y1",), path=drawn.path)
    )
    parameters = parameters_of(model, guide)
    exact = torch.autograd.grad((chance * plain).sum(), parameters, retain_graph=True)
    found = torch.autograd.grad((chance.detach() * bound(drawn)).sum(), parameters)
    for ours, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["elbo", "reinforce", "rloo", "beta_elbo", "score_function"])
def test_gradients_with_values_enumerated_below_draws_are_unbiased(name):
    """y1 drawn, y2 enumerated given it: a baseline that is averaged with the mass of y2 depends on y1."""
    model, guide = TwoSites(), DrawnAbove()
    bound = objectives.every()[name]
    draws = torch.cartesian_prod(torch.arange(2), torch.arange(2)).T
    with Given({"y1": draws}):
        drawn = pv.weigh(model, guide, torch.full((4,), 0.7, dtype=DOUBLE), 2, **bound.facts.weighing)
    assert drawn.log_w.shape == (3, 2, 4)
    chance = drawn.log_q["y1"].expand(3, 2, 4)[0].sum(0).exp()
    torch.testing.assert_close(chance.sum().item(), 1.0)
    fields = {"log_p": drawn.log_p, "log_q": drawn.log_q, "values": drawn.values}
    plain = bound(pv.Particles(**fields, enumerated=("y2",), path=drawn.path))
    parameters = parameters_of(model, guide)
    exact = torch.autograd.grad((chance * plain).sum(), parameters, retain_graph=True)
    found = torch.autograd.grad((chance.detach() * bound(drawn)).sum(), parameters)
    for ours, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)


class DrawnAbove(TwoSitesGuide):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y1 = pyro.sample("y1", dist.Categorical(logits=self.first * x.unsqueeze(-1)))
            pyro.sample("y2", dist.Categorical(logits=self.table[y1]), infer=MARK)


def test_nvil_with_nothing_drawn_is_the_elbo():
    """Its baseline's loss leaves the enumerated mass alone."""
    model, guide = Mixture(), ComponentGuide()
    nvil = objectives.NVIL(x_dim=1).double()
    parameters = parameters_of(model, guide)
    wanted = torch.autograd.grad(estimate(objectives.elbo, model, guide, X, 3).surrogate.sum(), parameters)
    for _ in range(3):  # with averages of every age
        surrogate = estimate(nvil, model, guide, X, 3).surrogate.sum()
        for ours, exact in zip(torch.autograd.grad(surrogate, parameters), wanted, strict=True):
            torch.testing.assert_close(ours, exact)


class DrawnBelow(TwoSitesGuide):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y1 = pyro.sample("y1", dist.Categorical(logits=self.first * x.unsqueeze(-1)), infer=MARK)
            pyro.sample("y2", dist.Categorical(logits=self.table[y1]))


def test_iwae_never_learns_what_the_guide_enumerates_and_says_so():
    model, guide = SemiSupervised(), LabelThenStyle()
    optimizer = torch.optim.Adam(parameters_of(model, guide))
    step = pv.svi_step(model, guide, objectives.iwae, particles=3, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"site 'y' is enumerated in the guide.*mark it in the model"):
        step(X)
    pv.svi_step(model, guide, objectives.renyi, particles=3, optimizer=optimizer)(X)
    pv.svi_step(model, guide, objectives.elbo, particles=3, optimizer=optimizer)(X)


def test_fit_trains_a_mixture_by_exact_likelihood():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(300) - 4, torch.randn(200) + 3]).double()
    model = Mixture()
    before = model.log_px(x).mean()
    pv.fit(model, Nothing(), x, epochs=30, batch_size=50, optimizer=lambda p: torch.optim.Adam(p, lr=5e-2))
    assert model.log_px(x).mean() > before + 1
    evaluation = pv.evaluate(model, Nothing(), x[:50], particles=3)
    torch.testing.assert_close(evaluation.log_px, model.log_px(x[:50]).detach())


def test_factors_that_favour_other_values_by_hundreds_of_nats_do_not_underflow():
    """In float32 the product of the two factors' shifted exponentials would be zero for both values."""

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer=MARK)
            pyro.factor("a", 300.0 * y)
            pyro.factor("b", -280.0 * y)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    value = objectives.elbo(pv.weigh(model, Nothing(), torch.zeros(2)))
    by_hand = torch.tensor(0.5).log() + 20 - 0.5 - torch.tensor(2 * torch.pi).log() / 2
    torch.testing.assert_close(value, by_hand.expand(2))


def test_the_plates_scale_stays_outside_the_sum():
    def model(x):
        with pyro.plate("data", 40, x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3), infer=MARK)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x):
        pass

    x = torch.tensor([0.2, 1.3])
    drawn = pv.weigh(model, guide, x)
    by_hand = torch.stack(
        [dist.Normal(y, 1.0).log_prob(x) + torch.tensor(p).log() for y, p in ((0.0, 0.7), (1.0, 0.3))]
    )
    torch.testing.assert_close(drawn.log_w[0], by_hand.logsumexp(0))
    assert drawn.scale == 20
    theirs = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x)
    assert pv.ELBO(objectives.elbo).loss(model, guide, x) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("objective", [objectives.elbo, objectives.iwae], ids=["elbo", "iwae"])
def test_a_scale_of_its_own_inside_a_sum_is_refused(objective):
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            with poutine.scale(scale=0.5):
                y = pyro.sample("y", dist.Bernoulli(0.3), infer=MARK)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    with pytest.raises(pv.ContractError, match="scale of its own"):
        estimate(objective, model, Nothing(), X, 2)


def test_masks_act_inside_the_sum():
    mask = torch.tensor([True, False, True, True])

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE)), infer=MARK)
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    value = objectives.elbo(pv.weigh(model, Nothing(), X))
    assert value[1] == pytest.approx(0.0, abs=1e-12)
    assert (value[[0, 2, 3]] < 0).all()


PRESENT = torch.tensor([True, False, True, True])
BIT = dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE))


def absent(y, also=lambda fn, mask: fn):
    """Return a mixture of two whose data are missing where a mask around all of it says so."""

    def model(x, mask):
        with pyro.plate("data", x.shape[0], dim=-1), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(1.0 * pyro.sample("y", also(y, mask), infer=MARK), 1.0), obs=x)

    return model


def silent(x, mask):
    """A guide with nothing to draw."""


@pytest.mark.parametrize("y", [BIT, dist.Categorical(X[[0, 3]])])
def test_a_summed_latent_of_missing_data_counts_for_nothing(y):
    """Its probabilities sum to one, and not to their number."""
    model = absent(y)
    found, whole = (pv.weigh(model, silent, (X, mask)).log_w[0] for mask in (PRESENT, torch.ones(4).bool()))
    torch.testing.assert_close(found, whole * PRESENT)
    theirs = TraceEnum_ELBO(max_plate_nesting=1).loss(model, silent, X, PRESENT)
    assert -found.sum().item() == pytest.approx(theirs, rel=1e-12)
    by_em = ExactEM(model, (X, PRESENT), pv.starts.as_they_are, None)
    by_em.expect()
    torch.testing.assert_close(by_em.posterior.log_px, found)


def test_a_mask_that_takes_probabilities_away_is_refused():
    model = absent(BIT, lambda fn, mask: fn.expand(mask.shape).mask(mask))
    x = X, PRESENT
    for run in (lambda: pv.weigh(model, silent, x), lambda: pv.em(model, x), lambda: pv.cavi(model, x)):
        with pytest.raises(pv.ContractError, match="site 'y' is summed out, and its distribution has a mask"):
            run()


def test_a_mask_on_what_the_guide_enumerates_is_for_linear_bounds():
    def guide(x, mask):
        with pyro.plate("data", x.shape[0], dim=-1), poutine.mask(mask=mask):
            pyro.sample("y", BIT, infer=MARK)

    with pytest.raises(pv.ContractError, match="guide: site 'y' is enumerated under a mask"):
        pv.weigh(absent(BIT), guide, (X, PRESENT))
    theirs = TraceEnum_ELBO(max_plate_nesting=1).loss(absent(BIT), guide, X, PRESENT)
    ours = estimate(objectives.elbo, absent(BIT), guide, (X, PRESENT), 1)
    assert -ours.value.sum().item() == pytest.approx(theirs, rel=1e-12)


def test_a_penalty_on_a_summed_latent_is_refused():
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3), infer=MARK)
            pyro.factor("penalty_y", y)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    with pytest.raises(pv.ContractError, match=r"factor 'penalty_y'.*enumerate that latent in the guide"):
        pv.weigh(model, Nothing(), X)


def test_divergence_and_likelihood_that_hang_together_are_told():
    """z's prior and x's likelihood both depend on the summed y: beta has no meaning between them."""

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=DOUBLE)), infer=MARK)
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    drawn = pv.weigh(model, StyleAlone(), X, particles=2)
    assert objectives.elbo(drawn).isfinite().all()
    with pytest.raises(ValueError, match=r"hang together through y.*draw or enumerate it in the guide"):
        objectives.beta_elbo(drawn)


def test_a_long_chain_is_eliminated_link_by_link():
    """Thirty binary links: the full table would have 2^30 entries."""
    length, stay = 30, torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=DOUBLE)

    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = torch.zeros((), dtype=torch.long)
            for t in pyro.markov(range(length)):
                y = pyro.sample(f"y{t}", dist.Categorical(stay[y]), infer=MARK)
                pyro.sample(f"x{t}", dist.Normal(2.0 * y, 1.0), obs=x[:, t])

    x = torch.randn(3, length, dtype=DOUBLE)
    forward = torch.zeros(3, 2, dtype=DOUBLE).log()
    forward[:, 0] = 0.0
    for t in range(length):
        moved = (forward.unsqueeze(-1) + stay.log()).logsumexp(-2)
        forward = moved + dist.Normal(torch.tensor([0.0, 2.0]).double(), 1.0).log_prob(x[:, t, None])
    torch.testing.assert_close(pv.weigh(model, Nothing(), x).log_w[0], forward.logsumexp(-1))


def test_a_datum_that_no_value_explains_leaves_the_others_gradients_alone():
    class Barred(Mixture):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=MARK)
                pyro.sample("x", dist.Normal(self.loc[y], self.log_scale.exp()), obs=x)
                pyro.factor("bar", torch.where(x > 1, -torch.inf, self.loc[y]))

    model = Barred()
    log_w = pv.weigh(model, Nothing(), X).log_w[0]
    assert torch.equal(log_w.isneginf(), X > 1)
    assert 0 < int((X > 1).sum()) < len(X)
    found = torch.autograd.grad(log_w.sum(), parameters_of(model))
    possible = pv.weigh(model, Nothing(), X[X <= 1]).log_w[0]
    for ours, alone in zip(found, torch.autograd.grad(possible.sum(), parameters_of(model)), strict=True):
        torch.testing.assert_close(ours, alone)


def test_values_without_mass_have_no_part():
    class Sure(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                logits = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=DOUBLE)
                pyro.sample("y", dist.Categorical(logits=logits), infer=MARK)

    model = Mixture()
    value = objectives.elbo(pv.weigh(model, Sure(), X))
    first = model.logits.log_softmax(-1)[0] + dist.Normal(model.loc[0], model.log_scale.exp()).log_prob(X)
    torch.testing.assert_close(value, first)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), parameters_of(model)))


def test_evaluate_believes_a_summed_model():
    model, guide = SemiSupervised(MARK), StyleAlone()
    evaluation = pv.evaluate(model, guide, X, particles=20_000)
    grid = torch.linspace(-8, 8, 4001, dtype=DOUBLE)
    likelihood = dist.Normal(model.loc[:, None, None] + model.weight[0] * grid[:, None] + model.weight[1], 0.5)
    joint = (model.logits.log_softmax(-1)[:, None, None] + likelihood.log_prob(X)).logsumexp(0)
    exact = (joint + dist.Normal(0.0, 1.0).log_prob(grid)[:, None]).logsumexp(0) + torch.tensor(16 / 4000).log()
    odds.assert_agree(evaluation.log_px, evaluation.log_px_error, exact.detach())


def test_reconstructions_weigh_values_that_the_model_sums_by_their_posterior():
    model, x = TwoSites(MARK, MARK), torch.tensor([-1.0, 0.3, 2.0], dtype=DOUBLE)
    y1, y2 = torch.arange(2)[:, None, None], torch.arange(3)[:, None]
    mean = model.loc[y2] + 0.5 * y1
    joint = model.logits.log_softmax(-1)[y1] + model.table.log_softmax(-1)[y1, y2]
    posterior = (joint + dist.Normal(mean, 0.8).log_prob(x)).flatten(0, 1).softmax(0)
    found = pv.reconstruct(model, Nothing(), x, particles=2)["x"]
    torch.testing.assert_close(found, (posterior * mean.flatten(0, 1)).sum(0).detach())


def test_reconstructions_weigh_values_that_the_guide_enumerates_by_its_mass():
    model, guide, x = SemiSupervised(), LabelThenStyle(), torch.tensor([-1.0, 0.3], dtype=DOUBLE)
    q = (x.unsqueeze(-1) * guide.label.weight + guide.label.bias).softmax(-1)
    # The mean of x is linear in z, so that z may be replaced by its mean; its noise is small here.
    guide.log_scale.data.fill_(-30.0)
    z = guide.loc + 0.4 * x.unsqueeze(-1)
    wanted = (q * (model.loc + model.weight[0] * z + model.weight[1])).sum(-1)
    found = pv.reconstruct(model, guide, x, particles=2)["x"]
    torch.testing.assert_close(found, wanted.detach())
