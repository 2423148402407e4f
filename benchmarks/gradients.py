"""Experiments on gradient estimators: each command prints a table and leaves a CSV and a PNG.

    python benchmarks/gradients.py reparameterization
    python benchmarks/gradients.py estimators
    python benchmarks/gradients.py temperature
    python benchmarks/gradients.py snr
    python benchmarks/gradients.py training --steps 500 --layers 1 --linear

Data come from the folder that PPL_VAE_DATA names; ``--quick`` takes the built-in digits, small
networks and few draws, and shows only that everything runs.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import drawings
import torch
import typer
from contenders import CONTENDERS, RELAXED, Network, adapt, own_parameters
from figures import Rows, save, show
from pyro import distributions as dist
from torch import Tensor, nn

import ppl_vae as pv
from ppl_vae import objectives
from ppl_vae.guides.normal import Normal
from ppl_vae.laboratory import GradientStatistics, exact_gradient, gradient_statistics
from ppl_vae.models.linear_gaussian import LinearGaussian
from ppl_vae.models.vae import VAE

app = typer.Typer(help="Experiments on gradient estimators.", no_args_is_help=True, add_completion=False)

Out = Annotated[Path, typer.Option(help="Folder for the CSV and the PNG.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small and short, on the built-in digits.")]
Seed = Annotated[int, typer.Option(help="Seeds parameters, data and draws.")]
RESULTS = Path(__file__).parent / "results"
BUDGET = 6  # evaluations of the model per datum and gradient


def images(quick: bool) -> pv.data.Splits:
    """Return binary images: static MNIST, or digits."""
    return pv.data.load("digits", binarize="static") if quick else pv.data.load("static_mnist")


def batches(x: Tensor, steps: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield random batches of the data."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield x[torch.randint(len(x), (size,), generator=generator)]


def trained(
    model: nn.Module, guide: nn.Module, objective: Any, particles: int, data: Iterator[Tensor], lr: float = 1e-3
) -> Iterator[int]:
    """Train with Adam, and yield the number of steps after each."""
    parameters = [*model.parameters(), *guide.parameters()]
    # Control variates follow the programs, so that they must be the faster ones.
    own = {"params": own_parameters(objective), "lr": 10 * lr}
    optimizer = torch.optim.Adam([{"params": parameters}, own], lr=lr)
    step = pv.svi_step(model, guide, objective, particles, optimizer=optimizer)
    for done, x in enumerate(data, start=1):
        step(x)
        yield done


def measurements(found: GradientStatistics, **where: Any) -> Rows:
    """Return a row for each group of parameters."""
    return [
        where
        | {"group": name, "particles": found.particles, "variance": group.variance, "snr": group.snr}
        | {"milliseconds": 1e3 * found.seconds, "draws": found.draws}
        for name, group in found.groups.items()
    ]


@app.command()
def reparameterization(
    out: Out = RESULTS,
    quick: Quick = False,
    draws: Annotated[int, typer.Option(help="Gradients for each variance.")] = 200,
    seed: Seed = 0,
) -> None:
    """Score function against the path, on a Gaussian VAE: variance over training, and against K."""
    data, sizes = images(quick), {"z_dim": 20, "hidden": (200,)}
    torch.manual_seed(seed)
    model, guide = (made(x_dim=data.train.shape[1], **sizes) for made in (VAE, Normal))
    stops = (3, 10, 30) if quick else (10, 30, 100, 300, 1000, 3000)
    draws, x, rows = min(draws, 20) if quick else draws, data.test[:20], []

    def measure(particles: int, steps: int, panel: str) -> None:
        for name in ("score_function", "elbo", "stl"):
            objective = objectives.every()[name]
            found = gradient_statistics(model, guide, x, objective, particles, draws, seed=seed)
            rows.extend(measurements(found, panel=panel, estimator=name, step=steps))

    for steps in trained(model, guide, objectives.elbo, 1, batches(data.train, stops[-1], 100, seed)):
        if steps in stops:
            measure(1, steps, "step")
    for particles in (1, 2, 4) if quick else (1, 2, 4, 8, 16, 32):
        measure(particles, stops[-1], "particles")
    guides = [row for row in rows if row["group"] == "guide"]
    columns = ["panel", "estimator", "step", "particles", "variance", "snr"]
    show("Variance of the guide's gradient, Gaussian VAE", guides, columns)
    save(out, "reparameterization", rows, drawings.reparameterization(rows))


@app.command()
def estimators(
    out: Out = RESULTS,
    quick: Quick = False,
    draws: Annotated[int, typer.Option(help="Gradients for each estimator.")] = 400,
    warm_up: Annotated[int, typer.Option(help="Training steps before anything is measured.")] = 500,
    seed: Seed = 0,
) -> None:
    """Variance, bias and cost of estimators for discrete latents, at equal evaluations of the model."""
    data = images(quick)
    network = Network(data.train.shape[1], 10 if quick else 200)
    draws, warm_up = (20, 10) if quick else (draws, warm_up)
    model, guide = network.pair(seed)
    list(trained(model, guide, objectives.rloo, BUDGET, batches(data.train, warm_up, 100, seed)))
    x, rows = data.test[:20], []
    references = {
        "ELBO": gradient_statistics(model, guide, x, objectives.rloo, 4 * BUDGET, 5 * draws, seed=seed + 1),
        # The arithmetic baseline, unbiased too, checks the geometric one.
        "L_K": gradient_statistics(model, guide, x, objectives.vimco_arithmetic, BUDGET, 5 * draws, seed=seed + 1),
    }
    for name, contender in CONTENDERS.items():
        objective, particles = contender.make(network), contender.particles(BUDGET, 1)
        adapt(objective, model, guide, batches(data.train, warm_up, 100, seed + 2), particles)
        if name == "NVIL":
            objective.normalise = False  # a gradient divided by its spread has a variance of its own unit
        reference = references[contender.bound]
        exact = {n: g for group in reference.groups.values() for n, g in group.mean.items()}
        found = gradient_statistics(model, guide, x, objective, particles, draws, exact=exact, seed=seed)
        noise = {group: known.noise for group, known in reference.groups.items()}
        rows += [row | bias(found, exact, row["group"], noise) for row in measurements(found, estimator=name)]
    title = f"Gradients at {BUDGET} evaluations of the model per datum, {network.title} (VIMCO: of L_{BUDGET})"
    show(title, rows, ["estimator", "group", "particles", "variance", "snr", "bias", "resolution", "milliseconds"])
    save(out, "estimators", rows, drawings.estimators(rows, BUDGET))


def bias(
    found: GradientStatistics,
    exact: Mapping[str, Tensor],
    group: str,
    noise_of_exact: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the length of the bias by that of the gradient, and the smallest that could be seen.

    The squared difference of two noisy means is the squared bias plus both noises, which are
    subtracted; two standard deviations of them are at most sqrt(8) times their sum.
    """
    noise = found[group].noise ** 2 + (noise_of_exact or {}).get(group, 0.0) ** 2
    length = math.sqrt(sum(float(exact[name].square().sum()) for name in found[group].mean))
    squared = found[group].bias ** 2 - noise
    seen = squared > math.sqrt(8) * noise
    return {
        "bias": math.sqrt(squared) / length if seen else math.nan,
        "resolution": math.sqrt(math.sqrt(8) * noise) / length,
    }


