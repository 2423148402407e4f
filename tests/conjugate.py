"""Conjugate programs and data that several tests of coordinate ascent use."""

import inspect

import pairs
import pyro
import pyro.distributions as dist
import torch
from exact_models import F64

import ppl_vae as pv
from ppl_vae import zoo
from ppl_vae.models.normal_gamma import NormalGamma

SHARED = sorted(pairs.with_global_latents())
N = 7


def made(name):
    """Return a small program with latents that all data share."""
    torch.manual_seed(0)
    return zoo.build(zoo.find("models", name), pairs.SMALL).double()


def like(model):
    """Return a batch in the form that a model takes: its data first, what it only reads after."""
    torch.manual_seed(1)
    rest = list(inspect.signature(model.forward).parameters)[1:]
    shape = (N,) if rest else (N, pairs.SMALL["x_dim"])
    return (torch.zeros(shape).double(), *(torch.randn(N, pairs.SMALL["x_dim"]).double() for _ in rest))


def drawn(name, seed=0):
    """Return a model, and a batch whose data it has drawn."""
    model = made(name)
    batch = like(model)
    return model, (pv.sample(model, like=batch, n=N, seed=seed)["x"], *batch[1:])


def close(found, wanted, atol=1e-8, rtol=0.0):
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=F64), torch.as_tensor(wanted, dtype=F64), rtol=rtol, atol=atol
    )


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def responsibilities(n, components=3, seed=0):
    return pv.starts.random(torch.zeros(n, 1, dtype=F64), components, seed)


def bits(n=80):
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(3, (n,), generator=generator)
    shares = torch.rand(3, 5, generator=generator, dtype=F64)
    return torch.bernoulli(shares[which], generator=generator)


def poisson_mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 0.5, dtype=F64)))
    with pyro.plate("components", 3, dim=-1):
        rate = pyro.sample("rate", dist.Gamma(tensor(1.5).squeeze(), tensor(0.4).squeeze()))
    with pyro.plate("data", x.shape[0], dim=-1):
        y = pyro.sample("y", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Poisson(rate[y]), obs=x)


def normal_gamma():
    return NormalGamma(2, prior_mean=0.5, mean_precision=0.25, shape=2.0, rate=1.5).double()


def numbers(n=40):
    return 2 * torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) + 3


def pca(x):
    """Rows of loadings w_d, a latent z for each datum, and the precision of the noise."""
    with pyro.plate("rows", 4, dim=-1):
        w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)))
    tau = pyro.sample("tau", dist.Gamma(tensor(2.0).squeeze(), tensor(1.0).squeeze()))
    with pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)).to_event(1))
        pyro.sample("x", dist.Normal(z @ w.mT, tau.rsqrt()).to_event(1), obs=x)


def zero():
    return torch.zeros((), dtype=F64)


def steps(found):
    return torch.tensor(found.history["elbo"], dtype=F64).diff()
