"""Games with a critic: what goes wrong in generative adversarial networks, and what an implicit guide gains.

    python benchmarks/gan.py divergences    which modes KL(pi || p), KL(p || pi) and JSD cover
    python benchmarks/gan.py ring           mode collapse on a ring of eight Gaussians
    python benchmarks/gan.py vanishing      the generator's gradient as the critic learns, in both losses
    python benchmarks/gan.py oscillation    two points that circle each other, beside the closed form
    python benchmarks/gan.py avb            a Gaussian and an implicit guide on four points, judged by quadrature

Each prints a table and leaves a CSV and a PNG, in one or two minutes; ``--quick`` shows only that everything runs.

Reference: I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, https://arxiv.org/abs/1406.2661;
L. Metz et al., "Unrolled Generative Adversarial Networks", ICLR 2017, https://arxiv.org/abs/1611.02163 (the ring);
M. Arjovsky, L. Bottou, "Towards Principled Methods for Training Generative Adversarial Networks", ICLR 2017,
https://arxiv.org/abs/1701.04862; L. Mescheder, A. Geiger, S. Nowozin, "Which Training Methods for GANs do actually
Converge?", ICML 2018, https://arxiv.org/abs/1801.04406; L. Mescheder, S. Nowozin, A. Geiger, "Adversarial Variational
Bayes", ICML 2017, https://arxiv.org/abs/1701.04722 (the four points).
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import gan_drawings as drawings
import pyro
import pyro.distributions as dist
import torch
import typer
from figures import save, show
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import nets
from ppl_vae.adversarial import adaptive_contrast, minimax, non_saturating
from ppl_vae.guides.implicit import Implicit
from ppl_vae.guides.normal import Normal
from ppl_vae.models.gan import GAN
from ppl_vae.models.vae import VAE

app = typer.Typer(help="Games with a critic.", no_args_is_help=True, add_completion=False)

Out = Annotated[Path, typer.Option(help="Folder for the CSV and the PNG.")]
Quick = Annotated[bool, typer.Option("--quick", help="Few steps, to see that it runs.")]
Seed = Annotated[int, typer.Option(help="Seeds parameters and draws.")]
RESULTS = Path(__file__).parent / "results"
LOSSES = {"minimax": minimax, "non-saturating": non_saturating}


@app.command()
def divergences(out: Out = RESULTS, quick: Quick = False) -> None:
    """Fit one Gaussian to two by each divergence, all integrals by quadrature; two modes nearer and farther apart."""
    grid = torch.linspace(-12, 12, 801, dtype=torch.float64)
    rows: list[dict[str, Any]] = []
    for apart in (2.3, 3.0):
        target = two_gaussians(grid, apart)
        for name, divergence in DIVERGENCES.items():
            best = min(fitted(divergence, grid, target, at * apart, 20 if quick else 250) for at in (-1.0, 0.1, 1.0))
            rows.append({"modes at": apart, "divergence": name, "nats": best[0], "mean": best[1], "scale": best[2]})
        weights = target.exp() * (grid[1] - grid[0])
        mean = float(weights @ grid)
        exact = {"mean": mean, "scale": math.sqrt(float(weights @ (grid - mean) ** 2))}
        rows.append({"modes at": apart, "divergence": "moments of pi", "nats": math.nan, **exact})
    show("One Gaussian for two, by each divergence", rows, list(rows[0]))
    targets = {apart: two_gaussians(grid, apart).exp() for apart in (2.3, 3.0)}
    save(out, "gan_divergences", rows, drawings.divergences(rows, grid, targets))


def two_gaussians(x: Tensor, apart: float) -> Tensor:
    """Return the log density of the target: modes at both sides of zero, of shares 0.4 and 0.6."""
    at, scale = (torch.tensor(pair).to(x) for pair in ([-apart, apart], [0.7, 0.9]))
    parts = dist.Normal(at, scale).log_prob(x.unsqueeze(-1))
    return (parts + torch.tensor([0.4, 0.6]).to(x).log()).logsumexp(-1)


def kl(log_p: Tensor, log_q: Tensor, width: Tensor) -> Tensor:
    """Return KL(p || q) by quadrature."""
    return (log_p.exp() * (log_p - log_q)).sum() * width


def jsd(log_p: Tensor, log_q: Tensor, width: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence by quadrature."""
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kl(log_p, middle, width) + kl(log_q, middle, width)) / 2


DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "KL(pi || p)": kl,
    "KL(p || pi)": lambda log_pi, log_p, width: kl(log_p, log_pi, width),
    "JSD(pi, p)": jsd,
}


