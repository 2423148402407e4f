"""Adversarial variational Bayes: the ratio that the critic learns, the gradient's theorem, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from capturing import assert_steps_agree, twins
from odds import assert_mean
from torch import nn
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae import distributions, nets
from ppl_vae.adversarial import adaptive_contrast
from ppl_vae.adversarial_steps import InferenceGame
from ppl_vae.guides.implicit import Implicit
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

F64 = torch.float64
SIZES = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}


class Line(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1); the posterior is N(x / 2, 1 / 2)."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.bias), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.bias, 1.0).to_event(1), obs=x)


class Shown(nn.Module):
    """A Gaussian guide of which draws are shown alone."""

    def __init__(self, loc, scale):
        super().__init__()
        self.loc, self.scale = (nn.Parameter(torch.as_tensor(part, dtype=F64).clone()) for part in (loc, scale))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            one = torch.ones(1).to(x)
            noise = pyro.sample("noise", dist.Normal(0 * one, one).to_event(1), infer={"is_auxiliary": True})
            pyro.sample(
                "z", distributions.Pushforward(self.at(self.loc, x) + self.at(self.scale, x) * noise, event_dim=1)
            )

    def at(self, parameter, x):
        return parameter


class ShownBySign(Shown):
    """Two Gaussians, for data below zero and above."""

    def at(self, parameter, x):
        return torch.where(x > 0, parameter[1], parameter[0])


class Ratio(nn.Module):
    """The critic's optimum: log N(z; loc, scale) - log r(z), parameters held."""

    def __init__(self, loc, scale, r):
        super().__init__()
        self.loc, self.scale, self.r = loc, scale, r

    def forward(self, x, z):
        z = z * self.r.scale + self.r.loc  # critics are shown what the contrast has normalised
        return (dist.Normal(self.loc, self.scale).log_prob(z) - self.r.log_prob(z)).squeeze(-1)


class Quadratic(nn.Module):
    """Logits that are quadratic in z, their coefficients linear in x: in them the regression is convex."""

    def __init__(self):
        super().__init__()
        self.coefficients = nn.Linear(1, 3).double()
        nn.init.zeros_(self.coefficients.weight)
        nn.init.zeros_(self.coefficients.bias)

    def forward(self, x, z):
        return (self.coefficients(x) * torch.cat([torch.ones_like(z), z, z**2], -1)).sum(-1)


def optimizers(model, guide, critic, make=torch.optim.Adam, lr=1e-2, critic_lr=1e-2):
    parameters = [*model.parameters(), *guide.parameters()]
    return {"optimizer": make(parameters, lr=lr), "critic_optimizer": make(critic.parameters(), lr=critic_lr)}


def trained_ratio(guide, contrast, steps, critic_lr):
    """Train the critic alone, on a guide that stands still; return its mean over the second half of training."""
    model, critic, x = Line(), Quadratic(), torch.tensor([[-1.0], [1.0]], dtype=F64)
    options = {"contrast": contrast, "particles": 500, "contrast_draws": 500, "compile": False}
    step = pv.adversarial_step(
        *(model, guide, critic), **optimizers(model, guide, critic, lr=0.0, critic_lr=critic_lr), **options
    )
    mean = torch.optim.swa_utils.AveragedModel(critic)
    for i in range(steps):
        step(x)
        if i >= steps // 2:
            mean.update_parameters(critic)
    return model, mean.module, x


def test_the_learned_ratio_is_that_of_the_densities():
    """Within 0.03 nats, root mean square under the guide."""
    loc, scale = torch.tensor([[-0.6], [0.8]], dtype=F64), torch.tensor([[0.7], [0.5]], dtype=F64)
    torch.manual_seed(1)
    _, critic, x = trained_ratio(ShownBySign(loc, scale), None, steps=300, critic_lr=0.1)
    z = loc + scale * torch.randn(2000, 2, 1, dtype=F64)
    exact = (dist.Normal(loc, scale).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).squeeze(-1)
    with torch.no_grad():
        off = (critic(x, z) - exact).square().mean().sqrt()
    assert exact.square().mean().sqrt() > 0.5
    assert off < 0.03


def test_adaptive_contrast_leaves_less_to_learn():
    """A guide far from the prior: after as many steps the error of the estimated divergence is a fiftieth."""
    guide = ShownBySign([[2.5], [3.0]], [[0.2], [0.1]])
    exact = kl_divergence(dist.Normal(guide.loc, guide.scale), STANDARD).squeeze(-1).detach()
    off = []
    for contrast in (None, adaptive_contrast):
        torch.manual_seed(1)
        model, critic, x = trained_ratio(guide, contrast, steps=60, critic_lr=0.05)
        game = InferenceGame(model, guide, critic, 4000, contrast, 500)
        with torch.no_grad():
            likelihood = dist.Normal(guide.loc, 1.0).log_prob(x) - guide.scale**2 / 2
            off.append((likelihood.squeeze(-1) - game.programs_turn((x,))[1] - exact).abs().max())
    assert off[0] > 1  # too small a divergence, and so too large an estimate of the ELBO
    assert off[1] < off[0] / 50