@app.command()
def temperature(
    out: Out = RESULTS,
    quick: Quick = False,
    draws: Annotated[int, typer.Option(help="Gradients for each point.")] = 2000,
    z_dim: Annotated[int, typer.Option(help="Binary latents; the exact gradient lists all their values.")] = 8,
    warm_up: Annotated[
        int, typer.Option(help="Training steps before; later the gradient is too small to see a bias.")
    ] = 10,
    seed: Seed = 0,
) -> None:
    """Bias and variance of relaxed gradients against their temperature, on a network small enough to list."""
    data = images(quick)
    network = Network(data.train.shape[1], 3 if quick else z_dim)
    draws = 20 if quick else draws
    model, guide = network.pair(seed)
    list(trained(model, guide, objectives.rloo, BUDGET, batches(data.train, warm_up, 100, seed)))
    x, rows = data.test[:20], []
    exact = exact_gradient(model, guide, x)
    for value in (0.1, 1.0) if quick else (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0):
        for name, made in RELAXED.items():
            found = gradient_statistics(model, guide, x, made(value), 1, draws, exact=exact, seed=seed)
            known = {"estimator": name, "temperature": value}
            rows += [row | bias(found, exact, row["group"]) for row in measurements(found, **known)]
    guides = [row for row in rows if row["group"] == "guide"]
    title = f"The guide's gradient, {network.z_dim} binary latents, K = 1"
    show(title, guides, ["estimator", "temperature", "variance", "bias", "resolution"])
    save(out, "temperature", rows, drawings.temperature(guides))


