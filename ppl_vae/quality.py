"""The quality of samples, beside their likelihood: two-sample tests, precision and recall, Fréchet distance.

Likelihood and the look of samples say different things (L. Theis, A. van den Oord, M. Bethge, "A Note on
the Evaluation of Generative Models", ICLR 2016, https://arxiv.org/abs/1511.01844), so that a report needs
both. Everything here takes plain tensors, and any generator's samples fit.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.arguments import whole
from ppl_vae.features import Features, train_features
from ppl_vae.programs import Programs, undisturbed
from ppl_vae.progress import progress_bar
from ppl_vae.two_samples import (
    ROWS,
    TwoSampleTest,
    classifier_two_sample_test,
    mmd,
    same_size,
    squared_distances,
    two_sets,
)

__all__ = [
    "Estimate",
    "Features",
    "PrecisionRecall",
    "Quality",
    "TwoSampleTest",
    "classifier_two_sample_test",
    "compare",
    "frechet_distance",
    "mmd",
    "precision_recall",
    "train_features",
]

GROUPS = 20  # of rows that a jackknife leaves out in turn


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.2g}"


class PrecisionRecall(NamedTuple):
    """Share of samples that lie among the data, and share of data that lie among the samples."""

    precision: Estimate
    recall: Estimate


def precision_recall(samples: Tensor, data: Tensor, k: int = 3) -> PrecisionRecall:
    """Measure which share of each set lies in the region that the other one covers.

    With r_k(y) the distance of y to its k-th neighbour in its own set::

        precision = 1/n sum_x 1[|x - y| <= r_k(y) for some y]
        recall    = 1/N sum_y 1[|y - x| <= r_k(x) for some x]

    Precision falls with samples that look like no datum, recall with data that no sample looks like.
    Larger sets and smaller k make finer regions, and even two sets of one distribution score below 1 in
    many dimensions: compare figures of one n, N and k, and with those of real data in place of samples. Read
    recall beside precision: samples scattered all round the data have large balls, which cover them.

    Args:
        samples: rows ``(n, ...)``, flattened to vectors; pixels, or better, features.
        data: rows ``(N, ...)`` of the same size.
        k: which neighbour's distance is a radius.

    Returns:
        `PrecisionRecall`: two shares with binomial standard errors, which take the regions as given.

    Raises:
        TypeError, ValueError: the sets cannot be compared, or have no k-th neighbours.

    Reference: T. Kynkäänniemi, T. Karras, S. Laine, J. Lehtinen, T. Aila, "Improved Precision and Recall
    Metric for Assessing Generative Models", NeurIPS 2019, https://arxiv.org/abs/1904.06991.

    Example:
        >>> data = torch.randn(500, 2)
        >>> found = pv.quality.precision_recall(data[data[:, 0] > 0] + 0.01, data)
        >>> found.precision.value > 0.95, found.recall.value < 0.7
        (True, True)
    """
    whole("k", k)
    x, y = two_sets(samples, data, at_least=k + 1)
    return PrecisionRecall(_share(_covered(x, y, k)), _share(_covered(y, x, k)))


def _covered(points: Tensor, centres: Tensor, k: int) -> Tensor:
    """Tell which points lie in a ball around a centre that reaches to its k-th neighbour."""
    # The nearest of all is the centre itself.
    radii = [squared_distances(block, centres).kthvalue(k + 1).values for block in centres.split(ROWS)]
    # Ties are common among binary images, and must not hang on rounding.
    reach = torch.cat(radii) + 1e-12 * centres.square().sum(1).max()
    return torch.cat([(squared_distances(block, centres) <= reach).any(1) for block in points.split(ROWS)])


def _share(covered: Tensor) -> Estimate:
    share = float(covered.double().mean())
    return Estimate(share, math.sqrt(share * (1 - share) / len(covered)))


def frechet_distance(samples: Tensor, data: Tensor) -> Estimate:
    """Measure the squared Fréchet distance between normal distributions with the two sets' moments.

    With means m and covariances S (divisors n - 1 and N - 1)::

        d^2 = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

    On Inception's features this is the "FID". With ``S_i = R_i' R_i`` the root's trace is the sum of
    the singular values of ``R_1 R_2'``, so that no rounding error meets a square root, and singular
    covariances (a pixel that is always white) are no trouble.

    The distance of finite sets is too large: two sets of one normal distribution in D dimensions with
    equal variances v give about ``v (1/n + 1/N) (D + D (D + 1) / 4)`` instead of zero. Compare distances of
    one n and N only, and with that of real data in place of samples.

    Args:
        samples: rows ``(n, ...)``, flattened to vectors; pixels, or better, features.
        data: rows ``(N, ...)`` of the same size.

    Returns:
        `Estimate`: d^2, in squared units of the rows, and its standard error by a jackknife over 20 groups of
        rows (too large where the distributions agree), in which the bias has no part.

    Raises:
        TypeError: a set is no tensor.
        ValueError: a set has no more rows than dimensions, so that its covariance is singular whatever the
            distribution; or it cannot be used otherwise.

    Reference: D. Dowson, B. Landau, "The Fréchet Distance between Multivariate Normal Distributions", Journal of
    Multivariate Analysis 1982, https://doi.org/10.1016/0047-259X(82)90077-X; M. Heusel et al., "GANs Trained
    by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017,
    https://arxiv.org/abs/1706.08500; bias: M. Bińkowski, D. Sutherland, M. Arbel, A. Gretton, "Demystifying
    MMD GANs", ICLR 2018, https://arxiv.org/abs/1801.01401.

    Example:
        >>> data = torch.randn(1000, 2)
        >>> round(pv.quality.frechet_distance(data + 1, data).value, 3)
        2.0
    """
    x, y = two_sets(samples, data, at_least=GROUPS + 2)
    for name, rows in (("samples", x), ("data", y)):
        if len(rows) <= rows.shape[1]:
            raise ValueError(
                f"{name}: {len(rows)} rows are too few for a covariance in {rows.shape[1]} dimensions; give more rows "
                "(with ten times the dimensions the bias is about a twentieth of the variance), or features of fewer "
                "dimensions (train_features)"
            )
    left_out = [torch.arange(max(len(x), len(y)), device=x.device) % GROUPS != group for group in range(GROUPS)]
    parts = torch.tensor([_frechet(x[kept[: len(x)]], y[kept[: len(y)]]) for kept in left_out])
    error = ((GROUPS - 1) / GROUPS * (parts - parts.mean()).square().sum()).sqrt()
    return Estimate(_frechet(x, y), float(error))


def _frechet(x: Tensor, y: Tensor) -> float:
    one, other = (_root_of_covariance(rows) for rows in (x, y))
    spread = one.square().sum() + other.square().sum() - 2 * torch.linalg.svdvals(one @ other.T).sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + spread)


def _root_of_covariance(rows: Tensor) -> Tensor:
    """Return R with ``R' R`` the covariance of the rows."""
    return torch.linalg.qr((rows - rows.mean(0)) / math.sqrt(len(rows) - 1), mode="r").R