R = dist.Normal(torch.tensor([0.4], dtype=F64), torch.tensor([0.9], dtype=F64))
STANDARD = dist.Normal(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
AGAINST = pytest.mark.parametrize(
    ("contrast", "r"), [(None, STANDARD), (lambda draws: R.expand(draws.shape[1:]).to_event(1), R)]
)


@AGAINST
def test_the_gradient_at_the_best_critic_is_that_of_the_elbo(contrast, r):
    """The critic's own dependence on the guide has no part in it."""
    rows, x, loc, scale = 4000, 1.2, 0.3, 0.6
    model, guide = Line(), Shown(torch.full((rows, 1), loc), torch.full((rows, 1), scale))
    game = InferenceGame(model, guide, Ratio(guide.loc.detach(), guide.scale.detach(), r), 1, contrast, 2)
    loss, _, _ = game.programs_turn((torch.full((rows, 1), x, dtype=F64),))
    found = torch.autograd.grad(-rows * loss, [guide.loc, guide.scale])  # a row has parameters of its own
    exact = torch.tensor([(x - loc) - loc, -scale - scale + 1 / scale], dtype=F64)
    assert_mean(torch.cat(found, 1), exact)


@AGAINST
def test_at_the_posterior_with_the_best_critic_every_draw_gives_the_likelihood(contrast, r):
    x = torch.tensor([[-1.0], [2.0]], dtype=F64)
    guide = Shown(x / 2, torch.full((2, 1), 0.5**0.5, dtype=F64))
    game = InferenceGame(Line(), guide, Ratio(guide.loc, guide.scale, r), 1, contrast, 2)
    _, value, _ = game.programs_turn((x,))
    torch.testing.assert_close(value, dist.Normal(0.0, 2**0.5).log_prob(x).squeeze(-1))


def test_a_contrast_is_the_moments_of_the_draws():
    draws = 3 + 2 * torch.randn(50, 4, 2, dtype=F64)
    r = adaptive_contrast(draws)
    assert (r.batch_shape, r.event_shape) == ((4,), (2,))
    torch.testing.assert_close((r.mean, r.stddev), (draws.mean(0), draws.std(0)))
    assert adaptive_contrast(torch.ones(3, 4, 2)).stddev.min() > 0


def implicit():
    torch.manual_seed(0)
    model, guide = VAE(**SIZES), Implicit(**SIZES, noise_dim=3)
    return [part.double() for part in (model, guide, nets.JoinedMLP((6, 2), (8,), 1))]


def step_of(programs, make=torch.optim.Adam, **options):
    return pv.adversarial_step(*programs, **optimizers(*programs, make), **options)


def bits(n=5):
    return torch.randint(0, 2, (n, 6)).double()


@pytest.mark.parametrize("contrast", [None, adaptive_contrast])
def test_a_step_goes_on_from_its_state(contrast):
    x = bits()
    options = {"particles": 2, "contrast": contrast, "critic_steps": 2}
    whole, first, second = (step_of(implicit(), **options) for _ in range(3))
    torch.manual_seed(1)
    bounds = [whole(x).bound for _ in range(4)]
    torch.manual_seed(1)
    again = [first(x).bound for _ in range(2)]
    second.load_state_dict(first.state_dict())
    assert again + [second(x).bound for _ in range(2)] == bounds
    assert whole.bound(x).shape == (5,)


def test_the_loop_drives_it_and_annealing_evaluates_the_model():
    model, guide, critic = implicit()
    x = bits(20)
    fit = pv.fit(step=step_of((model, guide, critic), compile=False), data=x, valid=x[:7], epochs=3, batch_size=8)
    assert {"train_bound", "valid_bound", "critic_loss"} <= fit.history.keys()
    assert fit.best["bound"] == max(fit.history["valid_bound"])
    z = torch.cartesian_prod(*[torch.linspace(-6, 6, 121, dtype=F64)] * 2)
    exact = (
        model.decoder(z.unsqueeze(1)).log_prob(x[:4])
        + model.prior().log_prob(z).unsqueeze(1)
        + 2 * torch.log(z[1, 1] - z[0, 1])
    )
    found = pv.ais(model, x[:4], distributions=20, chains=32, leapfrog=3, compile=False)
    torch.testing.assert_close(found.log_px, exact.logsumexp(0).detach(), rtol=0, atol=0.1)
    with pytest.raises(pv.ContractError, match=r"site 'z' .* evaluate its model by pv\.ais"):
        fit.to_arviz(particles=5)


@pytest.mark.parametrize("contrast", [None, adaptive_contrast])
def test_a_captured_step_does_what_an_eager_one_does(uncompiled, contrast):
    one, other = twins(implicit)
    options = {"particles": 2, "contrast": contrast}
    eager, captured = (step_of(p, torch.optim.SGD, compile=c, **options) for p, c in ((one, False), (other, True)))
    assert_steps_agree(eager, captured, [bits(n) for n in (5, 5, 3)])
    assert captured.graphs == 2


def test_a_guide_with_a_density_is_welcome_too():
    model, _, critic = implicit()
    step = step_of((model, Normal(**SIZES).double(), critic))
    assert step(bits()).bound.isfinite()


@pytest.mark.parametrize("verb", [pv.check, pv.weigh, pv.evaluate, pv.elbo_surgery, pv.fit])
def test_where_a_density_is_needed_an_implicit_guide_is_refused_by_name(verb):
    model, guide, _ = implicit()
    with pytest.raises(pv.ContractError, match=r"site 'z'|site 'noise' of the guide is auxiliary"):
        verb(model, guide, bits())


class LearnedPrior(Line):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.bias, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_a_prior_learns_with_a_contrast_alone():
    programs, x = (LearnedPrior(), Shown([0.0], [1.0]), Quadratic()), torch.ones(3, 1, dtype=F64)
    with pytest.raises(pv.ContractError, match=r"model\.bias has no part .* contrast=pv\.adversarial\.adaptive_con"):
        step_of(programs)(x)
    step_of(programs, contrast=adaptive_contrast)(x)
    assert programs[0].bias != 0


class Coins(nn.Module):
    def __init__(self, infer=None):
        super().__init__()
        self.logits, self.infer = nn.Parameter(torch.zeros(1, dtype=F64)), infer

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.logits), infer=self.infer)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class Tossed(nn.Module):
    def __init__(self, infer=None):
        super().__init__()
        self.logits, self.infer = nn.Parameter(torch.zeros(1, dtype=F64)), infer

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", dist.OneHotCategorical(logits=self.logits), infer=self.infer)


