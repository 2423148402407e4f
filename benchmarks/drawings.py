"""The figure of each benchmark."""

import math
from collections.abc import Mapping
from typing import Any

from figures import BLUE, GREY, ORANGE, RED, STYLES, Rows, canvas, label_ends, log_log, powers_of_ten, series
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def reparameterization(rows: Rows) -> Figure:
    """Draw the variance of the guide's gradient over training, and against the number of particles."""
    figure, ((left, right),) = canvas(1, 2, 9.0, 3.8, sharey=True)
    names = {
        "score_function": ("score function", RED),
        "elbo": ("total path", BLUE),
        "stl": ("path alone (STL)", ORANGE),
    }
    for axes, panel, at in ((left, "step", "step"), (right, "particles", "particles")):
        log_log(axes)
        ends = []
        for estimator, (label, colour) in names.items():
            x, y = series(rows, at, "variance", panel=panel, estimator=estimator, group="guide")
            axes.plot(x, y, "o-", color=colour, linewidth=1.8, markersize=4)
            ends.append((label, colour, x[-1], y[-1]))
    last = max(row["step"] for row in rows)
    left.set(
        xlabel="training steps", ylabel="variance of the guide's gradient\n(trace, nats² per datum)", title="K = 1"
    )
    right.set(xlabel="particles K", title=f"after {last:,} steps")
    figure.draw_without_rendering()  # settles the limits
    label_ends(right, ends)
    return figure


def estimators(rows: Rows, budget: int) -> Figure:
    """Draw variance, bias and cost of each estimator, smallest variance at the top."""
    guide = sorted((row for row in rows if row["group"] == "guide"), key=lambda row: -row["variance"])
    figure, ((first, second, third),) = canvas(1, 3, 10.0, 4.4, sharey=True)
    for place, row in enumerate(guide):
        colour = GREY if row["estimator"] in ("Concrete", "StraightThrough", "ST-Gumbel") else BLUE
        first.plot(row["variance"], place, "o", color=colour)
        _bias(second, row, place, colour)
        third.plot(row["milliseconds"], place, "o", color=colour)
    first.set_yticks(range(len(guide)), [f"{row['estimator']} (K = {row['particles']}{_of(row)})" for row in guide])
    first.set(xscale="log", xlabel="variance of the guide's gradient\n(trace, nats² per datum)")
    second.set(xscale="log", xlabel="bias, by the length of the gradient\n(hollow: none seen, it is below this)")
    third.set(xlabel="time of one gradient\n(ms, one thread)", xlim=(0, None))
    lower, upper = second.get_xlim()
    second.set_xlim(min(lower, 0.09), max(upper, 1.1))
    for axes in (first, second):
        powers_of_ten(axes.xaxis)
    figure.suptitle(
        f"{budget} evaluations of the model per datum; blue: unbiased estimators, grey: biased", fontsize=10
    )
    return figure


def _of(row: Mapping[str, Any]) -> str:
    return f", of $L_{row['particles']}$" if row["estimator"] == "VIMCO" else ""


def _bias(axes: Axes, row: Mapping[str, Any], place: int, colour: str) -> None:
    if math.isnan(row["bias"]):
        axes.plot(row["resolution"], place, "<", color=colour, fillstyle="none")
    else:
        axes.plot(row["bias"], place, "o", color=colour)


def snr(rows: Rows, slopes: Rows) -> Figure:
    """Draw the signal-to-noise ratio of both programs' gradients against the number of particles."""
    figure, (panels,) = canvas(1, 2, 9.0, 3.8)
    lines = {"guide": (("iwae", "IWAE", RED), ("dreg", "DReG", BLUE)), "model": (("iwae", "IWAE", RED),)}
    fits = {(row["estimator"], row["group"]): row["slope"] for row in slopes}
    for axes, (group, members) in zip(panels, lines.items(), strict=True):
        log_log(axes)
        ends = []
        for estimator, label, colour in members:
            x, y = series(rows, "particles", "snr", estimator=estimator, group=group)
            axes.plot(x, y, "o-", color=colour, linewidth=1.8, markersize=4)
            ends.append((f"{label}\nslope {fits[estimator, group]:+.2f}", colour, x[-1], y[-1]))
        ends += _floor(axes, rows)
        axes.set(xlabel="particles K", ylabel="signal-to-noise ratio", title=f"{group}'s gradient")
        figure.draw_without_rendering()  # settles the limits
        label_ends(axes, ends, gap=0.12)
    return figure


