"""Time EM and coordinate ascent on Gaussian mixtures beside scikit-learn's, with their memory and their growth.

    python -m benchmarks.mixtures [--rounds N] [--quick]

Both fit the same model (full covariances; for the Bayesian one Dirichlet weights and the same priors) to the same data
in float64 from the same responsibilities, in one process, in turns. A figure is the median time of an iteration, what
counts is the ratio of medians. Before that, whole fits by both are compared number by number.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture as BayesianPeer
from sklearn.mixture import GaussianMixture as Peer
from threadpoolctl import threadpool_limits
from torch import Tensor

import ppl_vae as pv
from benchmarks.figures import BLUE, GREY, ORANGE, Rows, canvas, log_log, save, series, show
from benchmarks.speed import commands
from benchmarks.speed.memory import peak_megabytes
from ppl_vae.coordinate_ascent import Ascent
from ppl_vae.expectation_maximization import ExactEM
from ppl_vae.mean_field import factorised
from ppl_vae.models.bayesian_gaussian_mixture import BayesianGaussianMixture
from ppl_vae.models.gaussian_mixture import GaussianMixture

ROWS, DIMS, COMPONENTS = 100_000, 16, 32
SIZES = [(25_000, 32), (50_000, 32), (100_000, 8), (100_000, 16), (100_000, 32)]
QUICK = [(500, 4), (1000, 2), (1000, 4)]
OURS, THEIRS = "ppl_vae", "scikit-learn"
COMPARED = 5  # iterations after which numbers are compared
Runs = dict[str, Callable[[], Any]]


def drawn(rows: int, dims: int, components: int) -> tuple[Tensor, Tensor]:
    """Return data of elongated, overlapping clusters, and responsibilities that are half right."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    y = torch.randint(components, (rows,), generator=generator)
    means, factors = 2 * normal(components, dims), normal(components, dims, dims) / math.sqrt(dims)
    x = means[y]
    for k in range(components):
        x[y == k] += normal(int((y == k).sum()), dims) @ factors[k].mT
    return x, 0.5 / components + 0.5 * torch.nn.functional.one_hot(y, components).double()


class Likelihood:
    """Maximum likelihood: expectation maximisation."""

    name = "EM"

    def __init__(self, x: Tensor, start: Tensor):
        self.x, self.start = x, start
        self.sizes = {"x_dim": x.shape[1], "y_dim": start.shape[1]}

    def model(self) -> GaussianMixture:
        """Return the program; both libraries add 1e-6 to each variance."""
        return GaussianMixture(**self.sizes).double()

    def fit(self, iterations: int) -> pv.PointEstimate:
        """Fit by this library."""
        return pv.em(self.model(), self.x, start=self.start, iterations=iterations, tol=0, progress=False)

    def peer(self, iterations: int) -> Peer:
        """Return scikit-learn's estimator, which takes the same start."""
        return started(Peer, self.start)(n_components=self.sizes["y_dim"], max_iter=iterations, tol=0)

    def algorithm(self) -> ExactEM:
        """Return what iterates."""
        return ExactEM(self.model(), (self.x,), self.start, None)

    def numbers(self, found: pv.PointEstimate) -> dict[str, Any]:
        """Return what was found, as scikit-learn names it."""
        model = found.point.structure.model
        return {
            "weights_": model.logits.softmax(-1),
            "means_": model.mean,
            "covariances_": model.covariance.matrices(),
            "log_likelihood": found.history["log_likelihood"][-1],
        }

    def their_numbers(self, found: Peer) -> dict[str, Any]:
        """Return the same of scikit-learn's."""
        names = ("weights_", "means_", "covariances_")
        return {name: getattr(found, name) for name in names} | {"log_likelihood": found.score(self.x.numpy())}


