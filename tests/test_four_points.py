"""Four one-hot points and two latents: what an implicit guide gains over a Gaussian one, judged by quadrature."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae import distributions, nets
from ppl_vae.adversarial_steps import InferenceGame
from ppl_vae.guides.implicit import Implicit
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE

F64 = torch.float64
POINTS = torch.eye(4, dtype=F64)
LEAK = 1e-3  # probability that a pixel is wrong


@torch.no_grad()
def by_quadrature(decoder, points):
    """Return log p(x) of the four points; of an even number on an axis none is at zero, where quadrants meet."""
    axis = torch.linspace(-7, 7, points, dtype=F64)
    z = torch.cartesian_prod(axis, axis)
    log_cell = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + 2 * (axis[1] - axis[0]).log()
    return (decoder(z.unsqueeze(1)).log_prob(POINTS) + log_cell.unsqueeze(1)).logsumexp(0)


class Quadrants(nn.Module):
    """Four one-hot points, each the sign of two latents: posteriors are quarters of a Gaussian."""

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)

    def decoder(self, z):
        right = POINTS[((z > 0) * torch.tensor([2, 1])).sum(-1)]
        return dist.Bernoulli(probs=LEAK + (1 - 2 * LEAK) * right).to_event(1)


class Quarters(nn.Module):
    """Folds noise into the quarter of each point."""

    def forward(self, x):
        signs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=F64)
        with pyro.plate("data", x.shape[0], dim=-1):
            normal = dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)
            noise = pyro.sample("noise", normal, infer={"is_auxiliary": True})
            pyro.sample("z", distributions.Pushforward((x @ signs) * noise.abs(), event_dim=1))


class OneOfFour(nn.Module):
    """log q(z | x) - log p(z) = log 4 wherever the quarters' guide draws."""

    def forward(self, x, z):
        return torch.full(z.shape[:-1], 4.0, dtype=F64).log()


def test_an_implicit_guide_attains_a_likelihood_that_no_gaussian_one_does():
    """Four points: log p(x) by quadrature, the best Gaussian's ELBO over all means and scales."""
    log_px = by_quadrature(Quadrants().decoder, points=700)
    _, attained, _ = InferenceGame(Quadrants(), Quarters(), OneOfFour(), 5, None, 2).programs_turn((POINTS,))
    torch.testing.assert_close(attained, log_px, rtol=0, atol=1e-4)

    loc, scale = torch.cartesian_prod(torch.linspace(0, 4, 400, dtype=F64), torch.linspace(0.05, 1.5, 400, dtype=F64)).T
    q = dist.Normal(loc, scale)
    right = (1 - q.cdf(torch.zeros_like(loc))) ** 2  # both latents on their side; else two pixels are wrong
    likelihood = 4 * math.log(1 - LEAK) + (1 - right) * 2 * math.log(LEAK / (1 - LEAK))
    gaussian = likelihood - 2 * kl_divergence(q, dist.Normal(torch.zeros_like(loc), 1.0))
    assert gaussian.max() < attained.mean() - 0.3


STEPS = 600


def net(in_dim, out_dim):
    return nets.MLP(in_dim, (32, 32), out_dim, nn.ELU).double()


def trained(step, model, optimizers):
    """Train, at rates that go to zero over the second half; return the mean of log p(x)."""
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda i: min(1.0, 2 * (1 - i / STEPS)) + 1e-6) for each in optimizers
    ]
    for _ in range(STEPS):
        step(POINTS)
        for schedule in schedules:
            schedule.step()
    return by_quadrature(model.decoder, points=140).mean()


def made():
    torch.manual_seed(0)
    return VAE(4, 2, decoder=nn.Sequential(net(2, 4), nets.ToBernoulli())).double()


def test_a_model_trained_with_an_implicit_guide_is_likelier_than_with_a_gaussian_one():
    """After as many steps at the same rate; at convergence -1.42 and -1.57 (benchmarks/gan.py avb)."""
    model = made()
    guide = Normal(4, 2, encoder=nn.Sequential(net(4, 4), nets.ToNormal())).double()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=3e-3)
    step = pv.svi_step(model, guide, particles=32, optimizer=optimizer, compile=False)
    gaussian = trained(step, model, [optimizer])

    model = made()
    joined = partial(nets.JoinedMLP, hidden=(32, 32), activation=nn.ELU)
    guide = Implicit(4, 2, noise_dim=2, encoder=joined((4, 2), out_dim=2)).double()
    critic = joined((4, 2), out_dim=1).double()
    rates = {"optimizer": 3e-3, "critic_optimizer": 2e-2}
    parameters = {"optimizer": [*model.parameters(), *guide.parameters()], "critic_optimizer": critic.parameters()}
    adams = {name: torch.optim.Adam(parameters[name], lr=rate, betas=(0.5, 0.999)) for name, rate in rates.items()}
    step = pv.adversarial_step(model, guide, critic, particles=32, compile=False, **adams)
    implicit = trained(step, model, adams.values())
    assert gaussian + 0.03 < implicit < -math.log(4)
