"""Where iterations start: responsibilities of components for the data.

A start is a function ``(x, components, seed)`` that returns responsibilities ``(N, C)``, whose rows sum to one, or None
where the parameters are the start as they are.
"""

import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_they_are", "check", "check_for_step", "kmeans", "or_default", "random", "responsibilities"]

Start = Callable[[Tensor, int, int], Tensor | None]


def kmeans(x: Tensor, components: int, seed: int = 0) -> Tensor:
    """Give each datum to its cluster by k-means, as scikit-learn's mixtures do by default.

    Args:
        x: data ``(N, ...)``; what is right of the first axis is one vector.
        components: C.
        seed: of the first centres.

    Returns:
        Zeros and ones, ``(N, C)``.

    Raises:
        ValueError: x has fewer than C rows, or fewer than C that differ.

    Reference: D. Arthur, S. Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007,
    https://dl.acm.org/doi/10.5555/1283383.1283494.

    Example:
        >>> pv.starts.kmeans(torch.tensor([[0.0], [0.1], [5.0]]), components=2).sum(0).sort().values
        tensor([1., 2.])
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    rows = x.detach().reshape(len(x), -1).cpu().double()
    _check_distinct(len(rows), components)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of empty clusters, which are refused below
        labels = KMeans(components, n_init=1, random_state=seed).fit(rows.numpy()).labels_
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(labels).long(), components)
    if not one_hot.any(0).all():
        _check_distinct(len(rows.unique(dim=0)), components)
    return one_hot.to(x.device, _floating(x))


def random(x: Tensor, components: int, seed: int = 0) -> Tensor:
    """Draw responsibilities at random, uniform ones divided by their sum, as scikit-learn's "random" does.

    Args:
        x: data ``(N, ...)``, of which only the number counts.
        components: C.
        seed: of the draws.

    Returns:
        Responsibilities ``(N, C)``.

    Example:
        >>> pv.starts.random(torch.zeros(4, 2), components=3).sum(1)
        tensor([1., 1., 1., 1.])
    """
    from sklearn.utils import check_random_state

    drawn = torch.as_tensor(check_random_state(seed).uniform(size=(len(x), components)))
    return (drawn / drawn.sum(1, keepdim=True)).to(x.device, _floating(x))


def as_they_are(x: Tensor, components: int, seed: int = 0) -> None:
    """Start from the parameters as they are.

    Args:
        x: data.
        components: C.
        seed: as of any start.

    Example:
        >>> pv.starts.as_they_are(torch.zeros(4, 2), components=3) is None
        True
    """


def or_default(start: Any, discrete: Collection[str]) -> Any:
    """Return a start; where it is None, k-means for a model of exactly one discrete latent for each datum."""
    return (kmeans if len(discrete) == 1 else as_they_are) if start is None else start


def check(start: Any, discrete: Collection[str], restarts: int, drawn: bool = True) -> None:
    """Raise if a start does not fit a model with these discrete latents, or restarts would all be the same.

    Args:
        start: responsibilities, or a function.
        discrete: names.
        restarts: how many times to begin.
        drawn: whether other latents begin at a draw.
    """
    if start is not as_they_are and len(discrete) != 1:
        raise ValueError(
            "start: responsibilities are of one discrete latent for each datum; the model has "
            f"{', '.join(discrete) or 'none'}; leave start out"
        )
    same = isinstance(start, Tensor) or (start is as_they_are and not drawn)
    if same and restarts > 1:
        raise ValueError(
            "restarts: each would begin at the same place; pass a start that follows its seed, such as "
            "pv.starts.random, or leave restarts out"
        )


def check_for_step(start: Any, verb: str) -> None:
    """Raise if a start is responsibilities, whose rows need not be those of a shuffled batch.

    Args:
        start: of a step.
        verb: the function that takes them.
    """
    if isinstance(start, Tensor):
        raise TypeError(
            "start: expected a function such as pv.starts.kmeans, found responsibilities, whose rows need not be "
            f"those of a shuffled batch; give them to {verb}"
        )


def responsibilities(start: Any, x: Tensor, components: int, seed: int) -> Tensor:
    """Return the responsibilities that a start gives.

    Args:
        start: responsibilities ``(N, C)``, or a function of this module, or one like them.
        x: data ``(N, ...)``.
        components: C.
        seed: for the function.

    Raises:
        TypeError: it is neither.
        ValueError: the responsibilities have another shape, or a row of them is no distribution.

    Example:
        >>> responsibilities(torch.ones(4, 3) / 3, torch.zeros(4, 2), components=3, seed=0).shape
        torch.Size([4, 3])
    """
    found = start(x, components, seed) if callable(start) else start
    if not isinstance(found, Tensor):
        raise TypeError(
            f"start: expected responsibilities (N, C), or a function to them such as pv.starts.kmeans, found {found!r}"
        )
    if found.shape != (len(x), components):
        raise ValueError(
            f"start: expected responsibilities of shape {(len(x), components)} (data, components), found "
            f"{tuple(found.shape)}"
        )
    found = found.detach().to(x.device, _floating(x))
    # One rounding error for each component.
    sums = (found.sum(1) - 1).abs() <= 8 * components * torch.finfo(found.dtype).eps
    wrong = ~(sums & (found >= 0).all(1))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"start: row {row} is no distribution over components: {found[row].tolist()}; divide by its sum"
        )
    return found


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def _check_distinct(rows: int, components: int) -> None:
    if rows < components:
        raise ValueError(
            f"x: it has {rows} distinct row{'s' * (rows != 1)}, which cannot be cut into {components} components; take "
            "fewer components, or more data"
        )
