"""Small programs whose posteriors and maxima are known, some with their M-step in closed form."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import nn

F64 = torch.float64


class GaussianMixture(nn.Module):
    """Components with full covariances; each scikit-learn's, to rounding, floor included."""

    def __init__(self, x_dim=2, y_dim=3, floor=0.0):
        super().__init__()
        self.floor = floor
        self.least = 10 * torch.finfo(F64).eps  # of a component, which else could hold nothing
        self.logits = nn.Parameter(torch.zeros(y_dim, dtype=F64))
        self.mean = nn.Parameter(torch.randn(y_dim, x_dim, dtype=F64))
        self.tril = nn.Parameter(torch.eye(x_dim, dtype=F64).repeat(y_dim, 1, 1))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            loc, tril = Vindex(self.mean)[..., y, :], Vindex(self.tril)[..., y, :, :]
            pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=tril), obs=x)

    @torch.no_grad()
    def m_step(self, posterior, x):
        shares = posterior["y"]
        held = shares.sum(0) + self.least
        mean = shares.mT @ x / held.unsqueeze(-1)
        apart = x.unsqueeze(1) - mean
        covariance = torch.einsum("nc,nci,ncj->cij", shares, apart, apart) / held[:, None, None]
        covariance += self.floor * torch.eye(x.shape[1]).to(x)
        self.tril.copy_(torch.linalg.cholesky(covariance))
        self.mean.copy_(mean)
        self.logits.copy_(held.log() - held.sum().log())

    def log_px(self, x):
        parts = dist.MultivariateNormal(self.mean, scale_tril=self.tril)
        return (parts.log_prob(x.unsqueeze(1)) + self.logits.log_softmax(0)).logsumexp(1)


class Strict(GaussianMixture):
    """Whose components may collapse."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.least = 0.0


class DiagonalMixture(nn.Module):
    """Without an M-step, nor a mark at its discrete latent; scales are positive by exp."""

    def __init__(self, x_dim=2, y_dim=3):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(y_dim, dtype=F64))
        self.mean = nn.Parameter(torch.randn(y_dim, x_dim, dtype=F64))
        self.log_scale = nn.Parameter(torch.zeros(y_dim, x_dim, dtype=F64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits))
            loc, scale = Vindex(self.mean)[..., y, :], Vindex(self.log_scale)[..., y, :].exp()
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


class FactorMixture(nn.Module):
    """Mixture of factor analysers."""

    def __init__(self, x_dim=4, z_dim=2, y_dim=3):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(y_dim, dtype=F64))
        self.weight = nn.Parameter(torch.randn(y_dim, x_dim, z_dim, dtype=F64))
        self.mean = nn.Parameter(torch.randn(y_dim, x_dim, dtype=F64))
        self.log_scale = nn.Parameter(0.1 * torch.randn(y_dim, x_dim, dtype=F64))

    def forward(self, x):
        zeros = self.mean.new_zeros(self.weight.shape[-1])
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            weight, mean = Vindex(self.weight)[..., y, :, :], Vindex(self.mean)[..., y, :]
            loc = (weight @ z.unsqueeze(-1)).squeeze(-1) + mean
            scale = Vindex(self.log_scale)[..., y, :].exp()
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def joint(self, x):
        """Return log p(x, y), (N, C)."""
        parts = dist.LowRankMultivariateNormal(self.mean, self.weight, (2 * self.log_scale).exp())
        return parts.log_prob(x.unsqueeze(1)) + self.logits.log_softmax(0)

    def of_z(self, x):
        """Return mean and covariance of z given x and y, (N, C, z_dim) and (C, z_dim, z_dim)."""
        scaled = self.weight / (2 * self.log_scale).exp().unsqueeze(-1)
        covariance = torch.linalg.inv(torch.eye(self.weight.shape[-1]) + self.weight.mT @ scaled)
        slope = torch.einsum("ncd,cdz->ncz", x.unsqueeze(1) - self.mean, scaled)
        return torch.einsum("czw,ncw->ncz", covariance, slope), covariance


class Regimes(nn.Module):
    """Two discrete latents, the second of which follows the first."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(2, dtype=F64))
        self.second = nn.Parameter(torch.randn(2, 3, dtype=F64))
        self.loc = nn.Parameter(torch.randn(2, 3, dtype=F64))

    def forward(self, x):
        with pyro.plate("data", x.shape[0], dim=-1):
            a = pyro.sample("a", dist.Categorical(logits=self.first))
            b = pyro.sample("b", dist.Categorical(logits=Vindex(self.second)[a, :]))
            pyro.sample("x", dist.Normal(Vindex(self.loc)[a, b], 0.5), obs=x)

    def joint(self, x):
        """Return log p(x, a, b), (N, 2, 3)."""
        prior = self.first.log_softmax(0).unsqueeze(-1) + self.second.log_softmax(1)
        return dist.Normal(self.loc, 0.5).log_prob(x[:, None, None]) + prior