class Exact(Line):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.bias), 1.0).to_event(1))
            pyro.sample("x", dist.Delta(z + self.bias, event_dim=1), obs=x)


class Positive(Line):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Exponential(torch.ones_like(self.bias)).to_event(1))
            pyro.sample("x", dist.Normal(z + self.bias, 1.0).to_event(1), obs=x)


class Bare(Line):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("x", dist.Normal(self.bias, 1.0).expand([1]).to_event(1), obs=x)


class Silent(nn.Module):
    def forward(self, x):
        """Draw nothing."""


class Both(nn.Linear):
    def __init__(self):
        super().__init__(8, 1, dtype=F64)

    def forward(self, x, z):
        """Give more than logits."""
        found = super().forward(torch.cat([x.expand(*z.shape[:-1], 6), z], -1))
        return found, found


class Paid(Shown):
    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))
            pyro.factor("kindness", z.sum(-1), has_rsample=True)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (Coins(), Tossed(), r"guide: site 'z' \(OneHotCategorical\) is drawn without reparameterisation"),
        (Exact(), Shown([0.0], [1.0]), "site 'x' is a deterministic likelihood"),
        (Positive(), Shown([-9.0], [1.0]), r"site 'z': the guide draws values outside .* Exponential"),
        (Line(), Implicit(1, 2, noise_dim=3).double(), r"site 'z' has event shape \(1,\) in the model and \(2,\)"),
        (Bare(), Silent(), r"model: it has no latent for a guide to draw; give it pyro\.sample"),
        (Coins(), Tossed({"enumerate": "parallel"}), r"site 'z' is marked for enumeration.*relaxed distribution"),
        (Line(), Paid([0.0], [1.0]), r"factor 'kindness': a critic does not see the factors of a guide; leave it out"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name_before_anything_moves(model, guide, message):
    step = step_of((model, guide, Quadratic()))
    before = {name: tensor.clone() for name, tensor in step.programs.state_dict().items()}
    with pytest.raises(pv.ContractError, match=message):
        step(torch.ones(5, 1, dtype=F64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.programs.state_dict().items())


def test_options_are_looked_at():
    programs = implicit()
    for name, value in {"particles": 0, "contrast_draws": 1, "critic_steps": 0}.items():
        with pytest.raises(ValueError, match=name):
            step_of(programs, **{name: value})
    with pytest.raises(ValueError, match="compile"):
        step_of(programs, compile="yes")
    with pytest.raises(TypeError, match="contrast: expected a function of draws"):
        step_of(programs, contrast="adaptive")
    x = torch.ones(5, 6, dtype=F64)
    with pytest.raises(pv.ContractError, match=r"contrast: for site 'z' .* found shapes \(5, 2\) and \(\)"):
        step_of(programs, contrast=lambda draws: dist.Normal(draws.mean(0), draws.std(0)))(x)
    with pytest.raises(pv.ContractError, match=r"critic: expected logits, a tensor, found tuple"):
        step_of((*programs[:2], Both()))(x)
    with pytest.raises(pv.ContractError, match=r"contrast: for site 'z' .* found Tensor"):
        step_of(programs, contrast=lambda draws: draws.mean(0))(x)
