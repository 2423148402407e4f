"""Guides that make latents of noise: whether their Deltas carry the change of volume."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import biject_to

import ppl_vae as pv

F64 = torch.float64
PRIORS = {
    "normal": lambda like: dist.Normal(torch.zeros(3).to(like), 1.0).to_event(1),
    "gamma": lambda like: dist.Gamma(torch.full((3,), 2.0).to(like), 1.0).to_event(1),
    "beta": lambda like: dist.Beta(torch.full((3,), 2.0).to(like), 2.0).to_event(1),
    "dirichlet": lambda like: dist.Dirichlet(torch.full((4,), 2.0).to(like)),
}


class Model(nn.Module):
    def __init__(self, prior="normal"):
        super().__init__()
        self.prior = PRIORS[prior]

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Normal(z.mean(-1), 1.0), obs=x)


class Pushed(nn.Module):
    """Noise that moves with x, and a Delta of what a function makes of it, and of a parameter that begins at zero."""

    def __init__(self, transform, noise_dim=3):
        super().__init__()
        self.transform, self.noise_dim = transform, noise_dim
        self.free = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            normal = dist.Normal(0.3 * x.unsqueeze(-1).expand(-1, self.noise_dim), 1.0).to_event(1)
            noise = pyro.sample("noise", normal, infer={"is_auxiliary": True})
            z, log_density = self.transform(noise, self.free)
            pyro.sample("z", dist.Delta(z, log_density, event_dim=1))


def constrained(prior):
    def transform(noise, free):
        moved, onto = noise * free.exp(), biject_to(PRIORS[prior](noise).support)
        z = onto(moved)
        return z, -free.sum() - onto.log_abs_det_jacobian(moved, z)

    return transform


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("prior", PRIORS)
def test_transforms_with_their_change_of_volume_are_welcome(prior, dtype):
    torch.manual_seed(0)
    x = torch.randn(4, dtype=dtype)
    for seed in range(5):
        torch.manual_seed(seed)
        pv.check(Model(prior).to(dtype), Pushed(constrained(prior)).to(dtype), x)


def test_where_it_is_welcome_the_weights_are_those_of_the_pushed_density():
    x = torch.randn(5, dtype=F64)
    guide = Pushed(lambda noise, free: (noise + free + 1, noise.new_zeros(())))
    pv.check(Model(), guide.double(), x)
    found = pv.weigh(Model(), guide, x, particles=2)
    z = found.values["z"]
    log_q = dist.Normal(0.3 * x.unsqueeze(-1) + 1, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(sum(found.log_q.values()), log_q)


REFUSED = {
    "a scale": (lambda e, w: (2 * e + w, 0.0), 3, r"'z' is made of the noise 'noise', .*off by 2\.08 nats"),
    "a scale that begins as one": (lambda e, w: (e * w.exp(), 0.0), 3, "once parameters move"),
    "the wrong sign": (lambda e, w: (e * w.exp(), w.sum()), 3, "once parameters move"),
    "a bend": (lambda e, w: (e + e**3 + w, 0.0), 3, "the log_density of its Delta is not minus"),
    "no way from the noise": (lambda e, w: (e.detach() + w, 0.0), 3, "off by -inf nats"),
    "more noise than latents": (lambda e, w: (e[..., :3] + w, 0.0), 5, "5 dimensions of noise for 3"),
    "less noise than latents": (lambda e, w: (e + w, 0.0), 1, "1 dimensions of noise for 3"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_the_density_of_the_noise_alone_is_refused_by_name(what):
    transform, noise_dim, message = REFUSED[what]
    filled = lambda e, w: (transform(e, w)[0], transform(e, w)[1] + e.new_zeros(()))  # noqa: E731
    torch.manual_seed(0)
    with pytest.raises(pv.ContractError, match=message):
        pv.check(Model(), Pushed(filled, noise_dim), torch.randn(4))


class Beside(Pushed):
    """Noise that no Delta is made of, of this distribution."""

    def __init__(self, noise):
        super().__init__(None)
        self.noise = noise

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            noise = pyro.sample("noise", self.noise, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(noise.unsqueeze(-1) + self.free, 1.0).to_event(1))


@pytest.mark.parametrize("noise", [dist.Normal(0.0, 1.0), dist.Bernoulli(0.5)], ids=["continuous", "discrete"])
def test_noise_that_would_count_beside_a_density_of_its_own_is_refused(noise):
    """E p(x, z) / (q(e) q(z | e)) is not p(x), but p(x) times the volume of the noise's space."""
    with pytest.raises(pv.ContractError, match="no Delta is made of the noise 'noise'"):
        pv.check(Model(), Beside(noise), torch.randn(4))


def test_another_latent_may_stand_between_noise_and_point():
    """z2 = z1 + e, at a z1 that is given, has the density of e, though z1 follows e too."""

    class Two(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                one = torch.ones(1).to(x)
                z1 = pyro.sample("z1", dist.Normal(0 * one, one).to_event(1))
                z2 = pyro.sample("z2", dist.Normal(z1, one).to_event(1))
                pyro.sample("x", dist.Normal(z2.squeeze(-1), 1.0), obs=x)

    class Between(nn.Module):
        def forward(self, x):
            with pyro.plate("data", x.shape[0], dim=-1):
                one = torch.ones(1).to(x)
                e = pyro.sample("e", dist.Normal(0 * one, one).to_event(1), infer={"is_auxiliary": True})
                z1 = pyro.sample("z1", dist.Normal(e, one).to_event(1))
                pyro.sample("z2", dist.Delta(z1 + e, event_dim=1))

    pv.check(Two(), Between(), torch.randn(4))
