"""Numbers read off evaluations, and their pictures: values where they belong, words for what cannot be drawn."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pairs
import pytest
import torch
from matplotlib.colors import same_color, to_rgba
from matplotlib.text import Text
from scipy import stats

import ppl_vae as pv
from ppl_vae import datum_plots, evaluation_plots, tabulating
from ppl_vae.annotating import signed
from ppl_vae.evaluation_plots import AMBER
from ppl_vae.guides.exact import Exact
from ppl_vae.plots import BLUE, GREY, ORANGE

MINUS = "\N{MINUS SIGN}"
DOUBLE = torch.float64


def made(n=200, **columns):
    """Return an evaluation with columns as they come, a curve among them that rises."""
    draw = torch.Generator().manual_seed(0)
    log_px = torch.randn(n, dtype=DOUBLE, generator=draw) - 50
    lack = torch.rand(n, dtype=DOUBLE, generator=draw)
    facts = {
        "log_px": log_px,
        "elbo": log_px - lack,
        "ess": 20 + 30 * torch.rand(n, dtype=DOUBLE, generator=draw),
        "khat": 0.9 * torch.rand(n, dtype=DOUBLE, generator=draw),
        "log_px_error": 0.1 * torch.rand(n, dtype=DOUBLE, generator=draw),
        "debiased": log_px + 0.01,
        "distortion": 40 + 3 * torch.rand(n, dtype=DOUBLE, generator=draw),
        "rise": 0.02 * lack,
        "curve": {k: log_px - lack * (1 / k - 1 / 50) / 0.98 for k in (1, 5, 50)},
    }
    return pv.Evaluation(**(facts | columns), particles=50, seed=3, subject="a model")


@pytest.fixture(scope="module")
def real():
    """A real one, of a pair in float64, with a curve."""
    pair = pairs.make("linear_gaussian", "normal")
    return pv.evaluate(pair.model, pair.guide, pair.data(60), particles=30, curve=True)


def words(figure):
    """Return all that is written on a figure, in one line."""
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# Numbers


def test_gaps_are_paired_differences_as_scipy_has_them(real):
    found = tabulating.gaps(real)
    assert [gap.particles for gap in found] == [1, 2, 5, 10, 20, 30]
    assert found[-1].bound == pytest.approx(real.mean)
    assert (found[-1].difference, found[-1].se) == (0, 0)
    for gap in found[:-1]:
        paired = stats.ttest_rel(real.curve[gap.particles], real.curve[30])
        assert gap.bound == pytest.approx(float(real.curve[gap.particles].mean()))
        assert gap.difference / gap.se == pytest.approx(paired.statistic)


def test_gaps_do_not_know_what_data_have_in_common():
    evaluation = made()
    apart = replace(evaluation, curve={k: bound + 100 * evaluation.ess for k, bound in evaluation.curve.items()})
    for gap, other in zip(tabulating.gaps(evaluation), tabulating.gaps(apart), strict=True):
        assert other.difference == pytest.approx(gap.difference)
        assert other.se == pytest.approx(gap.se)
        assert other.bound > gap.bound + 1000


def test_numbers_are_those_of_the_evaluation():
    evaluation = made(dims=7, mass=True)
    found = {number.name: number for number in tabulating.numbers(evaluation)}
    first = found["log p(x), the bound on K = 50"]
    assert (first.mean, first.se, first.mc_se) == (evaluation.mean, evaluation.se, evaluation.mc_se)
    columns = {
        "log p(x), debiased by the jackknife": evaluation.debiased,
        "ELBO": evaluation.elbo,
        "rate": evaluation.rate,
        "distortion": evaluation.distortion,
        "added by the last doubling of K": evaluation.rise,
    }
    for name, column in columns.items():
        assert found[name].mean == float(column.mean())
        assert found[name].se == pytest.approx(stats.sem(column))
        assert math.isnan(found[name].mc_se)
    bits = found["bits per dimension"]
    assert bits.mean == evaluation.bits_per_dim()
    assert bits.mean / bits.se == pytest.approx(-evaluation.mean / evaluation.se)
    assert bits.mean / bits.mc_se == pytest.approx(-evaluation.mean / evaluation.mc_se)
    assert len(found) == len(columns) + 2


def test_numbers_that_are_not_known_are_left_out():
    zeros = torch.zeros(3)
    bare = pv.Evaluation(zeros, zeros, zeros, zeros, zeros, particles=1, seed=0, dims=7, mass=False)
    assert [number.name for number in tabulating.numbers(bare)] == ["log p(x), the bound on K = 1", "ELBO"]


@pytest.mark.parametrize(
    ("errors", "digits"),
    [((0.17, 0.0026), 4), ((12.0,), 2), ((math.nan, math.nan), 2), ((1e-9, 0.0), 5), ((0.099,), 3)],
)
def test_the_smallest_error_has_two_figures(errors, digits):
    assert tabulating.decimals(*errors) == digits


def test_the_spread_over_data():
    rows = {
        row.name: row for row in tabulating.spreads(made(ess=torch.arange(200.0), khat=torch.full((200,), math.inf)))
    }
    assert (rows["effective sample size, of 50"].low, rows["effective sample size, of 50"].high) == (0, 199)
    assert rows["effective sample size, of 50"].note == "5.0% below 10"
    assert rows["Pareto k-hat"].note == "100.0% above 0.7"
    assert "Monte Carlo error of log p(x)" not in {
        row.name for row in tabulating.spreads(made(log_px_error=torch.full((200,), math.nan)))
    }


def test_the_lowest_come_first_and_ties_in_order():
    evaluation = made(log_px=torch.tensor([-1.0, -5.0, -3.0, -5.0, -9.0]))
    assert tabulating.lowest(evaluation, 4) == [4, 1, 3, 2]
    assert tabulating.lowest(evaluation, 10) == [4, 1, 3, 2, 0]


def test_khat_shares_count_every_datum_once():
    khat = torch.tensor([-math.inf, 0.5, 0.51, 0.7, 0.71, math.inf, math.nan, 0.0], dtype=DOUBLE)
    evaluation = made(khat=khat)
    assert tabulating.khat_shares(evaluation) == (3 / 8, 2 / 8, 3 / 8)
    assert tabulating.khat_shares(evaluation)[2] == evaluation.untrusted


# The curve


def test_the_curve_shows_the_bounds_and_its_band_the_paired_errors(real):
    figure = evaluation_plots.bound_curve(real)
    above, below = figure.axes
    found = tabulating.gaps(real)
    curve, elbo, debiased = (line for line in above.lines if len(line.get_xdata()))
    np.testing.assert_allclose(curve.get_xdata(), [gap.particles for gap in found])
    np.testing.assert_allclose(curve.get_ydata(), [gap.bound for gap in found])
    assert elbo.get_ydata()[0] == pytest.approx(float(real.elbo.mean()))
    assert debiased.get_ydata()[0] == pytest.approx(float(real.debiased.mean()))
    assert curve.get_ydata()[0] == pytest.approx(elbo.get_ydata()[0])  # the bound on one particle is the ELBO
    (band,) = above.collections
    corners = band.get_paths()[0].vertices
    for gap in found:
        heights = corners[corners[:, 0] == gap.particles][:, 1]
        assert heights.max() - heights.min() == pytest.approx(2 * 1.96 * gap.se)
    assert above.get_xscale() == below.get_xscale() == below.get_yscale() == "log"
    np.testing.assert_allclose(below.lines[0].get_ydata(), [-gap.difference for gap in found[:-1]])
    assert "paired by datum" in words(figure)
    assert labels(figure)[0] == (
        f"ELBO {signed(float(real.elbo.mean()))}; {signed(real.mean)} ± {real.se:.2f} with K = 30"
    )


def test_runs_are_told_apart_by_name_colour_and_mark():
    named = {"a $x^2$": made(), "<b>": made(), "c" * 200: made(), "d_1": made(), "e": made(), "f": made()}
    figure = evaluation_plots.bound_curve(named)
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert len(curves) == 6
    assert len({line.get_color() for line in curves}) == 6
    assert len({(line.get_color(), line.get_marker()) for line in curves}) == 6
    assert [label.replace("\n", "")[: len(name)] for label, name in zip(labels(figure), named, strict=False)] == [
        *named
    ]


def test_a_curve_is_needed():
    with pytest.raises(ValueError, match="curve=True"):
        evaluation_plots.bound_curve({"one": made(), "other": made(curve={})})
    with pytest.raises(ValueError, match="there are none"):
        evaluation_plots.bound_curve({})


def test_an_infinite_bound_is_left_out_and_said():
    evaluation = made()
    impossible = evaluation.curve[1].clone()
    impossible[7] = -math.inf
    figure = evaluation_plots.bound_curve(
        replace(
            evaluation, curve=evaluation.curve | {1: impossible}, elbo=impossible, debiased=torch.tensor([math.nan])
        )
    )
    curve, *levels = (line for line in figure.axes[0].lines if len(line.get_xdata()))
    assert list(curve.get_xdata()) == [5, 50]
    assert not levels
    assert "minus infinity" in words(figure)
    assert f"ELBO {MINUS}∞" in labels(figure)[0]
    assert "minus infinity" not in words(evaluation_plots.bound_curve(evaluation))


def test_a_single_datum_has_no_band():
    figure = evaluation_plots.bound_curve(made(1))
    assert "no band" in words(figure)
    assert "± unknown" in labels(figure)[0]
    figure.draw_without_rendering()


def test_where_nothing_is_lacking_there_is_one_panel():
    pair = pairs.make("linear_gaussian", "normal")
    exact = pv.evaluate(pair.model, Exact(pair.model), pair.data(10), particles=20, curve=True)
    (axes,) = evaluation_plots.bound_curve(exact).axes
    assert axes.get_xlabel() == "particles K"


# k-hat


def bars(figure):
    return {(bar.get_x() + bar.get_width() / 2): bar for bar in figure.axes[0].patches}


def test_khat_bars_count_all_data_in_the_colours_of_their_share():
    evaluation = made(10_000, khat=0.35 + 0.2 * torch.randn(10_000, dtype=DOUBLE))
    figure = evaluation_plots.khat_plot(evaluation)
    shares = tabulating.khat_shares(evaluation)
    for colour, part in zip((BLUE, AMBER, ORANGE), shares, strict=True):
        drawn = sum(bar.get_height() for bar in bars(figure).values() if same_color(bar.get_facecolor(), colour))
        assert drawn == round(part * 10_000)
    assert [f"{part:.1%} of 10,000 data" in label for part, label in zip(shares, labels(figure), strict=True)] == [
        True
    ] * 3
    ticks, *limits = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    np.testing.assert_allclose(np.sort(ticks.get_xdata()), evaluation.khat[evaluation.khat > 0.7].sort().values)
    assert [line.get_xdata()[0] for line in limits] == [0.5, 0.7]
    inside = [bar for x, bar in bars(figure).items() if abs(x) < 1]
    for bar in inside:
        edges = round(bar.get_x() * 20) / 20, round((bar.get_x() + bar.get_width()) * 20) / 20
        assert bar.get_height() == int(((evaluation.khat > edges[0]) & (evaluation.khat <= edges[1])).sum())


def test_a_limit_itself_is_good():
    figure = evaluation_plots.khat_plot(made(khat=torch.tensor([0.5, 0.5, 0.7], dtype=DOUBLE)))
    found = {round(x, 3): bar for x, bar in bars(figure).items()}
    assert (found[0.475].get_height(), found[0.675].get_height()) == (2, 1)
    assert same_color(found[0.475].get_facecolor(), BLUE)
    assert same_color(found[0.675].get_facecolor(), AMBER)


def test_infinite_khat_are_drawn_at_the_ends_and_said():
    khat = torch.tensor([0.3, 0.4, -math.inf, math.inf, math.inf, math.nan, 5.0], dtype=DOUBLE)
    figure = evaluation_plots.khat_plot(made(khat=khat))
    found = bars(figure)
    assert (found[min(found)].get_height(), found[max(found)].get_height()) == (1, 4)
    assert same_color(found[max(found)].get_facecolor(), ORANGE)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks[-2:] == [f"< {MINUS}1", "> 2"]
    told = words(figure)
    for sentence in (f"{MINUS}∞ for 1 datum", "∞ for 2 data", "no number for 1 datum"):
        assert sentence in told
    assert "∞" not in words(evaluation_plots.khat_plot(made()))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.3])
def test_all_data_may_have_the_same_khat(value):
    figure = evaluation_plots.khat_plot(made(khat=torch.full((9,), value)))
    assert [bar.get_height() for bar in figure.axes[0].patches] == [9]
    figure.draw_without_rendering()


# Data


def test_the_histogram_counts_all_data_and_names_the_lowest():
    evaluation = made(10_000)
    figure = evaluation_plots.log_px_histogram(evaluation)
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 10_000
    mean, *marks = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert mean.get_xdata()[0] == evaluation.mean
    rows = tabulating.lowest(evaluation, 5)
    assert [text.get_text().strip() for text in figure.axes[0].texts] == [f"{row:,}" for row in rows]
    np.testing.assert_allclose([line.get_xdata()[0] for line in marks], evaluation.log_px[rows])
    assert f"mean {signed(evaluation.mean)} ± {evaluation.se:.2f}" in labels(figure)[0]
    assert "Drawn at" not in words(figure)


def test_a_far_datum_is_drawn_at_the_end_and_said():
    evaluation = made()
    far = evaluation.log_px.clone()
    far[[5, 6]] = torch.tensor([-3000.0, -math.inf], dtype=DOUBLE)
    figure = evaluation_plots.log_px_histogram(replace(evaluation, log_px=far))
    low, high = figure.axes[0].get_xlim()
    assert high - low < 20
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 200
    assert f"Drawn at the left end: 2 data as far out as {MINUS}∞" in words(figure)
    with pytest.raises(ValueError, match="finite"):
        evaluation_plots.log_px_histogram(replace(evaluation, log_px=torch.full((3,), -math.inf)))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_data_and_equal_ones_make_a_histogram(n):
    figure = evaluation_plots.log_px_histogram(made(n, log_px=torch.full((n,), -3.0)))
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == n
    figure.draw_without_rendering()


def test_rate_and_distortion_of_each_datum():
    evaluation = made()
    axes = datum_plots.rate_distortion(evaluation).axes[0]
    points, circles = (np.asarray(part.get_offsets()) for part in axes.collections)
    np.testing.assert_allclose(points, torch.stack([evaluation.rate, evaluation.distortion], 1))
    np.testing.assert_allclose(circles, points[tabulating.lowest(evaluation, 5)])
    (line,) = axes.lines
    assert line.get_slope() == -1
    assert sum(line.get_xy1()) == pytest.approx(-float(evaluation.elbo.mean()))


def test_infinite_rates_are_left_out_and_said():
    evaluation = made()
    elbo = evaluation.elbo.clone()
    elbo[:3] = -math.inf
    figure = datum_plots.rate_distortion(replace(evaluation, elbo=elbo))
    assert len(figure.axes[0].collections[0].get_offsets()) == 197
    assert "Left out: 3 data" in words(figure)
    with pytest.raises(ValueError, match="finite rate"):
        datum_plots.rate_distortion(made(distortion=torch.tensor([math.nan])))


@pytest.mark.parametrize(("n", "means"), [(7, True), (7, False), (3, True), (1, False)])
def test_the_worst_data_are_drawn_with_rows_and_numbers(n, means):
    evaluation, x = made(), torch.rand(200, 12)
    rows = tabulating.lowest(evaluation, n)
    figure = datum_plots.worst_data(evaluation, x[rows], (3, 4), 1 - x[rows] if means else None)
    assert [axes.get_title() for axes in figure.axes] == [f"row {row}" for row in rows]
    assert [axes.get_xlabel() for axes in figure.axes] == [signed(float(evaluation.log_px[row]), 1) for row in rows]
    for axes, row in zip(figure.axes, rows, strict=True):
        picture = axes.images[0].get_array()
        np.testing.assert_allclose(picture[:3], x[row].reshape(3, 4))
        assert picture.shape == ((7, 4) if means else (3, 4))
        if means:
            np.testing.assert_allclose(picture[4:], 1 - x[row].reshape(3, 4))


# Comparisons

ROWS = [("best", 0.0, 0.0), ("$second$", -0.5, 0.1), ("third", 0.25, 0.2), ("one datum", -0.1, math.nan)]


def test_a_forest_has_intervals_of_95_per_cent_from_the_top():
    axes, figures = (figure := evaluation_plots.comparison(ROWS)).axes[0], figure.axes[0].child_axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [name for name, *_ in ROWS]
    assert axes.yaxis_inverted()
    intervals = [container for container in axes.containers if container.has_xerr]
    for container, (_, mean, se) in zip(intervals, ROWS[:3], strict=True):
        ((left, _), (right, _)) = container[2][0].get_segments()[0]
        assert (right - left) / 2 == pytest.approx(stats.norm.ppf(0.975) * se, rel=1e-4)
        assert (right + left) / 2 == pytest.approx(mean)
    assert [label.get_text() for label in figures.get_yticklabels()] == [
        "0.00",
        f"{MINUS}0.50 ± 0.10",
        "0.25 ± 0.20",
        f"{MINUS}0.10 ± unknown",
    ]
    dots = [container[0] for container in axes.containers]
    assert [dot.get_marker() for dot in dots] == ["D", "o", "o", "o"]
    assert to_rgba(dots[0].get_color()) == to_rgba(GREY)


def test_dollars_in_names_are_no_mathematics():
    unfinished = "costs $x^{ more than $"
    drawn = [
        evaluation_plots.comparison([(unfinished, 0.0, 0.0)]),
        evaluation_plots.bound_curve({unfinished: made()}, title=unfinished),
    ]
    for figure in drawn:
        figure.draw_without_rendering()
        written = [text for text in figure.findobj(Text) if unfinished in text.get_text()]
        assert written
        assert not any(text.get_parse_math() for text in written)


@pytest.mark.parametrize("row", [("a", math.nan, 0.1), ("a", math.inf, 0.1), ("a", 0.0, -0.1), ("a", 0.0, math.inf)])
def test_what_cannot_be_compared_is_named(row):
    with pytest.raises(ValueError, match="'a' has mean"):
        evaluation_plots.comparison([("b", 0.0, 0.0), row])
    with pytest.raises(ValueError, match="there are none"):
        evaluation_plots.comparison([])


# All of them


def pictures():
    big = made(2000, khat=torch.cat([torch.randn(1990), torch.full((10,), math.inf)]))
    long = "a name of a run that somebody made very long, with_an_underscore and $dollars$ " * 2
    return {
        "curve": lambda: evaluation_plots.bound_curve(made()),
        "curves": lambda: evaluation_plots.bound_curve({long: made(), "other": made()}),
        "khat": lambda: evaluation_plots.khat_plot(big),
        "histogram": lambda: evaluation_plots.log_px_histogram(big),
        "rate": lambda: datum_plots.rate_distortion(big),
        "comparison": lambda: evaluation_plots.comparison([("best", 0.0, 0.0), (long, -100.0, 3.0)]),
    }


@pytest.mark.parametrize("name", pictures())
def test_axes_are_labelled_and_no_words_cover_others(name):
    figure = pictures()[name]()
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_xlabel() or axes is not figure.axes[-1]
        assert axes.get_ylabel() or name == "comparison"
    assert figure.axes[0].get_title()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for i, box in enumerate(boxes):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.width + 1
        assert box.y1 <= figure.bbox.height + 1
        assert not any(box.overlaps(other) for other in boxes[:i])
    written = sorted((label.get_window_extent() for label in figure.axes[-1].get_xticklabels()), key=lambda box: box.x0)
    assert all(left.x1 <= right.x0 for left, right in pairwise(written))
