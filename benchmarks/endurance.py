"""Whether long training holds on to anything: memory, open files and tensors over many steps, eagerly and compiled.

    python -m benchmarks.endurance [--steps N] [--quick]

A tiny pair, so that the steps are many and not heavy. After each tenth of them the programs are evaluated and sampled
from, and a `fit` of one epoch with a run folder goes in between. A count that grows with the steps is a leak.
"""

import gc
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import ppl_vae as pv
from benchmarks.speed import commands
from ppl_vae.guides.normal import Normal
from ppl_vae.models.vae import VAE
from ppl_vae.optimizers import adam

SIZES = {"x_dim": 8, "z_dim": 2, "hidden": (8,)}
STATM, HANDLES = Path("/proc/self/statm"), Path("/proc/self/fd")
WAYS = {"eager": False, "compiled": True}


def footprint() -> dict[str, float | None]:
    """Return resident memory in MB, open files and live tensors; None where the system does not tell (it takes Linux).

    Example:
        >>> footprint()["tensors"] > 0
        True
    """
    gc.collect()
    return {
        "resident": int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if STATM.exists() else None,
        "handles": len(os.listdir(HANDLES)) if HANDLES.exists() else None,
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
    }


def prepared(compile: bool | str) -> tuple[Any, torch.Tensor]:  # noqa: A002 - as in the library
    """Return a step on a tiny pair, with its batch."""
    torch.manual_seed(0)
    model, guide = VAE(**SIZES), Normal(**SIZES)
    optimizer = adam([*model.parameters(), *guide.parameters()])
    step = pv.svi_step(model, guide, pv.objectives.iwae, 2, optimizer=optimizer, compile=compile)
    return step, torch.rand(16, SIZES["x_dim"]).bernoulli()


def other_verbs(step: Any, x: torch.Tensor) -> None:
    """Do what stands between the steps of a long session."""
    pv.evaluate(step.model, step.guide, x, particles=20, chunk=10, compile=False)
    pv.sample(step.model, like=x, n=4)
    with tempfile.TemporaryDirectory() as folder:
        twin, _ = prepared(False)
        pv.fit(twin.model, twin.guide, x, epochs=1, valid=x, out=Path(folder) / "run", progress=False, compile=False)


def marches(step: Any, x: torch.Tensor, steps: int, pauses: int = 10) -> Iterator[tuple[int, dict[str, float | None]]]:
    """Step, and yield how much there is after a hundredth, after a tenth and at the end."""
    marks = {max(steps // 100, 1), max(steps // 10, 1), steps}
    for i in range(1, steps + 1):
        step(x)
        if i % max(steps // pauses, 1) == 0 or i in marks:
            other_verbs(step, x)
        if i in marks:
            yield i, footprint()


def main() -> None:
    """March, print the table and keep it."""
    parser = commands.parser(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=100_000, help="of each kind (default: %(default)s)")
    options = parser.parse_args()
    steps, results = 200 if options.quick else options.steps, {}
    torch.set_num_threads(1)
    table = Table("way", "steps", "resident memory, MB", "open files", "tensors", "ms a step", title="Endurance")
    for way, compiled in WAYS.items():
        step, x = prepared(compiled)
        step.prepare(x)
        results[way], started = {0: footprint()}, time.perf_counter()
        for done, found in marches(step, x, steps):
            results[way][done] = {**found, "milliseconds": 1e3 * (time.perf_counter() - started) / done}
    for way, rows in results.items():
        for done, row in rows.items():
            shown = ["-" if row.get(name) is None else f"{row[name]:,.0f}" for name in ("handles", "tensors")]
            resident = "-" if row["resident"] is None else f"{row['resident']:,.1f}"
            table.add_row(way, f"{done:,}", resident, *shown, f"{row['milliseconds']:.2f}" if done else "")
    Console().print(table)
    commands.write("endurance", results)


if __name__ == "__main__":
    main()
