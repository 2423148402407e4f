"""One failure rate for every statistical assertion of the suite.

Draws are seeded, so that a passing suite goes on passing; the rate says how often a *correct* library
would fail an assertion under another seed.
"""

from statistics import NormalDist

from torch import Tensor

FAILURE_RATE = 1e-5
ROUNDING = 1e-9


def limit(comparisons: int, sides: int = 2) -> float:
    """Return how many standard errors are allowed, when so many comparisons may each fail."""
    return NormalDist().inv_cdf(1 - FAILURE_RATE / (sides * comparisons))


def assert_agree(estimate: Tensor, error: Tensor, exact: Tensor) -> None:
    """Estimates with standard errors agree with exact values, over all of them at the suite's rate."""
    # What has no spread still has rounding.
    z = ((estimate - exact) / error.clamp_min(ROUNDING * (1 + exact.abs()))).abs()
    allowed = limit(z.numel())
    assert z.max() < allowed, f"{z.max():.2f} standard errors off, {allowed:.2f} allowed"


def assert_at_most(smaller: Tensor, larger: Tensor) -> None:
    """The mean of paired draws ``smaller - larger`` is not above zero, at the suite's rate."""
    gap = smaller - larger
    z = gap.mean() / (gap.std() / gap.numel() ** 0.5)
    assert z < limit(1, sides=1), f"above by {gap.mean():.4f}, {z:.2f} standard errors"


def assert_mean(draws: Tensor, exact: Tensor) -> None:
    """The mean of independent draws (dim 0) agrees with exact values."""
    assert_agree(draws.mean(0), draws.std(0) / len(draws) ** 0.5, exact)
