"""What programs with components share: a datum's own component, moments of the data weighted by responsibilities."""

from collections.abc import Callable, Iterator

import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Size, Tensor

__all__ = [
    "Wishart",
    "check_counts",
    "dirichlet_mode",
    "far",
    "hyper_parameter",
    "moments",
    "negligible",
    "positive",
    "scatter_matrices",
    "scatter_squares",
    "select",
    "with_prior_mean",
]

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


def hyper_parameter(value: float | Tensor, *shape: int) -> Tensor:
    """Return a prior's parameter in full: a number or a tensor that broadcasts to the shape.

    Example:
        >>> hyper_parameter(2.0, 3)
        tensor([2., 2., 2.])
    """
    return (1.0 * torch.as_tensor(value)).expand(shape).clone()


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
    centre = x.mean(0)
    if not centre.isfinite().all():
        raise ValueError("x: it has values that are infinite or nan; take them out, or impute them")
    counts = responsibilities.sum(0)
    total = sum(r.mT @ (rows - centre) for rows, r in _chunks(x, responsibilities, x.shape[1]))
    return counts, centre + total / counts.clamp_min(torch.finfo(x.dtype).tiny).unsqueeze(-1)


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


def scatter_squares(x: Tensor, responsibilities: Tensor, counts: Tensor, mean: Tensor) -> Tensor:
    """Return the weighted squares about each component's mean.

    ::

        s_kd = sum_n r_nk (x_nd - m_kd)^2

    Args:
        x: data ``(N, D)``.
        responsibilities: ``(N, C)``.
        counts: ``(C,)``, from `moments`.
        mean: ``(C, D)``, likewise.

    Returns:
        ``(C, D)``.

    Example:
        >>> x, r = torch.tensor([[0.0], [4.0]]), torch.ones(2, 1)
        >>> scatter_squares(x, r, *moments(x, r))
        tensor([[8.]])
    """
    return _scatter(torch.square, x.shape[1], x, responsibilities, counts, mean)


