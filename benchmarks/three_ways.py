"""One Bayesian Gaussian mixture program by mean field, by gradients with an autoguide, and by EM, side by side.

    python -m benchmarks.three_ways [--quick]

The same program (`models/bayesian_gaussian_mixture.py`) three times: coordinate ascent (`pv.cavi`), stochastic
gradients with Pyro's AutoNormal and TraceEnum_ELBO (`pv.fit`), and EM (`pv.em`), whose shared latents are
point masses. On data like those of Old Faithful, made here, and on Fisher's irises.

Bounds are those of each method: an ELBO is below the evidence, and that of the autoguide, whose factors are
normal in another parametrisation, below that of mean field if both are at their best. EM's is the log joint
density at a point, divided by N, which is no bound on the evidence and may lie above it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_iris
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import ppl_vae as pv
from benchmarks.figures import BLACK, BLUE, GREY, ORANGE, RED, canvas
from benchmarks.speed import commands
from ppl_vae.conditioning import posterior
from ppl_vae.latent_structure import structure_of
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture

COLOURS = {"CAVI": BLUE, "SVI, AutoNormal": RED, "EM": ORANGE}
OF_COMPONENTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
DRAWS = 200  # of shared latents, for an average over the posterior


@dataclass(frozen=True)
class Data:
    """What is clustered: standardised data, what they are, and the two columns that are drawn."""

    name: str
    x: Tensor
    labels: Tensor
    components: int
    axes: tuple[int, int]
    names: tuple[str, str]


@dataclass(frozen=True)
class Found:
    """What a method found."""

    history: list[float]
    seconds: float
    responsibilities: Tensor
    predictive: float
    mean: Tensor
    covariance: Tensor
    weights: Tensor


def old_faithful_like() -> Data:
    """Draw 272 eruptions: short ones that come soon, long ones that come late."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(272, generator=generator) < 0.64).long()
    mean = torch.tensor([[2.04, 54.6], [4.29, 79.9]], dtype=torch.float64)
    factor = torch.tensor([[[0.26, 0.0], [1.6, 5.6]], [[0.41, 0.0], [2.2, 5.6]]], dtype=torch.float64)
    noise = torch.randn(272, 2, 1, generator=generator, dtype=torch.float64)
    x = mean[labels] + (factor[labels] @ noise).squeeze(-1)
    return Data("like Old Faithful", standardised(x), labels, 6, (0, 1), ("duration", "waiting time"))


def irises() -> Data:
    """Return Fisher's irises: four measures of three species."""
    read = load_iris()
    x, labels = torch.tensor(read.data), torch.tensor(read.target)
    return Data("irises", standardised(x), labels, 6, (2, 3), ("petal length", "petal width"))


def standardised(x: Tensor) -> Tensor:
    """Return data with mean zero and variance one in each column."""
    return (x - x.mean(0)) / x.std(0)


def program(data: Data) -> BayesianGaussianMixture:
    """Return the program, with few data's worth of prior, and weights that may go to zero."""
    concentration = 1.0  # an EM weight has its mode at zero then, and no lower
    return BayesianGaussianMixture(data.x.shape[1], data.components, concentration, mean_precision=0.1).double()


def by_cavi(data: Data, iterations: int) -> Found:
    """Fit independent factors by coordinate ascent."""
    found = pv.cavi(program(data), data.x, iterations=iterations, tol=1e-8, progress=False)
    q = found.q
    return Found(
        found.history["elbo"],
        0.0,
        found.responsibilities,
        float(found.log_density(data.x, draws=DRAWS).mean()),
        q["mean"].mean,
        torch.linalg.inv(q["precision"].mean),
        q["weights"].mean,
    )


def by_em(data: Data, iterations: int) -> Found:
    """Climb to the mode of the shared latents."""
    found = pv.em(program(data), data.x, iterations=iterations, tol=1e-8, progress=False)
    at = found.parameters
    return Found(
        found.history["log_posterior"],
        0.0,
        found.responsibilities,
        float(found.log_density(data.x).mean()),
        at["mean"],
        torch.linalg.inv(at["precision"]),
        at["weights"],
    )


def by_svi(data: Data, iterations: int) -> Found:
    """Follow noisy gradients of the ELBO of an autoguide, the discrete latent summed out."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()  # where an autoguide would find the parameters of the one before
    model = program(data)
    guide = AutoNormal(poutine.block(model, hide=["y"]), init_loc_fn=starting_at_kmeans(data), init_scale=0.05)
    objective = TraceEnum_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    options = {"objective": objective, "epochs": iterations, "batch_size": len(data.x), "progress": False}
    fit = pv.fit(model, guide, data.x, optimizer=lambda p: torch.optim.Adam(p, lr=0.02), **options)
    structure, _ = structure_of(model, (data.x,))
    with torch.no_grad():
        draws = [{name: value.detach() for name, value in guide(data.x).items()} for _ in range(DRAWS)]
        densities = torch.stack([posterior(structure, (data.x,), points).log_px for points in draws])
        middle = guide.median(data.x)
        at_middle = posterior(structure, (data.x,), middle)
    return Found(
        fit.history["train_bound"],
        0.0,
        at_middle.discrete["y"],
        float((densities.logsumexp(0) - math.log(DRAWS)).mean()),
        middle["mean"],
        torch.linalg.inv(middle["precision"]),
        middle["weights"],
    )


def starting_at_kmeans(data: Data) -> Callable[[dict[str, Any]], Tensor]:
    """Return a rule that puts an autoguide's means at those of k-means, as the other two start there."""
    shares = pv.starts.kmeans(data.x, data.components, 0)
    centres = shares.mT @ data.x / shares.sum(0).unsqueeze(1)
    values = {
        "weights": shares.mean(0),
        "mean": centres,
        "precision": 4 * torch.eye(data.x.shape[1]).double().expand(data.components, -1, -1),
    }
    return lambda site: values[site["name"]].clone()


