"""VAEs of incomplete data: against Gaussian algebra, against the VAE of complete data, and with NaN in the gaps."""

from functools import partial

import odds
import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, step_on
from torch import nn

import ppl_vae as pv
from ppl_vae import nets
from ppl_vae.distributions import PartlyObserved, partly_observed
from ppl_vae.guides.missing import Missing as Guide
from ppl_vae.guides.normal import Normal
from ppl_vae.models.missing import Missing
from ppl_vae.models.vae import VAE
from ppl_vae.programs import Programs

DOUBLE = torch.float64
SIZES = {"x_dim": 5, "z_dim": 2, "hidden": (8,)}
# None, some, one and all of the values observed.
OBSERVED = torch.tensor([[0, 0, 0, 0, 0], [1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
X = torch.linspace(-1.5, 2.0, 20, dtype=DOUBLE).sin().reshape(4, 5)
HOLES = X.masked_fill(~OBSERVED, torch.nan)


def linear_gaussian():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 5), nets.ToNormalOneScale(0.6))
    return Missing(**SIZES, decoder=decoder).double()


def marginal(model):
    """Mean and covariance of x."""
    linear, head = model.decoder
    noise = (2 * head.log_scale).exp() * torch.eye(5, dtype=DOUBLE)
    return linear.bias.detach(), (linear.weight @ linear.weight.mT + noise).detach()


def log_observed(model, x):
    """log p(x_observed) in closed form, ``(B,)``."""
    mean, covariance = marginal(model)
    rows = []
    for row, seen in zip(x, OBSERVED, strict=True):
        among = dist.MultivariateNormal(mean[seen], covariance[seen][:, seen]) if seen.any() else None
        rows.append(among.log_prob(row[seen]) if among else torch.zeros((), dtype=DOUBLE))
    return torch.stack(rows)


class ExactGuide(nn.Module):
    """The posterior given what was observed, by one regression a datum."""

    def __init__(self, model, widened=1.0):
        super().__init__()
        self.parts, self.widened = list(model.decoder), widened

    def forward(self, x, observed):
        linear, head = self.parts
        weight, variance = linear.weight.detach(), (2 * head.log_scale.detach()).exp()
        seen = observed.to(DOUBLE)
        precision = torch.eye(2, dtype=DOUBLE) + torch.einsum("bd,di,dj->bij", seen, weight, weight) / variance
        residual = torch.where(observed, x - linear.bias.detach(), 0) @ weight / variance
        loc = torch.linalg.solve(precision, residual.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision / self.widened))


def test_weights_under_the_exact_posterior_are_the_likelihood_of_what_was_observed():
    model = linear_gaussian()
    exact = log_observed(model, X)
    log_w = pv.weigh(model, ExactGuide(model), (HOLES, OBSERVED), particles=3).log_w
    torch.testing.assert_close(log_w, exact.expand(3, 4), rtol=1e-12, atol=1e-12)
    evaluation = pv.evaluate(model, ExactGuide(model), (HOLES, OBSERVED), particles=10)
    torch.testing.assert_close(evaluation.log_px, exact, rtol=1e-12, atol=1e-12)


def test_imputation_has_the_conditional_mean_and_covariance():
    model, rows = linear_gaussian(), 300
    mean, covariance = marginal(model)
    for x, seen in zip(HOLES[:3], OBSERVED[:3], strict=True):
        gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, ~seen]).mT
        wanted = mean[~seen] + gain @ (x[seen] - mean[seen])
        spread = covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]
        batch, method = (x.expand(rows, 5), seen.expand(rows, 5)), partial(pv.imputing.resampled, particles=1000)
        guide = ExactGuide(model, widened=2.0)
        found = pv.impute(model, guide, batch, batch[1], method=method, draws=1, batch_size=rows)
        odds.assert_mean(found.mean[:, ~seen], wanted)
        centred = found.draws[0][:, ~seen] - wanted
        odds.assert_mean((centred.unsqueeze(-1) * centred.unsqueeze(-2)).flatten(1), spread.flatten())


@pytest.mark.parametrize("objective", [pv.objectives.iwae, pv.objectives.miwae, pv.objectives.elbo_kl])
def test_nothing_reads_what_was_not_observed(objective):
    """Bounds, gradients and what steps leave are the same, whatever stands in the gaps."""
    torch.manual_seed(0)
    finals = []
    for filling in (torch.nan, 0.0, 1e30, torch.inf):
        torch.manual_seed(0)
        model, guide = linear_gaussian(), Guide(**SIZES).double()
        batch = X.masked_fill(~OBSERVED, filling), OBSERVED
        pv.check(model, guide, batch)
        step = step_on(model, guide, batch, objective, particles=4)
        torch.manual_seed(1)
        bounds = [step(batch).bound for _ in range(2)]
        assert all(bound.isfinite() for bound in bounds)
        finals.append([*bounds, *Programs(model, guide).parameters().values()])
    for other in finals[1:]:
        assert all(torch.equal(found, wanted) for found, wanted in zip(other, finals[0], strict=True))