def scatter_matrices(x: Tensor, responsibilities: Tensor, counts: Tensor, mean: Tensor) -> Tensor:
    """Return the weighted outer products about each component's mean.

    ::

        S_k = sum_n r_nk (x_n - m_k) (x_n - m_k)'

    For few dimensions they are one matrix product for all components: the products of two
    coordinates, about the mean of all data, are features of a datum.

    Args:
        x: data ``(N, D)``.
        responsibilities: ``(N, C)``.
        counts: ``(C,)``, from `moments`.
        mean: ``(C, D)``, likewise.

    Returns:
        ``(C, D, D)``, symmetric.

    Example:
        >>> x, r = torch.tensor([[0.0, 1.0], [4.0, 3.0]]), torch.ones(2, 1)
        >>> scatter_matrices(x, r, *moments(x, r))
        tensor([[[8., 4.],
                 [4., 2.]]])
    """
    d = x.shape[1]
    if d > WIDE:
        return torch.stack([_about(x, responsibilities[:, k : k + 1], mean[k]) for k in range(len(mean))])
    packed = _scatter(_products, d * (d + 1) // 2, x, responsibilities, counts, mean)
    i = torch.cat([torch.arange(d - offset, device=x.device) for offset in range(d)])
    j = torch.cat([torch.arange(offset, d, device=x.device) for offset in range(d)])
    matrices = packed.new_empty(len(mean), d, d)
    matrices[:, i, j] = packed
    matrices[:, j, i] = packed
    return matrices


def _products(x: Tensor) -> Tensor:
    """Return the products of two coordinates, each pair once, squares first: ``(N, D (D + 1) / 2)``."""
    d = x.shape[1]
    return torch.cat([x[:, : d - offset] * x[:, offset:] for offset in range(d)], dim=1)


def _scatter(
    features: Callable[[Tensor], Tensor], width: int, x: Tensor, responsibilities: Tensor, counts: Tensor, mean: Tensor
) -> Tensor:
    """Sum features that are quadratic in x, squares first, about each component's mean, ``(C, width)``."""
    centre = x.mean(0)
    total = sum(r.mT @ features(rows - centre) for rows, r in _chunks(x, responsibilities, width))
    shift = counts.unsqueeze(-1) * features(mean - centre)
    scatter = total - shift
    for k in far(shift[:, : x.shape[1]], scatter[:, : x.shape[1]]).nonzero().flatten().tolist():
        parts = _chunks(x, responsibilities[:, k : k + 1], width)
        scatter[k] = sum((r.mT @ features(rows - mean[k])).squeeze(0) for rows, r in parts)
    return scatter


def with_prior_mean(x: Tensor, responsibilities: Tensor, mean: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the data with a prior's mean as one more datum, which every component holds with the prior's weight.

    A normal prior whose precision is that of the data, times a weight, acts as so many data at its mean.

    Args:
        x: data ``(N, D)``.
        responsibilities: ``(N, C)``.
        mean: ``(D,)``.
        weight: a number of data.

    Returns:
        Data ``(N + 1, D)`` and weights ``(N + 1, C)``.

    Example:
        >>> moments(*with_prior_mean(torch.ones(3, 1), torch.ones(3, 1), torch.zeros(1), torch.tensor(1.0)))
        (tensor([4.]), tensor([[0.7500]]))
    """
    row = weight.expand(1, responsibilities.shape[1])
    return torch.cat([x, mean.unsqueeze(0)]), torch.cat([responsibilities, row])


def dirichlet_mode(concentration: Tensor, counts: Tensor, name: str = "concentration") -> Tensor:
    """Return the mode of a Dirichlet distribution after counts.

    ::

        pi_k = (alpha_k + N_k - 1) / sum_j (alpha_j + N_j - 1)

    Args:
        concentration: alpha, ``(..., C)``.
        counts: N, ``(..., C)``.
        name: what a message calls alpha.

    Returns:
        Probabilities ``(..., C)``.

    Raises:
        ValueError: alpha is below one, where the density is infinite at the simplex's edge; or it is
            one, and there are no counts, so that every point is a mode.

    Example:
        >>> dirichlet_mode(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))
        tensor([0.7500, 0.2500])
    """
    if not (concentration >= 1).all():
        raise ValueError(
            f"{name}: the posterior has a mode if it is at least 1 everywhere, found {concentration.min():.3g}; give a "
            "larger one, or average over the posterior (cavi) instead of maximising"
        )
    excess = concentration - 1 + counts
    total = excess.sum(-1, keepdim=True)
    if not (total > 0).all():
        raise ValueError(f"{name}: at 1 it leaves a component without data undecided; give a larger one")
    return excess / total


def positive(value: Tensor, name: str) -> Tensor:
    """Return a value that must be above zero for a precision to have a mode.

    Raises:
        ValueError: it is not; the name is the prior's parameter that would make it so.

    Example:
        >>> positive(torch.tensor([0.5]), "shape")
        tensor([0.5000])
    """
    if not (value > 0).all():
        raise ValueError(
            f"{name}: too small for a component that holds hardly any data, whose precision has its mode at zero; give "
            "a larger one"
        )
    return value


def negligible(variance: Tensor, mean: Tensor) -> Tensor:
    """Tell which variances are zero but for the rounding of data with these means.

    Example:
        >>> negligible(torch.tensor([1.0, 1e-14]), torch.tensor([1000.0, 1.0]))
        tensor([False,  True])
    """
    rounding = 4 * torch.finfo(mean.dtype).eps * mean.abs()
    return ~(variance > rounding.square()) | (variance <= 0)


def far(shift: Tensor, scatter: Tensor) -> Tensor:
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


class Wishart(dist.Wishart):
    """Wishart distribution whose draws are taken as they come.

    torch's own takes regular draws for singular ones, warns of them, and draws them again.

    Reference: W. B. Smith, R. R. Hocking, "Algorithm AS 53: Wishart Variate Generator", Applied Statistics 1972,
    https://doi.org/10.2307/2346290.

    Example:
        >>> Wishart(torch.tensor(5.0), precision_matrix=torch.eye(2)).sample((3,)).shape
        torch.Size([3, 2, 2])
    """

    def rsample(self, sample_shape: Size = Size(), max_try_correction: int | None = None) -> Tensor:  # noqa: B008
        """Draw by Bartlett's decomposition, once."""
        return self._bartlett_sampling(sample_shape)