def fitted(
    divergence: Callable[..., Tensor], grid: Tensor, target: Tensor, start: float, steps: int
) -> tuple[float, float, float]:
    """Make a divergence small from one start; return it, mean and scale."""
    loc = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([loc, log_scale], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        found = divergence(target, dist.Normal(loc, log_scale.exp()).log_prob(grid), grid[1] - grid[0])
        found.backward()
        optimizer.step()
    return float(found.detach()), float(loc.detach()), float(log_scale.detach().exp())


MODES, RADIUS, SPREAD = 8, 2.0, 0.05
# Rates of the critic, where the generator's is 1e-3.
CRITICS = {"critic as fast": 1e-3, "critic ten times slower": 1e-4}


@app.command()
def ring(
    out: Out = RESULTS,
    quick: Quick = False,
    steps: Annotated[int, typer.Option(help="Steps of each game.")] = 4000,
    seed: Seed = 0,
) -> None:
    """Count the modes of a ring of eight Gaussians that a generator covers, over training.

    A critic that lags behind is chased: all draws go where it last thought that data are, one mode after the other.
    """
    steps = 40 if quick else steps
    centres, rows, clouds = circle(), [], {}
    for name, rate in CRITICS.items():
        for done, samples in played(rate, centres, steps, seed):
            modes, near = covered(samples, centres)
            rows.append({"game": name, "step": done, "modes": modes, "near a mode": near})
            clouds[name, done] = samples
    last = [row for row in rows if row["step"] == steps]
    show(f"Modes covered, of {MODES}, after {steps} steps", last, list(rows[0]))
    save(out, "gan_ring", rows, drawings.ring(rows, clouds, centres))


def circle() -> Tensor:
    """Return the centres of the modes."""
    angles = torch.arange(MODES) * 2 * math.pi / MODES
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def played(rate: float, centres: Tensor, steps: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Train a generator without noise on the ring, and yield draws of it at forty times."""
    torch.manual_seed(seed)
    model = GAN(x_dim=2, z_dim=16, hidden=(64, 64), likelihood=nets.ToDelta())
    critic = nets.MLP(2, (64, 64), 1)
    adam = partial(torch.optim.Adam, betas=(0.5, 0.999))
    made = {"optimizer": adam(model.parameters(), lr=1e-3), "critic_optimizer": adam(critic.parameters(), lr=rate)}
    step = pv.gan_step(model, critic, compile=False, **made)
    for done in range(steps + 1):
        if done % max(steps // 40, 1) == 0:
            yield done, pv.sample(model, shape=(2,), n=1000, seed=seed)["x"]
        step(centres[torch.randint(MODES, (256,))] + SPREAD * torch.randn(256, 2))


def covered(samples: Tensor, centres: Tensor) -> tuple[int, float]:
    """Return how many modes have a fiftieth of the draws within four scales, and the share of draws near any."""
    near = torch.cdist(samples, centres) < 4 * SPREAD
    return int((near.float().mean(0) > 0.02).sum()), float(near.any(1).float().mean())


@app.command()
def vanishing(
    out: Out = RESULTS,
    quick: Quick = False,
    steps: Annotated[int, typer.Option(help="Updates of the critic.")] = 600,
    seed: Seed = 0,
) -> None:
    """Hold a generator still, far from the data, and measure its gradient while the critic learns."""
    steps = 20 if quick else steps
    rows = []
    for name, loss in LOSSES.items():
        torch.manual_seed(seed)
        model, critic = Point(torch.full((1,), -2.0), noise=0.3), nets.MLP(1, (32, 32), 1)
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        learns = torch.optim.Adam(critic.parameters(), lr=1e-3)
        step = pv.gan_step(model, critic, optimizer=still, critic_optimizer=learns, loss=loss, compile=False)
        for done in range(1, steps + 1):
            info = step(2 + 0.3 * torch.randn(256, 1))
            slope = float(model.loc.grad.norm())
            rows.append({"loss": name, "step": done, "gradient": slope, "value": float(info.bound)})
    show("Generator's gradient", [r for r in rows if r["step"] in (1, steps // 4, steps)], list(rows[0]))
    save(out, "gan_vanishing", rows, drawings.vanishing(rows))


class Point(nn.Module):
    """Draws a point, with noise if its scale is above zero."""

    def __init__(self, start: Tensor, noise: float):
        super().__init__()
        self.loc, self.noise = nn.Parameter(start.clone()), noise

    def forward(self, x: Tensor) -> None:
        """Generate x of shape ``(B, 1)``."""
        with pyro.plate("data", x.shape[0], dim=-1):
            loc = self.loc.expand(x.shape)
            pyro.sample("x", dist.Normal(loc, self.noise).to_event(1) if self.noise else nets.ToDelta()(loc), obs=x)


@app.command()
def oscillation(
    out: Out = RESULTS,
    quick: Quick = False,
    steps: Annotated[int, typer.Option(help="Steps of each game.")] = 1500,
    seed: Seed = 0,
) -> None:
    """Follow the Dirac GAN: data at zero, a generator at theta, a critic T(x) = psi x; with and without noise."""
    steps = 50 if quick else steps
    rows = []
    for label, loss, noise in (
        ("minimax", minimax, 0.0),
        ("non-saturating", non_saturating, 0.0),
        ("minimax, noise on both", minimax, 1.0),
    ):
        torch.manual_seed(seed)
        model, critic = Point(torch.ones(1), noise), nn.Linear(1, 1, bias=False)
        nn.init.zeros_(critic.weight)
        made = {
            name: torch.optim.SGD(p.parameters(), lr=0.1)
            for name, p in (("optimizer", model), ("critic_optimizer", critic))
        }
        step = pv.gan_step(model, critic, loss=loss, compile=False, **made)
        rows.append({"game": label, "step": 0, "theta": 1.0, "psi": 0.0})
        for done in range(1, steps + 1):
            step(noise * torch.randn(512 if noise else 1, 1))
            rows.append({"game": label, "step": done, "theta": model.loc.item(), "psi": critic.weight.item()})
    ends = [row | {"radius": math.hypot(row["theta"], row["psi"])} for row in rows if row["step"] == steps]
    show("The Dirac GAN: distance from the equilibrium, from 1", ends, list(ends[0]))
    save(out, "gan_oscillation", rows, drawings.oscillation(rows))


@app.command()
def avb(
    out: Out = RESULTS,
    quick: Quick = False,
    steps: Annotated[int, typer.Option(help="Steps of each training.")] = 3000,
    seed: Seed = 0,
) -> None:
    """Train a VAE on four one-hot points with a Gaussian and with an implicit guide.

    Pixels are Bernoulli, so that log p(x) is at most -log 4 on the mean, reached only if codes tell the points apart
    and fill the prior. It is judged by quadrature over the two latents, never by the critic.
    """
    steps = 20 if quick else steps
    rows, fits = [], {}
    for name, train in GUIDES.items():
        torch.manual_seed(seed)
        model = VAE(4, 2, decoder=nn.Sequential(elu(2, 4), nets.ToBernoulli()))
        guide, step = train(model)
        for done in range(1, steps + 1):
            info = step(torch.eye(4))
            if done % max(steps // 30, 1) == 0:
                rows.append({"guide": name, "step": done, "log p": mean_log_px(model), "said": float(info.bound)})
        fits[name] = model, guide
    last = [row for row in rows if row["step"] == max(r["step"] for r in rows)]
    show(f"Four points: nats a datum by quadrature; at best {-math.log(4):.3f}", last, list(rows[0]))
    save(out, "gan_avb", rows, drawings.avb(rows, {name: posteriors(*fit) for name, fit in fits.items()}))


def elu(*sizes: int) -> nn.Module:
    """Return a network of two layers of 64."""
    return nets.MLP(sizes[0], (64, 64), sizes[1], nn.ELU)


def with_normal(model: nn.Module) -> tuple[nn.Module, Any]:
    """Return a Gaussian guide and a step on the ELBO."""
    guide = Normal(4, 2, encoder=nn.Sequential(elu(4, 4), nets.ToNormal()))
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)
    return guide, pv.svi_step(model, guide, particles=64, optimizer=optimizer, compile=False)


def with_implicit(model: nn.Module, contrast: Any = None) -> tuple[nn.Module, Any]:
    """Return an implicit guide and its adversarial step."""
    guide = Implicit(4, 2, noise_dim=3, encoder=nets.JoinedMLP((4, 3), (64, 64), 2, activation=nn.ELU))
    critic = nets.JoinedMLP((4, 2), (64, 64), 1, activation=nn.ELU)
    adam = partial(torch.optim.Adam, betas=(0.5, 0.999))
    made = {
        "optimizer": adam([*model.parameters(), *guide.parameters()], lr=1e-3),
        "critic_optimizer": adam(critic.parameters(), lr=3e-3),
    }
    options = {"particles": 64, "critic_steps": 2, "contrast": contrast, "compile": False}
    return guide, pv.adversarial_step(model, guide, critic, **made, **options)


GUIDES = {
    "Gaussian": with_normal,
    "implicit": with_implicit,
    "implicit, adaptive contrast": partial(with_implicit, contrast=adaptive_contrast),
}


def plane(points: int = 241) -> tuple[Tensor, Tensor]:
    """Return a grid over the latents, ``(points^2, 2)``, and the log of each cell's prior probability."""
    axis = torch.linspace(-6, 6, points)
    z = torch.cartesian_prod(axis, axis)
    return z, dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + 2 * math.log(float(axis[1] - axis[0]))


@torch.no_grad()
def joint(model: nn.Module) -> Tensor:
    """Return log p(x, z) of each point in each cell of the plane, ``(cells, 4)``."""
    z, log_prior = plane()
    return model.decoder(z.unsqueeze(1)).log_prob(torch.eye(4)) + log_prior.unsqueeze(1)


def mean_log_px(model: nn.Module) -> float:
    """Return the mean of log p(x) over the four points, by quadrature."""
    return float(joint(model).logsumexp(0).mean())


def posteriors(model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    """Return the posterior of each point in each cell, and draws of the guide."""
    log_joint = joint(model)
    z, _ = plane()
    x = torch.eye(4).repeat_interleave(1000, 0)
    with torch.no_grad():
        drawn = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["value"]
    return {"cells": z, "posterior": (log_joint - log_joint.logsumexp(0)).exp(), "draws": drawn.reshape(4, 1000, 2)}


if __name__ == "__main__":
    app()
