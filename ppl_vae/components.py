"""What programs with components share: a datum's own component, moments of the data weighted by responsibilities."""

from collections.abc import Callable, Iterator

import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

__all__ = ["check_counts", "moments", "negligible", "scatter_matrices", "scatter_squares", "select", "shared_scatter"]

# Elements of a chunk's features, which then stay in the processor's cache.
CHUNK = 2**17
# Up to so many dimensions one matrix product serves all components; beyond, features would outgrow it.
WIDE = 24


def select(values: Tensor, y: Tensor, event_dim: int = 1) -> Tensor:
    """Return the values of each datum's component.

    Plates around the components, such as Pyro's vectorised particles, stay where they are: left of the plate "data".

    Args:
        values: one event for each component, ``(..., C, *event)``.
        y: components, ``(..., N)`` where drawn, ``(C, 1, ...)`` where enumerated.
        event_dim: number of axes of an event.

    Returns:
        ``(..., N, *event)``, with y's axes and those left of the components.

    Example:
        >>> select(torch.tensor([[0.0], [7.0]]), torch.tensor([1, 1, 0])).squeeze(-1)
        tensor([7., 7., 0.])
        >>> particles = torch.zeros(10, 2, 4)    # drawn in a plate of ten, for two components
        >>> select(particles, torch.zeros(10, 3, dtype=torch.long)).shape
        torch.Size([10, 3, 4])
    """
    # The axis of components is the event's, and where it stood belongs to the data.
    return Vindex(values.unsqueeze(-event_dim - 2))[(..., y, *(slice(None),) * event_dim)]


