"""Anneal chains for a data set, a batch at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from torch import Tensor

from ppl_vae.batches import Batch, Source, as_batch
from ppl_vae.compiling import Compiled
from ppl_vae.coordinates import Coordinates
from ppl_vae.diagnostics import effective_sample_size, log_mean_error
from ppl_vae.objectives import iwae
from ppl_vae.particles import Particles
from ppl_vae.programs import Program, Programs, undisturbed
from ppl_vae.progress import progress_bar
from ppl_vae.starting import checked_coordinates, draw_start, refuse_impossible
from ppl_vae.tempering import (
    PILOT_DISTRIBUTIONS,
    PILOT_FIRST,
    PILOT_TRANSITIONS,
    Annealed,
    Schedule,
    Steps,
    Tick,
    anneal,
    densities,
    ends,
    evaluator,
    pilot,
    temperatures_of,
)

__all__ = ["Run", "Settings"]

# The most chains that find step sizes. Where a run has no more, one graph serves both.
PILOT_CHAINS = 16


@dataclass(frozen=True)
class Settings:
    """How chains are annealed.

    Attributes:
        chains: K, chains per datum.
        distributions: on the path, both ends included.
        leapfrog: steps of a transition.
        start: the distribution at the path's start, in words.
        seed: what the draws are seeded with.

    Example:
        >>> print(Settings(chains=16, distributions=1000, leapfrog=10, start="the prior", seed=0))
        16 chains per datum through 1,000 distributions from the prior to the posterior, with 10 leapfrog steps of
        Hamiltonian Monte Carlo at each
    """

    chains: int
    distributions: int
    leapfrog: int
    start: str
    seed: int

    def __post_init__(self):
        for name, least in (("distributions", 2), ("chains", 1), ("leapfrog", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, found {value!r}")

    def __str__(self) -> str:
        moves = f", with {_counted(self.leapfrog, 'leapfrog step')} of Hamiltonian Monte Carlo at each"
        return (
            f"{_counted(self.chains, 'chain')} per datum through {self.distributions:,} distributions from "
            f"{self.start} to the posterior{moves if self.distributions > 2 else ''}"
        )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number > 1)}"


@dataclass(frozen=True)
class Run:
    """Chains from a model's prior, or from a guide, to its posterior.

    Attributes:
        model: Pyro program.
        guide: where chains start; at the prior if None.
        settings: see `Settings`.
        schedule: see `ppl_vae.tempering.sigmoid_schedule`.
        compile: see `Compiled`.
    """

    model: Program
    guide: Program | None
    settings: Settings
    schedule: Schedule
    compile: bool | str

    def columns(
        self, batches: Source, seed: int, progress: bool | None = None, exact: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Return what is estimated of each datum, by name, ``(N,)`` each.

        Args:
            batches: data.
            seed: seeds the draws.
            progress: whether to show a bar.
            exact: names of latents of which the batches hold, after the data, draws from the posterior;
                from these chains go back for an upper bound.
        """
        programs = Programs(self.model, self.guide or self.model)
        parts: list[Mapping[str, Tensor]] = []
        total = batches.batches and batches.batches * self._ticks(len(exact) > 0)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            undisturbed(programs, seed, training=False),
            progress_bar("Annealing", total, progress) as bar,
        ):
            for batch in batches:
                batch = programs.on_device(as_batch(batch))
                data, draws = batch[: len(batch) - len(exact)], batch[len(batch) - len(exact) :]
                if not parts:
                    chains = self._chains(programs, data, batches.batches, len(exact) > 0)
                first = sum(len(part["log_px"]) for part in parts)
                with pyro.validation_enabled(False):  # which would not name the datum
                    parts.append(chains.columns(data, dict(zip(exact, draws, strict=True)), first, bar.advance))
                bar.advance(partial(_mean, parts))
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    @property
    def moves(self) -> int:
        """How many transitions a chain makes from one end to the other."""
        return self.settings.distributions - 2

    @property
    def explored(self) -> int:
        """How many distributions the pilot run goes through."""
        return min(self.settings.distributions, PILOT_DISTRIBUTIONS)

    def _ticks(self, both: bool) -> int:
        """Return how often a batch moves the bar, there and, for two bounds, back."""
        return 1 + self.moves * (1 + both) + (self.explored - 1 if self.moves else 0)

    def _chains(self, programs: Programs, data: Batch, batches: int | None, both: bool) -> "_Chains":
        space = checked_coordinates(self.model, self.guide, data)
        programs.run_once(self.model, self.guide or self.model, data)

        def compiled(transitions: int) -> Compiled:
            planned = batches and batches * transitions * self.settings.leapfrog
            function = densities(self.model, self.guide, space)
            return Compiled(function, programs, (self.model, self.guide), compile=self.compile, planned=planned)

        pilots = PILOT_FIRST + PILOT_TRANSITIONS * (self.explored - 2)
        counted = self.moves * (1 + both)
        if self.settings.chains <= PILOT_CHAINS:
            function = compiled(pilots + counted)
            return _Chains(self, space, function, function)
        return _Chains(self, space, compiled(pilots), compiled(counted))


