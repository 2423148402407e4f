"""Pictures of a trained pair on a data set of images: what is computed for each, and drawn."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ppl_vae import latent_plots, plots, traversing
from ppl_vae.data.splits import Splits
from ppl_vae.imputing import impute
from ppl_vae.programs import Program
from ppl_vae.sampling import decode, reconstruct, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "Subject", "image_means"]

# Of the pixels, replaced by coin flips to be denoised.
NOISE = 0.2
SHOWN, DRAWS, PAIRS = 10, 3, 6
MOST_POINTS = 5000


class Subject(NamedTuple):
    """What is drawn.

    Attributes:
        model: Pyro program.
        guide: its guide.
        data: images; the test images are shown.
        seed: seeds what is drawn at random.
    """

    model: Program
    guide: Program
    data: Splits
    seed: int = 0

    def shown(self, n: int = SHOWN) -> Tensor:
        """Return test images from all over the set."""
        return self.data.test[:: max(len(self.data.test) // n, 1)][:n]


def reconstructions(subject: Subject) -> "Figure":
    """Draw test images above their reconstructions."""
    x = subject.shown()
    means = image_means(reconstruct(subject.model, subject.guide, x, seed=subject.seed), x)
    return _drawn(subject, plots.reconstructions, x, means, title="Test data and E[x | z], z from the guide")


def samples(subject: Subject, n: int = 64) -> "Figure":
    """Draw means of images given latents from the prior."""
    test = subject.data.test
    draws = sample(subject.model, like=test, n=n, seed=subject.seed)
    means = image_means(decode(subject.model, draws, like=test), test)
    return _drawn(subject, plots.image_grid, means, title="E[x | z], z from the prior")


def traversals(subject: Subject) -> "Figure":
    """Draw images along the most active latent dimensions."""
    found = traversing.traversals(subject.model, subject.guide, subject.data.test)
    return _drawn(subject, latent_plots.traversal, found.images, found.dims, found.scores)


def interpolations(subject: Subject) -> "Figure":
    """Draw what lies between pairs of test images."""
    x = subject.shown(2 * PAIRS)
    first, last = x[: len(x) // 2], x[len(x) // 2 : len(x) // 2 * 2]
    images = traversing.interpolations(subject.model, subject.guide, first, last)
    return _drawn(subject, latent_plots.interpolation, first, images, last)


def manifold(subject: Subject) -> "Figure":
    """Draw images over the plane of a two-dimensional latent."""
    found = traversing.manifold(subject.model, subject.data.test)
    return _drawn(subject, latent_plots.manifold, *found)


def embedding(subject: Subject) -> "Figure":
    """Draw test images as points where the guide sees them, in the colours of their labels."""
    labels = subject.data.info.labels
    if "test" not in labels:
        raise ValueError(f"embedding: '{subject.data.info.name}' has no labels to colour its images by")
    found = traversing.embedding(subject.guide, subject.data.test[:MOST_POINTS])
    return latent_plots.embedding(found.positions, labels["test"][:MOST_POINTS], found.axes)


def inpainting(subject: Subject) -> "Figure":
    """Draw test images whose lower half is missing, filled in."""
    x = subject.shown()
    observed = (torch.arange(x.shape[1]) < x.shape[1] // 2).expand(x.shape)
    return _filled(subject, x, x, observed, "The lower half imputed by importance resampling")


def denoising(subject: Subject) -> "Figure":
    """Draw test images of which some pixels, it is known which, are noise, filled in."""
    x, generator = subject.shown(), torch.Generator().manual_seed(subject.seed)
    observed = torch.rand(x.shape, generator=generator) >= NOISE
    noisy = torch.where(observed, x, torch.randint(0, 2, x.shape, generator=generator).to(x))
    return _filled(
        subject, x, noisy, observed, f"{NOISE:.0%} of the pixels are noise, imputed by importance resampling"
    )


def _filled(subject: Subject, x: Tensor, seen: Tensor, observed: Tensor, title: str) -> "Figure":
    found = impute(subject.model, subject.guide, seen, observed, draws=DRAWS, seed=subject.seed, progress=False)
    draw = partial(plots.inpainting, noisy=None if seen is x else seen)
    return _drawn(subject, draw, x, observed, found.mean, found.draws, title=title)


def _drawn(subject: Subject, draw: Callable[..., "Figure"], *computed: object, **words: str) -> "Figure":
    """Draw what was computed, in the form of the data set's images."""
    on_cpu = (part.cpu() if isinstance(part, Tensor) else part for part in computed)
    return draw(*on_cpu, shape=subject.data.info.shape, ink=subject.data.info.ink, **words)


def image_means(means: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the means of the site that holds the images, whatever its name.

    Raises:
        ValueError: no site has a mean of their form.

    Example:
        >>> image_means({"y": torch.ones(3, 10), "x": torch.zeros(3, 64)}, torch.rand(5, 64)).shape
        torch.Size([3, 64])
    """
    for mean in means.values():
        if mean.shape[1:] == x.shape[1:]:
            return mean
    raise ValueError(f"model: no observed site has a mean in the form of the images, {tuple(x.shape[1:])}")


PICTURES: dict[str, Callable[[Subject], "Figure"]] = {
    picture.__name__: picture
    for picture in (
        *(reconstructions, samples, traversals, interpolations),
        *(manifold, embedding, inpainting, denoising),
    )
}
