"""The figures of `gan.py`."""

import math
from collections.abc import Mapping

import torch
from figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, Rows, canvas, series
from matplotlib.figure import Figure
from pyro import distributions as dist
from torch import Tensor

COLOURS = {"minimax": RED, "non-saturating": BLUE}
OF_POINTS = (BLUE, ORANGE, GREEN, PINK)


def divergences(rows: Rows, grid: Tensor, targets: Mapping[float, Tensor]) -> Figure:
    """Draw each target and the Gaussian that each divergence takes for it."""
    figure, panels = canvas(len(targets), 3, 10.5, 2.9 * len(targets), sharey=True)
    for (apart, target), line in zip(targets.items(), panels, strict=True):
        shown = [row for row in rows if row["modes at"] == apart and not math.isnan(row["nats"])]
        for axes, row in zip(line, shown, strict=True):
            axes.fill_between(grid, target, color=GREY, alpha=0.35, linewidth=0, label="target pi")
            density = dist.Normal(row["mean"], row["scale"]).log_prob(grid).exp()
            axes.plot(grid, density, color=BLUE, linewidth=1.8, label="p")
            axes.set(xlim=(-8, 8), title=f"{row['divergence']} = {row['nats']:.3f} nats")
        line[0].set_ylabel("density")
    for axes in panels[-1]:
        axes.set_xlabel("x")
    panels[0, 0].legend(frameon=False, loc="upper left")
    return figure


def ring(rows: Rows, clouds: Mapping[tuple[str, int], Tensor], centres: Tensor) -> Figure:
    """Draw samples at four times of each game, and the modes that they cover over training."""
    games = list(dict.fromkeys(row["game"] for row in rows))
    last = max(row["step"] for row in rows)
    times = sorted(done for game, done in clouds if game == games[0])
    shown = [times[round(share * (len(times) - 1))] for share in (0.1, 0.25, 0.5, 1.0)]
    figure, grid = canvas(len(games), 5, 15.0, 3.1 * len(games))
    for game, colour, row in zip(games, (BLUE, RED), grid, strict=True):
        for axes, done in zip(row, shown, strict=False):
            axes.scatter(*centres.T, s=160, facecolors="none", edgecolors=GREY)
            axes.scatter(*clouds[game, done].T, s=3, color=colour, alpha=0.4, linewidths=0)
            axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", title=f"{game}, step {done}")
            axes.set(xticks=[], yticks=[])
        axes = row[-1]
        axes.plot(*series(rows, "step", "modes", game=game), color=colour, linewidth=1.8)
        axes.set(ylim=(0, len(centres) + 0.4), xlim=(0, last), xlabel="step", title="modes covered")
    return figure


def vanishing(rows: Rows) -> Figure:
    """Draw the length of the generator's gradient, and the value of the game, as the critic learns."""
    figure, ((left, right),) = canvas(1, 2, 9.5, 3.6)
    for loss, colour in COLOURS.items():
        left.plot(*series(rows, "step", "gradient", loss=loss), color=colour, linewidth=1.4, label=loss)
    left.set(yscale="log", xlabel="updates of the critic", ylabel="length of the generator's gradient")
    left.legend(frameon=False)
    right.plot(*series(rows, "step", "value", loss="minimax"), color=BLACK, linewidth=1.4)
    right.axhline(-2 * math.log(2), color=GREY, linewidth=0.8)
    right.annotate(
        "-2 log 2: nothing told apart",
        (0.97, -2 * math.log(2)),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color=GREY,
        xytext=(0, 3),
        textcoords="offset points",
    )
    right.set(xlabel="updates of the critic", ylabel="value of the game (nats)")
    return figure


def oscillation(rows: Rows) -> Figure:
    """Draw the paths of both players, and the distance from the equilibrium."""
    games = list(dict.fromkeys(row["game"] for row in rows))
    figure, ((left, right),) = canvas(1, 2, 10.0, 4.4)
    angle = torch.linspace(0, 2 * math.pi, 200)
    left.plot(
        angle.cos(), angle.sin(), color=BLACK, linewidth=1.0, linestyle="--", label="minimax, small steps (exact)"
    )
    for game, colour in zip(games, (RED, BLUE, GREEN), strict=True):
        theta, psi = (series(rows, "step", name, game=game)[1] for name in ("theta", "psi"))
        left.plot(theta, psi, color=colour, linewidth=1.0, label=game)
        radius = [math.hypot(*at) for at in zip(theta, psi, strict=True)]
        right.plot(range(len(radius)), radius, color=colour, linewidth=1.4, label=game)
    left.plot([0], [0], "+", color=BLACK, markersize=9)
    left.set(xlabel="generator theta", ylabel="critic psi", aspect="equal")
    right.set(xlabel="step", ylabel="distance from the equilibrium", ylim=(0, None))
    left.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def avb(rows: Rows, found: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Draw each guide's draws over the posteriors of its model, and log p(x) over training."""
    figure, (panels,) = canvas(1, len(found) + 1, 4.2 * (len(found) + 1), 3.9)
    for axes, (name, fit) in zip(panels, found.items(), strict=False):
        side = math.isqrt(len(fit["cells"]))
        for i, colour in enumerate(OF_POINTS):
            axes.scatter(*fit["draws"][i].T, s=2, color=colour, alpha=0.35, linewidths=0)
            x, y = (fit["cells"][:, j].reshape(side, side) for j in (0, 1))
            density = fit["posterior"][:, i].reshape(side, side)
            axes.contour(x, y, density / density.max(), levels=[0.1, 0.5], colors=[colour], linewidths=1.0)
        axes.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), aspect="equal", title=f"guide: {name}")
        axes.set(xlabel="z1", ylabel="z2")
    for name, colour in zip(found, (RED, BLUE, GREEN), strict=True):
        panels[-1].plot(*series(rows, "step", "log p", guide=name), color=colour, linewidth=1.8, label=name)
    best = -math.log(4)
    panels[-1].axhline(best, color=GREY, linewidth=0.8)
    panels[-1].set(ylim=(best - 0.5, best + 0.05), xlabel="step", ylabel="log p(x), nats, by quadrature")
    panels[-1].set_title("dots: guide, lines: posterior", fontsize=9)
    panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure
