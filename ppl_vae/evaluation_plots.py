"""Pictures of an evaluation: whether its bound has settled, whose estimates hold, and how runs differ."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vae.annotating import WIDTH, counted, finish, signed
from ppl_vae.evaluation import KHAT_LIMIT, Evaluation, stated
from ppl_vae.plots import BLUE, GREY, ORANGE, blank
from ppl_vae.tabulating import KHAT_GOOD, gaps, khat_shares, lowest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bound_curve", "comparison", "khat_plot", "log_px_histogram"]

AMBER = "#E69F00"
# Okabe and Ito again, with marks, so that runs can be told apart in grey as well.
COLOURS, MARKS = (BLUE, ORANGE, "#009E73", "#CC79A7", AMBER, "#56B4E9"), "osD^v"
# Standard errors to each side of a normal mean that make 95%.
TWO_SIDED = 1.96
# Nats: less is rounding.
LEAST_GAP = 1e-6
# Bars of this width have edges at both limits; what lies outside the range is a bar at its end.
KHAT_STEP, KHAT_RANGE = 0.05, (-1, 2)
# What lies so many quartile distances beyond a quartile is drawn at the end.
FAR = 6
# Data of lowest log p(x) that a histogram names.
NAMED = 5


def bound_curve(
    evaluations: Evaluation | Mapping[str, Evaluation], title: str = "Bound against the number of particles"
) -> "Figure":
    """Draw L_K against K between the ELBO and the debiased estimate, and below what it lacks to the largest K.

    Bands are 95% intervals of the difference to the bound on the largest K, paired by datum as in
    `ppl_vae.tabulating.gaps`: how well the *shape* of the curve is known. They have no width at the largest K. How
    well the level is known is another question; its error (`Evaluation.se`) moves the whole curve up or down, and
    stands in words. Drawn as a band it would hide whether the bound still rises.

    Args:
        evaluations: made with ``curve=True``; several by name to compare runs.
        title: above.

    Raises:
        ValueError: there is none, or one has no curve.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016,
    https://arxiv.org/abs/1509.00519; S. Nowozin, "Debiasing Evidence Approximations", ICLR 2018,
    https://openreview.net/forum?id=HyZoi-WRb.

    Example:
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2), torch.randn(10, 6)
        >>> evaluation = pv.evaluate(model, Exact(model), x, particles=30, curve=True)
        >>> bound_curve({"exact": evaluation}).axes[0].get_xlabel()
        'particles K'
    """
    named = {"": evaluations} if isinstance(evaluations, Evaluation) else dict(evaluations)
    if not named:
        raise ValueError("evaluations: there are none; give one, or a mapping of names to them")
    rises = any(gap.difference < -LEAST_GAP for evaluation in named.values() for gap in gaps(evaluation))
    figure = blank(WIDTH, 4.0 + 1.8 * rises + 0.2 * len(named))
    above, *below = figure.subplots(1 + rises, sharex=True, squeeze=False, height_ratios=[5, 3][: 1 + rises])[:, 0]
    for (name, evaluation), colour, mark in zip(named.items(), cycle(COLOURS), cycle(MARKS), strict=False):
        _draw_curve(above, name, evaluation, colour, mark)
        for axes in below:
            _draw_gap(axes, evaluation, colour, mark)
    above.plot([], [], color=GREY, linestyle="--", linewidth=1, label="ELBO")
    above.plot([], [], color=GREY, linestyle=":", linewidth=1.6, label="debiased by the jackknife (no bound)")
    above.set_xscale("log")
    above.xaxis.set_major_formatter(lambda k, _: f"{k:,.0f}")
    above.set(ylabel="$L_K$ (nats per datum)", title=title)
    for axes in below:
        axes.set(ylabel="lacking to the\nlargest K (nats)", yscale="log")
        _label_decades(axes)
    (above, *below)[-1].set_xlabel("particles K")
    finish(figure, _on_bands(named))
    return figure


def _draw_curve(axes: "Axes", name: str, evaluation: Evaluation, colour: str, mark: str) -> None:
    found = [gap for gap in gaps(evaluation) if math.isfinite(gap.bound)]
    k, bound = [gap.particles for gap in found], torch.tensor([gap.bound for gap in found]).double()
    half = TWO_SIDED * torch.tensor([gap.se for gap in found]).double()
    label = f"{name}: " * bool(name) + f"ELBO {signed(float(evaluation.elbo.mean()))}; {signed(evaluation.mean)} ± "
    label += f"{stated(evaluation.se, 2)} with K = {evaluation.particles:,}"
    axes.fill_between(k, bound - half, bound + half, color=colour, alpha=0.2, linewidth=0)
    axes.plot(k, bound, color=colour, marker=mark, markersize=4, linewidth=1.6, label=fill(label, 64))
    for level, style, width in ((evaluation.elbo, "--", 1), (evaluation.debiased, ":", 1.6)):
        if math.isfinite(float(level.mean())):
            axes.axhline(float(level.mean()), color=colour, linestyle=style, linewidth=width, zorder=1)


def _draw_gap(axes: "Axes", evaluation: Evaluation, colour: str, mark: str) -> None:
    found = [gap for gap in gaps(evaluation) if -math.inf < gap.difference < -LEAST_GAP]
    k, lacking = [gap.particles for gap in found], -torch.tensor([gap.difference for gap in found]).double()
    half = TWO_SIDED * torch.tensor([gap.se for gap in found]).double()
    # A logarithmic axis has no zero, which an interval may hold.
    axes.fill_between(k, (lacking - half).clamp_min(LEAST_GAP), lacking + half, color=colour, alpha=0.2, linewidth=0)
    axes.plot(k, lacking, color=colour, marker=mark, markersize=4, linewidth=1.6)


def _label_decades(axes: "Axes") -> None:
    """Write plain numbers on a logarithmic axis: powers of ten, or 1, 2, 5 where those would be few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda nats, _: f"{nats:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _on_bands(named: Mapping[str, Evaluation]) -> str:
    lines = ["Bands: 95% intervals of the difference to the largest K, paired by datum."]
    lines += ["±: standard error over data, by which another test set moves a whole curve."]
    if any(len(evaluation) == 1 for evaluation in named.values()):
        lines = ["A single datum has no spread over data, and so no band."]
    if any(not math.isfinite(gap.bound) for evaluation in named.values() for gap in gaps(evaluation)):
        lines += ["Where a curve does not start at 1, the bound on fewer particles is minus infinity."]
    return "\n".join(lines)


def khat_plot(evaluation: Evaluation, title: str = "Pareto k-hat of the data's importance weights") -> "Figure":
    """Draw how the k-hat of the data are distributed, with the limits 0.5 and 0.7.

    Each datum above 0.7 has a tick at the top, since one in many thousands would be too low a bar to see. What is
    infinite or far away is a bar at the end, and what that means stands in words below.

    Reference: A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto Smoothed Importance Sampling", JMLR 2024,
    https://arxiv.org/abs/1507.02646.

    Example:
        >>> zeros = torch.zeros(100)
        >>> khat_plot(pv.Evaluation(zeros, zeros, zeros, torch.rand(100), zeros, 500, 0)).axes[0].get_xlabel()
        'k-hat'
    """
    figure = blank(WIDTH, 4.4)
    axes = figure.subplots()
    khat = evaluation.khat.double().nan_to_num(math.inf, math.inf, -math.inf)
    steps, ends = _steps(khat)
    bars, counts = steps.unique(return_counts=True)
    where, colours = ((bars - 0.5) * KHAT_STEP).tolist(), [_colour(bar) for bar in bars.tolist()]
    axes.bar(where, counts.tolist(), 0.9 * KHAT_STEP, color=colours)
    places = torch.where(khat > KHAT_RANGE[1], (steps - 0.5) * KHAT_STEP, khat)[khat > KHAT_LIMIT]
    axes.plot(places, 0.98 + 0 * places, "|", color=ORANGE, transform=axes.get_xaxis_transform())
    for limit in (KHAT_GOOD, KHAT_LIMIT):
        axes.axvline(limit, color=GREY, linestyle="--", linewidth=1)
    names = (f"up to {KHAT_GOOD}", f"{KHAT_GOOD} to {KHAT_LIMIT}", f"above {KHAT_LIMIT}, not to be trusted")
    for colour, name, part in zip((BLUE, AMBER, ORANGE), names, khat_shares(evaluation), strict=True):
        axes.plot([], [], "s", color=colour, label=f"{name}: {part:.1%} of {counted(len(khat))}")
    _tick_khat(axes, ends)
    axes.set(xlabel="k-hat", ylabel="number of data", title=title)
    finish(figure, _on_infinite(evaluation.khat))
    return figure


