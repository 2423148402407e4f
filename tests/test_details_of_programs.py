"""What weighing takes from programs: scales, masks, penalties, relaxed codes, dreams; by hand."""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import ppl_vae as pv
from ppl_vae.importance import Weights, can_be_keyed, probe
from ppl_vae.noise import Keyed, datum_keys
from ppl_vae.particles import Path
from ppl_vae.programs import Programs
from ppl_vae.tracing import Drawing, Unobserved, dreamt, enumerated_trace
from ppl_vae.weighing import dreamt_log_q

DOUBLE = torch.float64
X = torch.tensor([0.3, -1.2, 2.0], dtype=DOUBLE)


class Pair(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), under masks and scales; the guide draws z from N(x / 2, 1 / 2)."""

    def __init__(self, guide=False, mask=None, scale=None, penalty=None, rows=None, bar=None):
        super().__init__()
        self.guide, self.mask, self.scale, self.penalty, self.rows = guide, mask, scale, penalty, rows
        self.bar = bar

    def forward(self, x):
        prior = dist.Normal(x / 2, 0.5) if self.guide else dist.Normal(torch.zeros_like(x), 1.0)
        with pyro.plate("data", self.rows or x.shape[0], x.shape[0], dim=-1):
            with poutine.mask(mask=torch.ones(len(x), dtype=torch.bool) if self.mask is None else self.mask):
                z = pyro.sample("z", prior)
            if self.penalty is not None:
                with poutine.scale(scale=self.scale or 1.0):
                    pyro.factor("penalty_z", self.penalty * z)
            if self.bar is not None:
                pyro.factor("bar", torch.where(x < 0, self.bar, 0.0))
            if not self.guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal(value, loc, scale):
    return torch.distributions.Normal(loc, scale).log_prob(value)


def test_a_log_weight_is_a_ratio_of_densities():
    drawn = pv.weigh(Pair(), Pair(guide=True), X, 4)
    z = drawn.values["z"]
    torch.testing.assert_close(drawn.log_w, normal(z, 0.0, 1.0) + normal(X, z, 1.0) - normal(z, X / 2, 0.5))
    assert pv.weigh(Pair(), Pair(guide=True), X).log_w.shape == (1, 3)


@pytest.mark.parametrize("particles", [0, -1, 1.5, "2", None])
def test_numbers_of_particles_that_are_none_are_refused(particles):
    with pytest.raises(ValueError, match="particles: expected a whole number of at least 1"):
        pv.weigh(Pair(), Pair(guide=True), X, particles)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_penalties_have_scales_of_their_own_and_a_guides_count_against(linear, scale):
    drawn = pv.weigh(Pair(penalty=3.0, scale=scale), Pair(guide=True), X, 4, linear=linear)
    torch.testing.assert_close(drawn.penalties["penalty_z"], 3.0 * scale * drawn.values["z"])
    assert sorted(drawn.log_p) == ["x", "z"]
    drawn = pv.weigh(Pair(), Pair(guide=True, penalty=3.0, scale=scale), X, 4, linear=linear)
    torch.testing.assert_close(drawn.penalties["penalty_z"], -3.0 * scale * drawn.values["z"])
    assert sorted(drawn.log_q) == ["z"]


def test_what_weigh_does_if_not_told():
    told = {n: p.default for n, p in inspect.signature(pv.weigh).parameters.items()}
    wanted = {"particles": 1, "linear": False, "path": Path.TOTAL, "kl": False, "draw": None}
    assert {name: told[name] for name in wanted} == wanted


def scaled_likelihood(x):
    with pyro.plate("data", 12, x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        with poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_scale_of_a_sites_own_is_told_from_that_of_the_plate():
    drawn = pv.weigh(scaled_likelihood, Pair(guide=True, rows=12), X, 4, linear=True)
    torch.testing.assert_close(drawn.log_p["x"], normal(X, drawn.values["z"], 1.0) / 2)
    assert drawn.scale == 4
    with pytest.raises(pv.ContractError, match="site 'x' has a scale of its own"):
        pv.weigh(scaled_likelihood, Pair(guide=True, rows=12), X, 4)


def mixed(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        b = pyro.sample("b", dist.Bernoulli(torch.full_like(x, 0.4)))
        pyro.sample("x", dist.Normal(z + b, 1.0), obs=x)


def mixed_guide(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x, 1.0))
        pyro.sample("b", dist.Bernoulli(torch.full_like(x, 0.4)))


def test_sites_whose_draws_carry_no_gradient_have_a_score():
    for path, sites in ((Path.TOTAL, ["b"]), (Path.STOPPED, ["b"]), (Path.NONE, ["b", "z"])):
        drawn = pv.weigh(mixed, mixed_guide, X, 4, path=path)
        assert sorted(drawn.score) == sites, path
        torch.testing.assert_close(drawn.score["b"], drawn.log_q["b"])


def test_given_draws_of_what_has_no_density_to_learn_by_are_refused():
    loc = torch.zeros((), dtype=DOUBLE, requires_grad=True)

    def pointed(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.Delta(loc + x, log_density=torch.zeros_like(x)))

    assert pv.weigh(Pair(), pointed, X).values["z"].requires_grad
    with pytest.raises(pv.ContractError, match=r"site 'z'.*learns through its draws alone"):
        pv.weigh(Pair(), pointed, X, path=Path.NONE)


def test_the_scale_of_the_plate_is_one_for_both():
    assert pv.weigh(Pair(rows=12), Pair(guide=True, rows=12), X).scale == 4
    with pytest.raises(pv.ContractError, match="model and guide scale it differently"):
        pv.weigh(Pair(rows=12), Pair(guide=True, rows=24), X)


SOME = torch.tensor([True, False, True])


def test_divergences_in_closed_form_under_masks():
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(X / 2, 0.5), torch.distributions.Normal(0.0, 1.0))
    both = pv.weigh(Pair(mask=SOME), Pair(guide=True, mask=SOME), X, 4, kl=True)
    torch.testing.assert_close(both.kl["z"].expand(4, 3), (kl * SOME).expand(4, 3))
    for masks in ((SOME, None), (None, SOME)):
        one = pv.weigh(Pair(mask=masks[0]), Pair(guide=True, mask=masks[1]), X, 4, kl=True)
        by_chance = one.log_q["z"] - one.log_p["z"]
        torch.testing.assert_close(one.kl["z"], torch.where(SOME, kl, by_chance))
        assert by_chance[:, 1].abs().min() > 0
    assert pv.weigh(Pair(), Pair(guide=True), X, 4).kl == {}


def unmasked(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("z", dist.Normal(x / 2, 0.5))


def test_a_program_without_a_mask_has_one_of_all_data():
    one = pv.weigh(Pair(mask=SOME), unmasked, X, 4, kl=True)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(X / 2, 0.5), torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(one.kl["z"], torch.where(SOME, kl, one.log_q["z"] - one.log_p["z"]))


def test_densities_have_particles_and_data_in_full():
    drawn = pv.weigh(Pair(bar=-2.0), Pair(guide=True), X, 4)
    assert drawn.log_p["bar"].shape == (4, 3)
    torch.testing.assert_close(drawn.log_p["bar"][2], torch.tensor([0.0, -2.0, 0.0]).double(), check_dtype=False)


def many(x):
    """Latents without a divergence of their own before one that has it: scaled, masked, of unlike kinds."""
    with pyro.plate("data", x.shape[0], dim=-1):
        with poutine.scale(scale=0.5):
            pyro.sample("scaled", dist.Normal(x, 1.0))
        pyro.sample("masked", dist.Normal(x, 1.0).mask(SOME))
        pyro.sample("unlike", dist.Normal(x, 1.0))
        pyro.sample("like", dist.Normal(x, 1.0))


def model_of_many(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("scaled", dist.Normal(torch.zeros_like(x), 1.0))
        z = z + pyro.sample("masked", dist.Normal(torch.zeros_like(x), 1.0))
        z = z + pyro.sample("unlike", dist.StudentT(3.0, torch.zeros_like(x), 1.0))
        z = z + pyro.sample("like", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_each_latent_has_its_divergence_in_closed_form_or_not():
    drawn = pv.weigh(model_of_many, many, X, 4, kl=True, linear=True)
    assert sorted(drawn.kl) == ["like"]
    torch.testing.assert_close(drawn.kl["like"], X.square() / 2 + torch.zeros_like(drawn.kl["like"]))


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(("how", "told"), [("parallel", "gives no finite list of values"), ("flat", "only 'parallel'")])
def test_marks_matter_at_latents_alone(observed, how, told):
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0), infer={} if observed else {"enumerate": how})
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, infer={"enumerate": how} if observed else {})

    if observed:
        pv.weigh(model, Pair(guide=True), X, 2)
        return
    with pytest.raises(pv.ContractError, match=f"site 'z' is marked .*{told}"):
        pv.weigh(model, lambda x: None, X, 2)


def test_what_is_no_latent_is_drawn_by_no_rule():
    asked = []
    with Drawing(lambda name, fn: asked.append(name)):
        Pair()(X)
    assert asked == ["z"]


def test_without_observations_the_prior_is_left():
    with Unobserved():
        trace = poutine.trace(Pair()).get_trace(X)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].eq(0).all()
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], normal(trace.nodes["z"]["value"], 0.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, DOUBLE])
def test_observed_bits_of_any_type_have_their_density(dtype):
    def model(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.3 * torch.ones(len(x)).double()))
            pyro.sample("x", dist.Bernoulli(0.2 + 0.5 * y), obs=x)

    trace = enumerated_trace(model, (torch.tensor([1, 0]).to(dtype),))
    trace.compute_log_prob()
    wanted = torch.tensor([[0.2, 0.8], [0.7, 0.3]], dtype=DOUBLE).log()
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], wanted)
    torch.testing.assert_close(trace.nodes["y"]["log_prob"].exp().squeeze(-1)[..., :1].flatten().sum().item(), 1.0)


def test_a_dream_takes_the_place_of_its_own_tensor():
    """Of a batch of two, one of which is given; a tensor made from the batch has no place."""

    def model(x, y):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.factor("penalty_none", torch.zeros_like(x))
            pyro.sample("y", dist.Normal(x + 100, 1.0), obs=y)

    _, (x, y) = dreamt(model, (X, X + 1))
    assert torch.equal(x, X)
    assert (y - X).min() > 50
    with pytest.raises(pv.ContractError, match="site 'y': it observes a tensor made from the batch"):
        dreamt(lambda x, y: model(x, y + 1), (X, X + 1))
    with pytest.raises(pv.ContractError, match="site 'y': it observes a tensor made from the batch"):
        dreamt(lambda x, y: model(x[:1], y[:1]), (X, X + 1))


def chain(x):
    with pyro.plate("data", x.shape[0], dim=-1):
        z1 = pyro.sample("z1", dist.Normal(torch.zeros_like(x), 1.0))
        z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
        pyro.sample("x", dist.Normal(z2, 1.0), obs=x)


def test_slopes_at_a_draw_leave_out_later_draws_that_it_moves():
    slope = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)

    def guide(x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z1 = pyro.sample("z1", dist.Normal(slope * x, 0.5))
            pyro.sample("z2", dist.Normal(slope * z1, 0.5))

    for path in (Path.TOTAL, Path.STOPPED):
        drawn = pv.weigh(chain, guide, X, 4, path=path)
        z1, z2 = drawn.values["z1"], drawn.values["z2"]
        of_p = torch.autograd.grad(sum(p.sum() for p in drawn.log_p.values()), [z1, z2], retain_graph=True)
        torch.testing.assert_close(of_p, (z2 - 2 * z1, z1 - 2 * z2 + X))
    # Parameters stopped, what is left goes through the draws: z1 = s x + e, z2 = s z1 + e'.
    (found,) = torch.autograd.grad(drawn.log_q["z2"].sum() + drawn.log_q["z1"].sum(), slope)
    e1, e2 = (z1 - slope * X) / 0.25, (z2 - slope * z1) / 0.25
    moved1, moved2 = X, z1 + slope * X
    torch.testing.assert_close(found, (-e1 * moved1 - e2 * (moved2 - slope * moved1)).sum())


class Codes(nn.Module):
    """Two one-hot codes of three, whose order a weight sees."""

    def __init__(self, guide=False):
        super().__init__()
        self.guide, self.logits = guide, nn.Parameter(torch.tensor([[0.1, -0.4, 0.9], [1.0, 0.0, -1.0]], dtype=DOUBLE))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.logits).expand((len(x), 2)).to_event(1))
            if not self.guide:
                pyro.sample("x", dist.Normal(z.sum((-1, -2)), 1.0), obs=x)


def test_densities_of_relaxed_codes_are_linear_in_them():
    value = torch.rand(4, 3, 2, 3, dtype=DOUBLE).softmax(-1).requires_grad_()
    drawn = pv.weigh(Codes(), Codes(guide=True), X, 4, draw=lambda name, fn: value)
    log_masses = Codes().logits.detach().log_softmax(-1)
    torch.testing.assert_close(drawn.log_p["z"], (value * log_masses).sum((-1, -2)))
    (slope,) = torch.autograd.grad(drawn.log_q["z"].sum(), value)
    torch.testing.assert_close(slope, log_masses.expand_as(value))
    assert drawn.score == {}


@pytest.mark.parametrize("mask", [None, SOME])
def test_dreams_are_scored_by_the_guide(mask):
    """Whose z is drawn with its x': the score is the guide's density at both."""
    model, guide = Pair(), Pair(guide=True, mask=mask)
    torch.manual_seed(0)
    found = dreamt_log_q(model, guide, X)
    torch.manual_seed(0)
    trace = poutine.trace(poutine.uncondition(model)).get_trace(X)
    z, x = trace.nodes["z"]["value"], trace.nodes["x"]["value"]
    torch.testing.assert_close(found, normal(z, x / 2, 0.5) * (1.0 if mask is None else SOME))
    assert not torch.equal(x, X)


# Evaluation in chunks.


@pytest.mark.parametrize("chunk", [1, 3, 7, 50])
def test_weights_and_their_means_by_the_chunk(chunk):
    model, guide = Pair(), Pair(guide=True)
    calls = []
    weights = Weights(model, guide, Programs(model, guide), particles=7, chunk=chunk, compile=False)
    keys = datum_keys((X,))
    log_w, means = weights((X,), keys, advance=lambda: calls.append(1))
    z = Keyed(keys, torch.arange(7).expand(3, 7))("z", dist.Normal(X / 2, 0.5).expand((7, 3)))
    torch.testing.assert_close(log_w, normal(z, 0.0, 1.0) + normal(X, z, 1.0) - normal(z, X / 2, 0.5))
    torch.testing.assert_close(means["elbo"], log_w.mean(0))
    torch.testing.assert_close(means["distortion"], -normal(X, z, 1.0).mean(0))
    assert len(calls) == -(-7 // chunk)


def test_a_pair_is_known_again_by_three_weights_of_the_first_datum():
    model, guide = Pair(), Pair(guide=True)
    log_w, _ = Weights(model, guide, Programs(model, guide), 3, 3, compile=False)((X[:1],), datum_keys((X[:1],)))
    assert probe(model, guide, (X,)) == pytest.approx(float(log_w.sum()))
    assert can_be_keyed(model, guide, (X,))
    assert can_be_keyed(model, guide, (X[:1],))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (-torch.inf, "datum 6: all 4 draws of the guide have zero density"),
        (torch.inf, "site 'bar': log density is NaN or infinite for datum 6"),
        (torch.nan, "site 'bar': log density is NaN or infinite for datum 6"),
    ],
)
def test_impossible_data_are_named_by_their_numbers(value, told):
    model, guide = Pair(bar=value), Pair(guide=True)
    weights = Weights(model, guide, Programs(model, guide), particles=4, chunk=2, compile=False)
    with pytest.raises(FloatingPointError, match=told):
        weights((X,), datum_keys((X,)), start=5)