def moments(x: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much data each component holds, and their mean.

    ::

        N_k = sum_n r_nk,    m_k = sum_n r_nk x_n / N_k

    Args:
        x: data ``(N, D)``.
        responsibilities: posterior probabilities of the components, ``(N, C)``.

    Returns:
        Counts ``(C,)`` and means ``(C, D)``; a component without data has the mean of all.

    Raises:
        ValueError: the two differ in their number of rows, or x is not finite.

    Example:
        >>> counts, mean = moments(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        >>> counts, mean.squeeze(-1)
        (tensor([1.5000, 0.5000]), tensor([1.3333, 4.0000]))
    """
    if responsibilities.shape[0] != x.shape[0] or responsibilities.dim() != 2:
        raise ValueError(
            f"responsibilities: expected a row for each of the {x.shape[0]} data, found shape "
            f"{tuple(responsibilities.shape)}"
        )
    centre, counts, offset = _offsets(x, responsibilities)
    if not offset.isfinite().all():
        raise ValueError("x: it has values that are infinite or nan; take them out, or impute them")
    return counts, centre + offset


def _offsets(x: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of all data, the counts, and the components' means less that of all."""
    centre, counts = x.mean(0), responsibilities.sum(0)
    total = sum(r.mT @ (rows - centre) for rows, r in _chunks(x, responsibilities, x.shape[1]))
    return centre, counts, total / counts.clamp_min(torch.finfo(x.dtype).tiny).unsqueeze(-1)


def check_counts(counts: Tensor) -> None:
    """Refuse a component without data.

    Raises:
        ValueError: naming the first such component.
    """
    for k in (counts <= torch.finfo(counts.dtype).eps).nonzero().flatten().tolist()[:1]:
        raise ValueError(
            f"component {k} holds no data (its responsibilities sum to {counts[k]:.1e}); use fewer components, another "
            "start, or a program with priors"
        )


def scatter_squares(x: Tensor, responsibilities: Tensor) -> Tensor:
    """Return the weighted squares about each component's mean.

    ::

        s_kd = sum_n r_nk (x_nd - m_kd)^2

    Args:
        x: data ``(N, D)``.
        responsibilities: ``(N, C)``.

    Returns:
        ``(C, D)``.

    Example:
        >>> x, r = torch.tensor([[0.0], [4.0]]), torch.ones(2, 1)
        >>> scatter_squares(x, r)
        tensor([[8.]])
    """
    return _scatter(torch.square, x.shape[1], x, responsibilities)


def scatter_matrices(x: Tensor, responsibilities: Tensor) -> Tensor:
    """Return the weighted outer products about each component's mean.

    ::

        S_k = sum_n r_nk (x_n - m_k) (x_n - m_k)'

    For few dimensions one matrix product gives those of all components: the products of two
    coordinates, about the mean of all data, are features of a datum.

    Args:
        x: data ``(N, D)``.
        responsibilities: ``(N, C)``.

    Returns:
        ``(C, D, D)``, symmetric.

    Example:
        >>> x, r = torch.tensor([[0.0, 1.0], [4.0, 3.0]]), torch.ones(2, 1)
        >>> scatter_matrices(x, r)
        tensor([[[8., 4.],
                 [4., 2.]]])
    """
    d = x.shape[1]
    if d > WIDE or responsibilities.shape[1] == 1:
        _, mean = moments(x, responsibilities)
        return torch.stack([_about(x, responsibilities[:, k : k + 1], mean[k]) for k in range(len(mean))])
    packed = _scatter(_products, d * (d + 1) // 2, x, responsibilities)
    i = torch.cat([torch.arange(d - offset, device=x.device) for offset in range(d)])
    j = torch.cat([torch.arange(offset, d, device=x.device) for offset in range(d)])
    matrices = packed.new_empty(len(packed), d, d)
    matrices[:, i, j] = packed
    matrices[:, j, i] = packed
    return matrices


def _products(x: Tensor) -> Tensor:
    """Return the products of two coordinates, each pair once, squares first: ``(N, D (D + 1) / 2)``."""
    d = x.shape[1]
    return torch.cat([x[:, : d - offset] * x[:, offset:] for offset in range(d)], dim=1)


def _scatter(features: Callable[[Tensor], Tensor], width: int, x: Tensor, responsibilities: Tensor) -> Tensor:
    """Sum features that are quadratic in x, squares first, about each component's mean, ``(C, width)``."""
    centre, counts, offset = _offsets(x, responsibilities)
    total = sum(r.mT @ features(rows - centre) for rows, r in _chunks(x, responsibilities, width))
    shift = counts.unsqueeze(-1) * features(offset)
    scatter = total - shift
    for k in _far(shift[:, : x.shape[1]], scatter[:, : x.shape[1]]).nonzero().flatten().tolist():
        parts, mean = _chunks(x, responsibilities[:, k : k + 1], width), centre + offset[k]
        scatter[k] = sum((r.mT @ features(rows - mean)).squeeze(0) for rows, r in parts)
    return scatter


def shared_scatter(x: Tensor, responsibilities: Tensor) -> Tensor:
    """Return the outer products about the components' means, summed over the components.

    ::

        S = sum_nk r_nk (x_n - m_k) (x_n - m_k)'

    Args:
        x: data ``(N, D)``.
        responsibilities: ``(N, C)``.

    Returns:
        ``(D, D)``, symmetric.

    Example:
        >>> x, r = torch.tensor([[0.0], [4.0], [9.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> shared_scatter(x, r)
        tensor([[8.]])
    """
    _, counts, offset = _offsets(x, responsibilities)
    apart = offset - counts @ offset / counts.sum()
    between = (counts.unsqueeze(-1) * apart).mT @ apart
    within = scatter_matrices(x, responsibilities.sum(1, keepdim=True)).squeeze(0) - (between + between.mT) / 2
    lost = _far(between.diagonal(), within.diagonal())
    return scatter_matrices(x, responsibilities).sum(0) if lost else within


def negligible(variance: Tensor, mean: Tensor) -> Tensor:
    """Tell which variances are zero but for the rounding of data with these means.

    Example:
        >>> negligible(torch.tensor([1.0, 1e-14]), torch.tensor([1000.0, 1.0]))
        tensor([False,  True])
    """
    rounding = 4 * torch.finfo(mean.dtype).eps * mean.abs()
    return ~(variance > rounding.square()) | (variance <= 0)


def _far(shift: Tensor, scatter: Tensor) -> Tensor:
    """Tell which components are so narrow for their place that a difference of sums loses a quarter of its digits."""
    return (shift > scatter * torch.finfo(shift.dtype).eps ** -0.25).any(-1)


def _about(x: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
    """Return the outer products about one mean, ``(D, D)``, by a matrix product for each chunk."""
    parts = _chunks(x, weight, x.shape[1])
    total = sum((w * (rows - mean)).mT @ (rows - mean) for rows, w in parts)
    return (total + total.mT) / 2


def _chunks(x: Tensor, responsibilities: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(CHUNK // width, 16)
    return zip(x.split(rows), responsibilities.split(rows), strict=True)