def _steps(khat: Tensor) -> tuple[Tensor, Mapping[float, str]]:
    """Return each datum's bar, counted from zero, and names for the bars at the ends."""
    steps = (khat / KHAT_STEP).ceil()  # a bar holds its upper edge, since a limit itself is still good
    below, above = khat < KHAT_RANGE[0], khat > KHAT_RANGE[1]
    inside = steps[~below & ~above].tolist()
    first, last = min([*inside, round(0.3 / KHAT_STEP)]) - 2, max([*inside, round(0.8 / KHAT_STEP)]) + 2
    ends = {first: f"< {signed(KHAT_RANGE[0], 0)}"} if below.any() else {}
    ends |= {last: f"> {KHAT_RANGE[1]}"} if above.any() else {}
    named = {(step - 0.5) * KHAT_STEP: name for step, name in ends.items()}
    return steps.masked_fill(below, first).masked_fill(above, last), named


def _colour(step: float) -> str:
    limits = [round(limit / KHAT_STEP) for limit in (KHAT_GOOD, KHAT_LIMIT)]
    return (BLUE, AMBER, ORANGE)[sum(step > limit for limit in limits)]


def _tick_khat(axes: "Axes", ends: Mapping[float, str]) -> None:
    low, high = axes.get_xlim()
    apart = 0.1 if high - low < 1.5 else 0.5
    ticks = [i * apart for i in range(math.ceil(low / apart), math.floor(high / apart) + 1)]
    free = [tick for tick in ticks if all(abs(tick - end) > 0.06 * (high - low) for end in ends)]
    axes.set_xticks([*free, *ends], [*(signed(tick, 1) for tick in free), *ends.values()])


def _on_infinite(khat: Tensor) -> str:
    kinds = {
        f"{signed(-math.inf)}": (khat.isneginf(), "weights all alike, which is as good as can be"),
        "∞": (khat.isposinf(), "fewer than five weights in the tail, so nothing is known; counted as above 0.7"),
        "no number": (khat.isnan(), "counted as above 0.7"),
    }
    found = [f"{name} for {counted(int(there.sum()))}: {what}." for name, (there, what) in kinds.items() if there.any()]
    return "\n".join(found)


def log_px_histogram(evaluation: Evaluation, title: str = "Log-likelihood of each datum") -> "Figure":
    """Draw how log p(x) is distributed over data, its mean, and the rows of the five lowest data.

    Data far beyond the rest are drawn at the end, which says so, lest they squeeze all others into one bar.

    Raises:
        ValueError: no datum has a finite log p(x).

    Reference: J. W. Tukey, "Exploratory Data Analysis", 1977, chapter 2, for what is far beyond the quartiles.

    Example:
        >>> zeros = torch.zeros(100)
        >>> figure = log_px_histogram(pv.Evaluation(torch.randn(100), zeros, zeros, zeros, zeros, 1, 0))
        >>> figure.axes[0].get_xlabel()
        'log p(x) (nats)'
    """
    values = evaluation.log_px.double()
    low, high = _ends(values)
    drawn, bins = values.clamp(low, high), max(10, round(2 * len(values) ** (1 / 3)))
    figure = blank(WIDTH, 4.2)
    axes = figure.subplots()
    axes.hist(drawn.numpy(), bins=bins, color=BLUE, edgecolor="white", linewidth=0.4)
    told = f"mean {signed(evaluation.mean)} ± {stated(evaluation.se, 2)} (standard error over {counted(len(values))})"
    axes.axvline(evaluation.mean, color="black", linestyle="--", linewidth=1.4, label=told)
    _name_lowest(axes, lowest(evaluation, NAMED), drawn)
    axes.set(xlabel="log p(x) (nats)", ylabel="number of data", title=title)
    finish(figure, _on_far(values, low, high))
    return figure


