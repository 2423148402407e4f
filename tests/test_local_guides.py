"""Guides that see to each datum: free parameters, and steps up its own ELBO. Against exact diagonal posteriors."""

from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from given import Given
from torch import nn

import ppl_vae as pv
from ppl_vae.distributions import sign_points
from ppl_vae.guides.local import Local
from ppl_vae.guides.normal import Normal
from ppl_vae.guides.semi_amortized import SemiAmortized
from ppl_vae.laboratory import exact_gradient
from ppl_vae.models.hierarchical import Hierarchical
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.missing import Missing
from ppl_vae.models.vae import VAE

N = 12
SMALL = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}


@pytest.fixture
def model():
    """Columns that are alike, so that the posterior is far from diagonal."""
    model = LinearGaussian(6, 2).double()
    model.weight.data = torch.tensor([[0.8, 0.7], [-0.4, 0.3], [0.9, 0.5], [0.2, 0.3], [0.0, 0.6], [0.5, 0.1]]).double()
    return model


@pytest.fixture
def x():
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(1)).double()


def best(model, x):
    """Return means and scales of the best diagonal normal, and its ELBO: KL(q || p) is left."""
    posterior = model.posterior(x)
    precision = posterior.precision_matrix
    variances = 1 / precision.diagonal(dim1=-2, dim2=-1)
    gap = (precision.logdet() - precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)) / -2
    assert gap.min() > 0.01
    return posterior.mean.detach(), variances.expand(N, -1).sqrt().detach(), (model.log_px(x) - gap).detach()


def exact_elbo(model, guide, *batch):
    """Return the ELBO where log p(x, z) is quadratic in z, for normal guides, ``(B,)``."""
    trace = pyro.poutine.trace(guide).get_trace(*batch)
    normal, points = trace.nodes["z"]["fn"].base_dist, sign_points(2).double()
    z = normal.loc + normal.scale * torch.cat([points, -points]).unsqueeze(1)
    with Given({"z": z}):
        return pv.weigh(model, guide, batch, particles=len(z)).log_w.mean(0).detach()


def set_to(guide, loc, scale):
    raw = (scale - guide.head.min_scale).expm1().log()
    guide.table.weight.data.copy_(torch.cat([loc, raw], -1))


@pytest.mark.parametrize("dim", range(1, 10))
def test_points_average_like_normal_vectors(dim):
    """Moments up to the third; those of odd degree vanish between a point and its negative."""
    points = sign_points(dim)
    assert points.shape[1] == dim
    torch.testing.assert_close(points.mT @ points / len(points), torch.eye(dim))
    assert len(points) & (len(points) - 1) == 0
    assert len(points) < 2 * dim


def test_points_are_of_some_variables():
    with pytest.raises(ValueError, match="dim: expected at least 1 variable, found 0"):
        sign_points(0)


def test_the_best_local_guide_has_the_elbo_in_closed_form(model, x):
    loc, scale, elbo = best(model, x)
    guide, rows = Local(N, 2).double(), torch.arange(N)
    set_to(guide, loc, scale)
    torch.testing.assert_close(exact_elbo(model, guide, x, rows), elbo)
    slope = exact_gradient(model, guide, (x, rows), nodes=4)["guide.table.weight"]
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)


def test_fitted_to_each_datum_it_comes_there(model, x):
    loc, scale, elbo = best(model, x)
    model.requires_grad_(False)
    guide = Local(N, 2).double()
    for lr in (0.1, 0.01):
        pv.fit(
            model,
            guide,
            x,
            epochs=120,
            batch_size=N,
            particles=8,
            compile=False,
            optimizer=partial(torch.optim.Adam, lr=lr),
        )
    found = guide.head(guide.table.weight.detach()).base_dist
    torch.testing.assert_close(found.loc, loc, rtol=0, atol=0.15)
    torch.testing.assert_close(found.scale, scale, rtol=0, atol=0.15)
    rows = torch.arange(N)
    torch.testing.assert_close(exact_elbo(model, guide, x, rows), elbo, rtol=0, atol=0.02)


