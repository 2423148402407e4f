"""One Bayesian Gaussian mixture under coordinate ascent, stochastic gradients and EM: bounds, clusters, time.

    python -m benchmarks.three_ways [--steps N] [--quick]

The program is `models/bayesian_gaussian_mixture.py`, as it is. ``pv.cavi`` gives each of its latents the optimal
factor; ``pv.fit`` trains Pyro's autoguides over the latents that all data share, with each datum's component summed out
(``TraceEnum_ELBO``); ``pv.em`` puts all mass on one value. All begin at the same k-means. Data are two elongated
clusters such as those of Old Faithful's eruptions, drawn here, and scikit-learn's digits in their first principal
components.

Reference: A. Azzalini, A. W. Bowman, "A Look at Some Data on the Old Faithful Geyser", JRSS C 1990,
https://doi.org/10.2307/2347385, for what such clusters look like.
"""

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import ppl_vae as pv
from benchmarks.figures import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, YELLOW, canvas, save, show
from benchmarks.speed import commands
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from ppl_vae.programs import own_parameters

CLUSTERS = [BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW, "#000000", "#8C510A", "#5E3C99"]
METHODS = {"CAVI": BLUE, "SVI, AutoNormal": ORANGE, "SVI, AutoMultivariateNormal": GREEN, "EM": GREY}
GUIDES = {"SVI, AutoNormal": AutoNormal, "SVI, AutoMultivariateNormal": AutoMultivariateNormal}
PARTICLES = 200  # of the bounds of autoguides, at the end
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Data:
    """Data with their labels, which no method sees.

    Attributes:
        name: for titles.
        axes: names of the first two dimensions.
        x: training data ``(N, D)``.
        test: held out.
        labels: of the training data.
        priors: options of the program.
    """

    name: str
    axes: tuple[str, str]
    x: Tensor
    test: Tensor
    labels: Tensor
    priors: dict[str, Any] = field(default_factory=dict)

    def model(self) -> BayesianGaussianMixture:
        """Return the program."""
        sizes = {"x_dim": self.x.shape[1], "y_dim": len(self.labels.unique())}
        return BayesianGaussianMixture(**sizes, **self.priors).double()

    def start(self) -> Tensor:
        """Return the responsibilities that all begin at."""
        return pv.starts.kmeans(self.x, len(self.labels.unique()))


@dataclass(frozen=True)
class Found:
    """What a method found.

    Attributes:
        history: nats per datum, after each iteration or step.
        bound: the last, in EM's case log p(x, theta) / N, which bounds nothing.
        values: weights, means and precisions to draw.
        labels: of the training data.
        test: log density of a held-out datum, in nats.
        seconds: that it took.
    """

    history: list[float]
    bound: float
    values: Values
    labels: Tensor
    test: float
    seconds: float


def eruptions(rows: int = 400) -> Data:
    """Return minutes of eruption and of waiting, short and long, standardised; a third is held out."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    long = torch.rand(rows, generator=generator) < 0.64
    short_ones = torch.tensor([2.04, 54.5]) + normal(rows, 2) @ factor(0.27, 5.9, 0.4).mT
    long_ones = torch.tensor([4.29, 80.0]) + normal(rows, 2) @ factor(0.41, 6.0, 0.4).mT
    x = torch.where(long.unsqueeze(1), long_ones, short_ones)
    x, train = (x - x.mean(0)) / x.std(0), rows * 2 // 3
    names = ("eruption (standardised)", "waiting (standardised)")
    return Data("eruptions", names, x[:train], x[train:], long[:train].long(), {"scatter": 0.2 * torch.eye(2)})


def factor(first: float, second: float, correlation: float) -> Tensor:
    """Return the Cholesky factor of a covariance of two standard deviations."""
    rest = math.sqrt(1 - correlation**2)
    return torch.tensor([[first, 0.0], [second * correlation, second * rest]], dtype=torch.float64)


def digits(dims: int = 6) -> Data:
    """Return scikit-learn's digits in their first principal components, in units of the first; a fifth is held out."""
    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(PCA(dims, random_state=0).fit_transform(images))
    x, order = x / x[:, 0].std(), torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    priors = {"scatter": 0.2 * torch.eye(dims), "mean_precision": 0.1}
    names = ("first principal component", "second")
    return Data("digits", names, x[train], x[test], torch.as_tensor(labels)[train], priors)


