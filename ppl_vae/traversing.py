"""Images found on walks through a latent space, and data as places in it; `ppl_vae.latent_plots` draws them."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.arguments import whole
from ppl_vae.batches import as_batch
from ppl_vae.indexing import alike
from ppl_vae.places import (
    Ruler,
    Way,
    deviations,
    linear,
    most_active,
    one_site,
    posterior_means,
    prior_means,
    prior_of,
    quantiles,
    spherical,
)
from ppl_vae.programs import Program
from ppl_vae.sampling import decode

__all__ = [
    "Embedding",
    "Manifold",
    "Traversal",
    "deviations",
    "embedding",
    "interpolations",
    "linear",
    "manifold",
    "most_active",
    "posterior_means",
    "prior_means",
    "quantiles",
    "spherical",
    "traversals",
]

Latents = Mapping[str, Tensor]
SCORES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


class Traversal(NamedTuple):
    """Images along single dimensions of a latent.

    Attributes:
        images: means of the data, ``(D, V, ...)``.
        dims: the D dimensions.
        scores: the V places under the prior, as standard normal scores.
        values: the latent's values there, ``(D, V)``.
    """

    images: Tensor
    dims: tuple[int, ...]
    scores: tuple[float, ...]
    values: Tensor


class Manifold(NamedTuple):
    """Images over a plane of latents, as a map: the first dimension to the right, the second upward.

    Attributes:
        images: means of the data, ``(n, n, ...)``; the first row has the largest value of the second dimension.
        across: values of the first dimension, ``(n,)``, rising.
        up: values of the second dimension, ``(n,)``, in the order of the rows: falling.
    """

    images: Tensor
    across: Tensor
    up: Tensor


class Embedding(NamedTuple):
    """Data as points of a plane.

    Attributes:
        positions: ``(N, 2)``.
        axes: what the two axes are.
    """

    positions: Tensor
    axes: tuple[str, str]


def traversals(
    model: Program,
    guide: Program,
    x: Any,
    *,
    start: Latents | None = None,
    dims: Sequence[int] | None = None,
    scores: Sequence[float] = SCORES,
    ruler: Ruler = quantiles,
    site: str | None = None,
) -> Traversal:
    """Move one dimension of a latent at a time, all others held, and decode.

    Args:
        model: Pyro program.
        guide: Pyro program; it tells which dimensions are active.
        x: data over which activity is measured. Further tensors of a batch (labels) are those of its
            first datum.
        start: from where to go: site name to values ``(1, *event)``, such as
            ``posterior_means(guide, x[:1])``. The prior's centre when left out.
        dims: dimensions; the ten most active when left out.
        scores: places under the prior, as standard normal scores.
        ruler: from the site's name, its prior and scores to values: `quantiles` or `deviations`.
        site: the latent to move; needed where there are several.

    Returns:
        `Traversal`.

    Raises:
        ValueError: an argument cannot be used; the message says which and why.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> found = traversals(VAE(x_dim=6, z_dim=3), Normal(x_dim=6, z_dim=3), torch.rand(10, 6), dims=[2, 0])
        >>> found.images.shape, found.values[0].tolist()
        (torch.Size([2, 7, 6]), [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    """
    model, guide = alike(model, guide)
    like = tuple(part[:1] for part in as_batch(x))
    start = prior_means(model, like) if start is None else start
    site = one_site(start, site)
    dims = most_active(guide, x, site=site) if dims is None else list(dims)
    known = prod(start[site].shape[1:])
    if not dims or not all(0 <= j < known for j in dims):
        raise ValueError(f"dims: expected numbers from 0 to {known - 1}, the dimensions of '{site}', found {dims}")
    along = ruler(site, prior_of(model, start, site, like), torch.as_tensor(scores)).flatten(1).T[dims]  # (D, V)
    moved = start[site].flatten(1).expand(*along.shape, -1).clone()
    for row, j in enumerate(dims):
        moved[row, :, j] = along[row]
    images = _images(model, _all_at(start, site, moved.flatten(0, 1)), like)
    return Traversal(images.unflatten(0, along.shape), tuple(dims), tuple(map(float, scores)), along)


def interpolations(
    model: Program, guide: Program, first: Any, last: Any, *, path: Way = linear, steps: int = 9
) -> Tensor:
    """Decode on the way between pairs of data, from posterior mean to posterior mean.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        first: data ``(P, ...)`` from where to go.
        last: data ``(P, ...)`` to where.
        path: from both ends and a share of the way to latents: `linear` or `spherical`. Every latent
            follows it.
        steps: images of a pair, ends included.

    Returns:
        Means of the data, ``(P, steps, ...)``; the ends are reconstructions.

    Raises:
        ValueError: the two batches differ in size, or there are fewer than two steps.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> x = torch.rand(4, 6)
        >>> interpolations(VAE(x_dim=6, z_dim=3), Normal(x_dim=6, z_dim=3), x[:2], x[2:], path=spherical).shape
        torch.Size([2, 9, 6])
    """
    model, guide = alike(model, guide)
    pairs = [len(as_batch(x)[0]) for x in (first, last)]
    if pairs[0] != pairs[1]:
        raise ValueError(f"first, last: expected as many of one as of the other, found {pairs[0]} and {pairs[1]}")
    whole("steps", steps, least=2)
    ends = [posterior_means(guide, x) for x in (first, last)]
    # All pairs of a step together, since further tensors of the batch repeat from its first row on.
    way = {
        name: torch.cat([path(value, ends[1][name], t) for t in torch.linspace(0, 1, steps).to(value)])
        for name, value in ends[0].items()
    }
    return _images(model, way, first).unflatten(0, (steps, pairs[0])).transpose(0, 1)


def manifold(model: Program, like: Any, n: int = 20, *, ruler: Ruler = quantiles, site: str | None = None) -> Manifold:
    """Decode a grid over a two-dimensional latent, evenly spaced in its prior's probability.

    At ``F_1^-1((i + 1/2) / n)`` and ``F_2^-1((j + 1/2) / n)``, with F the prior's distribution functions.

    Args:
        model: Pyro program.
        like: a batch, for the form of x.
        n: images along a side.
        ruler: from the site's name, its prior and scores to values: `quantiles` or `deviations`.
        site: the latent; needed where there are several, of which the others are at their prior's centre.

    Returns:
        `Manifold`.

    Raises:
        ValueError: the latent has not two dimensions.

    Reference: D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014, figure 4,
    https://arxiv.org/abs/1312.6114.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> manifold(VAE(x_dim=6, z_dim=2), torch.rand(1, 6), n=5).images.shape
        torch.Size([5, 5, 6])
    """
    like = tuple(part[:1] for part in as_batch(like))
    whole("n", n)
    start = prior_means(model, like)
    site = one_site(start, site)
    if start[site].shape[1:].numel() != 2:
        raise ValueError(
            f"site '{site}': a manifold has two dimensions, and its event shape is {tuple(start[site].shape[1:])}; "
            "train with z_dim=2, or draw traversals"
        )
    shares = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    scores = torch.distributions.Normal(0.0, 1.0).icdf(shares)
    across, up = ruler(site, prior_of(model, start, site, like), scores).flatten(1).unbind(1)
    up = up.flip(0)
    grid = torch.stack([across.expand(n, n), up.unsqueeze(1).expand(n, n)], dim=-1)
    images = _images(model, _all_at(start, site, grid.flatten(0, 1)), like)
    return Manifold(images.unflatten(0, (n, n)), across, up)


def embedding(guide: Program, x: Any, site: str | None = None) -> Embedding:
    """Return where a guide sees data: its posterior means, or their first two principal components.

    Args:
        guide: Pyro program.
        x: data ``(N, ...)``.
        site: the latent; needed where there are several.

    Returns:
        `Embedding`: posterior means themselves where the latent has two dimensions.

    Raises:
        ValueError: the latent has one dimension.

    Reference: H. Hotelling, "Analysis of a Complex of Statistical Variables into Principal Components",
    Journal of Educational Psychology 1933, https://doi.org/10.1037/h0071325.

    Example:
        >>> from ppl_vae.guides.normal import Normal
        >>> embedding(Normal(x_dim=6, z_dim=2), torch.rand(10, 6)).axes
        ('posterior mean of z, dimension 1', 'posterior mean of z, dimension 2')
    """
    means = posterior_means(guide, x)
    site = one_site(means, site)
    points = means[site].flatten(1).cpu()
    if points.shape[1] < 2:
        raise ValueError(f"site '{site}': a plane needs two dimensions, found one; draw its histogram instead")
    if points.shape[1] == 2:
        return Embedding(points, tuple(f"posterior mean of {site}, dimension {j}" for j in (1, 2)))
    from sklearn.decomposition import PCA

    fitted = PCA(2, svd_solver="full").fit(points.numpy())
    shares = [f"{share:.0%} of the variance" for share in fitted.explained_variance_ratio_]
    axes = tuple(
        f"posterior mean of {site}, principal component {j} ({share})" for j, share in enumerate(shares, start=1)
    )
    return Embedding(torch.as_tensor(fitted.transform(points.numpy())), axes)


def _all_at(start: Latents, site: str, values: Tensor) -> dict[str, Tensor]:
    """Return latents of which one has these values ``(n, dimensions)``, and the others stay."""
    n, event = len(values), start[site].shape[1:]
    return {name: value.expand(n, *value.shape[1:]) for name, value in start.items()} | {
        site: values.reshape(n, *event)
    }


def _images(model: Program, latents: Latents, like: Any) -> Tensor:
    """Decode latents to means of the data, in the form of x."""
    x = as_batch(like)[0]
    means = decode(model, latents, like=like)
    found = [mean for mean in means.values() if mean.shape[1:].numel() == x.shape[1:].numel()]
    if len(found) != 1:
        raise ValueError(
            f"model: expected one observed site with a mean in the form of x, {tuple(x.shape[1:])}, found {len(found)} "
            f"(means: {', '.join(means) or 'none'})"
        )
    return found[0].reshape(-1, *x.shape[1:])