def test_no_encoder_has_a_better_elbo_for_any_datum(model, x):
    """What it lacks is the amortisation gap."""
    _, _, elbo = best(model, x)
    model.requires_grad_(False)
    guide = Normal(**SMALL).double()
    untrained = elbo - exact_elbo(model, guide, x)
    pv.fit(model, guide, x, epochs=100, batch_size=N, compile=False, optimizer=partial(torch.optim.Adam, lr=0.02))
    trained = elbo - exact_elbo(model, guide, x)
    assert untrained.min() > trained.min() > 0
    assert untrained.mean() > 2 * trained.mean()


def test_it_begins_at_the_prior(x):
    normal = Local(N, 3).head(Local(N, 3).table(torch.arange(N))).base_dist
    assert torch.equal(normal.loc, torch.zeros(N, 3))
    torch.testing.assert_close(normal.scale, torch.ones(N, 3), rtol=0, atol=2e-4)


def test_rows_that_a_step_has_not_stay_under_sparse_adam(model, x):
    guide = Local(N, 2, table=nn.Embedding(N, 4, sparse=True)).double()
    before = guide.table.weight.clone()
    optimizer = torch.optim.SparseAdam(list(guide.parameters()), lr=0.1)
    step = pv.svi_step(model, guide, optimizer=optimizer, compile=False)
    step((x[:4], torch.arange(4)))
    step((x[4:6], torch.tensor([7, 9])))
    assert (guide.table.weight != before).any(1).nonzero().flatten().tolist() == [0, 1, 2, 3, 7, 9]
    pv.variational_em(model, guide, x, guide_optimizer=optimizer, epochs=1, batch_size=5)
    assert (guide.table.weight != before).any(1).all()


