"""Gradients of a bound on many particles in memory that a few of them take: two passes over chunks."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ppl_vae.batches import Batch
from ppl_vae.compiling import Compiled
from ppl_vae.objectives import Objective, facts
from ppl_vae.objectives.schedules import reported
from ppl_vae.objectives.vocabulary import mean_penalties
from ppl_vae.particles import Particles
from ppl_vae.programs import modes_and_buffers_kept

__all__ = ["ChunkedAscent", "check_chunk", "joined"]

# What of a record a bound is a function of.
FIELDS = ("log_p", "log_q", "score", "penalties", "kl")
Densities = dict[str, dict[str, Tensor]]


class ChunkedAscent:
    """Bound and gradients, a chunk of particles at a time; memory grows with the chunk, not with K.

    The bound is a function of densities d_k of each particle, so with them as its variables::

        grad L = sum_k (dL / dd_k) grad d_k

    The first pass draws all chunks without gradients, for the densities; the bound is differentiated
    in these. The second draws the same again, chunk by chunk, and adds up the right side. That costs one
    more pass without gradients, and of all chunks the densities and a random state (5 KB each) stay.
    Layers that keep running statistics update them once a chunk.

    Args:
        objective: a function of particles, which does not tell draws apart (as DReG does).
        weigh: from a batch to one chunk of weighted particles.
        chunk: how many those are.
        chunks: how many chunks make K.
        compiled: makes `Compiled` functions of the programs.
        moved: gives the names of the tensors in which gradients are wanted.
        prior: gives a log prior and the gradients of minus it; None where there is none.

    Reference: as for gradient checkpointing, T. Chen et al., "Training Deep Nets with Sublinear
    Memory Cost", 2016, https://arxiv.org/abs/1604.06174.
    """

    def __init__(
        self,
        objective: Objective,
        weigh: Callable[[Batch], Particles],
        chunk: int,
        chunks: int,
        compiled: Callable[[Any], Compiled],
        moved: Callable[[], Iterable[str]],
        prior: Callable[..., tuple[Tensor, Sequence[Tensor | None]]] | None = None,
    ):
        self.objective, self.weigh, self.chunk, self.chunks, self.moved = objective, weigh, chunk, chunks, moved
        self._densities, self._gradients = compiled(self._weigh), compiled(self._pull_back)
        self._prior = None if prior is None else compiled(prior)

    def __call__(
        self, batch: Batch
    ) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor], Tensor | None, list[Tensor | None]]:
        """Return bound, annealed bound and penalties, averaged over the batch, log prior, and gradients."""
        device = batch[0].device
        found, states = self._drawn(batch)
        after = _random_state(device)
        bound, annealed, penalties, slopes = self._outer(found)
        log_prior, gradients = None, [None] * len([*self.moved()])
        if self._prior is not None:
            log_prior, gradients = self._prior((batch[0][:1],))  # which says on what device, and no more
            gradients = [_added(None, gradient) for gradient in gradients]
        for i, state in enumerate(states):
            _set_random_state(device, state.clone())  # torch reads a view's memory from its start
            # Averages that programs keep of batches take in this one once, not once a chunk.
            with nullcontext() if i == len(states) - 1 else self._kept():
                new = self._gradients((*batch, *(self._part(slope, i) for slope in slopes)))
            gradients = [_added(total, part) for total, part in zip(gradients, new, strict=True)]
        _set_random_state(device, after)
        return bound, annealed, penalties, log_prior, gradients

    @torch.no_grad()
    def value(self, batch: Batch) -> Tensor:
        """Return the bound of each datum, ``(B,)``."""
        return self.objective(joined(self._drawn(batch)[0], self._like))

    def _drawn(self, batch: Batch) -> tuple[list[Densities], Tensor]:
        """Return the densities of each chunk, and the random state before each, ``(chunks, ...)``."""
        self._parts = len(batch)
        states = self._room(_random_state(batch[0].device))
        found = None
        for i in range(self.chunks):
            states[i] = _random_state(batch[0].device)
            with self._kept():
                densities = self._densities(batch)
            # In room made once: what small tensors in between would keep the allocator from reusing grows with K.
            found = tree_map(self._room, densities) if found is None else found
            tree_map(lambda room, new, i=i: room[i].copy_(new), found, densities)
        return [tree_map(lambda room, i=i: room[i], found) for i in range(self.chunks)], states

    def _kept(self) -> AbstractContextManager[None]:
        return modes_and_buffers_kept(self._densities.programs)

    def _room(self, tensor: Tensor) -> Tensor:
        return tensor.new_empty((self.chunks, *tensor.shape))

    def forget(self) -> None:
        """Drop all graphs."""
        for function in self.functions().values():
            function.forget()

    @property
    def count(self) -> int:
        """How many graphs there are."""
        return sum(function.count for function in self.functions().values())

    def functions(self) -> dict[str, Compiled]:
        """Return what may become graphs, by name."""
        found = {"densities": self._densities, "gradients": self._gradients, "prior": self._prior}
        return {name: function for name, function in found.items() if function is not None}

    @property
    def planned(self) -> int | None:
        """How many batches are to come."""
        return self._densities.planned and self._densities.planned // self.chunks

    @planned.setter
    def planned(self, batches: int | None) -> None:
        self._densities.planned = self._gradients.planned = batches and batches * self.chunks
        if self._prior is not None:
            self._prior.planned = batches

    @torch.no_grad()
    def _weigh(self, tensors: Mapping[str, Tensor], batch: Batch) -> Densities:
        record = self.weigh(batch)
        # What is not a tensor is the same for all chunks, captured ones too.
        self._like = replace(record, values=_Untold(facts(self.objective).name), **{field: {} for field in FIELDS})
        return {field: dict(getattr(record, field)) for field in FIELDS}

    def _outer(self, found: list[Densities]) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor], list[Tensor]]:
        """Return bound, annealed bound, penalties, and the slope of what is made small in each density."""
        record = joined(found, self._like)
        leaves = [density.requires_grad_() for density in _tensors(record)]
        sign = -1.0 if facts(self.objective).upper else 1.0
        with torch.enable_grad():
            trained = self.objective(record)
            added, penalties = mean_penalties(record)
            slopes = torch.autograd.grad(-(sign * trained + added).mean(), leaves, allow_unused=True)
        value, annealed = (part if part is None else part.mean() for part in reported(self.objective, record, trained))
        filled = [torch.zeros_like(d) if s is None else s for s, d in zip(slopes, leaves, strict=True)]
        means = {name: penalty.mean() for name, penalty in penalties.items()}
        return value, annealed, means, [slope.movedim(-1, 0) for slope in filled]  # (B, ..., K)

    def _part(self, slope: Tensor, i: int) -> Tensor:
        """Return the slopes of one chunk; those of a density without particles belong to the first."""
        if slope.shape[-1] > 1 or self.chunk == self.chunks == 1:
            return slope.narrow(-1, i * self.chunk, self.chunk)
        return slope if i == 0 else torch.zeros_like(slope)

    def _pull_back(self, tensors: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor | None, ...]:
        """Return the part of the gradients that goes through one chunk; its slopes follow the data."""
        record = self.weigh(batch[: self._parts])
        pairs = zip(_tensors(record), batch[self._parts :], strict=True)
        total = sum((slope.movedim(0, -1) * density).sum() for density, slope in pairs if density.requires_grad)
        moved = [tensors[name] for name in self.moved()]
        return torch.autograd.grad(total, moved, allow_unused=True)


class _Untold(dict):
    """The draws of a record whose chunks are not in memory together."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def values(self) -> Any:
        """Refuse."""
        raise ValueError(
            f"chunk: {self.name} weighs the way through each draw apart, which the densities of chunks do not tell; "
            "leave chunk out, or train on a bound such as iwae, elbo, stl or vimco"
        )