class Bayesian(Likelihood):
    """Conjugate priors: coordinate ascent."""

    name = "CAVI"

    def model(self) -> BayesianGaussianMixture:
        """Return the program."""
        return BayesianGaussianMixture(**self.sizes).double()

    def fit(self, iterations: int) -> pv.MeanField:
        """Fit by this library."""
        return pv.cavi(self.model(), self.x, start=self.start, iterations=iterations, tol=0, progress=False)

    def peer(self, iterations: int) -> BayesianPeer:
        """Return scikit-learn's estimator, which takes the same start and the priors of the program."""
        model = self.model()
        return started(BayesianPeer, self.start)(
            n_components=self.sizes["y_dim"],
            weight_concentration_prior_type="dirichlet_distribution",
            weight_concentration_prior=float(model.concentration[0]),
            mean_precision_prior=float(model.mean_precision),
            mean_prior=model.prior_mean.numpy(),
            degrees_of_freedom_prior=float(model.degrees_of_freedom),
            covariance_prior=model.scatter.numpy(),
            reg_covar=0,
            max_iter=iterations,
            tol=0,
        )

    def algorithm(self) -> Ascent:
        """Return what iterates."""
        return Ascent(factorised(self.model(), (self.x,)), self.start)

    def numbers(self, found: pv.MeanField) -> dict[str, Any]:
        """Return what was found, as scikit-learn names it."""
        precision = found.q["precision"]
        return {
            "weight_concentration_": found.q["weights"].concentration,
            "means_": found.q["mean"].loc,
            "degrees_of_freedom_": precision.df,
            "covariances_": torch.linalg.inv(precision.mean),
        }

    def their_numbers(self, found: BayesianPeer) -> dict[str, Any]:
        """Return the same of scikit-learn's."""
        return {
            n: getattr(found, n) for n in ("weight_concentration_", "means_", "degrees_of_freedom_", "covariances_")
        }


def started(kind: type, start: Tensor) -> type:
    """Return a kind of scikit-learn's mixtures that begins at given responsibilities."""

    class Started(kind):
        def _initialize_parameters(self, X: Any, *_: Any, **__: Any) -> None:
            self._initialize(X, start.numpy())

    return Started


def compared(task: Likelihood) -> float:
    """Fit by both and return the largest difference between what they found, relative to its size.

    Raises:
        AssertionError: it is more than rounding.
    """
    # In its last iteration scikit-learn takes the parameters of the best bound, which is the last.
    ours, theirs = task.numbers(task.fit(COMPARED)), task.their_numbers(task.peer(COMPARED).fit(task.x.numpy()))
    worst = 0.0
    for name, value in ours.items():
        one, other = (torch.as_tensor(np.asarray(torch.as_tensor(v).detach())) for v in (value, theirs[name]))
        worst = max(worst, float((one - other).abs().max() / other.abs().max()))
    assert worst < 1e-8, f"{task.name}: results differ from scikit-learn's by {worst:.1e}"
    return worst


def iterations_of(task: Likelihood) -> Runs:
    """Return an iteration of each: M-step, E-step and bound."""
    algorithm, peer, x = task.algorithm(), task.peer(1), task.x.numpy()
    with torch.no_grad():
        algorithm.begin(0)
    peer.fit(x)

    def ours() -> None:
        with torch.no_grad():
            algorithm.update()

    def theirs() -> None:  # the body of its loop
        log_px, log_shares = peer._e_step(x)
        peer._m_step(x, log_shares)
        peer._compute_lower_bound(log_shares, log_px)

    return {OURS: ours, THEIRS: theirs}


def in_turns(runs: Runs, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            started_at = time.perf_counter()
            run()
            if i:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - started_at))
    return {name: median(values) for name, values in times.items()}


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Give so many threads to torch and to NumPy's linear algebra."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    with threadpool_limits(number):
        yield
    torch.set_num_threads(before)


