"""Time the evaluation of log-likelihoods: importance weights per second, beside hand-written PyTorch and pythae.

    python -m benchmarks.evaluation [--rounds N] [--quick]

One hundred images, particles in chunks; the figure is particles times images per second. First what `pv.evaluate`
does for each chunk is timed, not the compilation before it, which is reported apart; then all of it, capture included,
beside the decoder's matrix products alone and pythae's ``get_nll``, which goes through data one at a time; then its
memory.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import ppl_vae as pv
from benchmarks.speed import by_hand, commands, numpyros
from benchmarks.speed.memory import peak_megabytes
from benchmarks.speed.programs import WORKLOADS, X_DIM, Workload
from benchmarks.speed.timing import Contender, check_losses, interleaved
from ppl_vae.importance import Weights
from ppl_vae.noise import datum_keys
from ppl_vae.programs import Programs

ROWS = 100
CHUNKS = (1, 5, 16, 50, 160, 500)
PRODUCTS = "matrix products alone"
PARTICLES, FEW = 5000, 5
PAIR = WORKLOADS["elbo-400"]


def ours(x: Tensor, chunk: int, compiled: bool) -> Contender:
    """Return what `pv.evaluate` does for a chunk."""
    model, guide = PAIR.pair()
    weights, keys = Weights(model, guide, Programs(model, guide), chunk, chunk, compiled), datum_keys((x,))

    def run() -> Tensor:
        # Other keys every time, as equal ones would draw the same noise.
        return weights((x,), keys + torch.randint(2**62, ()))[0]

    return Contender("ppl_vae" if compiled else "ppl_vae, eager", run, loss=bound_of(run))


def hand(x: Tensor, chunk: int, compiled: bool) -> Contender:
    """Return the same by hand."""
    workload = Workload("", PAIR.make, PAIR.size, particles=max(chunk, 2))
    net = by_hand.network(workload, PAIR.plain_pair())

    def log_weights(x: Tensor) -> Tensor:
        mean, scale = net.encode(x)
        noise = torch.randn(chunk, *mean.shape)
        z = mean + scale * noise
        log_x = by_hand.log_bernoulli(x.expand(chunk, *x.shape), net.decoder(z))
        return log_x - 0.5 * (z**2).sum(-1) + (0.5 * noise**2 + scale.log()).sum(-1)

    call = torch.compile(log_weights) if compiled else log_weights

    def run() -> Tensor:
        with torch.no_grad():
            return call(x)

    return Contender("torch.compile of it" if compiled else "PyTorch by hand", run, loss=bound_of(run))


def products(x: Tensor, chunk: int) -> Contender:
    """Return the decoder's matrix products alone, without which nobody gets a weight."""
    model, _ = PAIR.plain_pair()
    layers = [layer.weight for layer in model.decoder.modules() if isinstance(layer, nn.Linear)]
    inputs = [torch.randn(chunk * len(x), weight.shape[1]) for weight in layers]

    def run() -> list[Tensor]:
        with torch.no_grad():
            return [x @ weight.T for x, weight in zip(inputs, layers, strict=True)]

    return Contender(PRODUCTS, run)


def bound_of(run: Callable[[], Tensor]) -> Callable[[], float]:
    """Return what computes minus the mean log-weight."""
    return lambda: -float(run().mean())


def pythae_weights(x: Tensor) -> Callable[[], int] | None:
    """Return pythae's ``get_nll``, which goes through data one at a time, on a few; None without pythae."""
    try:
        from benchmarks.speed.pythaes import model_of

        net = model_of(PAIR)
    except ImportError:
        return None

    def run() -> int:
        net.get_nll(x[:FEW], n_samples=PARTICLES, batch_size=100)
        return FEW * PARTICLES

    return run


def whole(rounds: int, images: int) -> dict[str, float]:
    """Return weights per second of all of `pv.evaluate`, capture included, beside others, measured in turns."""
    x = torch.rand(images, X_DIM, generator=torch.Generator().manual_seed(0)).bernoulli()
    model, guide = PAIR.pair()
    multiply = products(x[:ROWS], 50).run

    def evaluated() -> int:
        pv.evaluate(model, guide, x, particles=PARTICLES, compile=True, progress=False)
        return images * PARTICLES

    def multiplied() -> int:
        for _ in range(20):
            multiply()
        return 20 * 50 * ROWS

    runs = {"pv.evaluate": evaluated, PRODUCTS: multiplied, "pythae get_nll": pythae_weights(x)}
    rates: dict[str, list[float]] = {name: [] for name, run in runs.items() if run}
    for _ in range(rounds):
        for name in rates:
            started = time.perf_counter()
            done = runs[name]()
            rates[name].append(done / (time.perf_counter() - started))
    return {name: median(values) for name, values in rates.items()}


