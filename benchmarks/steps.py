"""Time a training step of this library beside hand-written PyTorch, Pyro, NumPyro and pythae.

    python -m benchmarks.steps [WORKLOAD ...] [--rounds N] [--quick]

Contenders train the same architecture on the same batch in one process, in turns; their losses are
compared before. NumPyro and pythae come with ``pip install ppl-vae[bench]``; those that are not
installed are left out, by name.
"""

import importlib
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.speed import by_hand, commands, pyros
from benchmarks.speed.programs import WORKLOADS, X_DIM, Workload
from benchmarks.speed.timing import Contender, check_losses, interleaved

BATCH = 128
OPTIONAL = {"numpyro": "numpyros", "pythae": "pythaes"}


def gathered(workload: Workload, x: torch.Tensor) -> list[Contender]:
    """Return all contenders that are installed, ours first."""
    found = [*pyros.ours(workload, x), *by_hand.contenders(workload, x), *pyros.contenders(workload, x)]
    for package, module in OPTIONAL.items():
        try:
            importlib.import_module(package)
        except ImportError:
            print(f"{package} is not installed: pip install 'ppl-vae[bench]'")
            continue
        found += importlib.import_module(f"benchmarks.speed.{module}").contenders(workload, x)
    return found


def measured(workload: Workload, rounds: int) -> dict[str, Any]:
    """Return medians in milliseconds, ratios of ours to each, and the losses."""
    x = torch.rand(BATCH, X_DIM, generator=torch.Generator().manual_seed(0)).bernoulli()
    contenders = gathered(workload, x)
    losses = check_losses(contenders)
    medians = interleaved(contenders, rounds)
    return {
        "workload": workload.name,
        "ms": {name: 1e3 * seconds for name, seconds in medians.items()},
        "ratio": {name: medians[pyros.OURS] / seconds for name, seconds in medians.items()},
        "goal": workload.goals,
        "loss": losses,
    }


def table(results: list[dict[str, Any]]) -> Table:
    """Return times and ratios in columns."""
    names = list(dict.fromkeys(name for result in results for name in result["ms"]))
    made = Table(title=f"Milliseconds a step, batch {BATCH}; below, our time over theirs (goal)", title_justify="left")
    made.add_column("workload")
    for name in names:
        made.add_column(name, justify="right")
    for result in results:
        made.add_row(result["workload"], *(cell(result, name) for name in names))
    return made


def cell(result: dict[str, Any], name: str) -> str:
    """Return time, ratio and goal of one contender."""
    if name not in result["ms"]:
        return ""
    goal = f" ({result['goal'][name]:.2f})" if name in result["goal"] else ""
    return f"{result['ms'][name]:.2f}\n{result['ratio'][name]:.2f}{goal}"


def drawn(results: list[dict[str, Any]]) -> Figure:
    """Return our time over each contender's, one group of bars a workload."""
    bars = [len(result["ms"]) + 1 for result in results]
    figure = Figure(figsize=(9, 0.3 * sum(bars) + 0.6), layout="constrained")
    axes = figure.subplots(len(results), 1, squeeze=False, height_ratios=bars)[:, 0]
    for axis, result in zip(axes, results, strict=True):
        names = [name for name in result["ms"] if name != pyros.OURS]
        ratios = [result["ratio"][name] for name in names]
        axis.barh(names, ratios, color="#0072B2", height=0.7)
        for i, ratio in enumerate(ratios):
            axis.text(ratio + 0.01, i, f"{ratio:.2f}", va="center", fontsize=8)
        axis.axvline(1.0, color="#777777", linewidth=1)
        axis.set(title=result["workload"], xlim=(0, 1.3))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("our time over theirs (below 1: we are faster)")
    return figure


def main() -> None:
    """Run the workloads that are asked for."""
    parser = commands.parser(__doc__, rounds=60)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; all if left out")
    given = parser.parse_args()
    if unknown := set(given.workloads) - set(WORKLOADS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    results = []
    for name in given.workloads or WORKLOADS:
        results.append(measured(WORKLOADS[name], 5 if given.quick else given.rounds))
        Console(width=160).print(table(results[-1:]))
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    commands.write("steps", {"machine": machine, "results": results}, drawn(results))


if __name__ == "__main__":
    main()
