"""How time and memory of a training step grow with K, batch, width and depth, and what share of the peak it reaches.

    python -m benchmarks.scaling [--rounds N] [--quick]

The peak is that of a large matrix product in float32 on the same threads. Work counts the matrix products of
a step, forward and backward.
"""

import statistics
import time
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import ppl_vae as pv
from benchmarks.speed import by_hand, commands
from benchmarks.speed.memory import peak_megabytes
from benchmarks.speed.programs import X_DIM, Z_DIM, Pair, Workload, vae
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.optimizers import adam

USUAL = {"particles": 1, "batch": 128, "width": 200, "depth": 1}
GRID = {
    "particles": (1, 10, 100),
    "batch": (16, 160, 1600),
    "width": (20, 200, 2000),
    "depth": (1, 3, 10),
}


def pair(width: int, depth: int) -> Pair:
    """Return a VAE and its guide."""
    torch.manual_seed(0)
    sizes = {"x_dim": X_DIM, "z_dim": Z_DIM, "hidden": (width,) * depth}
    return VAE(**sizes), Normal(**sizes)


def step_of(particles: int, batch: int, width: int, depth: int, **options: Any) -> Any:
    """Return a compiled step, bound to its batch."""
    model, guide = pair(width, depth)
    objective = pv.objectives.iwae if particles > 1 else pv.objectives.elbo
    optimizer = adam([*model.parameters(), *guide.parameters()])
    step = pv.svi_step(model, guide, objective, particles, optimizer=optimizer, compile=True, **options)
    return partial(step, torch.rand(batch, X_DIM).bernoulli())


def seconds_of(run: Any, rounds: int) -> float:
    """Return the median time of a call."""
    times = []
    for i in range(rounds + 2):
        started = time.perf_counter()
        run()
        if i >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def work_of(particles: int, batch: int, width: int, depth: int) -> int:
    """Return the operations of a step's matrix products."""
    model, guide = pair(width, depth)
    with FlopCounterMode(display=False) as counter:
        bound = pv.objectives.iwae(pv.weigh(model, guide, torch.ones(batch, X_DIM), particles))
        torch.autograd.grad(bound.sum(), [*model.parameters(), *guide.parameters()])
    return counter.get_total_flops()


def peak(rounds: int) -> float:
    """Return the operations a second of a large matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds_of(lambda: a @ b, rounds) for _ in range(3))


def measured(axis: str, value: int, rounds: int) -> dict[str, Any]:
    """Return time, rate and memory of a step with one size changed."""
    sizes = USUAL | {axis: value}
    run = step_of(**sizes)
    run()
    seconds = seconds_of(run, rounds)
    return {
        "axis": axis,
        "value": value,
        "ms": 1e3 * seconds,
        "rate": work_of(**sizes) / seconds,
        "mb": peak_megabytes(run),
    }


def iwae_memory() -> dict[str, tuple[float | None, float]]:
    """Return peak memory and time of a step on 50 particles: ours, in chunks, and by hand."""
    sizes = {"particles": 50, "batch": 128, "width": 200, "depth": 1}
    workload = Workload("", vae, 200, pv.objectives.iwae, 50)
    net = by_hand.network(workload, workload.plain_pair())
    runs = {
        "ppl_vae": step_of(**sizes),
        "ppl_vae, chunk=10": step_of(**sizes, chunk=10),
        "PyTorch by hand": by_hand.step(net, net, torch.rand(128, X_DIM).bernoulli()),
    }
    for run in runs.values():
        run()
    return {name: (peak_megabytes(run), 1e3 * seconds_of(run, 10)) for name, run in runs.items()}


def main() -> None:
    """Measure the grid."""
    given = commands.parser(__doc__, rounds=20).parse_args()
    rounds, grid = (3, {"particles": (1, 10)}) if given.quick else (given.rounds, GRID)
    best = peak(rounds)
    results = [measured(axis, value, rounds) for axis, values in grid.items() for value in values]
    made = Table(
        "", "", "ms a step", "GFLOP/s", f"share of {best / 1e9:.0f} GFLOP/s", "peak MB", title="One size at a time"
    )
    for r in results:
        share = f"{r['rate'] / best:.0%}"
        made.add_row(
            r["axis"], str(r["value"]), f"{r['ms']:.2f}", f"{r['rate'] / 1e9:.0f}", share, f"{r['mb'] or 0:.0f}"
        )
    Console().print(made)
    memory = iwae_memory()
    made = Table("K = 50, batch 128, 784-200-20", "peak MB", "ms")
    for name, (megabytes, milliseconds) in memory.items():
        made.add_row(name, f"{megabytes or 0:.0f}", f"{milliseconds:.1f}")
    Console().print(made)
    commands.write("scaling", {"peak": best, "grid": results, "iwae": memory})


if __name__ == "__main__":
    main()