def ascended(data: Data) -> Found:
    """Fit by coordinate ascent."""
    began = time.perf_counter()
    found = pv.cavi(data.model(), data.x, start=data.start(), iterations=300, progress=False)
    seconds = time.perf_counter() - began
    values = {name: found.q[name].mean for name in ("weights", "mean", "precision")}
    history, test = found.history["elbo"], float(found.log_density(data.test, draws=100).mean())
    return Found(history, history[-1], values, found.labels, test, seconds)


def maximised(data: Data) -> Found:
    """Fit by expectation maximisation, all latents that data share at their mode."""
    began = time.perf_counter()
    found = pv.em(data.model(), data.x, start=data.start(), iterations=300, progress=False)
    seconds = time.perf_counter() - began
    history, test = found.history["log_posterior"], float(found.log_density(data.test).mean())
    return Found(history, history[-1], found.parameters, found.labels, test, seconds)


def trained(data: Data, kind: type, steps: int) -> Found:
    """Fit an autoguide by stochastic gradients through the same program, on all data in every step."""
    model, start = data.model(), data.start()
    began = time.perf_counter()
    values = model.m_step({"y": start}, data.x)
    torch.manual_seed(0)
    guide = kind(poutine.block(model, hide=["y"]), init_loc_fn=init_to_value(values=values), init_scale=0.05)
    elbo, adam = TraceEnum_ELBO(max_plate_nesting=1), partial(torch.optim.Adam, lr=0.02)
    sizes = {"epochs": steps, "batch_size": len(data.x)}
    fit = pv.fit(model, guide, data.x, elbo, optimizer=adam, compile=False, progress=False, **sizes)
    seconds = time.perf_counter() - began
    many = TraceEnum_ELBO(num_particles=PARTICLES, max_plate_nesting=1)
    with own_parameters(), torch.no_grad():  # Pyro's store would hand this guide another's of its kind
        bound = pv.svi_step(model, guide, many, optimizer=adam(guide.parameters())).bound(data.x).mean()
        drawn = [guide(data.x) for _ in range(100)]
        shares = sum(log_joint(values, data.x).softmax(1) for values in drawn)
        tested = torch.stack([log_joint(values, data.test).logsumexp(1) for values in drawn])
        test = float((tested.logsumexp(0) - math.log(len(drawn))).mean())
        middle = guide.median(data.x)
    return Found(fit.history["train_bound"], float(bound), middle, shares.argmax(1), test, seconds)


def log_joint(values: Values, x: Tensor) -> Tensor:
    """Return log p(x, y) of each datum for each component, ``(N, C)``."""
    normal = torch.distributions.MultivariateNormal(values["mean"], precision_matrix=values["precision"])
    return values["weights"].log() + normal.log_prob(x.unsqueeze(1))


def row(data: Data, name: str, found: Found) -> dict[str, Any]:
    """Return what the table says of one method."""
    return {
        "data": data.name,
        "method": name,
        "bound": found.bound,
        "held out": found.test,
        "rand": float(adjusted_rand_score(data.labels.numpy(), found.labels.numpy())),
        "iterations": len(found.history) - (name not in GUIDES),
        "seconds": found.seconds,
    }