class FixedScale(nn.Module):
    """Turn a mean into a normal distribution of one fixed scale."""

    def forward(self, loc: Tensor) -> dist.TorchDistribution:
        """Return the distribution."""
        return dist.Normal(loc, math.sqrt(2 / 3)).to_event(1)


def nearly_optimal(size: int, spread: float, seed: int) -> tuple[nn.Module, nn.Module, Tensor]:
    """Return x ~ N(z + b, I), a linear guide of scale sqrt(2/3), parameters near their optimum, and one datum."""
    torch.manual_seed(seed)
    model, encoder = LinearGaussian(size, size).double(), nn.Linear(size, size).double()
    guide = Normal(encoder=nn.Sequential(encoder, FixedScale()))
    model.weight.requires_grad_(False).copy_(torch.eye(size))
    model.log_scale.requires_grad_(False)
    x = torch.randn(1024, size).double() * math.sqrt(2)
    with torch.no_grad():
        model.bias.copy_(x.mean(0))
        encoder.weight.copy_(torch.eye(size) / 2)
        encoder.bias.copy_(-x.mean(0) / 2)
        for parameter in (model.bias, encoder.weight, encoder.bias):
            parameter.add_(spread * torch.randn_like(parameter))
    return model, guide, x[:1]


@app.command()
def snr(
    out: Out = RESULTS,
    quick: Quick = False,
    draws: Annotated[int, typer.Option(help="Gradients for each ratio.")] = 500,
    copies: Annotated[int, typer.Option(help="Independent estimates averaged in each gradient.")] = 128,
    size: Annotated[int, typer.Option(help="Dimensions of x and of z.")] = 5,
    spread: Annotated[float, typer.Option(help="Standard deviation of the parameters around the optimum.")] = 0.05,
    seed: Seed = 0,
) -> None:
    """Signal-to-noise ratio of importance-weighted gradients against K, with fitted slopes.

    Each draw averages over copies of one datum, which raises the ratio by the root of their number;
    what is reported is that of one copy.
    """
    counts = (1, 4, 16, 64) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    draws, copies = (50, 8) if quick else (draws, copies)
    model, guide, x = nearly_optimal(size, spread, seed)
    rows: list[dict[str, Any]] = []
    for particles in counts:
        for name in ("iwae", "dreg"):
            objective = objectives.every()[name]
            found = gradient_statistics(model, guide, x.expand(copies, -1), objective, particles, draws, seed=seed)
            rows += [of_one_copy(row, copies) for row in measurements(found, estimator=name)]
    smallest = counts[-1] // 32
    slopes = fitted(rows, smallest)
    show(f"Slopes of log SNR against log K, K >= {smallest}", slopes, ["estimator", "group", "slope", "expected"])
    save(out, "snr", rows, drawings.snr(rows, slopes))


def of_one_copy(row: Mapping[str, Any], copies: int) -> dict[str, Any]:
    """Return the statistics of one of the copies that a gradient averages."""
    changed = {"variance": row["variance"] * copies, "snr": row["snr"] / math.sqrt(copies)}
    return {**row, **changed, "draws": row["draws"] * copies}


