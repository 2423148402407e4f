"""M-steps: a model's own, in closed form, or ascent of the expected log joint density."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_vae.ascent import STEPS, ascend, gradients_of
from ppl_vae.batches import Batch
from ppl_vae.conditioning import Points, Posterior, expected_log_joint
from ppl_vae.contract import ContractError
from ppl_vae.latent_structure import log_prior
from ppl_vae.programs import Program

__all__ = ["by_ascent", "by_method", "method_of", "naming_components"]


def method_of(model: Program) -> Callable[..., Any] | None:
    """Return a model's ``m_step``, that of the module where the model is a bound method.

    Example:
        >>> method_of(torch.nn.Linear(1, 1)) is None
        True
    """
    found = getattr(model, "m_step", None) or getattr(getattr(model, "__self__", None), "m_step", None)
    return found if callable(found) else None


def by_method(m_step: Callable[..., Any], found: Posterior, batch: Batch, points: Points) -> dict[str, Tensor]:
    """Have a model set its parameters, and return the values that it gives its global latents.

    Args:
        m_step: the model's method.
        found: the posterior of the data.
        batch: the data.
        points: values of the global latents so far.

    Raises:
        ContractError: it returns values of other latents than the model has, or of other shapes.
    """
    with torch.no_grad():
        values = m_step(found.sites(), *batch) or {}
    if {n: v.shape for n, v in values.items()} != {n: v.shape for n, v in points.items()}:
        raise ContractError(
            f"m_step: it returned {_described(values)}, but the model's global latents are {_described(points)}; "
            "return a value for each of these by its site's name"
        )
    return {name: value.detach() for name, value in values.items()}


def _described(values: Points) -> str:
    return ", ".join(f"'{name}' {tuple(value.shape)}" for name, value in values.items()) or "none"


def by_ascent(
    found: Posterior,
    batch: Batch,
    points: Points,
    parameters: Sequence[Tensor],
    extra: Callable[[], Tensor] | None = None,
    steps: int = STEPS,
) -> dict[str, Tensor]:
    """Move parameters and global latents to where the expected log joint density is larger, or not at all.

    It rises in the values of the global latents themselves; the map that keeps them in their support only leads
    the way, so that its Jacobian has no part.

    Args:
        found: the posterior q of the data.
        batch: the data.
        points: values of the global latents.
        parameters: leaves, changed in place.
        extra: further log density of the parameters.
        steps: of L-BFGS.

    Returns:
        New values of the global latents.

    Raises:
        ContractError: there is nothing to move.
    """
    structure = found.structure
    maps = {name: transform_to(support) for name, support in structure.supports.items()}
    free = [maps[name].inv(value).detach().requires_grad_() for name, value in points.items()]
    leaves = [*parameters, *free]
    if not leaves:
        raise ContractError(
            "model: it has no trainable parameter and no global latent, so that there is nothing to fit"
        )

    def mapped() -> dict[str, Tensor]:
        return {name: maps[name](value) for name, value in zip(points, free, strict=True)}

    def function() -> tuple[Tensor, list[Tensor]]:
        values = mapped()
        here = {name: value.detach().requires_grad_() for name, value in values.items()}
        wanted, slopes, total = [*parameters, *here.values()], None, 0.0
        for term in _terms(found, batch, here, extra):
            total, new = total + term.detach(), gradients_of(term, wanted)
            slopes = new if slopes is None else [old + more for old, more in zip(slopes, new, strict=True)]
        own, rest = slopes[: len(parameters)], slopes[len(parameters) :]
        # Through the maps once, after all chunks, whose graphs would else share them.
        return total, [*own, *(torch.autograd.grad([*values.values()], free, rest) if free else ())]

    with torch.enable_grad():
        ascend(function, leaves, steps)
    return {name: value.detach() for name, value in mapped().items()}


def _terms(found: Posterior, batch: Batch, points: Points, extra: Callable[[], Tensor] | None) -> Iterator[Tensor]:
    """Yield the parts of what is maximised, nats per datum."""
    n = len(batch[0])
    for part in expected_log_joint(found.structure, batch, found, points):
        yield part / n
    if found.structure.prior:
        yield log_prior(found.structure, batch, points) / n
    if extra is not None:
        yield extra() / n


@contextmanager
def naming_components() -> Iterator[None]:
    """Say of which component a matrix has no Cholesky factor.

    Example:
        >>> with naming_components():
        ...     _ = torch.linalg.cholesky(torch.stack([torch.eye(2), torch.zeros(2, 2)]))
        Traceback (most recent call last):
            ...
        ValueError: component 1: its covariance is not positive definite; ...
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:
        batch = re.search(r"Batch element (\d+)", str(error))
        raise ValueError(
            f"component {batch[1] if batch else 0}: its covariance is not positive definite; it has shrunk onto too "
            "few or equal data, or a column of x is constant or a combination of others. Take fewer components, leave "
            "such columns out, add a floor to covariances in the model, or give them a prior"
        ) from error