UNSEEN = {
    "more data than rows": (
        lambda model, guide, x: pv.fit(model, guide, torch.cat([x, x[:4]]), epochs=1),
        r"guide: it has nothing for row 15 of the data .*give it at least 16 rows",
    ),
    "a row beyond": (
        lambda model, guide, x: pv.check(model, guide, (x[:2], torch.tensor([3, N]))),
        r"guide: it has nothing for row 12 of the data .*give it at least 13 rows",
    ),
    "no rows": (
        lambda model, guide, x: pv.evaluate(model, guide, x, particles=2),
        r"data: a program names index.*pass \(x, torch\.arange\(len\(x\)\)\)",
    ),
    "data to validate on": (
        lambda model, guide, x: pv.fit(model, guide, x, valid=x, epochs=1),
        r"valid: a program names index.*nothing for other data",
    ),
    "dreams": (
        lambda model, guide, x: pv.objectives.WakeSleep().estimate(model, guide, (x, torch.arange(N))),
        r"guide: it names index, .* data that the model draws have no row.*WakeSleep\(sleep=0\)",
    ),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_unseen_data_are_refused(case, model, x):
    verb, message = UNSEEN[case]
    with pytest.raises(ValueError, match=message):
        verb(model, Local(N, 2).double(), x)


def test_awake_rows_learn_without_dreams(model, x):
    guide = Local(N, 2).double()
    pv.objectives.WakeSleep(sleep=0.0).estimate(model, guide, (x, torch.arange(N)), 3).surrogate.sum().backward()
    assert guide.table.weight.grad.abs().amin() > 0


# Semi-amortised.


def climbing(model, encoder=None, **options):
    torch.manual_seed(2)
    return SemiAmortized(model, **SMALL, encoder=encoder, **options).double()


def test_without_steps_it_is_the_encoder(model, x):
    guide = climbing(model, steps=0)
    normal = Normal(**SMALL, encoder=guide.encoder).double()
    log_w = []
    for program in (guide, normal):
        torch.manual_seed(0)
        log_w.append(pv.weigh(model, program, x, particles=3).log_w)
    assert torch.equal(*log_w)


def test_steps_rise_to_the_best_diagonal_posterior(model, x):
    _, _, elbo = best(model, x)
    encoder = climbing(model).encoder
    elbos = [exact_elbo(model, climbing(model, encoder, steps=t, step_size=0.1, pairs=2), x) for t in range(0, 12, 2)]
    for before, after in pairwise(elbos):
        assert (after > before).all()
    there = exact_elbo(model, climbing(model, encoder, steps=60, step_size=0.5, pairs=2), x)
    torch.testing.assert_close(there, elbo, rtol=0, atol=1e-6)
    few = exact_elbo(model, climbing(model, encoder, steps=60, step_size=0.1, pairs=1), x)
    torch.testing.assert_close(few, elbo, rtol=0, atol=0.02)


def test_no_step_is_longer_than_its_size(x):
    model = LinearGaussian(6, 2).double()
    model.weight.data *= 100
    guide = climbing(model, steps=3, step_size=0.2)
    assert guide.climbed(torch.zeros(N, 2).double(), torch.ones(N, 2).double(), x).abs().max() <= 0.6


def smooth():
    torch.manual_seed(1)
    decoder = nn.Sequential(pv.nets.MLP(2, (8,), 6, nn.Tanh), pv.nets.ToBernoulli())
    model = VAE(**SMALL, decoder=decoder).double()
    encoder = nn.Sequential(pv.nets.MLP(6, (8,), 4, nn.Tanh), pv.nets.ToNormal())
    return model, climbing(model, encoder, steps=4)


def test_gradients_go_through_the_steps(x):
    """Against differences, in a direction in all parameters; without the steps' own part they would be others."""
    model, guide = smooth()
    parameters, x = [*model.parameters(), *guide.parameters()], (x > 0).double()

    def elbo():
        torch.manual_seed(5)
        return pv.objectives.elbo(pv.weigh(model, guide, x, particles=3)).mean()

    slopes = torch.autograd.grad(elbo(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    ends = []
    for sign in (1, -2):
        for p, d in zip(parameters, direction, strict=True):
            p.data += sign * 1e-5 * d
        ends.append(elbo().item())
    found = sum((slope * d).sum() for slope, d in zip(slopes, direction, strict=True)).item()
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_it_climbs_where_no_gradients_are_taken(x):
    model, guide = smooth()
    x, log_w = (x > 0).double(), []
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        torch.manual_seed(0)
        with context():
            log_w.append(pv.weigh(model, guide, x, particles=2).log_w)
    for found in log_w[1:]:
        assert not found.requires_grad
        torch.testing.assert_close(found, log_w[0].detach())
    assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])


def test_steps_are_taken_once_for_all_particles(x):
    model, guide = smooth()
    shapes = []
    model.decoder.register_forward_hook(lambda module, given, out: shapes.append(tuple(given[0].shape)))
    pv.weigh(model, guide, (x > 0).double(), particles=7)
    assert shapes == [(2, N, 2)] * 4 + [(7, N, 2)]


def test_evaluations_do_not_depend_on_batches_and_chunks(x):
    model, guide = smooth()
    x = (x > 0).double()
    found = [
        pv.evaluate(model, guide, x, particles=20, batch_size=size, chunk=chunk).log_px
        for size, chunk in ((N, 20), (5, 3))
    ]
    torch.testing.assert_close(*found)


class Labelled(VAE):
    """With a label, which the steps see."""

    def forward(self, x, y):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(3.0 * y.unsqueeze(-1), 1.0).expand([x.shape[0], 2]).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)


def test_steps_see_what_else_the_model_takes(x):
    model, x = Labelled(**SMALL).double(), (x > 0).double()
    guide = climbing(model, steps=10)
    draws = [pv.weigh(model, guide, (x, y * torch.ones(N).double())).values["z"].mean() for y in (-1.0, 1.0)]
    assert draws[1] > draws[0] + 1


def test_steps_refuse_a_mask_since_the_encoder_would_read_missing_values(x):
    model = Missing(**SMALL).double()
    with pytest.raises(ValueError, match="observed: the encoder would read what is missing"):
        pv.weigh(model, climbing(model, steps=1), ((x > 0).double(), x > 1))


class Extra(VAE):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(y.unsqueeze(-1), 1.0).expand([x.shape[0], 2]).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)


@pytest.mark.parametrize("other", [Extra, Hierarchical])
def test_models_with_other_latents_are_refused(other, x):
    model = other(**SMALL).double()
    with pytest.raises(ValueError, match=r"model: its latents are not 'z' alone \(\['(y|z2)'"):
        climbing(model)(x)