def curves(axes: Axes, data: Data, every: Mapping[str, Found]) -> None:
    """Draw the bound at each iteration."""
    for name, found in every.items():
        values, colour = np.array(found.history), METHODS[name]
        if name in GUIDES:  # one draw in each step: faint, and its running mean
            axes.plot(np.arange(1, len(values) + 1), values, color=colour, alpha=0.15, linewidth=0.5)
            width = max(len(values) // 20, 1)
            values = np.convolve(values, np.ones(width) / width, "valid")
            steps = np.arange(width, width + len(values))
        else:
            steps = np.arange(1, len(values) + 1)
        label = "EM: log p(x, theta) / N" if name == "EM" else name
        axes.plot(steps, values, "--" if name == "EM" else "-", color=colour, linewidth=1.6, label=label)
    best = max(found.bound for name, found in every.items() if name != "EM")
    top = max(found.bound for found in every.values())
    low = min(every["CAVI"].history[0], *(found.bound for found in every.values()))
    axes.set(xscale="log", xlabel="iterations, gradient steps", ylabel="ELBO (nats per datum)")
    axes.set_ylim(low - 0.6 * (best - low) - 0.02, top + 0.25 * (top - low))
    axes.set_title(f"{data.name}: N = {len(data.x):,}, {data.x.shape[1]} dimensions", fontsize=9)


def clusters(axes: Axes, data: Data, name: str, found: Found) -> None:
    """Draw data in the colour of their cluster, and each cluster's ellipse of two standard deviations."""
    x, order = data.x.numpy(), by_majority(found.labels, data.labels)
    colours = [CLUSTERS[order[label] % len(CLUSTERS)] for label in found.labels.tolist()]
    axes.scatter(x[:, 0], x[:, 1], s=4, c=colours, alpha=0.35, linewidths=0)
    covariances = torch.linalg.inv(found.values["precision"])[:, :2, :2]
    for k, (mean, covariance) in enumerate(zip(found.values["mean"], covariances, strict=True)):
        axes.add_patch(ellipse(mean[:2], covariance, CLUSTERS[order[k] % len(CLUSTERS)]))
    rand = adjusted_rand_score(data.labels.numpy(), found.labels.numpy())
    axes.set_title(f"{name}\nadjusted Rand index {rand:.2f}", fontsize=9)
    axes.set_xlabel(data.axes[0], fontsize=8)
    axes.tick_params(labelsize=7)


def by_majority(found: Tensor, labels: Tensor) -> list[int]:
    """Return a colour for each cluster: that of the label most of its data have, as far as it is free."""
    counts = torch.zeros(len(labels.unique()), len(labels.unique()))
    counts.index_put_((found, labels), torch.ones(len(found)), accumulate=True)
    taken: dict[int, int] = {}
    for place in counts.flatten().argsort(descending=True).tolist():
        cluster, label = divmod(place, counts.shape[1])
        if cluster not in taken and label not in taken.values():
            taken[cluster] = label
    return [taken[cluster] for cluster in range(len(counts))]


def ellipse(mean: Tensor, covariance: Tensor, colour: str) -> Ellipse:
    """Return the ellipse of two standard deviations."""
    squares, directions = torch.linalg.eigh(covariance)
    width, height = (4 * squares.sqrt()).tolist()
    angle = math.degrees(math.atan2(float(directions[1, 0]), float(directions[0, 0])))
    return Ellipse(mean.tolist(), width, height, angle=angle, fill=False, edgecolor=colour, linewidth=1.8)


def picture(found: list[tuple[Data, dict[str, Found]]]) -> Figure:
    """Draw bounds on the left and clusters beside them, a row for each set of data."""
    figure, grid = canvas(len(found), 5, width=14.5, height=3.3 * len(found), width_ratios=[1.35, 1, 1, 1, 1])
    for line, (data, every) in zip(grid, found, strict=True):
        curves(line[0], data, every)
        for axes, (name, one) in zip(line[1:], every.items(), strict=True):
            clusters(axes, data, name, one)
            axes.sharex(line[1])
            axes.sharey(line[1])
        line[1].set_ylabel(data.axes[1], fontsize=8)
    grid[0, 0].legend(frameon=False, fontsize=7, loc="lower right")
    return figure


def main() -> None:
    """Fit three ways, print and draw."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=1000, help="of stochastic gradients (default: %(default)s)")
    options.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    given = options.parse_args()
    steps, found = 20 if given.quick else given.steps, []
    for data in (eruptions(), digits()):
        every = {"CAVI": ascended(data)}
        every |= {name: trained(data, kind, steps) for name, kind in GUIDES.items()}
        found.append((data, every | {"EM": maximised(data)}))
    rows = [row(data, name, one) for data, every in found for name, one in every.items()]
    show("One program, three ways (nats per datum; EM's figure is log p(x, theta) / N, no bound)", rows, list(rows[0]))
    history = [
        {"data": data.name, "method": name, "iteration": i, "value": value}
        for data, every in found
        for name, one in every.items()
        for i, value in enumerate(one.history, start=int(name in GUIDES))
    ]
    save(commands.RESULTS, "three_ways", rows, picture(found))
    save(commands.RESULTS, "three_ways_history", history, Figure())


if __name__ == "__main__":
    main()
