"""Importance weights of batches of data, a chunk of particles at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_vae.batches import Batch
from ppl_vae.compiling import Compiled
from ppl_vae.noise import CannotKey, Keyed, datum_keys
from ppl_vae.objectives import elbo
from ppl_vae.objectives.parts import parts
from ppl_vae.particles import Particles
from ppl_vae.programs import Program, Programs, own_parameters
from ppl_vae.remarks import remark
from ppl_vae.remembering import Name, Remembered
from ppl_vae.weighing import weigh

__all__ = ["Weights", "can_be_keyed", "probe"]

PROBED, ALONE = 64, 3  # particles by which draws are held to their independence: together, and one by one


class Weights:
    """Importance weights of batches of data, without gradients.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        programs: both.
        particles: K.
        chunk: particles at a time.
        compile: see `ppl_vae.evaluate`.
        planned: chunks of all batches, if known.
        keyed: whether draws belong to data and particles (see `can_be_keyed`).

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2), Normal(x_dim=6, z_dim=2)
        >>> weights = Weights(model, guide, Programs(model, guide), particles=7, chunk=3)
        >>> log_w, means = weights((torch.ones(4, 6),), torch.arange(4))
        >>> log_w.shape, sorted(means)
        (torch.Size([7, 4]), ['distortion', 'elbo'])
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        programs: Programs,
        particles: int,
        chunk: int,
        compile: bool | str = "auto",  # noqa: A002 - the public name
        planned: int | None = None,
        keyed: bool = True,
    ):
        self.model, self.guide, self.programs = model, guide, programs
        self.particles, self.chunk, self.keyed = particles, chunk, keyed
        options = {"compile": compile, "planned": planned, "redraw": self._redrawn}
        self.drawn = Compiled(self._drawn, programs, (model, guide), **options)
        self._names: list[Name] = []

    def __call__(
        self, batch: Batch, keys: Tensor, start: int = 0, advance: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return log-weights ``(K, B)`` in float64, and the ELBO and the distortion, ``(B,)`` each.

        Args:
            batch: data.
            keys: theirs, ``(B,)``.
            start: number of the first, for messages.
            advance: called after each chunk.

        Raises:
            FloatingPointError: a log-weight is NaN, or all of a datum's are minus infinity.
        """
        if not self.keyed:  # so that what comes does not depend on what went before
            torch.manual_seed(int(keys[0]) + start)
        encoded = self._encode(batch)
        log_w = torch.empty(self.particles, len(keys), dtype=torch.float64, device=keys.device)
        sums = dict.fromkeys(("elbo", "distortion"), log_w.new_zeros(len(keys)))
        numbers = torch.arange(self.particles, device=keys.device)
        for rows, own in zip(log_w.split(self.chunk), numbers.split(self.chunk), strict=True):
            found = self.drawn((*batch, keys, own.expand(len(keys), -1), *encoded))
            rows.copy_(found["log_w"])
            if not rows.isfinite().all():
                _refuse_impossible(found["log_p"], found["log_q"], start)
            sums = {name: so_far + len(own) * found[name] for name, so_far in sums.items()}
            advance()
        _refuse_empty(log_w, start)
        return log_w, {name: so_far / self.particles for name, so_far in sums.items()}

    @torch.no_grad()
    def _encode(self, batch: Batch) -> list[Tensor]:
        """Return what the guide computes of the data alone, as inputs of every chunk: tensors with their rows."""
        with own_parameters(), Remembered(_settled(batch, self.programs.tensors())) as remembered:
            self.guide(*batch)
        of_data = {f"batch.{i}" for i in range(len(batch))}
        found = {n: t for n, t in remembered.found.items() if t.dim() and len(t) == len(batch[0]) and n.roots & of_data}
        self._names = list(found)
        return list(found.values())

    def _redrawn(self, inputs: Batch, trial: int) -> Batch:
        """Return the inputs of a chunk with other keys, by which draws are others."""
        i = len(inputs) - 2 - len(self._names)
        return (*inputs[:i], inputs[i] + trial, *inputs[i + 1 :])

    @torch.no_grad()
    def _drawn(self, tensors: Mapping[str, Tensor], inputs: Batch) -> Mapping[str, Any]:
        parts = len(inputs) - 2 - len(self._names)
        batch, (keys, numbers, *encoded) = inputs[:parts], inputs[parts:]
        given = dict(zip(self._names, encoded, strict=True))

        def guide(*batch: Tensor) -> Any:
            with Remembered(_settled(batch, tensors), given):
                return self.guide(*batch)

        rule = Keyed(keys, numbers) if self.keyed else None
        particles = weigh(self.model, guide, batch, numbers.shape[1], draw=rule)
        return {
            "log_w": particles.log_per_draw(particles.log_w),
            "elbo": elbo(particles),
            "distortion": _distortion(particles),
            "log_p": dict(particles.log_p),
            "log_q": dict(particles.log_q),
        }


def _settled(batch: Batch, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what stays as it is through all chunks of a batch, by name."""
    return {**tensors, **{f"batch.{i}": part for i, part in enumerate(batch)}}


def can_be_keyed(model: Program, guide: Program, batch: Batch) -> bool:
    """Tell whether a guide's draws can be given to data and particles one by one; say so where they cannot.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> can_be_keyed(VAE(), Normal(), (torch.ones(2, 784),))
        True
    """
    rows = tuple(part[:2] for part in batch)
    numbers = torch.arange(PROBED, device=rows[0].device)
    last = len(rows[0]) - 1
    try:
        together = _log_weights(model, guide, rows, numbers)[:ALONE, last]
        row = tuple(part[last:] for part in rows)
        apart = torch.cat([_log_weights(model, guide, row, numbers[i : i + 1])[0] for i in range(ALONE)])
    except CannotKey as error:
        why = str(error).splitlines()[0]  # Pyro adds its trace
    else:
        # A bit may flip by rounding, and move its weight; draws that depend on others differ nearly all.
        same = torch.isclose(together, apart, rtol=1e-3, atol=1e-3).double().mean() > 0.5
        why = "" if same else "what the guide draws for a datum depends on what is drawn beside it"
    if why:
        remark(f"evaluate: {why}, so that results depend on batch_size, chunk and the order of the data")
    return not why


def probe(model: Program, guide: Program, batch: Batch) -> float:
    """Return a number by which a pair of programs is known again: log-weights of some draws for the first datum.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> pair = VAE(), Normal()
        >>> probe(*pair, (torch.ones(2, 784),)) == probe(*pair, (torch.ones(3, 784),))
        True
    """
    rows = tuple(part[:1] for part in batch)
    log_w = _log_weights(model, guide, rows, torch.arange(3, device=rows[0].device))
    return float(log_w.double().nan_to_num().sum())


@torch.no_grad()
def _log_weights(model: Program, guide: Program, rows: Batch, numbers: Tensor) -> Tensor:
    """Return log-weights of the particles of these numbers, ``(K, B)``."""
    rule = Keyed(datum_keys(rows), numbers.expand(len(rows[0]), -1))
    particles = weigh(model, guide, rows, len(numbers), draw=rule)
    return particles.log_per_draw(particles.log_w)


def _distortion(particles: Particles) -> Tensor:
    """Return -E_q[log p(x | z)], ``(B,)``; NaN where it cannot be told from the rate."""
    try:
        reconstruction, _ = parts(particles)
    except ValueError:
        return torch.full_like(particles.log_w.flatten(0, -2)[0], torch.nan)
    return -particles.mean(reconstruction)


def _refuse_empty(log_w: Tensor, start: int) -> None:
    empty = log_w.amax(0).isneginf()
    if empty.any():
        raise FloatingPointError(
            f"datum {start + int(empty.nonzero()[0])}: all {len(log_w)} draws of the guide have zero density under the "
            "model; look for data or latents outside its support, or draw more particles"
        )


def _refuse_impossible(log_p: Mapping[str, Tensor], log_q: Mapping[str, Tensor], start: int) -> None:
    """Name the first site and datum with an impossible log density.

    A latent may have no density under the model (its weight is zero), never under its own guide.
    """
    impossible = {name: ~q.isfinite() for name, q in log_q.items()}
    impossible |= {name: impossible.get(name, False) | p.isnan() | p.isposinf() for name, p in log_p.items()}
    for name, bad in impossible.items():
        if bad.any():
            datum = start + int(bad.flatten(0, -2).any(0).nonzero()[0])
            raise FloatingPointError(
                f"site '{name}': log density is NaN or infinite for datum {datum}; look at the parameters of its "
                "distribution there (a scale of zero, an overflow)"
            )
