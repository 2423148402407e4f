"""Classes of which some are known: against the paper's bounds by hand, Pyro, sums over classes and quadrature."""

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, step_on, twins
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

import ppl_vae as pv
from ppl_vae import nets
from ppl_vae.estimation import estimate
from ppl_vae.guides.semi_supervised import SemiSupervised as Guide
from ppl_vae.models.semi_supervised import SemiSupervised
from ppl_vae.programs import Programs

DOUBLE = torch.float64
CLASSES = torch.arange(3)
LABELS = {
    "labelled": torch.tensor([0, 2, 1, 0]),
    "unlabelled": torch.tensor([-1, -1, -1, -1]),
    "mixed": torch.tensor([-1, 2, -1, 0]),
}
X = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1]], dtype=DOUBLE)

of_each_batch = pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)


def pair(z_dim=2, **options):
    torch.manual_seed(0)
    sizes = {"x_dim": 6, "z_dim": z_dim, "y_dim": 3, "hidden": (8,)}
    model, guide = SemiSupervised(**sizes).double(), Guide(**sizes, **options).double()
    model.logits.data.copy_(torch.tensor([0.4, -0.3, 0.1]))
    return model, guide


def vectors(c, *shape):
    """The one-hot vector of a class, written out."""
    return torch.eye(3, dtype=DOUBLE)[c].expand(*shape, 3)


def noise(guide, x, z):
    """What was drawn where styles ``(3, K, B, z_dim)`` came out."""
    q = [guide.encoder(x, vectors(c, len(x))).base_dist for c in CLASSES]
    return torch.stack([(z[c] - q[c].loc) / q[c].scale for c in CLASSES]).detach()


def of_class(c, model, guide, x, eps, closed):
    """L(x, c): one class's bound, with a closed-form divergence or without."""
    q = guide.encoder(x, vectors(c, len(x))).base_dist
    z = q.loc + q.scale * eps
    recognised = torch.distributions.Normal(q.loc, q.scale)
    prior = torch.distributions.Normal(torch.zeros_like(q.loc), 1.0)
    divergence = torch.distributions.kl_divergence(recognised, prior) if closed else None
    divergence = recognised.log_prob(z) - prior.log_prob(z) if divergence is None else divergence
    logits = model.decoder(z, vectors(c, *z.shape[:-1])).base_dist.logits
    likelihood = (x * logits - nn.functional.softplus(logits)).sum(-1)
    return model.logits.log_softmax(-1)[c] + (likelihood - divergence.sum(-1)).mean(0)


def by_hand(model, guide, x, y, eps, closed=False):
    """The bounds of Kingma et al. 2014, equations 6 and 7, and what equation 9 adds."""
    bounds = torch.stack([of_class(c, model, guide, x, eps[c], closed) for c in CLASSES], -1)
    q = guide.classifier(x).softmax(-1)
    unlabelled = (q * bounds).sum(-1) - (q * q.log()).sum(-1)
    rows, labelled = torch.arange(len(x)), y >= 0
    bound = torch.where(labelled, bounds[rows, y], unlabelled)
    return bound, torch.where(labelled, guide.alpha * q[rows, y].log(), 0.0)