class Chain(nn.Module):
    """Two Gaussian latents, one above the other, and a part of x that some data lack."""

    def __init__(self):
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, 3, dtype=F64))
        self.out = nn.Parameter(torch.randn(3, 4, dtype=F64))

    def forward(self, x, present):
        with pyro.plate("data", x.shape[0], dim=-1):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2 @ self.down, 0.7).to_event(1))
            pyro.sample("x", dist.Normal(z1 @ self.out, 0.5).mask(present).to_event(1), obs=x)

    def covariance(self):
        """Return the covariance of (z2, z1, x), (9, 9)."""
        eye = torch.eye(3, dtype=F64)
        z1 = self.down.mT @ self.down + 0.49 * eye
        x = self.out.mT @ z1 @ self.out + 0.25 * torch.eye(4, dtype=F64)
        across, far = z1 @ self.out, self.down @ self.out
        rows = [
            torch.cat([torch.eye(2, dtype=F64), self.down, far], 1),
            torch.cat([self.down.mT, z1, across], 1),
            torch.cat([far.mT, across.mT, x], 1),
        ]
        return torch.cat(rows)


def coin(x):
    """A global probability of heads with a Beta(3, 2) prior."""
    heads = pyro.sample("heads", dist.Beta(torch.tensor(3.0, dtype=F64), 2.0))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Bernoulli(heads), obs=x)


def shares(x):
    """Global weights of four values with a Dirichlet prior."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 1.5, 3.0, 2.0], dtype=F64)))
    with pyro.plate("data", x.shape[0], dim=-1):
        pyro.sample("x", dist.Categorical(weights), obs=x)


class MixtureWithPriors(nn.Module):
    """Weights and locations are global latents, in a plate of their own."""

    def forward(self, x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0, dtype=F64)))
        with pyro.plate("components", 3, dim=-1):
            loc = pyro.sample("loc", dist.Normal(torch.zeros((), dtype=F64), 5.0))
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[y], 1.0), obs=x)


class MixtureWithClosedForm(MixtureWithPriors):
    """The same, with its modes in closed form."""

    def m_step(self, posterior, x):
        held = posterior["y"].sum(0)
        weights = (held + 1) / (held + 1).sum()
        return {"weights": weights, "loc": posterior["y"].mT @ x / (held + 1 / 25)}


def clusters(n=200, x_dim=2, seed=0):
    """Draw three clusters that overlap a little."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(3, x_dim, generator=generator, dtype=F64)
    which = torch.randint(0, 3, (n,), generator=generator)
    stretch = torch.randn(3, x_dim, x_dim, generator=generator, dtype=F64) / math.sqrt(x_dim)
    noise = torch.randn(n, 1, x_dim, generator=generator, dtype=F64)
    return centres[which] + (noise @ stretch[which]).squeeze(1)