def _floor(axes: Axes, rows: Rows) -> list[tuple[str, str, float, float]]:
    """Draw what noise alone would read as: the mean of |N(0, 1)| by the root of the number of draws."""
    height = math.sqrt(2 / math.pi / rows[0]["draws"])
    axes.axhline(height, color=GREY, linewidth=1.0, linestyle=":")
    return [("noise alone", GREY, max(row["particles"] for row in rows), height)]


def temperature(rows: Rows) -> Figure:
    """Draw bias and variance against temperature."""
    figure, ((left, right),) = canvas(1, 2, 9.0, 3.8)
    for axes, column in ((left, "bias"), (right, "variance")):
        log_log(axes)
        ends = []
        for name in dict.fromkeys(row["estimator"] for row in rows):
            x, y = series(rows, "temperature", column, estimator=name)
            colour, dashes = STYLES[name]
            if all(math.isnan(value) for value in y):
                _, y = series(rows, "temperature", "resolution", estimator=name)
                axes.plot(x, y, "v", color=colour, fillstyle="none", markersize=5)
                ends.append((f"{name}\n(none seen,\nit is below)", colour, x[-1], y[-1]))
                continue
            axes.plot(x, y, "o", linestyle=dashes, color=colour, linewidth=1.8, markersize=4)
            x, y = zip(*((a, b) for a, b in zip(x, y, strict=True) if not math.isnan(b)), strict=True)
            ends.append((name, colour, x[-1], y[-1]))
        axes.set(xlabel="temperature")
        figure.draw_without_rendering()  # settles the limits
        label_ends(axes, ends, gap=0.1)
    lower, upper = left.get_ylim()
    left.set_ylim(min(lower, 0.09), max(upper, 1.1))
    left.set(ylabel="bias of the guide's gradient,\nby its length")
    right.set(ylabel="variance of the guide's gradient\n(trace, nats² per datum)")
    return figure


def training(rows: Rows) -> Figure:
    """Draw the test ELBO against steps and seconds, a row of panels for each network."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure, grid = canvas(len(networks), 2, 10.0, 4.2 * len(networks), sharey="row")
    for panels, network in zip(grid, networks, strict=True):
        chosen = [row for row in rows if row["network"] == network]
        ends = [_curves(panels, chosen, name) for name in dict.fromkeys(row["estimator"] for row in chosen)]
        panels[0].set(xlabel="steps", ylabel="test ELBO (nats per datum)", title=network)
        panels[1].set(xlabel="training time (s)", title=network)
        _cut_off(panels[0], chosen)
        # In the order in which the lines end.
        _, handles = zip(*sorted(ends, key=lambda end: -end[0]), strict=True)
        panels[1].legend(
            handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, handlelength=2.6
        )
    return figure


def _curves(panels: Any, rows: Rows, name: str) -> tuple[float, Any]:
    """Draw the mean over seeds, and their range where there are several; return its end, and the line."""
    mine = [row for row in rows if row["estimator"] == name]
    steps = sorted({row["step"] for row in mine})
    at = [[row for row in mine if row["step"] == step] for step in steps]
    bound = [[row["elbo"] for row in group] for group in at]
    mean = [sum(group) / len(group) for group in bound]
    seconds = [sum(row["seconds"] for row in group) / len(group) for group in at]
    colour, dashes = STYLES[name]
    for axes, x in zip(panels, (steps, seconds), strict=True):
        (line,) = axes.plot(x, mean, color=colour, linestyle=dashes, linewidth=1.6, label=name)
        axes.fill_between(x, list(map(min, bound)), list(map(max, bound)), color=colour, alpha=0.12, linewidth=0)
    return mean[-1], line


def _cut_off(axes: Axes, rows: Rows) -> None:
    """Leave out the first fifth of the curves, far below the rest."""
    last = max(row["step"] for row in rows)
    late = [row["elbo"] for row in rows if row["step"] >= last / 5]
    margin = 0.05 * (max(late) - min(late))
    axes.set_ylim(min(late) - margin, max(late) + margin)