@of_each_batch
@pytest.mark.parametrize("name", ["elbo", "elbo_kl"])
def test_bound_and_gradient_are_the_papers(name, y):
    """A mixed batch has the rows of the two."""
    model, guide = pair(alpha=0.7)
    objective = getattr(pv.objectives, name)
    pv.check(model, guide, (X, y))
    torch.manual_seed(3)
    found = estimate(objective, model, guide, (X, y), 5)
    torch.manual_seed(3)
    drawn = pv.weigh(model, guide, (X, y), 5)
    bound, penalty = by_hand(model, guide, X, y, noise(guide, X, drawn.values["z"]), closed=name == "elbo_kl")
    torch.testing.assert_close(found.value, bound.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        drawn.penalties["penalty_classifier"].expand(5, 4), penalty.expand(5, 4), rtol=1e-12, atol=0
    )
    parameters = [*Programs(model, guide).parameters().values()]
    wanted = torch.autograd.grad((bound + penalty).sum(), parameters, allow_unused=True)
    for ours, theirs in zip(torch.autograd.grad(found.surrogate.sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, rtol=1e-11, atol=1e-12)


@of_each_batch
def test_pyros_elbo_agrees_at_the_same_seed(y):
    model, guide = pair(alpha=0.7)
    parameters = [*Programs(model, guide).parameters().values()]
    theirs, ours = TraceEnum_ELBO(max_plate_nesting=1), pv.ELBO(pv.objectives.elbo)
    losses = []
    for loss in (theirs, ours):
        torch.manual_seed(1)
        losses.append(loss.differentiable_loss(model, guide, X, y))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for found, wanted in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


class Style(nn.Module):
    """A guide of the style alone."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nets.MLP(6, (8,), 4), nets.ToNormal())

    def forward(self, x, y):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encoder(x))


@of_each_batch
def test_the_model_sums_over_the_classes_that_a_label_leaves_open(y):
    model, guide = pair()[0], Style().double()
    marked = config_enumerate(model)
    pv.check(marked, guide, (X, y))
    drawn = pv.weigh(marked, guide, (X, y), particles=4)
    z = drawn.values["z"]
    by_class = [model.decoder(z, vectors(c, 4, 4)).log_prob(X) + model.logits.log_softmax(-1)[c] for c in CLASSES]
    joint = torch.stack(by_class)
    of_label = joint.gather(0, y.clamp_min(0).expand(1, 4, 4))[0]
    log_px = torch.where(y >= 0, of_label, joint.logsumexp(0))
    prior = dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1).log_prob(z)
    torch.testing.assert_close(drawn.log_w, log_px + prior - drawn.log_q["z"], rtol=1e-12, atol=1e-12)


def test_iwae_sums_over_classes_in_the_model_alone():
    model, guide = pair()
    for y in LABELS.values():
        step_on(config_enumerate(model), Style().double(), (X, y), pv.objectives.iwae)((X, y))
    step = step_on(model, guide, (X, LABELS["unlabelled"]), pv.objectives.iwae)
    with pytest.raises(ValueError, match=r"site 'y' is enumerated in the guide.*mark it in the model"):
        step((X, LABELS["unlabelled"]))


def integrated(model, x):
    """log p(x, y) of each class ``(N, 3)``, by quadrature over a style of one dimension."""
    grid = torch.linspace(-8, 8, 2001, dtype=DOUBLE)
    weight = dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0).log_prob(grid) + torch.tensor(16 / 2000).log()
    by_class = []
    for c in CLASSES:
        fn = model.decoder(grid[:, None, None], vectors(c, len(grid), 1))
        by_class.append((fn.log_prob(x) + weight[:, None]).logsumexp(0) + model.logits.log_softmax(-1)[c])
    return torch.stack(by_class, -1).detach()


def test_evaluate_gives_joint_and_marginal_likelihoods_and_weights_the_class():
    model, guide = pair(z_dim=1)
    guide.encoder.rest[-2][-1].bias.data[1] = 2.0  # wider than the posterior, so that weights have a variance
    exact = integrated(model, X)
    for y in LABELS.values():
        found = pv.evaluate(model, guide, (X, y), particles=2000)
        wanted = torch.where(y >= 0, exact[torch.arange(4), y], exact.logsumexp(-1))
        odds.assert_agree(found.log_px, found.log_px_error, wanted)
    drawn = pv.weigh(model, guide, (X.repeat(500, 1), LABELS["unlabelled"].repeat(500)), particles=100)
    posterior = (drawn.log_w + drawn.log_mass).logsumexp(-2).softmax(0).mT.reshape(500, 4, 3)
    # A ratio of means is biased by 1 / K, far below what 500 of them resolve here.
    odds.assert_mean(posterior.detach(), exact.softmax(-1))


def test_draws_have_the_labels_that_are_given_and_any_class_elsewhere():
    model, _ = pair()
    y = torch.tensor([-1, 0, 1, 2]).repeat(5000)
    drawn = pv.sample(model, like=(torch.zeros(len(y), 6, dtype=DOUBLE), y), n=len(y))
    assert torch.equal(drawn["y"][y >= 0], y[y >= 0])
    odds.assert_mean(vectors(drawn["y"][y < 0], 5000), model.logits.softmax(-1).detach())
    of_class = model.decoder(drawn["z"][3::4], vectors(2, 5000)).mean.detach()
    odds.assert_mean(drawn["x"][3::4] - of_class, torch.zeros(6, dtype=DOUBLE))


def test_imputation_takes_labels_as_data():
    """Of pixels that the class alone decides."""
    model, guide = pair()
    model.decoder.parts[0].weight.data.zero_()
    observed = torch.zeros(6, dtype=torch.bool)
    for y in CLASSES:
        found = pv.impute(model, guide, (X, y.expand(4)), observed, draws=1)
        wanted = model.decoder(torch.zeros(2, dtype=DOUBLE), vectors(y)).mean.detach()
        torch.testing.assert_close(found.mean, wanted.expand(4, 6))


def test_classify_is_the_guides_q():
    model, guide = pair()
    drawn = pv.weigh(model, guide, (X, LABELS["unlabelled"]))
    torch.testing.assert_close(guide.classify(X), drawn.log_q["y"][:, 0].exp().mT)
    labelled = pv.weigh(model, guide, (X, LABELS["labelled"])).log_q["y"][:, 0].exp().mT
    assert torch.equal(labelled, torch.eye(3, dtype=DOUBLE)[LABELS["labelled"]])


def test_the_penalty_teaches_the_labels():
    model, guide = pair(alpha=2.0)
    batch = X, LABELS["labelled"]

    def log_q():
        return guide.classify(X).log()[torch.arange(4), LABELS["labelled"]].mean().item()

    before = log_q()
    info = step_on(model, guide, batch)(batch)
    assert info.penalties["penalty_classifier"] == pytest.approx(2 * before)
    assert log_q() > before


def test_one_graph_serves_labelled_unlabelled_and_mixed_batches(uncompiled):
    (model, guide), (other, others) = twins(pair)
    batches = [(X, y) for y in LABELS.values()]
    captured = step_on(other, others, batches[0], compile=True)
    assert_steps_agree(step_on(model, guide, batches[0]), captured, batches)
    assert captured.ascent.count == 1


@pytest.mark.parametrize("wrong", [3, -2, 10])
def test_labels_out_of_range_are_refused_by_validation_and_seen_without(wrong):
    model, guide = pair()
    y = torch.tensor([0, wrong, -1, 2])
    for verb in (pv.check, pv.weigh, lambda *given: pv.fit(*given, epochs=1, batch_size=4)):
        with pytest.raises(ValueError, match=rf"y: expected labels from 0 to 2, or -1 .*, found {wrong};.*y_dim"):
            verb(model, guide, (X, y))
    with pyro.validation_enabled(False):
        for program in (model, config_enumerate(model)):
            log_w = pv.weigh(program, guide, (X, y)).log_w
            assert log_w.isnan().any(0).any(0).tolist() == [False, True, False, False]


def test_convolutions_take_part():
    torch.manual_seed(0)
    decoder = nets.Joined(
        (nn.Linear(2, 16), nn.Linear(3, 16)), nn.ReLU(), nets.ConvDecoder(16, (8, 7)), nets.ToBernoulli()
    )
    joined = nets.Joined((nets.ConvEncoder((8, 7), 16), nn.Linear(3, 16)), nn.ReLU(), nn.Linear(16, 4), nets.ToNormal())
    model = SemiSupervised(z_dim=2, y_dim=3, decoder=decoder)
    guide = Guide(y_dim=3, classifier=nets.ConvEncoder((8, 7), 3), encoder=joined)
    for y in LABELS.values():
        pv.check(model, guide, (torch.ones(4, 56), y))


class Usual(nn.Module):
    """A guide in the style of Pyro's examples: what is given is not drawn."""

    def __init__(self):
        super().__init__()
        self.classifier = nets.MLP(6, (8,), 3)
        self.encoder = nets.JoinedMLP((6, 3), (8,), 4, nets.ToNormal())

    def forward(self, x, y=None):
        with pyro.plate("data", x.shape[0], dim=-1):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)), infer={"enumerate": "parallel"})
            pyro.sample("z", self.encoder(x, y))


class UsualModel(SemiSupervised):
    def forward(self, x, y=None):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.logits), obs=y)
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z, y), obs=x)


def test_pyros_usual_guide_begins_with_a_batch_without_labels():
    """A batch with labels leaves its classifier out, and cannot show that another will not."""
    torch.manual_seed(0)
    model, guide = UsualModel(x_dim=6, z_dim=2, y_dim=3, hidden=(8,)).double(), Usual().double()
    labelled = X, vectors(LABELS["labelled"], 4)
    with pytest.raises(pv.ContractError, match=r"guide.classifier.*if other batches use it.*let the first be one"):
        pv.check(model, guide, labelled)
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
    step = pv.svi_step(model, guide, optimizer=optimizer, compile=False)
    step(X)
    torch.manual_seed(1)
    info = step(labelled)
    assert info.bound.isfinite()
    assert all(p.grad is None or not p.grad.any() for p in guide.classifier.parameters())