def _mean(parts: Sequence[Mapping[str, Tensor]]) -> str:
    return f"{float(torch.cat([part['log_px'] for part in parts]).mean()):.2f} nats per datum"


@dataclass(frozen=True)
class _Chains:
    """A run whose programs have been checked on the first batch."""

    run: Run
    space: Coordinates
    explore: Compiled
    count: Compiled

    def columns(self, data: Batch, draws: Mapping[str, Tensor], first: int, tick: Tick) -> dict[str, Tensor]:
        """Return the estimates of one batch, whose first datum has the index ``first``."""
        settings = self.run.settings
        temperatures = temperatures_of(self.run.schedule, settings.distributions)
        steps = self._steps(data, first, tick) if len(temperatures) > 2 else None
        forth = self._annealed(data, self._start(data, settings.chains), temperatures, steps, first, tick)
        unknown = torch.full_like(forth.acceptance, torch.nan)
        columns = _estimates(forth.log_w) | {
            "acceptance": forth.acceptance,
            "step_size": steps.at(1.0).to(unknown) if steps else unknown,
        }
        if not draws:
            return columns
        posterior = self.space.position({name: value.unsqueeze(0) for name, value in draws.items()})
        posterior = posterior.expand(settings.chains, -1, -1)
        back = _estimates(self._annealed(data, posterior, temperatures[::-1], steps, first, tick).log_w)
        return columns | {"upper": -back["log_px"], "upper_error": back["log_px_error"]}

    def _steps(self, data: Batch, first: int, tick: Tick) -> Steps:
        start = self._start(data, min(self.run.settings.chains, PILOT_CHAINS))
        self._refuse_impossible(data, start, first)
        temperatures = temperatures_of(self.run.schedule, self.run.explored)
        return pilot(start, evaluator(self.explore, data), temperatures, self.run.settings.leapfrog, tick)

    def _start(self, data: Batch, chains: int) -> Tensor:
        return draw_start(self.run.guide or self.run.model, self.space, data, chains)

    def _annealed(
        self,
        data: Batch,
        start: Tensor,
        temperatures: Sequence[float],
        steps: Steps | None,
        first: int,
        tick: Tick,
    ) -> Annealed:
        self._refuse_impossible(data, start, first)
        evaluate = evaluator(self.count, data)
        found = anneal(start, evaluate, temperatures, steps, self.run.settings.leapfrog, tick)
        _refuse_empty(found.log_w, first)
        return found

    def _refuse_impossible(self, data: Batch, start: Tensor, first: int) -> None:
        refuse_impossible(ends(self.run.model, self.run.guide, self.space, data, start), first)


def _refuse_empty(log_w: Tensor, first: int) -> None:
    """Raise if the weights of a datum say nothing."""
    for bad, what in ((log_w.isnan().any(0), "a log-weight is NaN"), (log_w.isneginf().all(0), "all have zero weight")):
        if bad.any():
            raise FloatingPointError(
                f"datum {first + int(bad.nonzero()[0])}: of its {_counted(len(log_w), 'chain')} {what}; look for "
                "data or latents outside the model's support, or take more chains"
            )


def _estimates(log_w: Tensor) -> dict[str, Tensor]:
    """Return the columns that log-weights ``(K, B)`` give, by the bound that also trains."""
    return {
        "log_px": iwae(Particles(log_p={"w": log_w}, log_q={})),
        "log_px_error": log_mean_error(log_w),
        "ess": effective_sample_size(log_w),
    }
