"""Vector quantisation: against a textbook VQ-VAE in plain torch, and codebooks against averages written out."""

import math
from functools import partial

import odds
import pytest
import torch
from capturing import assert_steps_agree, step_on, twins
from torch import nn
from torch.nn import functional as F

import ppl_vae as pv
from ppl_vae import distributions, nets, objectives
from ppl_vae.distributions.codes import pseudo_inverse
from ppl_vae.guides.nearest_code import NearestCode
from ppl_vae.laboratory import exact_gradient
from ppl_vae.models.discrete_vae import DiscreteVAE
from ppl_vae.models.vq_vae import VQVAE
from ppl_vae.weighing import weigh

SIZES = {"x_dim": 6, "z_dim": 3, "positions": 2, "codes": 7, "hidden": (5,)}
CODEBOOKS = {"averaged": nets.AveragedCodebook, "learned": nets.LearnedCodebook}


def made(codebook="averaged", rows=9, options=None, **sizes):
    """Return a small model with its guide, and data, in float64."""
    torch.manual_seed(0)
    sizes = SIZES | sizes
    book = CODEBOOKS[codebook](sizes["codes"], sizes["z_dim"], **(options or {}))
    model = VQVAE(**sizes, codebook=book)
    guide = NearestCode(model, x_dim=sizes["x_dim"], hidden=sizes["hidden"])
    x = torch.bernoulli(torch.full((rows, sizes["x_dim"]), 0.4)).double()
    return model.double(), guide.double(), x


def textbook(model, guide, x, codebook):
    """Return log p(x | c), the two squared distances and the codes, as the paper has them."""
    z = guide.encoder(x)
    codes = ((z.unsqueeze(-2) - codebook) ** 2).sum(-1).argmin(-1)
    e = codebook[codes]
    straight = z + (e - z).detach()
    logits = model.decoder[1](straight.flatten(1))
    log_px = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    return log_px, ((z - e.detach()) ** 2).sum((1, 2)), ((z.detach() - e) ** 2).sum((1, 2)), codes


def assert_close(found, wanted, tolerance=1e-10):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("bound", [objectives.elbo, objectives.elbo_kl, objectives.iwae, objectives.stl])
@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_gradients_are_those_of_the_textbook(codebook, bound, particles):
    """Of encoder, decoder and codebook; the bound is log p(x | c) - positions log C, and has no penalty in it."""
    model, guide, x = made(codebook, options={"commitment": 0.7})
    vectors = model.codebook.vectors
    parameters = [*model.parameters(), *guide.parameters()]
    log_px, commitment, distance, _ = textbook(model, guide, x, vectors)
    loss = log_px - 0.7 * commitment - (distance if codebook == "learned" else 0)
    wanted = torch.autograd.grad(loss.sum(), parameters)
    estimate = pv.estimation.estimate(bound, model, guide, x, particles)
    found = torch.autograd.grad(estimate.surrogate.sum(), parameters)
    assert_close(estimate.value, log_px.detach() - 2 * math.log(7))
    assert_close(estimate.penalties["penalty_commitment"], -0.7 * commitment.detach())
    if codebook == "learned":
        assert_close(estimate.penalties["penalty_codebook"], -distance.detach())
    assert (codebook == "learned") == ("penalty_codebook" in estimate.penalties)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other)


def test_the_divergence_is_the_constant_of_the_bound():
    model, guide, x = made()
    particles = weigh(model, guide, x, 2, kl=True)
    assert_close(particles.kl["c"].expand(2, 9), torch.full((2, 9), 2 * math.log(7), dtype=torch.float64))
    assert_close(particles.log_q["c"], torch.zeros(2, 9, dtype=torch.float64))


def test_the_bound_is_below_the_likelihood_and_above_that_of_any_other_code():
    """Of all point masses at one position, against the sum over both positions' codes."""
    model, guide, x = made()
    model.eval()
    corners = torch.eye(7, dtype=torch.float64)
    every = torch.stack([torch.stack([a, b]) for a in corners for b in corners])
    log_px = (model.decoder(model.codebook(every).unsqueeze(1)).log_prob(x) - 2 * math.log(7)).logsumexp(0)
    assert (objectives.elbo(weigh(model, guide, x)) < log_px).all()