def test_fit_and_evaluate_take_data_with_gaps():
    model, guide = linear_gaussian(), Guide(**SIZES).double()
    torch.manual_seed(2)
    mean, covariance = marginal(model)
    x = dist.MultivariateNormal(mean + 2, 0.3 * covariance).sample((200,))
    observed = torch.rand(200, 5) > 0.3
    data = x.masked_fill(~observed, torch.nan), observed
    before = pv.evaluate(model, guide, data, particles=20).mean
    fast = partial(torch.optim.Adam, lr=1e-2)
    fit = pv.fit(
        model, guide, data, objective=pv.objectives.iwae, particles=5, epochs=10, batch_size=50, optimizer=fast
    )
    assert all(torch.tensor(fit.history["train_bound"]).isfinite())
    assert pv.evaluate(model, guide, data, particles=20).mean > before + 1


def test_with_everything_observed_it_is_the_vae():
    torch.manual_seed(0)
    vae, normal = VAE(**SIZES).double(), Normal(**SIZES).double()
    model = Missing(**SIZES, decoder=vae.decoder)
    guide = Guide(**SIZES, encoder=nets.Reads(normal.encoder, 0))
    x = (X > 0).to(DOUBLE)
    given = {(vae, normal): x, (model, guide): (x, torch.ones_like(x, dtype=torch.bool))}
    found = []
    for (p, q), batch in given.items():
        torch.manual_seed(1)
        bound = pv.objectives.iwae(pv.weigh(p, q, batch, particles=5))
        found.append([bound, *torch.autograd.grad(bound.sum(), [*p.parameters(), *q.parameters()])])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_a_graph_serves_any_gaps(uncompiled):
    programs = [(linear_gaussian(), Guide(**SIZES).double()) for _ in range(2)]
    programs[1][1].load_state_dict(programs[0][1].state_dict())
    batches = [(HOLES, OBSERVED), (X, torch.ones_like(OBSERVED)), (HOLES[:2], OBSERVED[:2])]
    eager, captured = (step_on(*pair, batches[0], compile=i == 1) for i, pair in enumerate(programs))
    assert_steps_agree(eager, captured, batches)
    assert captured.ascent.count == 1


def test_convolutions_read_image_and_mask():
    torch.manual_seed(0)
    parts = nets.ConvEncoder((4, 6), 12), nets.ConvEncoder((4, 6), 12)
    guide = Guide(encoder=nets.Joined(parts, nn.ReLU(), nn.Linear(12, 4), nets.ToNormal()))
    model = Missing(z_dim=2, decoder=nn.Sequential(nets.ConvDecoder(2, (4, 6)), nets.ToBernoulli()))
    x = torch.ones(3, 24)
    x[:, ::3] = torch.nan
    pv.check(model, guide, (x, x.isfinite()))


# Distribution of one element, and a value in its support.
ELEMENTS = {
    "Normal": (dist.Normal(0.3, 1.2), 0.4),
    "Bernoulli": (dist.Bernoulli(logits=torch.tensor(0.3)), 1.0),
    "Poisson": (dist.Poisson(2.0), 3.0),
    "Gamma": (dist.Gamma(2.0, 1.5), 0.7),
    "Beta": (dist.Beta(2.0, 1.5), 0.7),
    "Uniform": (dist.Uniform(2.0, 3.0), 2.5),
    "Categorical": (dist.Categorical(logits=torch.tensor([0.1, 0.5])), 1),
    "LogNormal": (dist.LogNormal(0.3, 1.0), 2.0),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements_of_any_support_may_be_missing(name):
    element, value = ELEMENTS[name]
    fn, observed = element.expand([3]).to_event(1), torch.tensor([True, False, True])
    gap = torch.nan if isinstance(value, float) else -7
    x = torch.tensor([value, gap, value])
    partly = partly_observed(fn, observed)
    assert (partly.batch_shape, partly.event_shape, partly.sample().shape) == (fn.batch_shape, fn.event_shape, x.shape)
    torch.testing.assert_close(partly.log_prob(x), 2 * element.log_prob(torch.tensor(value)))
    assert isinstance(partly.base_dist, PartlyObserved)


def test_gradients_of_missing_elements_are_zero():
    loc, scale = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in ([0.1, 0.2], [1.0, 2.0]))
    partly = partly_observed(dist.Normal(loc, scale).to_event(1), torch.tensor([True, False]))
    slopes = torch.autograd.grad(partly.log_prob(torch.tensor([0.5, torch.nan], dtype=DOUBLE)), [loc, scale])
    for slope in slopes:
        assert slope.isfinite().all()
        assert slope[0] != 0
        assert slope[1] == 0


def test_refusals_name_what_was_given():
    with pytest.raises(TypeError, match=r"observed: expected a boolean tensor.*found torch.float32"):
        partly_observed(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.ones(2))
    with pytest.raises(ValueError, match=r"observed: expected .* shape \(2,\), found shape \(3,\)"):
        partly_observed(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.ones(3).bool())
    with pytest.raises(ValueError, match=r"a MultivariateNormal with event shape \(2,\) is no product over elements"):
        partly_observed(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.ones(2).bool())
    with pytest.raises(TypeError, match=r"observed: expected a boolean tensor.*found torch.float32"):
        pv.check(Missing(**SIZES), Guide(**SIZES), (torch.ones(3, 5), torch.ones(3, 5)))
