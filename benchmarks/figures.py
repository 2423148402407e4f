"""Figures and tables of the benchmarks, from rows of plain numbers."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from ppl_vae import plots

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito: told apart with any colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#B8A800",  # their yellow, darker: a line of #F0E442 is hard to see on white
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#777777"
# Twelve names from eight colours: the second round is dashed.
STYLES = {
    "REINFORCE": (BLACK, "-"),
    "NVIL": (ORANGE, "-"),
    "MuProp": (SKY, "-"),
    "RLOO": (GREEN, "-"),
    "VIMCO": (YELLOW, "-"),
    "ARM": (BLUE, "--"),
    "DisARM": (BLUE, "-"),
    "REBAR": (RED, "-"),
    "RELAX": (PINK, "-"),
    "Concrete": (GREEN, "--"),
    "StraightThrough": (BLACK, "--"),
    "ST-Gumbel": (ORANGE, "--"),
}


def canvas(rows: int, columns: int, width: float = 9.0, height: float = 4.0, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes, always as a grid."""
    return plots.canvas(rows, columns, width, height, squeeze=False, **options)


def series(rows: Rows, x: str, y: str, **where: Any) -> tuple[list[float], list[float]]:
    """Return two columns of the rows that match."""
    chosen = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return [row[x] for row in chosen], [row[y] for row in chosen]


def log_log(axes: Axes) -> None:
    """Make both axes logarithmic, with every power of ten labelled."""
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        powers_of_ten(axis)


def powers_of_ten(axis: Axis) -> None:
    """Label every power of ten, and nothing between."""
    axis.set_major_locator(LogLocator(numticks=12))
    axis.set_minor_formatter(NullFormatter())


def label_ends(axes: Axes, ends: Iterable[tuple[str, str, float, float]], gap: float = 0.055) -> None:
    """Write names right of the data, beside the ends of their lines, without overlap.

    Args:
        axes: where.
        ends: name, colour, and the last point, in data units.
        gap: smallest distance of two names, as a share of the height.
    """
    to_share = axes.transData + axes.transAxes.inverted()
    at = sorted(((to_share.transform((x, y))[1], name, colour) for name, colour, x, y in ends), key=lambda end: end[0])
    heights = spread([height for height, *_ in at], gap)
    for (height, name, colour), place in zip(at, heights, strict=True):
        axes.annotate(
            name,
            xy=(1.0, min(max(height, 0.0), 1.0)),
            xytext=(1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return rising heights at least a gap apart, moved as a whole to stay around where they were.

    Example:
        >>> [round(height, 2) for height in spread([0.5, 0.5, 0.9], 0.1)]
        [0.45, 0.55, 0.9]
    """
    placed = [min(max(height, 0.0), 1.0) for height in heights]
    for _ in range(500):
        for i in range(1, len(placed)):
            overlap = gap - (placed[i] - placed[i - 1])
            if overlap > 1e-9:
                placed[i - 1], placed[i] = placed[i - 1] - overlap / 2, placed[i] + overlap / 2
    shift = max(0.0, -placed[0]) - max(0.0, placed[-1] - 1)
    return [height + shift for height in placed]


def save(out: Path, name: str, rows: Rows, figure: Figure) -> None:
    """Write the rows as CSV, the figure as PNG, and say where."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    figure.savefig(out / f"{name}.png")
    Console().print(f"Written to {out / name}.csv and {out / name}.png", soft_wrap=True, highlight=False)


def show(title: str, rows: Rows, columns: Sequence[str]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(cell(row[column]) for column in columns))
    Console(width=120).print(table)


def cell(value: Any) -> str:
    """Return a value as a table has it.

    Example:
        >>> cell(0.012345), cell(12), cell("RLOO"), cell(float("nan"))
        ('0.0123', '12', 'RLOO', '')
    """
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}"
    return str(value)
