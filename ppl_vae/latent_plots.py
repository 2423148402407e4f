"""Pictures of latent spaces, from the tensors that `ppl_vae.traversing` computes, as matplotlib figures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_vae.plots import GREY, blank, frame_tiles, label_tiles, mosaic, show, trimmed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["embedding", "interpolation", "manifold", "traversal"]

# M. A. Petroff, "Accessible Color Sequences for Data Visualization", 2021, https://arxiv.org/abs/2107.02270:
# ten colours told apart with any colour vision.
TEN = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
TILE = 0.62  # inches


def traversal(
    images: Tensor,
    dims: Sequence[int],
    scores: Sequence[float],
    shape: tuple[int, int],
    title: str = "",
    ink: bool = True,
    xlabel: str = "place under the prior (standard normal score)",
) -> "Figure":
    """Draw images along single dimensions of a latent: a row for each dimension, a column for each place.

    Args:
        images: ``(D, V, height * width)``, as `ppl_vae.traversing.traversals` gives them.
        dims: the D dimensions, counted from 0.
        scores: the V places.
        shape: height and width of an image.
        title: above all.
        ink: whether large values are dark.
        xlabel: what the places are.

    Example:
        >>> figure = traversal(torch.rand(2, 3, 64), dims=[4, 0], scores=[-1.0, 0.0, 1.0], shape=(8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['4', '0']
    """
    figure, axes = _tiled(images, shape, ink, title)
    label_tiles(axes, shape, [str(j) for j in dims], [f"${score:g}$" for score in scores])
    axes.set(xlabel=xlabel, ylabel="latent dimension, from 0")
    return trimmed(figure)


def interpolation(
    first: Tensor, images: Tensor, last: Tensor, shape: tuple[int, int], title: str = "", ink: bool = True
) -> "Figure":
    """Draw a row for each pair of data: one, the images on the way between their reconstructions, the other.

    Args:
        first: data ``(P, height * width)`` at the left.
        images: ``(P, steps, height * width)``, as `ppl_vae.traversing.interpolations` gives them.
        last: data ``(P, height * width)`` at the right.
        shape: height and width of an image.
        title: above all.
        ink: whether large values are dark.

    Example:
        >>> figure = interpolation(torch.rand(2, 64), torch.rand(2, 5, 64), torch.rand(2, 64), (8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['data', '0', '', '½', '', '1', 'data']
    """
    steps, width = images.shape[1], shape[1]
    ends = [x.reshape(len(x), 1, -1).to(images) for x in (first, last)]
    figure, axes = _tiled(torch.cat([ends[0], images.flatten(2), ends[1]], dim=1), shape, ink, title)
    for column in (1, steps + 1):  # data apart from what is decoded
        axes.axvline(column * (width + 1) - 1, color=GREY, linewidth=1.0)
    way = ["0", *[""] * (steps - 2), "1"]
    if steps % 2:
        way[steps // 2] = "½"
    label_tiles(axes, shape, columns=["data", *way, "data"])
    axes.set_xlabel("share of the way from one posterior mean to the other")
    return trimmed(figure)


def manifold(
    images: Tensor,
    across: Tensor,
    up: Tensor,
    shape: tuple[int, int],
    title: str = "",
    ink: bool = True,
    labels: tuple[str, str] = ("$z_1$", "$z_2$"),
) -> "Figure":
    """Draw images over a plane of latents, as a map.

    Args:
        images: ``(n, n, height * width)``, as `ppl_vae.traversing.manifold` gives them.
        across: values of the columns, ``(n,)``.
        up: values of the rows, from the top, ``(n,)``.
        shape: height and width of an image.
        title: above all.
        ink: whether large values are dark.
        labels: names of the two dimensions.

    Example:
        >>> values = torch.linspace(-1, 1, 5)
        >>> figure = manifold(torch.rand(5, 5, 64), values, -values, (8, 8))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['$-1.00$', '$-0.50$', '$0.00$', '$0.50$', '$1.00$']
    """
    n = len(across)
    figure = blank(5.6, 5.4 * shape[0] / shape[1] + 0.3 * bool(title))
    axes = figure.subplots()
    show(axes, mosaic(images.flatten(0, 1), shape, n, ink), ink)
    # Some from either end, so that the marks are symmetric.
    marked = {i for k in range(0, (n + 1) // 2, max(1, n // 5)) for i in (k, n - 1 - k)}
    names = [[_number(v) if i in marked else "" for i, v in enumerate(values)] for values in (up, across)]
    label_tiles(axes, shape, *names)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_title(title, fontsize=10)
    return trimmed(figure)


def embedding(
    positions: Tensor,
    labels: Tensor,
    axes_labels: tuple[str, str] = ("$z_1$", "$z_2$"),
    names: Mapping[int, str] | None = None,
    title: str = "",
    legend: str = "label",
) -> "Figure":
    """Draw data as points of a plane, coloured by label.

    Up to ten labels have a colour each, in a legend; more of them, or labels that are no whole numbers,
    a scale with a bar.

    Args:
        positions: ``(N, 2)``, as `ppl_vae.traversing.embedding` gives them.
        labels: ``(N,)``.
        axes_labels: what the axes are.
        names: names of the labels, for the legend; the labels themselves when left out.
        title: above all.
        legend: what the labels are.

    Raises:
        ValueError: positions are not ``(N, 2)``, or labels not ``(N,)``.

    Example:
        >>> figure = embedding(torch.randn(20, 2), torch.arange(20) % 4)
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['0', '1', '2', '3']
    """
    if positions.dim() != 2 or positions.shape[1] != 2 or labels.shape != positions.shape[:1]:
        raise ValueError(
            f"positions, labels: expected shapes (N, 2) and (N,), found {tuple(positions.shape)} and "
            f"{tuple(labels.shape)}"
        )
    figure = blank(6.2, 5.2 + 0.3 * bool(title))
    axes = figure.subplots()
    points, labels = positions.detach().cpu().double(), labels.detach().cpu()
    size = float(min(16.0, max(3.0, 12_000 / len(points))))
    kinds = labels.unique()
    if labels.is_floating_point() or len(kinds) > len(TEN):
        _by_scale(figure, axes, points, labels, size, legend)
    else:
        _by_kind(
            figure, axes, points, labels, size, {int(k): (names or {}).get(int(k), str(int(k))) for k in kinds}, legend
        )
    axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10)
    return figure


def _by_scale(figure: "Figure", axes: "Axes", points: Tensor, labels: Tensor, size: float, legend: str) -> None:
    drawn = axes.scatter(*points.T.numpy(), c=labels.numpy(), s=size, cmap="viridis", linewidths=0)
    figure.colorbar(drawn, ax=axes, label=legend, shrink=0.8)


def _by_kind(
    figure: "Figure",
    axes: "Axes",
    points: Tensor,
    labels: Tensor,
    size: float,
    names: Mapping[int, str],
    legend: str,
) -> None:
    """Draw all points in the order of the data, so that no label hides the others."""
    colours = {kind: TEN[place] for place, kind in enumerate(names)}
    axes.scatter(*points.T.numpy(), c=[colours[int(k)] for k in labels], s=size, alpha=0.8, linewidths=0)
    handles = [axes.plot([], [], "o", color=colours[kind], markersize=6, label=name)[0] for kind, name in names.items()]
    figure.legend(handles=handles, title=legend, loc="outside right center", frameon=False)
    span = float((points.amax(0) - points.amin(0)).amax())
    amid = torch.stack([_densest(points[labels == kind]) for kind in names])
    for place, name in zip(_apart(amid, 0.05 * span), names.values(), strict=True):
        _write(axes, place, name)


def _densest(points: Tensor) -> Tensor:
    """Return the point that has its nearest quarter closest by: a mean would fall between two clusters."""
    some = points[:: len(points) // 1000 + 1]
    return some[torch.cdist(some, some).kthvalue(len(some) // 4 + 1).values.argmin()]


def _apart(places: Tensor, gap: float) -> Tensor:
    """Return places moved until no two are closer than a gap."""
    for _ in range(100):
        between = places.unsqueeze(1) - places  # (n, n, 2), from the second to the first
        distance = between.norm(dim=-1, keepdim=True)
        push = torch.where(distance > 0, (gap - distance).clamp_min(0) / 2 * between / distance.clamp_min(1e-9), 0.0)
        places = places + push.sum(1)
    return places


def _write(axes: "Axes", place: Tensor, name: str) -> None:
    """Write a label amid its points, so that nobody needs the colours alone."""
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=3, foreground="white")
    axes.text(*place.tolist(), name, ha="center", va="center", fontsize=11, weight="bold", path_effects=[halo])


def _tiled(tiles: Tensor, shape: tuple[int, int], ink: bool, title: str) -> tuple["Figure", "Axes"]:
    """Return a figure of ``(rows, columns)`` images with room for labels at the left and below."""
    rows, columns = tiles.shape[:2]
    figure = blank(TILE * columns + 0.7, TILE * rows * shape[0] / shape[1] + 0.6 + 0.3 * bool(title))
    axes = figure.subplots()
    show(axes, mosaic(tiles.flatten(2).flatten(0, 1), shape, columns, ink), ink)
    frame_tiles(axes, shape, rows, columns)
    axes.set_title(title, fontsize=10)
    return figure, axes


def _number(value: Tensor) -> str:
    return f"${float(value):.2f}$"