def _ends(values: Tensor) -> tuple[float, float]:
    """Return the values between which to draw: all of them, but for those far beyond the quartiles."""
    finite = values[values.isfinite()]
    if not len(finite):
        raise ValueError("evaluation: no datum has a finite log p(x); look at the data, and the likelihood's support")
    lower, upper = (float(finite.kthvalue(1 + round(at * (len(finite) - 1))).values) for at in (0.25, 0.75))
    far = FAR * (upper - lower) or math.inf
    return float(finite[finite >= lower - far].min()), float(finite[finite <= upper + far].max())


def _on_far(values: Tensor, low: float, high: float) -> str:
    sides = {"left": values[values < low], "right": values[values > high]}
    ends = {side: signed(float(far[far.abs().argmax()]), 1) for side, far in sides.items() if len(far)}
    lines = [f"Drawn at the {side} end: {counted(len(sides[side]))} as far out as {end}." for side, end in ends.items()]
    return "\n".join(lines)


def _name_lowest(axes: "Axes", rows: Sequence[int], drawn: Tensor) -> None:
    """Write the rows of the lowest data, each at the left of a line that ends higher than those before."""
    low, high = axes.get_xlim()
    axes.set_xlim(low - 0.12 * (high - low), high)
    across = {"transform": axes.get_xaxis_transform(), "color": ORANGE}
    for i, row in enumerate(rows):
        x, height = float(drawn[row]), 0.12 + 0.075 * i
        axes.plot([x, x], [0, height], linewidth=1, **across)
        axes.text(x, height, f"{row:,} ", fontsize=8, ha="right", va="top", **across)
    axes.plot([], [], color=ORANGE, linewidth=1, label=f"the {len(rows)} lowest, by row of the data")


def comparison(
    differences: Sequence[tuple[str, float, float]], title: str = "Differences in log p(x), with 95% intervals"
) -> "Figure":
    """Draw paired differences as a forest plot: each with its 95% interval, beside zero.

    The intervals are ``mean ± 1.96 se``, each for itself: of twenty that are truly zero, about one misses it.

    Args:
        differences: name, mean and standard error of each, in nats per datum, from the top. Where the error is zero
            (what all others are compared with) there is a diamond without an interval; where it is NaN, no interval.
        title: above.

    Raises:
        ValueError: there are none, a mean is no finite number, or an error is negative or infinite.

    Reference: S. Lewis, M. Clarke, "Forest Plots: Trying to See the Wood and the Trees", BMJ 2001,
    https://doi.org/10.1136/bmj.322.7300.1479.

    Example:
        >>> figure = comparison([("iwae", 0.0, 0.0), ("elbo", -0.4, 0.1)])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['iwae', 'elbo']
    """
    rows = list(differences)
    if not rows:
        raise ValueError("differences: there are none; give rows of name, mean and standard error")
    for name, mean, se in rows:
        if not math.isfinite(mean) or se < 0 or math.isinf(se):
            raise ValueError(f"differences: {name!r} has mean {mean} and error {se}; give a number, and one from 0 up")
    figure = blank(WIDTH, 1.4 + 0.32 * len(rows))
    axes = figure.subplots()
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    for i, (_, mean, se) in enumerate(rows):
        colour, mark = (GREY, "D") if se == 0 else (BLUE, "o")
        axes.errorbar(mean, i, xerr=None if math.isnan(se) else TWO_SIDED * se, fmt=mark, color=colour, linewidth=1.8)
    axes.set_yticks(range(len(rows)), [fill(name, 30) for name, _, _ in rows], parse_math=False)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="difference (nats per datum)", title=title)
    figures = axes.secondary_yaxis("right")
    figures.set_yticks(range(len(rows)), [_in_figures(mean, se) for _, mean, se in rows])
    figures.tick_params(length=0)
    figures.spines[:].set_visible(False)
    finish(figure)
    return figure


def _in_figures(mean: float, se: float) -> str:
    return signed(mean) if se == 0 else f"{signed(mean)} ± {stated(se, 2)}"
