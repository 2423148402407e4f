"""The one loop: epochs, validation, the best state, early stopping, and where to go on from. No mathematics."""

import copy
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae import runs
from ppl_vae.archive import UnreadableFile
from ppl_vae.averaging import Average
from ppl_vae.batches import Batch, Source
from ppl_vae.finiteness import BEST_ARE_BACK, Taken, check_epoch, explained, note_cause
from ppl_vae.fitted import Fit
from ppl_vae.guarding import stop
from ppl_vae.interrupting import Interrupts, interrupts, stopped_by
from ppl_vae.learning_rates import LearningRates
from ppl_vae.objectives import facts, settled
from ppl_vae.parallel import LostWorker
from ppl_vae.place import Place
from ppl_vae.programs import forked_random_state
from ppl_vae.progress import Bar, progress_bar
from ppl_vae.rules import Row, Rules
from ppl_vae.steps import Info, Step
from ppl_vae.streams import Streams, current

__all__ = ["Loop"]

# Often enough that little is lost. Where a save takes more than a second, so many times as long: a share of the time.
SECONDS_BETWEEN_SAVES = 20.0

BATCHES_BETWEEN_LOOKS = 50


class Loop:
    """One training run.

    Args:
        step: what a batch does.
        train: training data.
        valid: validation data, or None.
        rules: how the run goes.
        settings: what must be the same where a run goes on, by name.
        folder: its folder, or None.
        progress: whether to show a bar.
    """

    def __init__(
        self,
        step: Step,
        train: Source,
        valid: Source | None,
        rules: Rules,
        settings: Mapping[str, Any],
        folder: Path | None,
        progress: bool | None,
    ):
        self.step, self.train, self.valid, self.rules = step, train, valid, rules
        self.settings, self.folder, self.progress = settings, folder, progress
        # Seeded from the noise's generator, so that order and noise are different streams.
        self.order = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self.streams = Streams([self.order, *train.generators()])
        self.place = Place()
        self.average = None if rules.ema is None else Average(_parameters(step), rules.ema)
        self.rates = LearningRates(step, rules.scheduler, self._updates())
        self.best_state = copy.deepcopy(step.state_dict())
        self._lower_is_better = facts(getattr(step, "objective", None)).upper
        self.unseen: list[Taken] = []
        # To look at a number waits for the device, but on a CPU.
        on_cpu = getattr(getattr(getattr(step, "programs", None), "device", None), "type", "cpu") == "cpu"
        self._looks_every = 1 if on_cpu else BATCHES_BETWEEN_LOOKS
        self._heard = Interrupts()
        self._saved = self._begun = time.monotonic()
        self._cost = 0.0
        self._best_written: float | None = None

    def take_up(self, saved: Mapping[str, Any]) -> None:
        """Go on from where a run was.

        Raises:
            ValueError: it was another run.
            UnreadableFile: it was none.
        """
        unchanged = self.best_state
        try:
            self._take_up(saved)
        except BaseException as error:
            self.step.load_state_dict(unchanged)
            if not isinstance(error, AttributeError | IndexError | KeyError | TypeError):
                raise
            raise UnreadableFile(self.folder, "what is saved there is of no run of this library; remove it") from error

    def _take_up(self, saved: Mapping[str, Any]) -> None:
        for name, value in self.settings.items():
            if saved["settings"].get(name) != value:
                raise ValueError(
                    f"resume: {self.folder} holds a run with {name} = {saved['settings'].get(name)!r}, found "
                    f"{value!r}; go on with the same settings, or choose another folder"
                )
        self.step.load_state_dict(copy.deepcopy(saved["step"]))
        self.place = Place(**copy.deepcopy(saved["place"]))
        if self.place.best:
            self.best_state, self._best_written = copy.deepcopy(saved["best_state"]), self.place.best["epoch"]
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.rates.load_state_dict(saved["rates"])
        for name, function in self._functions().items():
            function.load_state_dict(saved["graphs"][name])
        self.streams.set(saved["streams"])
        self._begun -= self.place.seconds
        if self.place.ended in ("", "epochs"):  # as many as are asked for now
            self.place.ended = "epochs" if self.place.epoch > self.rules.epochs else ""

    def run(self) -> Fit:
        """Train to the end, and leave the step at its best state."""
        try:
            per_epoch = self.train.batches
            total = per_epoch and per_epoch * self.rules.epochs
            with progress_bar("Training", total, self.progress) as bar, interrupts() as self._heard:
                self._go_back()
                bar.advance(by=self.place.done)
                while not self.place.ended:
                    self._epoch(bar)
                    self._pause()
                self._save()
        except LostWorker as error:
            self._keep_best()
            where, best = f"in {self.folder}" if self.folder else "back in the programs", self.place.best
            kept = f"the parameters of epoch {best['epoch']} are {where}" if best else "none had ended"
            raise LostWorker(f"{error}. Training stopped in epoch {self.place.epoch}; {kept}") from error
        except OSError:  # the disk is full, say: nothing more is written
            raise
        except BaseException:
            self._keep_best()
            raise
        finally:  # also when a person stops it, or the bound is no number
            self.step.load_state_dict(self.best_state)
        ended = "" if self.place.ended == "epochs" else self.place.ended
        return Fit(self.place.history, self.place.best, self.folder, getattr(self.step, "graphs", 0), ended)

    def _go_back(self) -> None:
        """Have the files of a run be as they were here: they may be of a later moment, or damaged."""
        if self.folder:
            runs.write_metrics(self.folder, self.place.history)
            if self.place.best:
                runs.write_best(self.folder, self.best_state, self.place.best)
            else:
                runs.remove_best(self.folder)

    def _epoch(self, bar: Bar) -> None:
        """Step through what is left of an epoch, look at the validation data, and take note."""
        place = self.place
        for batch in self._batches():
            self._train(batch)
            bar.advance(partial(place.words, self.rules.epochs))
            self._pause()
        self._look()
        row = {"epoch": place.epoch, **self._means()}
        if self.valid is not None:
            graphs = self._graphs()
            with self._averaged():
                row["valid_bound"] = self._validate()
            # Not above, since it is not the averages that a run goes on from, and it validates once more.
            self._pause(graphs)
        row["seconds"] = time.monotonic() - self._begun
        with self._averaged():
            check_epoch(row, self.step, self.train, self.valid)
            self._record(row)
        self.rates.after_epoch(-self._judged(row))
        place.turn()
        self._end(row)

    def _means(self) -> dict[str, float]:
        """Return the means of an epoch over its data, but for batches that were refused."""
        place = self.place
        if place.batches == 0:
            raise ValueError(
                f"data: epoch {place.epoch} had no batches; let the loader give data each time that it is iterated over"
            )
        if place.rows == 0:
            raise FloatingPointError(f"every batch of epoch {place.epoch} was NaN or infinite; {BEST_ARE_BACK}")
        means = {name: total / place.rows for name, total in place.totals.items()}
        return means | ({} if self.rules.on_fault is stop else {"faults": place.faults})

    def _batches(self) -> Iterator[Batch]:
        """Return the batches that are left of the epoch."""
        place, now = self.place, self.streams.state()
        place.start = place.start if place.batches else now
        self.streams.set(place.start)
        batches = self.train.shuffled(self.order)
        for _ in range(place.batches):  # those of a run that was stopped, drawn again as they were
            next(batches)
        if place.batches:
            self.streams.set(now)
        return batches

    def _train(self, batch: Batch) -> None:
        """Take one step."""
        place, random = self.place, current()
        rows = self.train.rows_of(place.batches)
        try:
            info = self.step(batch)
        except (RuntimeError, ValueError) as error:  # discrete draws by probabilities that are NaN raise
            note_cause(error, self.step, Taken(None, batch, rows, random))
            raise
        self.unseen.append(Taken(info, batch, rows, random))
        place.batches, place.done = place.batches + 1, place.done + 1
        if len(self.unseen) >= self._looks_every:
            self._look()
        if place.done % getattr(self.step, "accumulate", 1) == 0:
            self.rates.after_update()
            if self.average is not None:
                self.average.update()

    def _look(self) -> None:
        """Sum up what steps report; ask what to do about those that were refused."""
        place, taken = self.place, self.unseen
        self.unseen = []
        for step in taken:
            if step.info.finite is None or bool(step.info.finite):
                place.in_a_row = 0
                for name, value in _reported(step.info).items():
                    # In Python's double precision, as sums over large data sets lose digits in a tensor's.
                    place.totals[name] = place.totals.get(name, 0.0) + float(value) * len(step.batch[0])
                place.rows += len(step.batch[0])
            else:
                place.faults, place.in_a_row = place.faults + 1, place.in_a_row + 1
                with self.rates.lasting():
                    go_on = self.rules.on_fault(self.step, place.in_a_row)
                if not go_on:
                    raise FloatingPointError(f"epoch {place.epoch}, {explained(self.step, step)}")

    def _averaged(self) -> AbstractContextManager[None]:
        """Have the parameters be their averages inside, where there are any."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _validate(self) -> float:
        """Return the mean bound of the validation data; of some of them, if somebody wants to stop."""
        bounds = []
        seed = self.rules.seed  # the same noise and order each time, so that epochs compare
        with forked_random_state(seed), Streams(self.valid.generators()).seeded(seed):
            for batch in self.valid:
                bounds.append(self.step.bound(batch))
                if self._heard.came is not None:
                    break
        return float(torch.cat(bounds).double().mean())

    def _judged(self, row: Row) -> float:
        """Return the bound by which epochs are compared, larger-is-better."""
        bound = row.get("valid_bound", row["train_bound"])
        return -bound if self._lower_is_better else bound

    def _record(self, row: Row) -> None:
        """Take an epoch into the history, and its state if it is the best."""
        place = self.place
        before = [*place.history]
        place.note(row)
        bound = row.get("valid_bound", row["train_bound"])
        best = place.best.get("bound")
        if self.valid is None or best is None or (bound < best if self._lower_is_better else bound > best):
            place.best, place.stale = {"epoch": row["epoch"], "bound": bound}, 0
            self.best_state = copy.deepcopy(self.step.state_dict())
        elif settled(getattr(self.step, "objective", None)):  # during warm-up a bound may well fall
            place.stale += 1
        if self.folder and before in ([], [*row]):
            runs.append_metrics(self.folder, row)
        elif self.folder:
            runs.write_metrics(self.folder, place.history)

    def _end(self, row: Row) -> None:
        """Find whether the run is over; hear what callbacks say."""
        stop = [callback(dict(row)) is True for callback in self.rules.callbacks]
        if any(stop):
            self.place.ended = "a callback ended it"
        elif self.rules.patience is not None and self.place.stale >= self.rules.patience:
            self.place.ended = f"no better validation bound for {self.rules.patience} epochs"
        elif self.place.epoch > self.rules.epochs:
            self.place.ended = "epochs"

    def _pause(self, graphs: Mapping[str, Any] | None = None) -> None:
        """Save if it is time, and stop if somebody asks for it; with these graphs, if others than there are now."""
        if self._heard.came is not None:
            self._stop(graphs)
        if self.folder and time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES * max(self._cost, 1.0):
            self._save(graphs)

    def _stop(self, graphs: Mapping[str, Any] | None) -> None:
        words = f"training stopped in epoch {self.place.epoch}"
        if self.folder:
            self._save(graphs)
            words += f"; it is saved in {self.folder}, from where resume=True goes on"
        if self._heard.came == signal.SIGTERM:
            print(words[0].upper() + words[1:], file=sys.stderr)
        raise stopped_by(self._heard.came, words)

    def _save(self, graphs: Mapping[str, Any] | None = None) -> None:
        """Write where the run is, whole or not at all."""
        if not self.folder:
            return
        self._look()
        began = time.monotonic()
        self.place.seconds = time.monotonic() - self._begun
        content = {"settings": dict(self.settings), "place": self.place.state_dict(), "step": self.step.state_dict()}
        content |= {"best_state": self.best_state if self.place.best else None, "streams": self.streams.state()}
        content |= {"average": self.average and self.average.state_dict(), "rates": self.rates.state_dict()}
        content |= {"graphs": self._graphs() if graphs is None else graphs}
        runs.write_last(self.folder, content)
        self._keep_best()
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def _keep_best(self) -> None:
        """Write the best state, unless it is written."""
        best = self.place.best
        if self.folder and best and best["epoch"] != self._best_written:
            runs.write_best(self.folder, self.best_state, best)
            self._best_written = best["epoch"]

    def _updates(self) -> int | None:
        """Return how many updates there will be, where that is known."""
        batches = self.train.batches
        return batches and batches * self.rules.epochs // getattr(self.step, "accumulate", 1)

    def _graphs(self) -> dict[str, Any]:
        return {name: function.state_dict() for name, function in self._functions().items()}

    def _functions(self) -> Mapping[str, Any]:
        return self.step.functions() if hasattr(self.step, "functions") else {}


def _parameters(step: Step) -> dict[str, Tensor]:
    if not hasattr(step, "programs"):
        raise ValueError("ema: the step shows no programs (step.programs), whose parameters could be averaged")
    return step.programs.parameters()


def _reported(info: Info) -> dict[str, Tensor]:
    """Return what a step reports, by what the history calls it."""
    found = {"train_bound": info.bound, "annealed_bound": info.annealed, "log_prior": info.log_prior}
    return {name: value for name, value in found.items() if value is not None} | dict(info.penalties)
