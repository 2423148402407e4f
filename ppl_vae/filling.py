"""What imputation gives, and its method by importance resampling."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.diagnostics import effective_sample_size
from ppl_vae.missing import Conditional, given
from ppl_vae.tracing import Draw

__all__ = ["Imputation", "Method", "Track", "resampled"]


@dataclass(frozen=True, repr=False, eq=False)
class Imputation:
    """Missing pixels, filled in.

    Attributes:
        draws: x with its missing pixels drawn from p(x_missing | x_observed), ``(S, B, ...)``.
        mean: x with its missing pixels at their conditional mean, ``(B, ...)``, from more latents than
            there are draws; None where the likelihood has no mean (a Categorical).
        observed: which pixels were given, ``(B, ...)``.
        how: the method, in words.
        log_px: estimate of log p(x_observed) in nats, ``(B,)``, of methods that have one.
        ess: effective number of latents, ``(B,)``, of methods that weigh them.
        acceptance: share of proposals that were accepted, ``(B,)``, of methods that ask.
    """

    draws: Tensor
    mean: Tensor | None
    observed: Tensor
    how: str
    log_px: Tensor | None = None
    ess: Tensor | None = None
    acceptance: Tensor | None = None

    def __len__(self) -> int:
        """The number of data B."""
        return len(self.observed)

    def __str__(self) -> str:
        missing, pixels = int((~self.observed).sum()), self.observed.numel()
        return (
            f"Imputed {missing:,} of {pixels:,} pixels ({missing / pixels:.1%}) of {len(self):,} data by {self.how}; "
            f"{len(self.draws):,} draw{'s' * (len(self.draws) > 1)} each" + "".join(f"; {note}" for note in self._notes)
        )

    __repr__ = __str__

    @property
    def _notes(self) -> Iterator[str]:
        if self.ess is not None:
            yield f"effective sample size: median {float(self.ess.median()):,.1f}, lowest {float(self.ess.min()):,.1f}"
        if self.acceptance is not None:
            median, lowest = float(self.acceptance.median()), float(self.acceptance.min())
            yield f"accepted proposals: median {median:.1%}, lowest {lowest:.1%}"


# How often a loop goes round, shown as it goes.
Track = Callable[[Sequence[Any]], Iterator[Any]]

# From a model given some pixels, the number of draws, and the loop's bar, to what was found.
Method = Callable[[Conditional, int, Track], Imputation]


def resampled(
    conditional: Conditional,
    draws: int,
    track: Track,
    *,
    particles: int = 1000,
    defensive: float = 0.1,
    chunk: int = 50,
) -> Imputation:
    """Fill in by importance resampling.

    With latents z_k from a mixture of the guide, given x filled with the initial values, and the prior::

        w_k = p(x_observed, z_k) / ((1 - d) q(z_k | x_filled) + d p(z_k))
        E[x_missing | x_observed] ~ sum_k w_k E[x | z_k] / sum_k w_k

    Draws take z_k in proportion to its weight, and x_missing from p(x | z_k). Exact as K grows; no weight
    is above ``p(x_observed | z) / d``, however bad the guide is.

    Args:
        conditional: the model given some pixels.
        draws: S.
        track: shows how far a loop has come.
        particles: K, latents per datum.
        defensive: d, the share of particles that the prior draws; 0 leaves them all to the guide.
        chunk: latents per datum at a time. Memory grows with K by the latents alone.

    Returns:
        `Imputation` with ``ess`` and ``log_px``.

    Raises:
        ValueError: an option cannot be used.
        ContractError: the guide cannot score the prior's draws.
        FloatingPointError: the observed pixels are impossible under every latent.

    Reference: D. B. Rubin, "Using the SIR Algorithm to Simulate Posterior Distributions", Bayesian
    Statistics 3, 1988; P.-A. Mattei, J. Frellsen, "MIWAE: Deep Generative Modelling and Imputation of
    Incomplete Data Sets", ICML 2019, https://arxiv.org/abs/1812.02633; T. Hesterberg, "Weighted Average
    Importance Sampling and Defensive Mixture Distributions", Technometrics 1995,
    https://doi.org/10.1080/00401706.1995.10484303.

    Example:
        >>> from functools import partial
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, observed = LinearGaussian(x_dim=6, z_dim=2), torch.arange(6) < 3
        >>> method = partial(pv.imputing.resampled, particles=100)
        >>> pv.impute(model, Exact(model), torch.ones(4, 6), observed, method=method).ess.shape
        torch.Size([4])
    """
    check_whole(particles=particles, chunk=chunk)
    if not 0 <= defensive <= 1:
        raise ValueError(f"defensive: expected a share between 0 and 1, found {defensive!r}")
    from_prior = round(defensive * particles)
    shares = (particles - from_prior, from_prior)
    chunks = [(rule, k) for rule, n in zip((_drawn, _dreamt), shares, strict=True) for k in _cut(n, chunk)]
    parts = [_weighed(conditional, rule, k, from_prior / particles) for rule, k in track(chunks)]
    log_w = torch.cat([part.log_w for part in parts])
    _check_weights(conditional, log_w)
    chosen = log_w.softmax(0).T.multinomial(draws, replacement=True).T
    latents = {name: _rows(torch.cat([part.latents[name] for part in parts]), chosen) for name in parts[0].latents}
    x = conditional.filled(conditional.initial)
    return Imputation(
        draws=conditional.filled(conditional.pixels(latents, x, draws).sample()),
        mean=_mixed(conditional, parts),
        observed=conditional.observed,
        how=f"importance resampling with K = {particles:,}",
        log_px=log_w.logsumexp(0) - math.log(particles),
        ess=effective_sample_size(log_w),
    )


class _Part(NamedTuple):
    """A chunk of latents, ``(k, B)``: weights, values, and the sum of weighted means by its largest weight."""

    log_w: Tensor
    latents: Mapping[str, Tensor]
    top: Tensor
    weighted: Tensor | None


def _drawn(conditional: Conditional, k: int) -> Draw | None:
    return None


def _dreamt(conditional: Conditional, k: int) -> Draw:
    return given(conditional.prior(k))


def _weighed(conditional: Conditional, rule: Callable[[Conditional, int], Draw | None], k: int, share: float) -> _Part:
    """Weigh a chunk by the density of the mixture from which all are drawn."""
    x = conditional.filled(conditional.initial)
    record, pixels = conditional.weigh(x, k, rule(conditional, k), counted=conditional.observed)
    log_w = record.log_w
    if share:
        log_prior = conditional.log_prior(x, record)
        log_q = sum(record.log_q.values(), start=torch.zeros_like(log_w))
        # Not by log_w, which is infinite where the prior draws what the guide never does.
        log_p = sum(record.log_p.values(), start=torch.zeros_like(log_w))
        log_w = log_p - torch.logaddexp(log_q + _log(1 - share), log_prior + _log(share))
    top = log_w.amax(0).nan_to_num(neginf=0.0)
    mean = pixels.mean
    weighted = None if mean is None else torch.einsum("kb,kb...->b...", (log_w - top).exp(), mean)
    return _Part(log_w.double(), record.values, top.double(), weighted)


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf


def beside(weights: Tensor, values: Tensor) -> Tensor:
    """Return weights ``(..., B)`` with axes of size one for those of a datum.

    Example:
        >>> beside(torch.zeros(3, 2), torch.zeros(3, 2, 8, 8)).shape
        torch.Size([3, 2, 1, 1])
    """
    return weights.reshape(weights.shape + (1,) * (values.dim() - weights.dim()))


def _mixed(conditional: Conditional, parts: Sequence[_Part]) -> Tensor | None:
    """Return x with its missing pixels at the weighted mean over all chunks."""
    if parts[0].weighted is None:
        return None
    tops, log_w = torch.stack([part.top for part in parts]), torch.cat([part.log_w for part in parts])
    total = log_w.logsumexp(0)
    shares = (tops - total).exp().to(parts[0].weighted)
    mean = sum(beside(share, part.weighted) * part.weighted for share, part in zip(shares, parts, strict=True))
    return conditional.filled(mean)


def _rows(values: Tensor, chosen: Tensor) -> Tensor:
    """Return ``(S, B, *event)`` of latents ``(K, B, *event)``, by their numbers ``(S, B)``."""
    return values[chosen, torch.arange(values.shape[1], device=values.device)]


def _check_weights(conditional: Conditional, log_w: Tensor) -> None:
    hopeless = log_w.isneginf().all(0)
    if hopeless.any():
        raise FloatingPointError(
            f"x: the observed pixels of datum {conditional.first + int(hopeless.nonzero()[0])} are impossible under "
            "every latent that was drawn; take more particles, or look at the likelihood there"
        )


def check_whole(**counts: Any) -> None:
    """Raise unless these are whole numbers of at least one.

    Example:
        >>> check_whole(draws=0)
        Traceback (most recent call last):
        ...
        ValueError: draws: expected a whole number of at least 1, found 0
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, found {value!r}")


def _cut(total: int, size: int) -> list[int]:
    """Return the sizes of the chunks of so many."""
    return [min(size, total - start) for start in range(0, total, size)]
