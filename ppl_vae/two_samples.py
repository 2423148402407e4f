"""Tests of whether two sets of vectors come from one distribution: by a classifier, and by kernel means."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.arguments import whole

__all__ = ["TwoSampleTest", "classifier_two_sample_test", "mmd", "squared_distances", "two_sets"]

ROWS = 256  # of a matrix of distances at a time
FOR_MEDIAN = 1000  # rows from which a bandwidth is taken


@dataclass(frozen=True)
class TwoSampleTest:
    """A statistic of two sets, and how surprising it would be if they had one distribution.

    Attributes:
        value: the statistic.
        error: its standard error over sets of these sizes.
        p_value: probability of a value at least as large if the distributions agree.
    """

    value: float
    error: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.2g} (p = {self.p_value:.2g})"


def classifier_two_sample_test(samples: Tensor, data: Tensor, seed: int = 0, classifier: Any = None) -> TwoSampleTest:
    """Measure how well a classifier that has seen one half of both sets tells the other halves apart.

    With m held-out rows of each set, l the set of a row and f its predicted set::

        accuracy = 1/(2m) sum_i 1[f(x_i) = l_i]

    One half means that nothing was found, one that every row is known by its look. If the
    distributions agree, the labels of held-out rows are a random arrangement, so that the number of
    hits among the a rows predicted as samples is hypergeometric with 2m rows, m of them samples, and
    a draws. Its tail is the p-value: exact, where the binomial distribution of the reference holds for
    large m.

    Args:
        samples: rows ``(n, ...)``, flattened to vectors.
        data: rows ``(N, ...)`` of the same size. The larger set is cut, at random, to the size of the
            smaller.
        seed: seeds the halves and the classifier.
        classifier: anything with scikit-learn's ``fit`` and ``predict``; a copy of it is trained, with
            a random state of its own. A random forest of 200 trees when left out.

    Returns:
        `TwoSampleTest`: the accuracy, its binomial standard error ``sqrt(accuracy (1 - accuracy) / 2m)``,
        and the p-value.

    Raises:
        TypeError, ValueError: the sets cannot be compared, or one has fewer than 10 rows.

    Reference: D. Lopez-Paz, M. Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017,
    https://arxiv.org/abs/1610.06545; L. Breiman, "Random Forests", Machine Learning 2001,
    https://doi.org/10.1023/A:1010933404324.

    Example:
        >>> test = pv.quality.classifier_two_sample_test(torch.randn(200, 2) + 1, torch.randn(200, 2))
        >>> test.value > 0.6, test.p_value < 0.01
        (True, True)
    """
    from sklearn.base import clone
    from sklearn.ensemble import RandomForestClassifier

    chosen = RandomForestClassifier(200, random_state=seed) if classifier is None else clone(classifier)
    generator = torch.Generator().manual_seed(seed)
    sets = same_size(*two_sets(samples, data, at_least=10), generator)
    half = len(sets[0]) // 2
    shown, hidden = (torch.cat([x[part] for x in sets]).cpu() for part in (slice(half), slice(half, None)))
    chosen.fit(shown.numpy(), [1] * half + [0] * half)
    predicted = torch.as_tensor(chosen.predict(hidden.numpy())).double()
    held_out, said = len(hidden) // 2, int(predicted.sum())
    hits = int(predicted[:held_out].sum())
    accuracy = (hits + held_out - (said - hits)) / len(hidden)
    error = math.sqrt(accuracy * (1 - accuracy) / len(hidden))
    return TwoSampleTest(accuracy, error, _hypergeometric_tail(hits, said, held_out))


def _hypergeometric_tail(hits: int, said: int, each: int) -> float:
    """Return the probability of at least so many hits in ``said`` draws from ``each`` rows of two kinds."""
    counts = torch.arange(hits, min(said, each) + 1, dtype=torch.float64)
    ways = _log_choose(each, counts) + _log_choose(each, said - counts)
    return min(1.0, float((ways - _log_choose(2 * each, torch.tensor(said).double())).logsumexp(0).exp()))


def _log_choose(n: int, k: Tensor) -> Tensor:
    n = torch.full_like(k, n)
    # One over the gamma function is zero at zero and below: no way to choose.
    return torch.where((k < 0) | (k > n), -math.inf, (n + 1).lgamma() - (k + 1).lgamma() - (n - k + 1).lgamma())


def mmd(
    samples: Tensor,
    data: Tensor,
    bandwidth: float | Sequence[float] | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> TwoSampleTest:
    """Estimate the squared maximum mean discrepancy of two sets, without bias, and test it by permutations.

    With ``k(x, y) = sum_s exp(-|x - y|^2 / (2 s^2))`` over the bandwidths s, n samples x and N data y::

        MMD^2 = sum_(i != j) k(x_i, x_j) / (n (n - 1)) + sum_(i != j) k(y_i, y_j) / (N (N - 1))
                - 2 sum_(i, j) k(x_i, y_j) / (n N)

    whose expectation is zero if the distributions agree and positive otherwise; a single value may be
    negative. The p-value is ``(1 + #{permuted >= observed}) / (1 + permutations)``, exact at any size.

    Args:
        samples: rows ``(n, ...)``, flattened to vectors.
        data: rows ``(N, ...)`` of the same size.
        bandwidth: one or several standard deviations s, in the units of the data; the median distance
            between rows of both sets together when left out (of 1,000 rows where there are more).
        permutations: random exchanges of rows between the sets. The kernel is computed once for all,
            some rows at a time; memory grows with ``(n + N) * permutations``.
        seed: seeds the permutations and the rows of the median.

    Returns:
        `TwoSampleTest`: MMD^2, its standard error by the projections of the U-statistic (too large, by up to
        a factor of sqrt(2), where the distributions agree), and the p-value.

    Raises:
        TypeError, ValueError: the sets cannot be compared, or an option cannot be used.

    Reference: A. Gretton, K. Borgwardt, M. Rasch, B. Schölkopf, A. Smola, "A Kernel Two-Sample Test",
    JMLR 2012, https://jmlr.org/papers/v13/gretton12a.html; W. Hoeffding, "A Class of Statistics with
    Asymptotically Normal Distribution", Annals of Mathematical Statistics 1948; B. Phipson, G. Smyth,
    "Permutation P-values Should Never Be Zero", 2010, https://doi.org/10.2202/1544-6115.1585.

    Example:
        >>> test = pv.quality.mmd(torch.randn(200, 2) + 1, torch.randn(200, 2), permutations=200)
        >>> test.value > 0.1, test.p_value < 0.01
        (True, True)
    """
    whole("permutations", permutations)
    x, y = two_sets(samples, data, at_least=2)
    n, rows = len(x), torch.cat([x, y])
    generator = torch.Generator().manual_seed(seed)
    widths = _bandwidths(bandwidth, rows, generator)
    # Column 0 says which rows are samples, the others are its permutations.
    orders = [torch.arange(len(rows)), *(torch.randperm(len(rows), generator=generator) for _ in range(permutations))]
    chosen = torch.stack([order < n for order in orders], dim=1).to(rows)
    within, to_all, to_samples = _kernel_sums(rows, chosen, widths)
    across = chosen.T @ to_all - within
    values = _unbiased(within, to_all.sum() - 2 * across - within, across, n, len(y))
    # Exchanges within a set only, or among equal rows, change nothing but the rounding.
    as_large = int((values[1:] >= values[0] - 1e-12 * len(widths)).sum())
    error = _projected_error(to_all, to_samples, n)
    return TwoSampleTest(float(values[0]), error, (1 + as_large) / (1 + permutations))


def _unbiased(within: Tensor, within_others: Tensor, across: Tensor, n: int, others: int) -> Tensor:
    return within / (n * (n - 1)) + within_others / (others * (others - 1)) - 2 * across / (n * others)


def _kernel_sums(rows: Tensor, chosen: Tensor, widths: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of the kernel over pairs of different rows.

    They are: among the chosen rows, for each column of ``chosen``; of each row with all others; of
    each row with the chosen rows of column 0.
    """
    within, to_all, to_samples = chosen.new_zeros(chosen.shape[1]), [], []
    for start, (block, among) in _numbered(rows, chosen):
        squared = squared_distances(block, rows)
        kernel = sum((squared / (-2 * width**2)).exp() for width in widths)
        kernel[:, start : start + len(block)].fill_diagonal_(0.0)
        to_chosen = kernel @ chosen
        within += (among * to_chosen).sum(0)
        to_all.append(kernel.sum(1))
        to_samples.append(to_chosen[:, 0])
    return within, torch.cat(to_all), torch.cat(to_samples)


def _numbered(*columns: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Yield blocks of rows with the number of their first."""
    for i, blocks in enumerate(zip(*(column.split(ROWS) for column in columns), strict=True)):
        yield i * ROWS, blocks


def _projected_error(to_all: Tensor, to_samples: Tensor, n: int) -> float:
    """Return the standard error of MMD^2 from what each row alone contributes to it."""
    others = len(to_all) - n
    to_data = to_all - to_samples
    of_samples = to_samples[:n] / (n - 1) - to_data[:n] / others
    of_data = to_data[n:] / (others - 1) - to_samples[n:] / n
    return float((4 * of_samples.var() / n + 4 * of_data.var() / others).sqrt())


def _bandwidths(bandwidth: float | Sequence[float] | None, rows: Tensor, generator: torch.Generator) -> list[float]:
    if bandwidth is None:
        some = rows[torch.randperm(len(rows), generator=generator)[:FOR_MEDIAN].to(rows.device)]
        between = torch.ones(len(some), len(some), dtype=torch.bool, device=rows.device).triu(1)
        widths = [float(squared_distances(some, some)[between].median().sqrt())]
        if widths == [0.0]:
            raise ValueError("bandwidth: the median distance is zero, as most rows are equal; give one, or several")
        return widths
    widths = [float(width) for width in (bandwidth if isinstance(bandwidth, Sequence) else [bandwidth])]
    if not widths or not all(math.isfinite(width) and width > 0 for width in widths):
        raise ValueError(f"bandwidth: expected positive numbers, found {bandwidth!r}")
    return widths


def two_sets(samples: Tensor, data: Tensor, at_least: int) -> tuple[Tensor, Tensor]:
    """Return both sets as finite vectors in float64, on one device.

    Raises:
        TypeError: one is no tensor.
        ValueError: too few rows, rows of different sizes, or a number that is not finite.

    Example:
        >>> [x.shape for x in two_sets(torch.zeros(3, 8, 8), torch.zeros(2, 64), at_least=2)]
        [torch.Size([3, 64]), torch.Size([2, 64])]
    """
    sets = []
    for name, x in (("samples", samples), ("data", data)):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name}: expected a tensor (n, ...), found {type(x).__name__}; pass pv.sample(...)['x'] or a split, "
                "such as data.test"
            )
        if x.ndim < 2 or len(x) < at_least:
            raise ValueError(f"{name}: expected at least {at_least} rows (n, ...), found shape {tuple(x.shape)}")
        if not x.isfinite().all():
            raise ValueError(f"{name}: a number is NaN or infinite; look at the distribution that it was drawn from")
        sets.append(x.detach().flatten(1))
    if sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(
            f"samples, data: rows have {sets[0].shape[1]} and {sets[1].shape[1]} numbers; compare sets of one size"
        )
    return sets[0].to(data.device, torch.float64), sets[1].double()


def same_size(x: Tensor, y: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Return as many rows of each set as the smaller has, in random order.

    Example:
        >>> [len(part) for part in same_size(torch.ones(3, 1), torch.ones(5, 1), torch.Generator())]
        [3, 3]
    """
    n = min(len(x), len(y))
    return [part[torch.randperm(len(part), generator=generator)[:n].to(part.device)] for part in (x, y)]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return ``|x_i - y_j|^2``, ``(n, N)``, of rows ``(n, D)`` and ``(N, D)``: two sums and a matrix product.

    Rounding is that of the squared lengths: give float64.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[25.]])
    """
    lengths = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(lengths, x, y.T, alpha=-2).clamp_min_(0)