METHODS = {"CAVI": by_cavi, "SVI, AutoNormal": by_svi, "EM": by_em}


def draw(axes: Axes, data: Data, found: Found) -> None:
    """Draw the data in the colour of their component, and components as ellipses of two standard deviations."""
    i, j = data.axes
    colours = [OF_COMPONENTS[c] for c in found.responsibilities.argmax(1).tolist()]
    axes.scatter(data.x[:, i], data.x[:, j], s=6, c=colours, alpha=0.7, linewidths=0)
    for c in range(data.components):
        if found.responsibilities[:, c].sum() < 1:
            continue
        block = found.covariance[c][[i, j]][:, [i, j]]
        values, vectors = torch.linalg.eigh(block)
        angle = math.degrees(math.atan2(float(vectors[1, 1]), float(vectors[0, 1])))
        size = 4 * values.sqrt()
        centre = found.mean[c, [i, j]].tolist()
        shape = {"width": float(size[1]), "height": float(size[0]), "angle": angle}
        axes.add_patch(Ellipse(centre, **shape, fill=False, edgecolor=OF_COMPONENTS[c], linewidth=1.6))
    axes.set(xlabel=data.names[0], ylabel=data.names[1])


def picture(everything: list[tuple[Data, dict[str, Found]]]) -> Figure:
    """Draw clusters by each method, and the bounds, a row for each data set."""
    figure, grid = canvas(len(everything), len(METHODS) + 1, 13.5, 3.4 * len(everything))
    for (data, found), row in zip(everything, grid, strict=True):
        for (name, one), axes in zip(found.items(), row, strict=False):
            draw(axes, data, one)
            axes.set_title(f"{name}: {data.name}", fontsize=10, color=BLACK)
        bounds(row[-1], found)
    return figure


def bounds(axes: Axes, found: dict[str, Found]) -> None:
    """Draw the bound of each method at each iteration, iterations on a logarithmic axis."""
    for name, one in found.items():
        axes.plot(range(1, len(one.history) + 1), one.history, color=COLOURS[name], label=name, linewidth=1.6)
    final = [one.history[-1] for one in found.values()]
    margin = 0.5 * (max(final) - min(final)) + 0.1
    axes.set(
        xscale="log", xlabel="iterations", ylabel="nats per datum", ylim=(min(final) - 3 * margin, max(final) + margin)
    )
    axes.set_title("ELBO; of EM, log joint density / N", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.axhline(found["CAVI"].history[-1], color=GREY, linewidth=0.6, zorder=0)


def table(data: Data, found: dict[str, Found]) -> Table:
    """Return the numbers as printed."""
    made = Table(
        *("method", "iterations", "seconds", "bound", "log-likelihood", "components", "adjusted Rand"),
        title=f"{data.name}: N = {len(data.x)}, D = {data.x.shape[1]}, {data.components} components offered",
        title_justify="left",
    )
    for name, one in found.items():
        used = int((one.responsibilities.sum(0) >= 1).sum())
        rand = adjusted_rand_score(data.labels.numpy(), one.responsibilities.argmax(1).numpy())
        cells = (f"{one.seconds:.1f}", f"{one.history[-1]:.4f}", f"{one.predictive:.4f}", str(used), f"{rand:.2f}")
        made.add_row(name, str(len(one.history) - 1), *cells)
    return made


def timed(method: Callable[[Data, int], Found], data: Data, iterations: int) -> Found:
    """Return what a method found, with its seconds."""
    started = time.perf_counter()
    found = method(data, iterations)
    return Found(**{**vars(found), "seconds": time.perf_counter() - started})


def main() -> None:
    """Fit three ways, print, and draw."""
    given = commands.parser(__doc__, rounds=1).parse_args()
    torch.set_default_dtype(torch.float64)
    steps = {"CAVI": 500, "SVI, AutoNormal": 1500, "EM": 500}
    everything = []
    for data in (old_faithful_like(), irises()):
        found = {name: timed(METHODS[name], data, 5 if given.quick else steps[name]) for name in METHODS}
        Console(width=110).print(table(data, found))
        everything.append((data, found))
    rows = {data.name: {name: one.history for name, one in found.items()} for data, found in everything}
    commands.write("three_ways", rows, picture(everything))


if __name__ == "__main__":
    main()