@pytest.mark.parametrize(("codes", "z_dim"), [(7, 3), (3, 3), (2, 5), (40, 16)])
def test_a_gradient_goes_straight_through_as_far_as_codes_reach(codes, z_dim):
    """With enough codes unchanged; with fewer than dimensions, its part in the span of the codes."""
    torch.manual_seed(0)
    codebook = torch.randn(codes, z_dim, dtype=torch.float64)
    z = torch.randn(4, 3, z_dim, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(4, 3, z_dim, dtype=torch.float64)
    c = distributions.NearestCode(z, codebook).rsample()
    (found,) = torch.autograd.grad((slope * (c @ codebook)).sum(), z)
    onto = torch.linalg.pinv(codebook) @ codebook
    assert_close(found, slope @ onto, 1e-9)
    if codes >= z_dim:
        assert_close(found, slope, 1e-9)
    assert torch.equal(c, c.round())
    assert torch.equal(c.argmax(-1), torch.cdist(z.detach(), codebook.expand(4, -1, -1)).argmin(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pseudo_inverses_are_those_by_singular_values(dtype):
    """Of matrices that are tall, wide, of less than full rank, and zero."""
    torch.manual_seed(0)
    tall, low = torch.randn(60, 9, dtype=dtype), torch.randn(9, 2, dtype=dtype) @ torch.randn(2, 5, dtype=dtype)
    for matrix in (tall, tall.T, low, torch.zeros(4, 3, dtype=dtype)):
        torch.testing.assert_close(
            pseudo_inverse(matrix),
            torch.linalg.pinv(matrix, rtol=1e-3),
            rtol=1e-4,
            atol=1e-10 if dtype.itemsize > 4 else 1e-5,
        )


def test_without_decay_codes_become_the_means_of_what_they_are_given():
    """And those that are given nothing stay, unless they start again."""
    model, guide, x = made(options={"decay": 0.0, "restart": 0.0})
    before = model.codebook.newest.clone()
    z = guide.encoder(x).detach().flatten(0, 1)
    codes = torch.cdist(z, before).argmin(-1)
    weigh(model, guide, x, particles=3)
    wanted = torch.stack([z[codes == j].mean(0) if (codes == j).any() else before[j] for j in range(7)])
    assert 1 < len(codes.unique()) < 7
    assert_close(model.codebook.newest, wanted)
    assert_close(model.codebook.counts, torch.bincount(codes, minlength=7).double())


def test_averages_are_those_of_all_batches_with_falling_weights():
    """Each vector is the mean over all past assignments, one of t batches ago with a weight of decay^t."""
    decay, codebook = 0.8, nets.AveragedCodebook(5, 2, decay=0.8, restart=0.0).double()
    torch.manual_seed(0)
    sums, counts = torch.zeros(5, 2).double(), torch.zeros(5).double()
    for _ in range(6):
        z = torch.randn(30, 4, 2, dtype=torch.float64)
        assigned = F.one_hot(torch.cdist(z.flatten(0, 1), codebook.newest).argmin(-1), 5).double()
        codebook.nearest(z)
        sums, counts = decay * sums + assigned.T @ z.flatten(0, 1), decay * counts + assigned.sum(0)
        used = counts > 0
        assert_close(codebook.newest[used], (sums / counts.unsqueeze(1))[used])
        assert_close(codebook.counts, (1 - decay) * counts)


def test_a_step_decodes_by_the_codebook_that_it_assigned_by():
    """The textbook moves averages after the step; evaluation takes the newest."""
    model, guide, x = made()
    old = model.codebook.newest.clone()
    log_w = weigh(model, guide, x).log_w[0]
    assert not torch.equal(model.codebook.newest, old)
    assert_close(log_w, textbook(model, guide, x, old)[0] - 2 * math.log(7))
    model.eval()
    assert_close(weigh(model, guide, x).log_w[0], textbook(model, guide, x, model.codebook.newest)[0] - 2 * math.log(7))


def test_unused_codes_start_again_from_vectors_of_the_batch():
    model, guide, x = made(codes=30, options={"decay": 0.9, "restart": 0.05})
    before = model.codebook.newest.clone()
    z = guide.encoder(x).detach().flatten(0, 1)
    unused = ~torch.isin(torch.arange(30), torch.cdist(z, before).argmin(-1))
    weigh(model, guide, x)
    now, counts = model.codebook.newest, model.codebook.counts
    assert unused.sum() > 10
    assert (torch.cdist(now[unused], z).min(1).values < 1e-12).all()
    assert len(now[unused].unique(dim=0)) > 3
    assert_close(counts[unused], torch.full_like(counts[unused], 0.1 * 18 / 30))
    weigh(model, guide, x)
    moved = torch.cdist(model.codebook.newest, now).diagonal()[unused]
    assert (moved < 1).all()  # they have an average use now, and are not started again


def test_evaluation_changes_nothing():
    model, guide, x = made()
    weigh(model, guide, x)
    before = {name: buffer.clone() for name, buffer in model.state_dict().items()}
    model.eval(), guide.eval()
    weigh(model, guide, x, particles=3)
    model.train(), guide.train()
    pv.check(model, guide, x)
    pv.evaluate(model, guide, x, particles=2, progress=False, compile=False)
    pv.perplexity(guide, x)
    pv.sample(model, like=x, n=3)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.state_dict().items())


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_step_counts_its_batch_once(chunk):
    """Checks, preparations, particles and chunks of them count for nothing."""
    model, guide, x = made(options={"decay": 0.9, "restart": 0.0})
    uses = torch.bincount(torch.cdist(guide.encoder(x).flatten(0, 1), model.codebook.newest).argmin(-1), minlength=7)
    step_on(model, guide, x, objectives.elbo, 4, chunk=chunk)(x)
    assert_close(model.codebook.counts, 0.1 * uses.double())


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_captured_steps_are_the_eager_ones(codebook, uncompiled):
    """Averages, counts and restarts too, for batches of every size."""
    model, guide, x = made(codebook, rows=9)
    (model, guide), (other, others_guide) = twins(lambda: (model, guide))
    eager, captured = step_on(model, guide, x), step_on(other, others_guide, x, compile=True)
    assert_steps_agree(eager, captured, [x, x[:5], x, x[2:]])
    assert captured.ascent.count == 1


REFUSED = ["score_function", "rws", "tvo", "tvo_upper", "dreg", "cubo"]


@pytest.mark.parametrize("name", REFUSED)
def test_objectives_that_need_the_density_are_refused(name):
    """Those that take draws as given, upper bounds, and gradients that rest on the density's own."""
    model, guide, x = made()
    with pytest.raises(ValueError, match=r"site 'c'.*train on elbo"):
        pv.estimation.estimate(objectives.every()[name], model, guide, x, 3)


def test_estimators_that_need_the_density_are_refused():
    model, guide, x = made()
    for estimator in (objectives.WakeSleep(), objectives.EUBO(guide)):
        with pytest.raises(ValueError, match="site 'c' \\(NearestCode\\) learns through its draws alone"):
            estimator.estimate(model, guide, x, 3)
    with pytest.raises(ValueError, match="site 'c' is a NearestCode, whose gradient goes straight through its draws"):
        exact_gradient(model, guide, x)


def test_a_model_without_a_codebook_is_refused():
    with pytest.raises(TypeError, match="model: DiscreteVAE has no codebook"):
        NearestCode(DiscreteVAE())


@pytest.mark.parametrize(("options", "name"), [({"decay": 1.0}, "decay"), ({"restart": -0.1}, "restart")])
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=f"{name}: expected a number from 0 to less than 1"):
        nets.AveragedCodebook(**options)
    for make in CODEBOOKS.values():
        with pytest.raises(ValueError, match="commitment: expected a number of at least 0, found -1"):
            make(commitment=-1)


def test_training_uses_the_codebook():
    """Data of four kinds: the nearest codes tell them apart, and the bound comes to its constant."""
    torch.manual_seed(0)
    x = torch.eye(4).repeat(25, 1).repeat_interleave(3, 1)
    model = VQVAE(x_dim=12, z_dim=2, positions=1, codes=8, hidden=(16,))
    guide = NearestCode(model, x_dim=12, hidden=(16,))
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=0.03)
    step = pv.svi_step(model, guide, optimizer=optimizer, compile=False)
    for _ in range(150):
        info = step(x)
    assert info.bound > -math.log(8) - 0.2
    assert 3.9 < pv.perplexity(guide, x).values["c"] <= 8