def measured(kind: type[Likelihood], size: tuple[int, int], number: int, rounds: int, memory: bool) -> dict[str, Any]:
    """Return a row: both at one size."""
    rows, components = size
    task = kind(*drawn(rows, DIMS, components))
    with threads(number):
        apart = compared(task)
        found = in_turns(iterations_of(task), rounds)
        peaks = peaks_of(task) if memory else {OURS: math.nan, THEIRS: math.nan}
    return {
        "algorithm": task.name,
        "N": rows,
        "C": components,
        "threads": number,
        "ppl_vae ms": found[OURS],
        "scikit-learn ms": found[THEIRS],
        "ratio": found[OURS] / found[THEIRS],
        "ppl_vae MB": peaks[OURS],
        "scikit-learn MB": peaks[THEIRS],
        "difference": apart,
        "load": os.getloadavg()[0],
    }


def peaks_of(task: Likelihood) -> dict[str, float]:
    """Return the peak memory of whole fits of a few iterations, in MB."""
    x = task.x.numpy()
    runs = {OURS: partial(task.fit, 3), THEIRS: lambda: task.peer(3).fit(x)}
    return {name: peak_megabytes(run) or math.nan for name, run in runs.items()}


def growth(rows: Rows, axis: str) -> list[dict[str, Any]]:
    """Return the exponents of time in one size, by least squares on logarithms."""
    other = "C" if axis == "N" else "N"
    largest = max(row[other] for row in rows)
    found = []
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        chosen = [row for row in rows if row["algorithm"] == name and row[other] == largest]
        logs = {c: np.log([row[c] for row in chosen]) for c in (axis, "ppl_vae ms", "scikit-learn ms")}
        slopes = {c: float(np.polyfit(logs[axis], logs[c], 1)[0]) for c in ("ppl_vae ms", "scikit-learn ms")}
        sizes = ", ".join(f"{row[axis]:,}" for row in chosen)
        found.append({"algorithm": name, "size": axis, "values": sizes, OURS: slopes["ppl_vae ms"]})
        found[-1][THEIRS] = slopes["scikit-learn ms"]
    return found


def picture(rows: Rows) -> Figure:
    """Draw the time of an iteration against both sizes."""
    figure, grid = canvas(1, 2, width=9.0, height=3.8, sharey=True)
    largest = {axis: max(row[axis] for row in rows) for axis in ("N", "C")}
    for axes, (axis, other, label) in zip(
        grid[0], (("N", "C", "data N, with {} components"), ("C", "N", "components C, with {:,} data")), strict=True
    ):
        for name, style in (("EM", "-"), ("CAVI", "--")):
            for who, colour in ((OURS, BLUE), (THEIRS, ORANGE)):
                where = {"algorithm": name, other: largest[other]}
                x, y = series(rows, axis, f"{who} ms", **where)
                axes.plot(x, y, style, marker="o", markersize=4, color=colour, label=f"{name}, {who}")
        log_log(axes)
        ticks = sorted({row[axis] for row in rows})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        low, high = ticks[0], ticks[-1]
        bottom = min(row["ppl_vae ms"] for row in rows) / 1.6
        axes.plot([low, high], [bottom, bottom * high / low], ":", color=GREY, linewidth=1.2, label="linear")
        axes.set_xlabel(label.format(largest[other]))
    grid[0, 0].set_ylabel("milliseconds an iteration")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Compare, time and draw."""
    given = commands.parser(__doc__, rounds=15).parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # iterations are few on purpose
    sizes, rounds = (QUICK, 2) if given.quick else (SIZES, given.rounds)
    rows = [measured(kind, size, 1, rounds, size == sizes[-1]) for kind in (Likelihood, Bayesian) for size in sizes]
    pairs = [measured(kind, sizes[-1], 2, rounds, False) for kind in (Likelihood, Bayesian)]
    every = [*rows, *pairs]
    show(f"An iteration on {DIMS} dimensions, float64; ratio: ours over theirs", every, list(rows[0]))
    exponents = [*growth(rows, "N"), *growth(rows, "C")]
    show("Exponents of growth of the time of an iteration, one thread", exponents, list(exponents[0]))
    save(commands.RESULTS, "mixtures", every, picture(rows))


if __name__ == "__main__":
    main()
