"""From a datum's importance weights to what is reported: estimates, their errors, and whether to believe them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_vae.diagnostics import effective_sample_size, log_mean_error, pareto_khat
from ppl_vae.noise import mixed
from ppl_vae.objectives import iwae, jackknife
from ppl_vae.particles import Particles

__all__ = ["curve_sizes", "estimates", "pooled"]

# Log-weights that are worked on at a time, so that temporaries stay in the processor's cache.
AT_A_TIME = 2**16
# Particles that are kept of each datum to stand for its posterior, and replicates of its estimate.
KEPT = 100


def estimates(log_w: Tensor, keys: Tensor, curve: bool) -> Mapping[str, Tensor]:
    """Return what `Evaluation` has of each datum, from log-weights ``(K, B)`` in float64.

    Columns are ``(B,)``, or ``(B, n)`` for ``"curve"`` (the bounds of `curve_sizes`), ``"resampled"`` (numbers of
    particles, drawn in proportion to their weights) and ``"replicates"`` (of ``"log_px"``). Temporaries do not grow
    with the batch.

    Args:
        log_w: log-weights.
        keys: of the data, which decide what is resampled.
        curve: whether to give the bounds on fewer particles.

    Example:
        >>> columns = estimates(torch.zeros(8, 3).double(), torch.arange(3), curve=True)
        >>> columns["log_px"], columns["curve"].shape
        (tensor([0., 0., 0.], dtype=torch.float64), torch.Size([3, 4]))
    """
    width = max(1, AT_A_TIME // len(log_w))
    blocks = zip(log_w.split(width, 1), keys.split(width), strict=True)
    parts = [_block(block.contiguous(), own, curve) for block, own in blocks]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _block(log_w: Tensor, keys: Tensor, curve: bool) -> dict[str, Tensor]:
    drawn, k = Particles(log_p={"w": log_w}, log_q={}), len(log_w)
    log_px = iwae(drawn)
    columns = {
        "log_px": log_px,
        "debiased": jackknife(drawn) if k > 1 else torch.full_like(log_px, math.nan),
        "ess": effective_sample_size(log_w),
        "khat": pareto_khat(log_w),
        "log_px_error": log_mean_error(log_w),
        "rise": _rise(log_w) if k > 1 else torch.full_like(log_px, math.nan),
        "resampled": _resampled(log_w, keys),
        "replicates": _replicates(log_w, keys, log_px),
    }
    if curve:
        columns["curve"] = torch.stack([pooled(log_w, size) for size in curve_sizes(k)], 1)
    return columns


def curve_sizes(particles: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50, ... up to the number of particles, and that number.

    Example:
        >>> curve_sizes(30)
        [1, 2, 5, 10, 20, 30]
    """
    steps = [first * 10**power for power in range(len(str(particles))) for first in (1, 2, 5)]
    return [step for step in steps if step < particles] + [particles]


def pooled(log_w: Tensor, size: int) -> Tensor:
    """Return the bound L_k of each datum, ``(B,)``, as a mean over groups of ``k`` of its particles.

    Its expectation is that of the bound on k particles, whatever K; what is left over by the groups has no part.

    Example:
        >>> pooled(torch.tensor([[0.0], [2.0], [4.0]]), 1)
        tensor([2.])
    """
    groups = len(log_w) // size
    return (log_w[: groups * size].unflatten(0, (groups, size)).logsumexp(1) - math.log(size)).mean(0)


def _rise(log_w: Tensor) -> Tensor:
    """Return what doubling adds to the bound: of all particles, but for an odd one, over that of their halves."""
    half = len(log_w) // 2
    return pooled(log_w, 2 * half) - pooled(log_w[: 2 * half], half)


def _replicates(log_w: Tensor, keys: Tensor, log_px: Tensor) -> Tensor:
    """Return bootstrap replicates of the bound, ``(B, n)``: of the means of up to 100 groups of particles.

    They are shifted so that their harmonic mean, which is what leave-one-out makes of them, is the estimate itself.

    Reference: B. Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979,
    https://doi.org/10.1214/aos/1176344552.
    """
    size = -(-len(log_w) // KEPT)
    groups = log_w[: len(log_w) // size * size].unflatten(0, (-1, size)).logsumexp(1) - math.log(size)
    count, n = len(groups), min(KEPT, len(log_w))
    places = torch.arange(1, n * count + 1, device=keys.device)
    picked = (mixed(mixed(keys + 1).unsqueeze(-1) + places) >> 11 & (2**53 - 1)) % count
    replicates = groups.mT.gather(1, picked).unflatten(1, (n, count)).logsumexp(-1)
    return replicates + (log_px + (-replicates).logsumexp(-1) - math.log(n)).unsqueeze(-1)


def _resampled(log_w: Tensor, keys: Tensor) -> Tensor:
    """Return numbers of particles ``(B, n)``, each as often as its weight says, to one more or less.

    Reference: G. Kitagawa, "Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models",
    Journal of Computational and Graphical Statistics 1996, https://doi.org/10.2307/1390750, for the systematic scheme.
    """
    n = min(KEPT, len(log_w))
    bounds = log_w.softmax(0).cumsum(0).mT.contiguous()
    start = (mixed(keys) >> 11 & (2**53 - 1)).double() * 2.0**-53
    at = (start.unsqueeze(-1) + torch.arange(n, device=keys.device)) / n
    return torch.searchsorted(bounds, at * bounds[:, -1:], right=True).clamp_max(len(log_w) - 1).int()