def test_grids_and_mixed_precision():
    model = VQVAE(z_dim=3, codes=5, decoder=nn.Sequential(nets.GridDecoder(3, (7, 5)), nets.ToBernoulli()))
    model.positions, model.prior = 4, pv.priors.UniformCodes(4, 5)
    guide = NearestCode(model, encoder=nets.GridEncoder((7, 5), 3))
    x = torch.bernoulli(torch.full((6, 35), 0.5))
    pv.check(model, guide, x)
    with torch.autocast("cpu", torch.bfloat16):
        bound = objectives.elbo(weigh(model, guide, x))
    assert bound.dtype is torch.float32
    assert model.codebook.newest.isfinite().all()
    assert torch.isclose(bound, objectives.elbo(weigh(model, guide, x)), rtol=0.2).all()


def test_imputation_by_the_prior_where_the_guide_never_goes():
    model, guide, x = made(rows=4)
    observed = torch.arange(6) < 3
    method = partial(pv.imputing.resampled, particles=20_000, defensive=0.5)
    found = pv.impute(model, guide, x, observed, draws=3, method=method)
    codes = F.one_hot(torch.cartesian_prod(*[torch.arange(7)] * 2), 7).double()
    pixels = model.eval().decoder(model.codebook(codes)).base_dist
    log_p = pixels.log_prob(x.unsqueeze(1))[..., :3].sum(-1) - 2 * math.log(7)
    exact = log_p.softmax(-1) @ pixels.mean
    # Means lie between 0 and 1, and half of the particles are the prior's; 0.005 if all weights were one.
    odds.assert_agree(found.mean[:, 3:], exact[:, 3:], torch.full((4, 3), 0.01).double())


def test_surgery_leaves_penalties_out():
    model, guide, x = made()
    model.eval()
    codes = guide.nearest(guide.encoder(x)).base_dist.code
    frequencies = torch.unique(codes.flatten(1), dim=0, return_counts=True)[1] / len(x)
    entropy = -(frequencies * frequencies.log()).sum()
    surgery = pv.elbo_surgery(model, guide, x)
    torch.testing.assert_close(torch.tensor(surgery.marginal_kl.mean).to(entropy), 2 * math.log(7) - entropy)