def peaks() -> dict[int, float | None]:
    """Return the peak memory of `pv.evaluate` on a hundred images by K, in MB, uncompiled."""
    x = torch.rand(ROWS, X_DIM, generator=torch.Generator().manual_seed(0)).bernoulli()
    model, guide = PAIR.pair()

    def evaluated(particles: int) -> None:
        pv.evaluate(model, guide, x, particles=particles, compile=False, progress=False)

    return {k: peak_megabytes(partial(evaluated, k)) for k in (1000, 10_000, 100_000)}


def measured(chunk: int, rounds: int) -> dict[str, Any]:
    """Return weights per second and peak memory of each contender at a size of chunk."""
    x = torch.rand(ROWS, X_DIM, generator=torch.Generator().manual_seed(0)).bernoulli()
    contenders = [make(x, chunk, compiled) for make in (ours, hand) for compiled in (True, False)]
    contenders += numpyros.weights(PAIR, x, chunk)
    started = time.perf_counter()
    contenders[0].run()
    compiling = time.perf_counter() - started
    check_losses(contenders, repeats=20)
    contenders.append(products(x, chunk))
    seconds = interleaved(contenders, rounds, steps=max(2, 100 // chunk))
    return {
        "chunk": chunk,
        "per second": {name: chunk * ROWS / value for name, value in seconds.items()},
        "megabytes": {c.name: peak_megabytes(c.run) for c in contenders},
        "first call": compiling,
    }


def table(results: list[dict[str, Any]]) -> Table:
    """Return throughput by chunk."""
    names = list(results[0]["per second"])
    title = f"Million importance weights a second ({ROWS} images, 784-400-20); below, peak MB"
    made = Table("chunk", *names, title=title, title_justify="left")
    for result in results:
        cells = (f"{result['per second'][n] / 1e6:.3f}\n{megabytes(result['megabytes'][n])}" for n in names)
        made.add_row(str(result["chunk"]), *cells)
    return made


def whole_table(rates: dict[str, float], images: int) -> Table:
    """Return all of an evaluation beside others."""
    title = f"All of an evaluation: {images:,} images, K = {PARTICLES:,}, 784-400-20"
    made = Table("", "million weights a second", "pv.evaluate / it", title=title, title_justify="left")
    for name, rate in rates.items():
        made.add_row(name, f"{rate / 1e6:.3f}", f"{rates['pv.evaluate'] / rate:.2f}")
    return made


def memory_table(found: dict[int, float | None]) -> Table:
    """Return peak memory by K."""
    made = Table("K", "peak MB", "of which log-weights", title=f"Memory, {ROWS} images at a time", title_justify="left")
    for k, peak in found.items():
        made.add_row(f"{k:,}", megabytes(peak), f"{k * ROWS * 8 / 2**20:.0f}")
    return made


def megabytes(value: float | None) -> str:
    """Return a size in words."""
    return "unknown" if value is None else f"{value:.0f}"


def drawn(results: list[dict[str, Any]]) -> Figure:
    """Return throughput against the size of a chunk."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    colours = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#000000")
    for name, colour in zip(results[0]["per second"], colours, strict=False):
        chunks = [result["chunk"] for result in results]
        axes.plot(chunks, [result["per second"][name] / 1e6 for result in results], "o-", color=colour, label=name)
    axes.set(xscale="log", xlabel="particles in a chunk", ylabel="million importance weights a second", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Time evaluation."""
    given = commands.parser(__doc__, rounds=5).parse_args()
    results = [
        measured(chunk, 1 if given.quick else given.rounds) for chunk in (CHUNKS[1:3] if given.quick else CHUNKS)
    ]
    images = ROWS if given.quick else 1000
    rates = whole(1 if given.quick else 3, images)
    memory = {} if given.quick else peaks()
    console = Console(width=120)
    console.print(table(results), whole_table(rates, images), memory_table(memory))
    commands.write("evaluation", {"results": results, "whole": rates, "memory": memory}, drawn(results))


if __name__ == "__main__":
    main()