def joined(chunks: list[Densities], like: Particles) -> Particles:
    """Return densities of chunks of particles as one record.

    Args:
        chunks: densities by field and name, ``(K / chunks, B)`` each.
        like: a record of one chunk, for the rest.

    Example:
        >>> chunk = {name: {} for name in ("log_q", "score", "penalties", "kl")} | {"log_p": {"x": torch.zeros(2, 3)}}
        >>> joined([chunk, chunk], Particles(log_p={}, log_q={})).log_w.shape
        torch.Size([4, 3])
    """
    first = chunks[0]
    return replace(
        like,
        **{
            field: {name: _joined([chunk[field][name] for chunk in chunks]) for name in first[field]}
            for field in FIELDS
        },
    )


def _added(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if part is None:
        return total
    return part.clone() if total is None else total.add_(part)


def _joined(parts: list[Tensor]) -> Tensor:
    # An axis of size one stands for all particles (an enumerated site has it).
    alone = parts[0].shape[-2] == 1 and parts[0].dim() > 2
    return parts[0].clone() if alone else torch.cat(parts, dim=-2)


def _tensors(record: Particles) -> Iterator[Tensor]:
    for field in FIELDS:
        yield from getattr(record, field).values()


def check_chunk(objective: Any, particles: int, chunk: int | None) -> None:
    """Raise if a bound cannot be trained on chunks of particles.

    Example:
        >>> check_chunk(pv.objectives.iwae, particles=50, chunk=16)
        Traceback (most recent call last):
        ...
        ValueError: chunk: 50 particles do not split into chunks of 16; choose a divisor
    """
    if chunk is None:
        return
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk: expected a whole number of at least 1, or None, found {chunk!r}")
    if particles % chunk:
        raise ValueError(f"chunk: {particles} particles do not split into chunks of {chunk}; choose a divisor")
    if hasattr(objective, "estimate"):
        raise ValueError(
            f"chunk: {facts(objective).name} draws particles by a rule of its own; leave chunk out, or train on a "
            "bound such as iwae or vimco"
        )


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
