"""Pictures, as matplotlib figures that the caller may show or save.

Figures are made without pyplot: nothing global, no backend, no window.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["image_grid", "learning_curve", "reconstructions"]

# Okabe and Ito: told apart with any colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"


def learning_curve(history: Mapping[str, Sequence[float]], title: str = "Learning curve") -> "Figure":
    """Draw the bound against the epoch, for training and validation data.

    Early epochs far below the rest are cut off, so that the end can be read.

    Example:
        >>> history = {"epoch": [1, 2], "train_bound": [-30.0, -25.0], "valid_bound": [-29.0, -26.0]}
        >>> learning_curve(history).axes[0].get_ylabel()
        'bound (nats per datum)'
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    curves = {"train_bound": ("training data", BLUE), "valid_bound": ("validation data", ORANGE)}
    for column, (label, colour) in curves.items():
        if column in history:
            marker = "o" if len(history["epoch"]) < 10 else ""
            axes.plot(history["epoch"], history[column], marker=marker, color=colour, label=label, linewidth=1.8)
    _mark_best(axes, history)
    _cut_off_start(axes, history)
    axes.set(xlabel="epoch", ylabel="bound (nats per datum)", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _mark_best(axes: "Axes", history: Mapping[str, Sequence[float]]) -> None:
    if "valid_bound" in history:
        best = max(range(len(history["epoch"])), key=history["valid_bound"].__getitem__)
        x, y = history["epoch"][best], history["valid_bound"][best]
        axes.plot(x, y, "o", color=ORANGE, markersize=6, label=f"kept: epoch {x:.0f}, {y:.2f}")


def _cut_off_start(axes: "Axes", history: Mapping[str, Sequence[float]]) -> None:
    values = torch.tensor([v for column in ("train_bound", "valid_bound") for v in history.get(column, [])])
    lower, upper = values.quantile(0.05).item(), values.max().item()
    if len(history["epoch"]) > 10 and upper > lower:
        margin = 0.08 * (upper - lower)
        axes.set_ylim(lower - margin, upper + margin)


def image_grid(images: Tensor, shape: tuple[int, int], title: str = "", columns: int = 8, ink: bool = True) -> "Figure":
    """Draw images ``(n, height * width)`` with values in [0, 1], row by row.

    Large values are drawn dark as ink, or bright as in a photograph.

    Example:
        >>> len(image_grid(torch.rand(10, 64), (8, 8)).axes)
        1
    """
    columns = min(columns, len(images))
    figure = _figure(0.9 * columns, 0.9 * columns * -(-len(images) // columns) / columns + 0.4 * bool(title))
    axes = figure.subplots()
    _show(axes, _mosaic(images, shape, columns, ink), ink)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    return figure


def reconstructions(x: Tensor, means: Tensor, shape: tuple[int, int], title: str = "", ink: bool = True) -> "Figure":
    """Draw data ``(n, height * width)`` above their reconstructions.

    Example:
        >>> figure = reconstructions(torch.rand(10, 64), torch.rand(10, 64), (8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['data', 'reconstruction']
    """
    n = len(x)
    figure = _figure(0.9 * n + 1.2, 2.4)
    axes = figure.subplots()
    mosaic = _mosaic(torch.cat([x, means]), shape, n, ink)
    _show(axes, mosaic, ink)
    height = mosaic.shape[0]
    axes.set_yticks([height / 4, 3 * height / 4], ["data", "reconstruction"])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that shows itself in a notebook, whatever the backend."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Picture(figsize=(width, height), dpi=150, layout="constrained")


def _show(axes: "Axes", picture: Tensor, ink: bool) -> None:
    axes.imshow(picture.numpy(), cmap="gray_r" if ink else "gray", vmin=0, vmax=1, interpolation="nearest")


def _mosaic(images: Tensor, shape: tuple[int, int], columns: int, ink: bool) -> Tensor:
    """Return one picture with a white pixel between images; values are clipped to [0, 1]."""
    height, width = shape
    rows = -(-len(images) // columns)
    tiles = torch.full((rows * columns, height + 1, width + 1), 0.0 if ink else 1.0)
    tiles[: len(images), :height, :width] = images.detach().cpu().float().reshape(-1, height, width).clamp(0, 1)
    grid = tiles.reshape(rows, columns, height + 1, width + 1).transpose(1, 2)
    return grid.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
