"""Pictures of the textbook's conjugate models: their posteriors, beside what mean field makes of them."""

import torch
from matplotlib.figure import Figure

import ppl_vae as pv
from ppl_vae import plots

BLUE, ORANGE, GREEN = plots.COLOURS[:3]


def regression() -> tuple[Figure, str]:
    """Draw lines from the posterior of a regression."""
    from ppl_vae.models.bayesian_linear_regression import BayesianLinearRegression

    torch.manual_seed(0)
    u = torch.rand(15, dtype=torch.double) * 4 - 2
    x = 0.5 + 0.8 * u + 0.4 * torch.randn_like(u)
    given = torch.stack([torch.ones_like(u), u], -1)
    found = pv.cavi(BayesianLinearRegression(2).double(), (x, given), progress=False)
    figure, axes = plots.canvas(width=4.6, height=3.2)
    line = torch.linspace(-3, 3, 50, dtype=torch.double)
    for w in found.sample(30)["coefficients"]:
        axes.plot(line, w[0] + w[1] * line, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(u, x, "o", color=ORANGE, markersize=4)
    axes.set(xlabel="covariate u", ylabel="response x")
    return figure, "Fifteen data, and thirty lines drawn from the posterior of the coefficients that `pv.cavi` finds."


def probability() -> tuple[Figure, str]:
    """Draw the posterior of a probability as data come in."""
    from ppl_vae.models.beta_bernoulli import BetaBernoulli

    torch.manual_seed(0)
    x = (torch.rand(100, 1, dtype=torch.double) < 0.7).double()
    figure, axes = plots.canvas(width=4.6, height=3.0)
    mu = torch.linspace(0.001, 0.999, 300, dtype=torch.double)
    for n, colour in zip((1, 10, 100), (BLUE, ORANGE, GREEN), strict=True):
        q = pv.cavi(BetaBernoulli().double(), x[:n], progress=False).q["probability"]
        base = q.base_dist if hasattr(q, "base_dist") else q
        axes.plot(mu, base.log_prob(mu[:, None])[:, 0].exp(), color=colour, label=f"{n} data")
    axes.axvline(0.7, color="#555555", linewidth=0.8, linestyle="--")
    axes.set(xlabel="probability", ylabel="posterior density")
    axes.legend(frameon=False)
    return (
        figure,
        "The posterior of a probability after 1, 10 and 100 data; the dashed line is what they were drawn with.",
    )


def plane(low: tuple[float, float], high: tuple[float, float], n: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a grid of the plane."""
    first, second = (torch.linspace(a, b, n, dtype=torch.double) for a, b in zip(low, high, strict=True))
    return torch.meshgrid(first, second, indexing="xy")


def correlated() -> tuple[Figure, str]:
    """Draw two correlated latents and the best independent ones."""
    from ppl_vae.models.correlated_gaussian import CorrelatedGaussian

    model, x = CorrelatedGaussian(correlation=0.5).double(), torch.tensor([[1.0], [1.5], [0.5]]).double()
    found = pv.cavi(model, x, progress=False)
    grid = plane((-1.6, -1.6), (2.6, 2.6))
    figure, axes = plots.canvas(width=3.8, height=3.6)
    exact = model.posterior(x).log_prob(torch.stack(grid, -1)).exp()
    factors = found.q["z1"].log_prob(grid[0]) + found.q["z2"].log_prob(grid[1])
    for density, colour, label in ((exact, BLUE, "posterior"), (factors.exp(), ORANGE, "mean field")):
        axes.contour(*grid, density.detach(), levels=4, colors=colour, linewidths=1.2)
        axes.plot([], [], color=colour, label=label)
    axes.set(xlabel="z1", ylabel="z2", aspect="equal")
    axes.legend(frameon=False, loc="upper right")
    return (
        figure,
        "The posterior given three data, and the independent factors that `pv.cavi` finds: narrower than its margins.",
    )


def normal_gamma() -> tuple[Figure, str]:
    """Draw the posterior of a mean and a precision by draws of their factors."""
    from ppl_vae.models.normal_gamma import NormalGamma

    torch.manual_seed(0)
    x = torch.randn(8, 1, dtype=torch.double) + 1.0
    model = NormalGamma().double()
    found = pv.cavi(model, x, progress=False)
    mean, precision = grid = plane((-0.6, 0.02), (2.4, 3.0))
    residual = ((x[:, 0] - mean[..., None]) ** 2).sum(-1)
    prior = torch.distributions.Gamma(torch.tensor(1.0).double(), torch.tensor(1.0).double()).log_prob(precision)
    log_joint = (
        prior + 0.5 * precision.log() - 0.5 * precision * mean**2 + 4 * precision.log() - 0.5 * precision * residual
    )
    figure, axes = plots.canvas(width=4.4, height=3.4)
    axes.contourf(*grid, (log_joint - log_joint.max()).exp(), levels=8, cmap="Greys", alpha=0.8)
    draws = found.sample(300)
    axes.plot(draws["mean"].flatten(), draws["precision"].flatten(), ".", color=ORANGE, markersize=2.5)
    axes.set(xlabel="mean", ylabel="precision", xlim=(-0.6, 2.4), ylim=(0, 3))
    return figure, "The posterior given eight data in grey, and draws of the independent factors that `pv.cavi` finds."
