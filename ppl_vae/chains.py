"""Methods of imputation by Markov chains: `pseudo_gibbs`, and `gibbs`, its exact form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.filling import Imputation, Track, beside, check_whole
from ppl_vae.missing import Conditional

__all__ = ["gibbs", "pseudo_gibbs"]


class _State(NamedTuple):
    """Where R chains are: x filled, latents ``(1, R, *event)``, E[x | z], and whether the last proposal was taken."""

    x: Tensor
    latents: Mapping[str, Tensor]
    mean: Tensor | None
    accepted: Tensor


Move = Callable[[Conditional, _State], _State]


def pseudo_gibbs(conditional: Conditional, draws: int, track: Track, *, steps: int = 200) -> Imputation:
    """Fill in by alternating guide and model.

    From the initial values, again and again::

        z ~ q(z | x_observed, x_missing),    x_missing ~ p(x_missing | z)

    Each of S chains gives its last state; the mean is taken over the second half of all of them. They
    converge to p(x_missing | x_observed) only where the guide is the exact posterior.

    Args:
        conditional: the model given some pixels.
        draws: S, the number of chains.
        track: shows how far a loop has come.
        steps: length of a chain.

    Returns:
        `Imputation`.

    Raises:
        ValueError: an option cannot be used.

    Reference: D. J. Rezende, S. Mohamed, D. Wierstra, "Stochastic Backpropagation and Approximate
    Inference in Deep Generative Models", ICML 2014, appendix F, https://arxiv.org/abs/1401.4082.

    Example:
        >>> from functools import partial
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, observed = LinearGaussian(x_dim=6, z_dim=2), torch.arange(6) < 3
        >>> method = partial(pv.imputing.pseudo_gibbs, steps=20)
        >>> pv.impute(model, Exact(model), torch.ones(4, 6), observed, method=method).draws.shape
        torch.Size([10, 4, 6])
    """
    check_whole(steps=steps)
    found = _run(conditional, draws, track, [_redraw] * steps, kept=-(-steps // 2))
    return Imputation(**found | {"acceptance": None}, how=f"pseudo-Gibbs sampling, {steps:,} steps")


def gibbs(conditional: Conditional, draws: int, track: Track, *, steps: int = 200, warm_up: int = 50) -> Imputation:
    """Fill in by Metropolis-within-Gibbs sampling.

    As `pseudo_gibbs`, but z' ~ q(z | x) takes the place of z only with probability::

        min(1, p(x, z') q(z | x) / (p(x, z) q(z' | x))),    x = (x_observed, x_missing)

    which leaves p(z, x_missing | x_observed) as it is, so that long chains are exact whatever the guide.

    Args:
        conditional: the model given some pixels.
        draws: S, the number of chains.
        track: shows how far a loop has come.
        steps: length of a chain, of which the second half is averaged.
        warm_up: steps of pseudo-Gibbs sampling before it, at least one. They leave the initial values
            faster, where proposals could be refused for long.

    Returns:
        `Imputation` with ``acceptance``.

    Raises:
        ValueError: an option cannot be used.
        ContractError: the guide cannot score values that it has not drawn.

    Reference: P.-A. Mattei, J. Frellsen, "Leveraging the Exact Likelihood of Deep Latent Variable
    Models", NeurIPS 2018, https://arxiv.org/abs/1802.04826.

    Example:
        >>> from functools import partial
        >>> from ppl_vae.guides.exact import Exact
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, observed = LinearGaussian(x_dim=6, z_dim=2), torch.arange(6) < 3
        >>> method = partial(pv.imputing.gibbs, steps=20)
        >>> pv.impute(model, Exact(model), torch.ones(4, 6), observed, method=method).acceptance.round(decimals=3)
        tensor([1., 1., 1., 1.])
    """
    check_whole(steps=steps, warm_up=warm_up)
    found = _run(conditional, draws, track, [_redraw] * warm_up + [_metropolis] * steps, kept=-(-steps // 2))
    return Imputation(**found, how=f"Metropolis-within-Gibbs sampling, {steps:,} steps")


def _run(conditional: Conditional, draws: int, track: Track, moves: Sequence[Move], kept: int) -> dict[str, Any]:
    """Run a chain for each draw, all at once, and average their last states."""
    chains = conditional.repeated(draws)
    x = chains.filled(chains.initial)
    state = _State(x, {}, None, x.new_ones(chains.rows, dtype=torch.bool))
    mean, accepted = torch.zeros_like(x), x.new_zeros(chains.rows)
    for i, move in enumerate(track(moves), start=1):
        state = move(chains, state)
        if i > len(moves) - kept:
            mean = None if state.mean is None else mean + state.mean / kept
            accepted = accepted + state.accepted / kept
    apart = (draws, conditional.rows)
    return {
        "draws": state.x.unflatten(0, apart),
        "mean": None if mean is None else conditional.filled(mean.unflatten(0, apart).mean(0)),
        "observed": conditional.observed,
        "acceptance": accepted.unflatten(0, apart).mean(0),
    }


def _redraw(chains: Conditional, state: _State) -> _State:
    """Draw z from the guide, then the missing pixels from the model."""
    record, pixels = chains.weigh(state.x)
    mean = None if pixels.mean is None else pixels.mean[0]
    return _State(chains.filled(pixels.sample()[0]), record.values, mean, torch.ones_like(state.accepted))


def _metropolis(chains: Conditional, state: _State) -> _State:
    """Weigh z beside a new one, keep one of the two, then draw the missing pixels from the model."""

    def old_and_new(name: str, fn: Any) -> Tensor:
        return torch.cat([state.latents[name], fn.sample()[1:]])

    record, pixels = chains.weigh(state.x, 2, old_and_new)
    old, new = record.log_w
    accepted = torch.rand_like(new).log() < new - old

    def kept(pair: Tensor) -> Tensor:
        return torch.where(beside(accepted, pair[0]), pair[1], pair[0])

    latents = {name: kept(value).unsqueeze(0) for name, value in record.values.items()}
    mean = None if pixels.mean is None else kept(pixels.mean)
    return _State(chains.filled(kept(pixels.sample())), latents, mean, accepted)
