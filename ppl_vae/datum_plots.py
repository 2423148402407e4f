"""Pictures of single data in an evaluation: where they differ, and which are worst."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vae.annotating import WIDTH, counted, finish, signed
from ppl_vae.evaluation import Evaluation
from ppl_vae.evaluation_plots import NAMED
from ppl_vae.plots import BLUE, GREY, ORANGE, blank, mosaic, show
from ppl_vae.tabulating import lowest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["rate_distortion", "worst_data"]


def rate_distortion(evaluation: Evaluation, title: str = "Rate and distortion of each datum") -> "Figure":
    """Draw each datum's distortion against its rate; on the dashed line both sum to the mean of the negative ELBO.

    Raises:
        ValueError: no datum has a finite rate and distortion.

    Reference: A. Alemi et al., "Fixing a Broken ELBO", ICML 2018, https://arxiv.org/abs/1711.00464.

    Example:
        >>> zeros, facts = torch.zeros(9), {"particles": 1, "seed": 0, "distortion": torch.rand(9)}
        >>> rate_distortion(pv.Evaluation(zeros, zeros, zeros, zeros, zeros, **facts)).axes[0].get_xlabel()
        'rate (nats)'
    """
    rate, distortion = evaluation.rate, evaluation.distortion.expand_as(evaluation.elbo)
    known = rate.isfinite() & distortion.isfinite()
    if not known.any():
        raise ValueError("evaluation: no datum has a finite rate and distortion, so that there is nothing to draw")
    figure = blank(WIDTH, 4.4)
    axes = figure.subplots()
    n, elbo = int(known.sum()), float(evaluation.elbo[known].mean())
    clear = max(0.15, min(0.7, 300 / n))
    axes.scatter(rate[known], distortion[known], s=9, color=BLUE, alpha=clear, linewidths=0, label=counted(n))
    rows = [row for row in lowest(evaluation, NAMED) if known[row]]
    told = f"the {len(rows)} lowest in log p(x)"
    axes.scatter(rate[rows], distortion[rows], s=40, facecolors="none", edgecolors=ORANGE, linewidths=1.2, label=told)
    centre = float(rate[known].mean()), float(distortion[known].mean())
    axes.axline(centre, slope=-1, color=GREY, linestyle="--", linewidth=1, label=f"ELBO {signed(elbo)}, the mean")
    axes.set(xlabel="rate (nats)", ylabel="distortion (nats)", title=title)
    left_out = len(known) - n
    finish(figure, f"Left out: {counted(left_out)} with a rate or a distortion that is infinite." * bool(left_out))
    return figure


def worst_data(
    evaluation: Evaluation,
    x: Tensor,
    shape: tuple[int, int],
    means: Tensor | None = None,
    ink: bool = True,
    columns: int = 5,
) -> "Figure":
    """Draw the data of lowest log p(x), each above its reconstruction, with its row and its log p(x).

    Args:
        evaluation: of these and others.
        x: images of ``lowest(evaluation, n)``, in that order, ``(n, height * width)``.
        shape: height and width of an image.
        means: their reconstructions, if there are any.
        ink: whether large values are dark.
        columns: data in a row of the picture.

    Example:
        >>> from ppl_vae.tabulating import lowest
        >>> zeros, x = torch.zeros(9), torch.rand(9, 64)
        >>> evaluation = pv.Evaluation(-torch.arange(9.0), zeros, zeros, zeros, zeros, 1, 0)
        >>> figure = worst_data(evaluation, x[lowest(evaluation, 3)], (8, 8))
        >>> [axes.get_title() for axes in figure.axes]
        ['row 8', 'row 7', 'row 6']
    """
    columns = min(columns, len(x))
    lines = -(-len(x) // columns)
    height = (1 if means is None else 2) * shape[0] / shape[1] + 0.4
    figure = blank(1.1 * columns, 1.1 * height * lines)
    for i, row in enumerate(lowest(evaluation, len(x))):
        axes = figure.add_subplot(lines, columns, i + 1, xticks=[], yticks=[])
        pair = x[i : i + 1] if means is None else torch.stack([x[i], means[i]])
        show(axes, mosaic(pair, shape, 1, ink), ink)
        axes.set_title(f"row {row:,}", fontsize=9)
        axes.set_xlabel(signed(float(evaluation.log_px[row]), 1), fontsize=9)
        if means is not None:
            axes.axhline(shape[0], color=GREY, linewidth=0.8)
    return figure
