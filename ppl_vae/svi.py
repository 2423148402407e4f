"""A step of stochastic variational inference: what one batch does to the parameters."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.batches import Batch, as_batch
from ppl_vae.checking import check
from ppl_vae.checking_objectives import check_in_sight, check_objective, inner_function
from ppl_vae.chunking import ChunkedAscent
from ppl_vae.compiling import Compiled, check_compile
from ppl_vae.diagnosing import explain
from ppl_vae.estimation import estimate, weigh_for
from ppl_vae.indexing import alike
from ppl_vae.log_priors import LogPrior, check_log_prior
from ppl_vae.objectives import Objective, facts
from ppl_vae.optimizers import Role, check_optimizer, check_optimizer_state, held_by, moved_by
from ppl_vae.parallel import SharedNoise, workers
from ppl_vae.particles import Particles
from ppl_vae.programs import Program, Programs, modes_and_buffers_kept, undisturbed
from ppl_vae.threads import one_thread
from ppl_vae.updating import NOTHING_GATHERED, Update

__all__ = ["Info", "SVIStep", "check_options"]

# Bound, annealed bound and log prior where there are such, penalties, and a gradient for each parameter that moves.
Ascent = tuple[Tensor, Tensor | None, Mapping[str, Tensor], Tensor | None, Sequence[Tensor | None]]


@dataclass(frozen=True)
class Info:
    """What a step reports. Tensors of shape ``()`` that nobody has waited for.

    Attributes:
        bound: nats per datum, averaged over the batch; larger is better. Where options follow the step, it has them
            at their ends, as in validation, from the draws that are trained on.
        penalties: training penalties by name, averaged likewise; not part of the bound.
        log_prior: log p(theta) / N, nats per datum, where there is a prior; not part of the bound.
        annealed: the bound with its options as they were at this step, which is what has been trained, where they
            follow the step (`objectives.Scheduled`).
        finite: whether all of this and of the gradients are finite numbers. If not, the batch was refused: it moved
            nothing. None where a step does not tell.
    """

    bound: Tensor
    penalties: Mapping[str, Tensor] = field(default_factory=dict)
    log_prior: Tensor | None = None
    annealed: Tensor | None = None
    finite: Tensor | None = None


class SVIStep:
    """Stochastic variational inference: one gradient step on a bound. Made by `ppl_vae.svi_step`.

    Attributes:
        role: what messages call its optimizer.
    """

    role = Role()

    def __init__(
        self,
        model: Program,
        guide: Program,
        objective: Objective,
        particles: int,
        optimizer: torch.optim.Optimizer,
        compile: bool | str = "auto",  # noqa: A002 - the public name
        chunk: int | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        precision: torch.dtype | None = None,
        log_prior: LogPrior | None = None,
        data_size: int | None = None,
    ):
        model, guide = self.model, self.guide = alike(model, guide)
        self.objective, self.particles = objective, particles
        self.optimizer, self.update = optimizer, Update(optimizer, accumulate, clip_norm)
        self.precision = precision
        self.programs = Programs(model, guide, objective)
        readers = (model, guide, objective) if log_prior is None else (model, guide, objective, log_prior)
        compiled = partial(Compiled, programs=self.programs, readers=readers, compile=compile)
        self.ascent, self.validation = compiled(self._ascent), compiled(self._bound)
        self.log_prior, self.data_size = log_prior, None if data_size is None else int(data_size)
        self.workers = workers()
        self.shared_ascent, self.shared_validation = compiled(self._shared_ascent), compiled(self._shared_bound)
        if self.workers and chunk is not None:
            raise ValueError("chunk: not for several processes, each of which has a part of the data; leave it out")
        if chunk is not None and chunk < particles:
            self.ascent = ChunkedAscent(
                objective,
                self._weighed,
                chunk,
                particles // chunk,
                compiled,
                self._names_of_moved,
                None if log_prior is None else self._prior_ascent,
            )
            self.validation = self.ascent.value
        self._at_once = min(particles, chunk or particles)
        self._held: list[int] = []
        self._moved: dict[str, Tensor] = {}
        self._checked = self._known_alike = False

    def prepare(self, x: Any) -> None:
        """Hold programs, objective and optimizer to the contract on a first batch; change nothing."""
        self._check_once(self._batch(x))

    def __call__(self, x: Any) -> Info:
        """Move the optimizer's parameters up the bound on one batch.

        The first batch is held to the contract (see `ppl_vae.check`) before anything moves; later
        ones run without Pyro's validation. A batch whose bound or gradients are NaN or infinite moves nothing:
        ``info.finite`` is False, ``faults`` counts it, and `explain` says why.
        """
        batch = self._batch(x)
        self._check_once(batch)
        self.follow_optimizer()
        moved = [*self._moved.values()]
        self.update.clear()
        with one_thread(), self.update.guarded(self.programs):
            with self._cast(batch):
                bound, annealed, penalties, log_prior, gradients = self._ascended(batch)
            values = [bound, *penalties.values(), *(v for v in (annealed, log_prior) if v is not None)]
            updated = self.update(moved, gradients, len(batch[0]), values)
        if updated:
            self.update.follow(self.objective)
        return Info(bound, penalties, log_prior, annealed, self.update.finite)

    def explain(self, x: Any, rows: Tensor | None = None) -> str:
        """Say what is no finite number on a batch, and where it comes from; see `ppl_vae.diagnosing.explain`."""
        batch, (trained, prior) = self._batch(x), (held_by(self.optimizer), self._log_prior_per_datum)
        with self._cast(batch):
            found = (self.model, self.guide, self.objective, batch, self.particles)
            return explain(*found, rows=rows, trained=trained, log_prior=lambda: prior(batch))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizer by its name as an argument."""
        return {self.role.name: self.optimizer}

    @property
    def faults(self) -> Tensor:
        """How many batches were refused, ``()``; nobody has waited for it."""
        return self.update.faults

    @property
    def in_a_row(self) -> Tensor:
        """How many of them since the last that was not, ``()``."""
        return self.update.in_a_row

    def bound(self, x: Any) -> Tensor:
        """Return the bound of each datum, ``(B,)``, in evaluation mode and without gradient."""
        batch = self._batch(x)
        with one_thread(), modes_and_buffers_kept(self.programs, training=False), self._cast(batch):
            mine = self.workers.part(batch) if self.workers else None
            return self.validation(batch) if mine is None else self.workers.gathered(self.shared_validation(mine))

    def plan(self, updates: int, validations: int = 0) -> None:
        """Say how many batches are to come, by which ``compile="auto"`` decides."""
        ascent, validation = self.ascent, self.validation
        if self.workers:  # batches that cannot be shared out are few
            ascent, validation = self.shared_ascent, self.shared_validation
            self.ascent.planned = self.validation.planned = 0
        ascent.planned = updates
        if isinstance(validation, Compiled):
            validation.planned = validations

    @property
    def accumulate(self) -> int:
        """Batches for one update."""
        return self.update.accumulate

    @property
    def graphs(self) -> int:
        """How many graphs were made of it."""
        return sum(function.count for function in self.functions().values())

    def functions(self) -> dict[str, Compiled]:
        """Return what may become graphs, by name."""
        found = {name: getattr(self, name) for name in ("ascent", "validation", "shared_ascent", "shared_validation")}
        own = {name: function for name, function in found.items() if isinstance(function, Compiled)}
        return own | (self.ascent.functions() if isinstance(self.ascent, ChunkedAscent) else {})

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, buffers and the optimizer's state."""
        state = {"programs": self.programs.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | ({"update": self.update.state_dict()} if self.update.accumulate > 1 else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; nothing changes unless all of it fits."""
        self.check_state(state)
        self.programs.load_state_dict(state["programs"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.update.load_state_dict(state.get("update", NOTHING_GATHERED))

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise if a state is of another kind of step, or of another optimizer."""
        if missing := {"programs", "optimizer"} - state.keys():
            raise ValueError(
                f"state: it has {', '.join(sorted(state))}, and no {' and no '.join(sorted(missing))}; take that of a "
                "step of the same kind"
            )
        check_optimizer_state(self.optimizer, state["optimizer"], self.role)

    def _batch(self, x: Any) -> Batch:
        return self.programs.on_device(as_batch(x))

    def _cast(self, batch: Batch) -> AbstractContextManager:
        """Have matrix products take numbers of the precision that was asked for."""
        return nullcontext() if self.precision is None else torch.autocast(batch[0].device.type, self.precision)

    def _check_once(self, batch: Batch) -> None:
        if not self._checked:
            check(self.model, self.guide, batch, self.log_prior)
            self.check_training(batch)

    def check_training(self, batch: Batch) -> None:
        """Hold optimizer, log prior and objective to the contract, on a batch that the programs fit."""
        if self.workers:
            self.workers.start_alike(self.programs.tensors())
        self.programs.run_once(self.model, self.guide, batch)
        check_optimizer(self.optimizer, self.programs, self.objective, self.role)
        if self.log_prior is not None:
            check_log_prior(self.log_prior, held_by(self.optimizer))
        with undisturbed(self.programs):
            enough = max(self._at_once, facts(self.objective).min_particles)
            chunks = max(self.particles // enough, 1)
            check_objective(self.objective, self.model, self.guide, batch, enough, chunks)
        self._checked = True

    def _ascent(self, tensors: Mapping[str, Tensor], batch: Batch) -> Ascent:
        """Return what there is to report, and the gradient of what is made small in each parameter that moves."""
        found = estimate(self.objective, self.model, self.guide, batch, self.particles)
        penalties = {name: penalty.mean() for name, penalty in found.penalties.items()}
        log_prior = self._log_prior_per_datum(batch)
        total = found.surrogate.mean() if log_prior is None else found.surrogate.mean() + log_prior
        # Of these parameters alone, so that frozen ones gather none.
        moved = [tensors[name] for name in self._moved]
        gradients = torch.autograd.grad(-total, moved, allow_unused=True)
        annealed = None if found.annealed is None else found.annealed.mean()
        log_prior = None if log_prior is None else log_prior.detach()
        return found.value.mean(), annealed, penalties, log_prior, gradients

    def _prior_ascent(self, tensors: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the log prior, and the gradient of minus it in each parameter that moves."""
        log_prior, moved = self._log_prior_per_datum(batch), [tensors[name] for name in self._moved]
        if not log_prior.requires_grad:  # what it is of has been frozen
            return log_prior, [None] * len(moved)
        return log_prior.detach(), torch.autograd.grad(-log_prior, moved, allow_unused=True)

    def _log_prior_per_datum(self, batch: Batch) -> Tensor | None:
        """Return log p(theta) / N, in the parameters' own precision."""
        if self.log_prior is None:
            return None
        uncast = torch.autocast(batch[0].device.type, enabled=False) if self.precision else nullcontext()
        with torch.enable_grad(), uncast:
            return self.log_prior() / self.data_size

    def _weighed(self, batch: Batch) -> Particles:
        """Return one chunk of particles."""
        return weigh_for(self.objective, self.model, self.guide, batch, self._at_once)

    def _names_of_moved(self) -> list[str]:
        return [*self._moved]

    def _ascended(self, batch: Batch) -> Ascent:
        """Return what `_ascent` does, this worker's part of the batch computed here."""
        mine = self.workers.part(batch) if self.workers else None
        if mine is None:
            return self.ascent(batch)
        bound, annealed, penalties, log_prior, gradients = self.shared_ascent(mine)
        if not self._known_alike:
            if name := self.workers.different(self.programs.tensors()):
                raise RuntimeError(
                    f"{name} follows the rows that each process sees (as running statistics of batch norm do), so that "
                    "processes would part ways; use layers and objectives without such state, or one process"
                )
            self._known_alike = True
        bound, annealed, *rest = self.workers.mean([bound, annealed, *penalties.values(), *gradients])
        return bound, annealed, dict(zip(penalties, rest, strict=False)), log_prior, rest[len(penalties) :]

    def _shared_ascent(self, tensors: Mapping[str, Tensor], batch: Batch) -> Ascent:
        with SharedNoise(self.workers, self.particles, batch[0].shape[0]):
            return self._ascent(tensors, batch)

    def _shared_bound(self, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        with SharedNoise(self.workers, self.particles, batch[0].shape[0]):
            return self._bound(tensors, batch)

    @torch.no_grad()
    def _bound(self, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        bound = getattr(self.objective, "bound", None) or self.objective
        value, _ = estimate(bound, self.model, self.guide, batch, self.particles)
        return value

    def follow_optimizer(self) -> None:
        """Know by name what the optimizer holds now, which decides what is differentiated."""
        held = held_by(self.optimizer)
        if [*map(id, held)] == self._held:
            return
        self._moved = moved_by(self.optimizer, self.programs, self.role)
        self._held = [*map(id, held)]
        self.ascent.forget()
        self.shared_ascent.forget()


def check_options(objective: Objective, particles: int, compile: bool | str) -> None:  # noqa: A002
    """Raise if a step cannot be made with these: wrong types, too few particles."""
    check_compile(compile)
    whole = inner_function(objective)
    if isinstance(whole, type):
        raise TypeError(f"objective: {whole.__name__} is a class; pass one made of it, {whole.__name__}(...)")
    check_in_sight(objective)
    if (not callable(objective) and not hasattr(objective, "estimate")) or isinstance(objective, pyro.infer.ELBO):
        raise TypeError(f"objective: expected a function of Particles, such as pv.objectives.elbo, found {objective!r}")
    if isinstance(particles, bool) or not isinstance(particles, int) or particles < 1:
        raise ValueError(f"particles: expected a whole number of at least 1, found {particles!r}")
    known = facts(objective)
    if particles < known.min_particles:
        raise ValueError(f"particles: {known.name} needs at least {known.min_particles}, found {particles}")