def fitted(rows: Rows, smallest: int) -> Rows:
    """Return the slopes of log SNR against log K, from a smallest K on."""
    found = []
    for name, group, expected in (("iwae", "guide", -0.5), ("dreg", "guide", 0.5), ("iwae", "model", 0.5)):
        chosen = [r for r in rows if (r["estimator"], r["group"]) == (name, group) and r["particles"] >= smallest]
        x, y = (torch.tensor([float(row[column]) for row in chosen]).log() for column in ("particles", "snr"))
        slope = float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())
        found.append({"estimator": name, "group": group, "slope": slope, "expected": expected})
    return found


@app.command()
def training(
    out: Out = RESULTS,
    quick: Quick = False,
    steps: Annotated[int, typer.Option(help="Updates.")] = 2000,
    seeds: Annotated[int, typer.Option(help="Runs of each estimator.")] = 3,
    layers: Annotated[list[int] | None, typer.Option(help="Layers of latents; 1 and 2 if left out.")] = None,
    nonlinear: Annotated[
        bool | None, typer.Option("--nonlinear/--linear", help="Kind of network; both if left out.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Adam's step size.")] = 1e-3,
) -> None:
    """Training curves on sigmoid belief networks: the test ELBO against steps and against seconds."""
    data = images(quick)
    network = Network(data.train.shape[1], 10 if quick else 200)
    steps, seeds = (6, 1) if quick else (steps, seeds)
    kinds = (False, True) if nonlinear is None else (nonlinear,)
    rows: list[dict[str, Any]] = []
    for kind in (replace(network, layers=n, nonlinear=k) for n in layers or (1, 2) for k in kinds):
        for name in (name for name in CONTENDERS if name not in ("ARM", "StraightThrough")):
            for seed in range(seeds):
                rows += curve(kind, name, data, steps, learning_rate, seed)
            typer.echo(f"{kind.title}: {name} ends at {rows[-1]['elbo']:.2f} nats", err=True)
    ends = averaged([row for row in rows if row["step"] == steps])
    show(f"Test bounds after {steps} steps, means over {seeds} seeds", ends, list(ends[0]))
    save(out, "training", rows, drawings.training(rows))


def averaged(rows: Rows) -> Rows:
    """Return the means over seeds, and the range of the ELBO."""
    found = []
    for network, name in dict.fromkeys((row["network"], row["estimator"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["estimator"]) == (network, name)]
        means = {key: f"{sum(row[key] for row in mine) / len(mine):.2f}" for key in ("elbo", "l_50", "seconds")}
        spread = max(row["elbo"] for row in mine) - min(row["elbo"] for row in mine)
        found.append({"network": network, "estimator": name, **means, "range of elbo": f"{spread:.2f}"})
    return found


def curve(network: Network, name: str, data: pv.data.Splits, steps: int, lr: float, seed: int) -> Rows:
    """Train by one estimator, and return the test bounds on the way.

    Time counts from the end of the first step, which sets things up, and without evaluations.
    """
    model, guide = network.pair(seed)
    objective, particles = CONTENDERS[name].make(network), CONTENDERS[name].particles(BUDGET, network.layers)
    stops = {round(steps * i / 10) for i in range(1, 11)}
    rows, seconds, start = [], 0.0, 0.0
    for step in trained(model, guide, objective, particles, batches(data.train, steps, 100, seed), lr):
        start = perf_counter() if step == 1 else start
        if step in stops:
            seconds += perf_counter() - start
            found = pv.evaluate(model, guide, data.test[::20], particles=50, progress=False)
            bounds = {"elbo": float(found.elbo.mean()), "l_50": found.mean}
            known = {"network": network.title, "estimator": name, "particles": particles, "seed": seed}
            rows.append(known | {"step": step, "seconds": seconds} | bounds)
            start = perf_counter()
    return rows


if __name__ == "__main__":
    app()
