"""Pictures, as matplotlib figures that the caller may show or save.

Figures are made without pyplot: nothing global, no backend, no window.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "canvas", "image_grid", "image_rows", "inpainting", "learning_curve", "reconstructions"]

# Okabe and Ito: told apart with any colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
GREEN, PINK, SKY, YELLOW = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
# In the order in which curves of one picture take them.
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, GREY)
# A notebook keeps each picture within itself; files have 150.
NOTEBOOK_DPI = 110
# Between black and white, and neither: no grey of an image looks like it.
MISSING = "#AECBDD"


def canvas(
    rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 4.0, **options: Any
) -> tuple["Figure", Any]:
    """Return an empty figure and its axes, with a faint grid and without a frame.

    Args:
        rows: of axes.
        columns: of axes.
        width: of the figure, in inches.
        height: of the figure, in inches.
        options: what `matplotlib.figure.Figure.subplots` takes, such as ``sharey=True``.

    Returns:
        The figure, which shows itself in a notebook, and axes as that function gives them: one, a row or a grid.

    Example:
        >>> figure, axes = canvas()
        >>> _ = axes.plot([1, 2, 3], color=COLOURS[0])
        >>> _ = axes.set(xlabel="step", ylabel="bound (nats per datum)")
        >>> figure, (left, right) = canvas(1, 2, width=9.0)
    """
    figure = blank(width, height)
    axes = figure.subplots(rows, columns, **options)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, axes


def learning_curve(history: Mapping[str, Sequence[float]], title: str = "Learning curve") -> "Figure":
    """Draw the bound against the epoch, for training and validation data.

    Early epochs far below the rest are cut off, so that the end can be read.

    Example:
        >>> history = {"epoch": [1, 2], "train_bound": [-30.0, -25.0], "valid_bound": [-29.0, -26.0]}
        >>> learning_curve(history).axes[0].get_ylabel()
        'bound (nats per datum)'
    """
    figure, axes = canvas()
    curves = {"train_bound": ("training data", BLUE), "valid_bound": ("validation data", ORANGE)}
    for column, (label, colour) in curves.items():
        if column in history:
            marker = "o" if len(history["epoch"]) < 10 else ""
            axes.plot(history["epoch"], history[column], marker=marker, color=colour, label=label, linewidth=1.8)
    _mark_best(axes, history)
    _cut_off_start(axes, history)
    axes.set(xlabel="epoch", ylabel="bound (nats per datum)", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
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
    figure = blank(0.9 * columns, 0.9 * columns * -(-len(images) // columns) / columns + 0.4 * bool(title))
    axes = figure.subplots()
    show(axes, mosaic(images, shape, columns, ink), ink)
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
    return image_rows({"data": x, "reconstruction": means}, shape, title, ink)


def image_rows(rows: Mapping[str, Tensor], shape: tuple[int, int], title: str = "", ink: bool = True) -> "Figure":
    """Draw rows of images beside their names; a pixel that is NaN is drawn in a tint, as missing.

    Args:
        rows: name to images ``(n, height * width)``, the same n in all.
        shape: height and width of an image.
        title: above all.
        ink: whether large values are dark.

    Example:
        >>> image_rows({"data": torch.rand(3, 64)}, (8, 8)).axes[0].get_yticklabels()
        [Text(0, 3.5, 'data')]
    """
    n = len(next(iter(rows.values())))
    figure = blank(0.75 * n + 1.1, 0.75 * len(rows) * shape[0] / shape[1] + 0.15 + 0.3 * bool(title))
    axes = figure.subplots()
    show(axes, mosaic(torch.cat(list(rows.values())), shape, n, ink), ink)
    label_tiles(axes, shape, rows=list(rows))
    frame_tiles(axes, shape, len(rows), n)
    axes.set_title(title, fontsize=10)
    return trimmed(figure)


def inpainting(
    x: Tensor,
    observed: Tensor,
    mean: Tensor | None,
    draws: Tensor,
    shape: tuple[int, int],
    title: str = "",
    ink: bool = True,
    noisy: Tensor | None = None,
) -> "Figure":
    """Draw data, what was observed of them (missing pixels in a tint), and what was filled in.

    Args:
        x: the data ``(n, height * width)``; NaN where nobody knows them.
        observed: which pixels were given, of the shape of x or broadcast to it.
        mean: filled with conditional means, ``(n, height * width)``, as `ppl_vae.impute` gives it; or None.
        draws: filled with draws, ``(S, n, height * width)``; each is a row.
        shape: height and width of an image.
        title: above all.
        ink: whether large values are dark.
        noisy: data with noise, of which the pixels that are not observed were suspected.

    Example:
        >>> x, observed = torch.rand(3, 64), torch.arange(64) < 32
        >>> figure = inpainting(x, observed, x, x.expand(2, 3, 64), (8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['data', 'observed', 'mean', 'draw 1', 'draw 2']
    """
    seen = x if noisy is None else noisy
    rows = {
        "data": x,
        "noisy": noisy,
        "observed": seen.float().masked_fill(~observed, torch.nan),
        "mean": mean,
        **{f"draw {i}": draw for i, draw in enumerate(draws, start=1)},
    }
    return image_rows({name: images for name, images in rows.items() if images is not None}, shape, title, ink)


def blank(width: float, height: float) -> "Figure":
    """Return an empty figure, in inches."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that shows itself in a notebook, whatever the backend."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=NOTEBOOK_DPI)
            return file.getvalue()

    return Picture(figsize=(width, height), dpi=150, layout="constrained")


def trimmed(figure: "Figure") -> "Figure":
    """Return a figure of pictures without the empty space that their fixed shape leaves around them."""
    pad = 0.08  # inches
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    figure.set_size_inches(box.width + 2 * pad, box.height + 2 * pad)
    return figure


def show(axes: "Axes", picture: Tensor, ink: bool) -> None:
    """Draw a picture with values in [0, 1], NaN in a tint."""
    from matplotlib import colormaps

    colours = colormaps["gray_r" if ink else "gray"].with_extremes(bad=MISSING)
    axes.imshow(picture.numpy(), cmap=colours, vmin=0, vmax=1, interpolation="nearest")


def mosaic(images: Tensor, shape: tuple[int, int], columns: int, ink: bool, gap: int = 1) -> Tensor:
    """Return one picture of images ``(n, height * width)``, clipped to [0, 1], with a white gap between them.

    Example:
        >>> mosaic(torch.rand(6, 64), (8, 8), columns=3, ink=True).shape
        torch.Size([17, 26])
    """
    height, width = shape
    rows = -(-len(images) // columns)
    tiles = torch.full((rows * columns, height + gap, width + gap), 0.0 if ink else 1.0)
    tiles[: len(images), :height, :width] = images.detach().cpu().float().reshape(-1, height, width).clamp(0, 1)
    grid = tiles.reshape(rows, columns, height + gap, width + gap).transpose(1, 2)
    return grid.reshape(rows * (height + gap), columns * (width + gap))[: -gap or None, : -gap or None]


def label_tiles(
    axes: "Axes", shape: tuple[int, int], rows: Sequence[str] = (), columns: Sequence[str] = (), gap: int = 1
) -> None:
    """Write names beside the rows of a mosaic and under its columns, and draw nothing else around it."""
    height, width = shape
    axes.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(rows))], rows)
    axes.set_xticks([j * (width + gap) + (width - 1) / 2 for j in range(len(columns))], columns)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def frame_tiles(axes: "Axes", shape: tuple[int, int], rows: int, columns: int, gap: int = 1) -> None:
    """Draw a hair line around each image of a mosaic: paper is as white as what is between images."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    height, width = shape
    corners = [(j * (width + gap) - 0.5, i * (height + gap) - 0.5) for i in range(rows) for j in range(columns)]
    frames = [Rectangle(corner, width, height) for corner in corners]
    drawn = PatchCollection(frames, facecolor="none", edgecolor="#CCCCCC", linewidth=0.5, clip_on=False)
    axes.add_collection(drawn, autolim=False)