@dataclass(frozen=True, repr=False)
class Quality:
    """Samples compared with data. Printing it gives a sentence.

    Attributes:
        classifier: accuracy of a classifier on held-out rows, with its test; one half is best.
        mmd: squared maximum mean discrepancy, with its test; zero or below is best.
        precision: share of the samples that lie among the data.
        recall: share of the data that lie among the samples.
        frechet: squared Fréchet distance; None where the rows are too few for it.
        n: rows of each set.
        dims: numbers in a row, after features were taken.
        space: what the numbers in a row are, in a word.
        k: which neighbour's distance is a radius in precision and recall.
        seed: what the draws were seeded with.
    """

    classifier: TwoSampleTest
    mmd: TwoSampleTest
    precision: Estimate
    recall: Estimate
    frechet: Estimate | None
    n: int
    dims: int
    space: str
    k: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for a report, as plain values; each estimate is a dict of its own.

        Example:
            >>> found = pv.quality.compare(torch.randn(100, 2), torch.randn(100, 2))
            >>> sorted(found.to_dict()["precision"]), sorted(found.to_dict()["mmd"])
            (['error', 'value'], ['error', 'p_value', 'value'])
        """
        estimates = {name: value._asdict() for name, value in vars(self).items() if isinstance(value, Estimate)}
        return asdict(self) | estimates

    def __str__(self) -> str:
        frechet = f"is {self.frechet}" if self.frechet else f"needs more than {self.dims} rows"
        return (
            f"{self.n:,} samples against {self.n:,} data, by {self.dims} {self.space}: a classifier tells them apart "
            f"with accuracy {self.classifier}; MMD² is {self.mmd}; precision {self.precision}, recall {self.recall} "
            f"(k = {self.k}); the squared Fréchet distance {frechet}."
        )

    __repr__ = __str__


def compare(
    samples: Tensor,
    data: Tensor,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    *,
    k: int = 3,
    progress: bool | None = None,
) -> Quality:
    """Compare samples with data in every way that this module has.

    The larger set is cut, at random, to the size of the smaller, and both are taken to features if
    there are any. What perfect samples would score depends on n and on the space, so that the figures of real
    data (training images in place of samples) belong beside those of a model.

    Args:
        samples: rows ``(n, ...)`` of a generator, such as ``pv.sample(...)["x"]``.
        data: rows ``(N, ...)`` that it was not trained on.
        features: from rows to their features ``(n, dims)``, such as `train_features` gives; none for the
            numbers as they are, flattened. Modules run in evaluation mode, a thousand rows at a time.
        seed: seeds cut, halves, classifier and permutations.
        k: see `precision_recall`.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `Quality`.

    Raises:
        TypeError, ValueError: the sets cannot be compared; the message says why.

    Reference: see `classifier_two_sample_test`, `mmd`, `precision_recall`, `frechet_distance`.

    Example:
        >>> digits = pv.data.load("digits")
        >>> print(pv.quality.compare(digits.valid, digits.test))
        180 samples against 180 data, by 64 numbers: a classifier tells them apart with accuracy ...
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = same_size(*two_sets(samples, data, at_least=GROUPS + 2), generator)
    if features is not None:
        # Cut as vectors, given as they came: a convolution may want images.
        x, y = (_taken(features, rows.view(-1, *like.shape[1:]).to(like)) for rows, like in ((x, samples), (y, data)))
        x, y = two_sets(x, y, at_least=GROUPS + 2)
    figures = {
        "classifier": lambda: classifier_two_sample_test(x, y, seed),
        "mmd": lambda: mmd(x, y, seed=seed),
        "shares": lambda: precision_recall(x, y, k),
        "frechet": lambda: frechet_distance(x, y) if len(x) > x.shape[1] else None,
    }
    with progress_bar("Comparing", len(figures), progress) as bar:
        found = {}
        for name, measure in figures.items():
            found[name] = measure()
            bar.advance()
    shares = found.pop("shares")
    space = "numbers" if features is None else "features"
    return Quality(**found, **shares._asdict(), n=len(x), dims=x.shape[1], space=space, k=k, seed=seed)


def _taken(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the features of rows, without touching the caller's random state, modes or buffers."""
    programs = Programs(features, features)
    with undisturbed(programs, 0, training=False), torch.no_grad():
        blocks = [(len(block), features(*programs.on_device((block,)))) for block in x.split(1000)]
    for rows, taken in blocks:
        if not isinstance(taken, Tensor) or taken.shape[:1] != (rows,):
            found = tuple(taken.shape) if isinstance(taken, Tensor) else type(taken).__name__
            raise TypeError(f"features: expected a function from {rows} rows to a tensor ({rows}, dims), found {found}")
    return torch.cat([taken for _, taken in blocks])
