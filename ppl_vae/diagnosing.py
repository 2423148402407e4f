"""Replay a batch that gave NaN or infinite numbers, and say where the first of them came from."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.batches import Batch
from ppl_vae.checking import unmasked
from ppl_vae.diagnosing_sites import Looking, at_datum, failure, in_short, in_words
from ppl_vae.estimation import estimate
from ppl_vae.programs import Program, Programs, own_parameters, undisturbed
from ppl_vae.remarks import WITHIN

__all__ = ["NOTHING_FOUND", "Replay", "explain", "explain_replay"]

NOTHING_FOUND = (
    "replayed eagerly, the batch gives finite numbers alone; either the fault came of another random state or other "
    "parameters than the present ones, or of rounding in compiled code (train with compile=False to see)"
)

# Means and values per datum by name, and gradients of the parameters that move.
Replay = Callable[[], tuple[Mapping[str, Tensor], Sequence[Tensor | None]]]


def explain(
    model: Program,
    guide: Program,
    objective: Any,
    batch: Batch,
    particles: int,
    *,
    rows: Tensor | None = None,
    trained: Sequence[Tensor] | None = None,
    log_prior: Callable[[], Tensor | None] | None = None,
) -> str:
    """Say what is the first number on a batch that is NaN or infinite, where it stands, and what may help.

    The batch is replayed eagerly from the present random state and at the present parameters; nothing is changed.
    Looked at, in this order: the data; parameters and buffers; at each site, as the programs come to it, the parameters
    of its distribution, its value and its log density; the log prior; the objective; gradients.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        objective: a bound or an estimator.
        batch: tensors, on the device of the programs.
        particles: K.
        rows: ``(B,)``, the rows of the batch in its data set, to name data by.
        trained: the parameters whose gradients count; all that require one if left out.
        log_prior: gives log p(theta) / N, or None.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=()), Normal(x_dim=6, z_dim=2, hidden=())
        >>> x = torch.ones(4, 6)
        >>> x[2, 1] = torch.nan
        >>> print(explain(model, guide, pv.objectives.elbo, (x,), 1, rows=torch.tensor([7, 3, 9, 1])))
        data: part 0 of the batch is nan at datum 2 (row 9 of the data set); drop or fill it, ...
    """
    programs = Programs(model, guide, objective)
    with pyro.validation_enabled(False), suppress(Exception):  # whose cause is looked for below
        programs.run_once(model, guide, batch)
    named = _named(programs, trained)

    def replay() -> tuple[Mapping[str, Tensor], Sequence[Tensor | None]]:
        found = estimate(objective, model, guide, batch, particles)
        prior = None if log_prior is None else log_prior()
        total = found.surrogate.mean() if prior is None else found.surrogate.mean() + prior
        slopes = torch.autograd.grad(-total, [*named.values()], allow_unused=True) if total.requires_grad else ()
        values = {} if prior is None else {"log prior": prior}
        values |= {f"penalty '{name}'": penalty for name, penalty in found.penalties.items()}
        return {**values, "the objective": found.value}, slopes

    return explain_replay(replay, {"model": model, "guide": guide}, programs, batch, named, rows)


def explain_replay(
    replay: Replay,
    roles: Mapping[str, Program],
    programs: Programs,
    batch: Batch,
    trained: Mapping[str, Tensor],
    rows: Tensor | None = None,
) -> str:
    """Say what is the first number that is not finite in what a step computes on a batch.

    Args:
        replay: computes it; values, and a gradient for each of ``trained``.
        roles: the programs that it runs, by what messages call them.
        programs: all tensors by name.
        batch: tensors.
        trained: the parameters of the gradients, by name.
        rows: of the batch in its data set.
    """
    if found := _of_data(roles.get("model"), batch, rows) or _of_state(programs):
        return found
    looking = Looking(roles)
    values, gradients, error = {}, (), None
    with undisturbed(programs), own_parameters(), torch.enable_grad(), pyro.validation_enabled(False):
        try:
            with looking:
                values, gradients = replay()
        except Exception as raised:  # whatever it is, it is what there is to tell
            error = raised
    if error is not None:
        return failure(error, looking, rows)
    bad = {name: ~value.detach().isfinite() for name, value in values.items() if not value.isfinite().all()}
    slopes = [name for name, g in zip(trained, gradients, strict=False) if g is not None and not _is_finite(g)]
    if not bad and not slopes:
        return _of_squares({n: g for n, g in zip(trained, gradients, strict=False) if g is not None})
    data = set(bad["the objective"].nonzero().flatten().tolist()) if "the objective" in bad else set()
    if fault := looking.first(data):
        return in_words(fault, rows)
    if bad:
        name = next(iter(bad))
        return f"{name} is {_at(values[name], bad[name], rows)}, of sites whose densities are all finite; it overflows"
    return _of_gradient(slopes[0], programs, replay)


def _named(programs: Programs, trained: Sequence[Tensor] | None) -> dict[str, Tensor]:
    """Return the parameters that move, by name."""
    if trained is None:
        return programs.parameters()
    names = {id(tensor): name for name, tensor in programs.tensors().items()}
    return {names.get(id(p), f"of shape {tuple(p.shape)}"): p for p in trained}


def _is_finite(tensor: Tensor) -> bool:
    return bool(_numbers(tensor).isfinite().all())


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.coalesce().values() if tensor.is_sparse else tensor


def _of_squares(gradients: Mapping[str, Tensor]) -> str:
    """Say which finite gradient is too large for what optimizers and clipping compute of it."""
    if all(bool(_numbers(gradient).square().sum().isfinite()) for gradient in gradients.values()):
        return NOTHING_FOUND
    largest = {name: _numbers(gradient).abs().max() for name, gradient in gradients.items()}
    name = max(largest, key=lambda name: float(largest[name]))
    return (
        f"the gradient of {name} has numbers as large as {largest[name]:.1e}, finite, but not their squares, of which "
        f"clip_norm and optimizers such as Adam make use in {largest[name].dtype}; make what is so steep flatter (a "
        "floor under scales, a weaker prior), or compute in float64"
    )


def _of_data(model: Program | None, batch: Batch, rows: Tensor | None) -> str:
    for i, part in enumerate(batch if model is None else unmasked(model, batch)):
        bad = ~part.isfinite()
        if bad.any():
            return (
                f"data: part {i} of the batch is {_at(part, bad, rows)}; drop or fill it, or give the model an "
                "argument 'observed' that is False there"
            )
    return ""


def _at(tensor: Tensor, bad: Tensor, rows: Tensor | None) -> str:
    """Say what the first bad number of a tensor is, whose first axis runs over data, and where."""
    place = tuple(bad.nonzero()[0].tolist())
    return f"{in_short(tensor[place])}{at_datum(place[0] if place else None, rows)}"


def _of_state(programs: Programs) -> str:
    for name, tensor in programs.tensors().items():
        # Masks of attention are -inf, and so may frozen logits be.
        bad = ~tensor.detach().isfinite() if tensor.requires_grad else tensor.isnan()
        if bad.any():
            return (
                f"{'parameter' if tensor.requires_grad else 'buffer'} {name} has {int(bad.sum())} NaN or infinite "
                f"numbers of {bad.numel()}, before any of the batch is computed; go back to a state from before, and "
                "see what wrote them"
            )
    return ""


def _of_gradient(name: str, programs: Programs, replay: Replay) -> str:
    """Say by which operation a gradient became NaN although all values were finite."""
    said = f"the gradient of {name} is NaN or infinite, of values that are all finite"
    with (
        warnings.catch_warnings(record=True) as caught,
        undisturbed(programs),
        own_parameters(),
        pyro.validation_enabled(False),
    ):
        warnings.simplefilter("always")
        try:
            with torch.enable_grad(), torch.autograd.detect_anomaly(check_nan=True):
                replay()
        except RuntimeError as error:
            operation = re.search(r"Function '(\w+?)(?:Backward\d*)?' returned nan", str(error))
            line = _line("\n".join(str(word.message) for word in caught))
            through = f": NaN comes of the derivative of {operation.group(1)}" if operation else f" ({error})"
            return (
                f"{said}{through}{line}; keep its argument off the edge (a floor under a scale, a norm or a logarithm)"
            )
    return f"{said}: it overflows in the backward pass; try clip_norm, a smaller learning rate, or float64"


def _line(text: str) -> str:
    """Return the last line of a person's own in a traceback, as torch writes it."""
    found = re.findall(r'File "([^"]+)", line (\d+), in \S+\n\s+(.*)', text)
    theirs = [(file, number, code) for file, number, code in found if not file.startswith((*WITHIN, "<"))]
    if not theirs:
        return ""
    file, number, code = theirs[-1]
    return f" in {Path(file).name}, line {number}, {code.strip()!r}"
