"""`impute`: fill in the missing pixels of data."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.batches import Batch, as_batch
from ppl_vae.chains import gibbs, pseudo_gibbs
from ppl_vae.checking import check
from ppl_vae.filling import Imputation, Method, check_whole, resampled
from ppl_vae.indexing import alike
from ppl_vae.missing import Conditional, data_site
from ppl_vae.programs import Program, Programs, own_parameters, undisturbed
from ppl_vae.progress import progress_bar
from ppl_vae.sampling import decode, sample
from ppl_vae.supports import check_data_support

__all__ = ["Imputation", "Method", "gibbs", "impute", "pseudo_gibbs", "resampled"]

# Enough for a mean image that a guide is to look at.
DRAWS_OF_THE_MEAN = 500


def impute(
    model: Program,
    guide: Program,
    x: Any,
    observed: Tensor,
    *,
    method: Method = resampled,
    draws: int = 10,
    initial: Tensor | float | None = None,
    batch_size: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> Imputation:
    """Draw the missing pixels of data given the others.

    By approximate inference of::

        p(x_missing | x_observed) = integral p(x_missing | z) p(z | x_observed) dz

    A noisy pixel is denoised by calling it missing. What stands in a missing pixel is never read, so that
    it may be NaN. The programs run in evaluation mode without gradients; parameters, buffers, modes
    and the caller's random state stay as they were.

    Args:
        model: Pyro program that observes x itself, and whose likelihood is a product over pixels.
        guide: Pyro program with the same arguments; it is shown data with every pixel filled in.
        x: a batch ``(B, ...)``, or a tuple of which it is the first.
        observed: True where a pixel is present, of the shape of x or broadcast to it. A row without
            any is drawn from the model.
        method: how to draw: `ppl_vae.imputing.resampled`, `ppl_vae.imputing.gibbs`,
            `ppl_vae.imputing.pseudo_gibbs`, with their options by ``functools.partial``, or a function of
            your own from a `ppl_vae.missing.Conditional`, S and a progress bar to an `Imputation`.
        draws: S, draws of each datum.
        initial: with what the missing pixels are filled at first, broadcast to x: the model's mean image
            when left out. The ``mean`` of another imputation brings the guide closer.
        batch_size: data at a time.
        seed: seeds the draws; the caller's random state does not move.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `Imputation`: ``draws`` ``(S, B, ...)``, ``mean`` ``(B, ...)``, and the method's diagnostics.

    Raises:
        ContractError: programs and data do not fit, or the likelihood is no product over pixels given the
            latents (it reads x, or its pixels depend on each other).
        TypeError, ValueError: an argument cannot be used; the message says which and why.
        FloatingPointError: a density is NaN, or the observed pixels are impossible.

    Reference: D. J. Rezende, S. Mohamed, D. Wierstra, "Stochastic Backpropagation and Approximate
    Inference in Deep Generative Models", ICML 2014, https://arxiv.org/abs/1401.4082; P.-A. Mattei, J.
    Frellsen, "Leveraging the Exact Likelihood of Deep Latent Variable Models", NeurIPS 2018,
    https://arxiv.org/abs/1802.04826.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> observed = torch.arange(784) < 392  # the upper half
        >>> print(pv.impute(VAE(), Normal(), torch.ones(3, 784), observed, draws=5))
        Imputed 1,176 of 2,352 pixels (50.0%) of 3 data by importance resampling with K = 1,000; 5 draws each; ...
    """
    check_whole(draws=draws, batch_size=batch_size)
    if not callable(method):
        raise TypeError(f"method: expected a function, such as pv.imputing.gibbs, found {method!r}")
    model, guide = alike(model, guide)
    programs = Programs(model, guide)
    batch = programs.on_device(as_batch(x))
    observed = _mask(observed, batch[0])
    batch = (batch[0].masked_fill(~observed, 0).contiguous(), *batch[1:])
    _check_finite(batch[0])
    with undisturbed(programs, seed, training=False), torch.no_grad():
        site, summed = data_site(model, batch)
        whole = Conditional(model, guide, batch, observed, site, _initial(model, site, batch, initial), summed=summed)
        parts = []
        for first in range(0, len(observed), batch_size):
            part = whole.part(first, batch_size)
            _check_part(part)
            with pyro.validation_enabled(False):  # initial values may lie between those of a binary pixel
                found = method(part, draws, partial(_tracked, f"Imputing from datum {first:,}", progress))
            if not isinstance(found, Imputation):
                raise TypeError(f"method: expected an Imputation from it, found {type(found).__name__}")
            parts.append(found)
    return _joined(parts)


def _mask(observed: Any, x: Tensor) -> Tensor:
    """Return which pixels are present, in the shape of x."""
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        found = observed.dtype if isinstance(observed, Tensor) else type(observed).__name__
        raise TypeError(f"observed: expected a boolean tensor, True where a pixel is present, found {found}")
    try:
        return observed.to(x.device).expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"observed: shape {tuple(observed.shape)} is not that of x, {tuple(x.shape)}, nor broadcast to it; give "
            "one value for each pixel, or for each pixel of a datum"
        ) from None


def _check_finite(x: Tensor) -> None:
    bad = ~x.isfinite().reshape(len(x), -1).all(1)
    if bad.any():
        raise ValueError(
            f"x: {int(bad.sum())} data have NaN or infinite values among their observed pixels (the first is datum "
            f"{int(bad.nonzero()[0])}); set observed to False there, as with observed = x.isfinite()"
        )


def _initial(model: Program, site: str, batch: Batch, initial: Any) -> Tensor:
    """Return the values with which missing pixels begin, in the shape of x."""
    x = batch[0]
    if initial is None:
        draws = sample(model, like=batch, n=DRAWS_OF_THE_MEAN)
        means = decode(model, draws, like=batch)
        image = means[site].mean(0) if site in means else draws[site][0]
        return image.reshape(x.shape[1:]).expand(x.shape)
    try:
        given = torch.as_tensor(initial).to(x).expand(x.shape)
    except RuntimeError:
        shape = tuple(torch.as_tensor(initial).shape)
        raise ValueError(f"initial: shape {shape} is not that of x, {tuple(x.shape)}, nor broadcast to it") from None
    if not given.isfinite().all():
        raise ValueError("initial: expected finite values; the guide is shown them")
    return given


def _check_part(part: Conditional) -> None:
    """Hold programs and data to the contract, the missing pixels drawn by the model."""
    drawn = sample(part.model, like=part.batch, n=part.rows)[part.site]
    batch = (part.filled(drawn.reshape(part.batch[0].shape)), *part.batch[1:])
    if part.first == 0:
        check(part.model, part.guide, batch)
    with own_parameters():
        check_data_support(poutine.trace(part.model).get_trace(*batch))


def _tracked(title: str, show: bool | None, steps: Sequence[Any]) -> Iterator[Any]:
    """Yield steps, and show how far they have come."""
    with progress_bar(title, len(steps), show) as bar:
        for step in steps:
            yield step
            bar.advance()


def _joined(parts: Sequence[Imputation]) -> Imputation:
    """Return what was found for all data."""
    columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Imputation) if f.name != "how"}
    found = {name: column for name, column in columns.items() if column[0] is not None}
    return replace(parts[0], **{name: torch.cat(column, dim=int(name == "draws")) for name, column in found.items()})
