"""The one loop: epochs, validation, the best state, progress, and the run folder. No mathematics."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from ppl_vae import runs
from ppl_vae.arguments import whole, whole_seed
from ppl_vae.batches import Source, as_batch, not_finite, source
from ppl_vae.checking import check, unmasked
from ppl_vae.data.splits import Splits
from ppl_vae.fitted import Fit
from ppl_vae.indexing import alike, check_reach, with_index
from ppl_vae.log_priors import LogPrior, prior_options
from ppl_vae.objectives import Objective, elbo, facts
from ppl_vae.optimizers import adam, made, to_train
from ppl_vae.parallel import LostWorker, workers
from ppl_vae.programs import Program, Programs, forked_random_state, program_name
from ppl_vae.progress import Bar, progress_bar
from ppl_vae.pyro_step import check_callable, check_elbo
from ppl_vae.steps import PlannedStep, Step, svi_step
from ppl_vae.svi import check_options

__all__ = ["fit", "restore"]

Optimizer = torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer]


def fit(
    model: Program | None = None,
    guide: Program | None = None,
    data: Any = None,
    objective: Objective | PyroELBO = elbo,
    particles: int = 1,
    epochs: int = 20,
    batch_size: int = 128,
    optimizer: Optimizer | None = None,
    valid: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    compile: bool | str = "auto",  # noqa: A002 - the public name
    *,
    step: Step | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    progress: bool | None = None,
    config: Mapping[str, Any] | None = None,
    chunk: int | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    precision: torch.dtype | None = None,
    log_prior: LogPrior | None = None,
) -> Fit:
    """Train a model and a guide in place, and leave them with their best parameters.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments. One that has something of its own for each datum names a last
            argument ``index``, the rows of a batch in the training data, and is given it. Adam, the default, goes on
            moving what is of data that a minibatch has not: hold it in ``nn.Embedding(N, d, sparse=True)`` and pass
            ``torch.optim.SparseAdam`` (which takes no other parameters; `variational_em` has an optimizer for each
            program), or pass SGD without momentum, or ``batch_size=N``.
        data: `Splits` (trains on ``train``, validates on ``valid``, binarizes anew in every batch
            where they are dynamic), a tensor ``(N, ...)``, a tuple of them, a Dataset or a DataLoader.
        objective: a bound, ``Particles -> (B,)``, or one of Pyro's, such as ``Trace_ELBO(num_particles=5)``.
        particles: K, draws per datum; Pyro's objectives bring their own.
        epochs: passes over the data.
        batch_size: data per step; the last batch of an epoch may be shorter.
        optimizer: a torch optimizer, or a function from parameters to one, such as
            ``partial(torch.optim.Adam, lr=3e-4)``; Adam with 1e-3, in torch's fused form, when left out.
        valid: validation data, in any of the forms of ``data``. After each epoch their bound is
            taken with the same noise, and the parameters of the best epoch are kept, also when
            training is interrupted.
        out: a new folder for the run: ``config.toml``, ``metrics.csv``, ``checkpoint.pt``.
        seed: seeds order and draws. The caller's random state does not move.
        compile: see `svi_step`; ``"auto"`` goes by the number of epochs and the size of the data.
        step: drive this step instead of one made from model, guide, objective and optimizer.
        transform: applied to x in every training batch, such as ``pv.data.binarize``.
        progress: whether to show a bar; by default where a terminal or notebook shows it.
        config: what ``config.toml`` records; by default the settings of this call.
        chunk: see `svi_step`, as for the next three.
        accumulate: batches for one update, across the end of an epoch too; what is left at the end makes none.
        clip_norm: the largest norm of the gradient.
        precision: ``torch.bfloat16`` for mixed precision.
        log_prior: log p(theta) in nats, such as ``normal_prior(model)``, for a maximum a posteriori estimate: what is
            made large is the mean bound plus log p(theta) / N, of N training data, which the history has apart.

    Returns:
        `Fit`.

    Raises:
        ContractError: model, guide and the first batch do not fit; nothing has been changed.
        FileExistsError: ``out`` exists and is not an empty folder.
        FloatingPointError: the bound became NaN or infinite. The best parameters so far are back.

    Reference: as `svi_step`.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=(8,)), Normal(x_dim=6, z_dim=2, hidden=(8,))
        >>> x = torch.ones(40, 6)
        >>> fit = pv.fit(model, guide, x, epochs=30, batch_size=10)
        >>> fit.history["train_bound"][-1] > fit.history["train_bound"][0]
        True
    """
    whole("epochs", epochs)
    whole_seed(seed)
    data, valid, transform = unpacked(data, valid, transform)
    programs = getattr(step, "model", model), getattr(step, "guide", guide)
    data = with_index(data, valid, *programs)
    train = source(data, batch_size, transform)
    held_out = None if valid is None else source(valid, batch_size)
    with forked_random_state(seed):
        if step is None:
            options = {"chunk": chunk, "accumulate": accumulate, "clip_norm": clip_norm, "precision": precision}
            options |= {"compile": compile, **prior_options(log_prior, train.rows)}
            step = _make_step(model, guide, train, held_out, objective, particles, optimizer, options)
        elif (model, guide, optimizer) != (None, None, None) or objective is not elbo or particles != 1:
            raise ValueError("step: it brings its own model, guide, objective, particles and optimizer")
        elif (chunk, accumulate, clip_norm, precision, log_prior, compile) != (None, 1, None, None, None, "auto"):
            raise ValueError("step: it brings its own chunk, accumulate, clip_norm, precision, log_prior and compile")
        check_reach(data, *programs)
        planned = isinstance(step, PlannedStep)
        if planned and train.batches and epochs * train.batches < step.accumulate:
            raise ValueError(
                f"accumulate: {epochs * train.batches} batches in {epochs} epochs are too few for one update of "
                f"{step.accumulate}"
            )
        together = workers()
        if together and train.batch_size % together.size:
            raise ValueError(
                f"batch_size: {train.batch_size} rows cannot be shared out evenly to {together.size} processes; choose "
                "a multiple"
            )
        folder = None if out is None else runs.shared_folder(out, together)  # only once model, guide and data fit
        progress = progress if together is None or together.leads else False
        if folder:
            drawn = getattr(objective, "num_particles", particles)
            settings = {"objective": facts(objective).name, "particles": drawn, "epochs": epochs}
            settings |= {"batch_size": train.batch_size, "seed": seed, "model": program_name(model or step)}
            runs.write_config(folder, config or settings)
        if planned:
            train, held_out = (part and part.on(step.programs.device) for part in (train, held_out))
        if planned and train.batches:
            step.plan(epochs * train.batches, epochs * (held_out.batches or 0) if held_out else 0)
        result = _Loop(step, train, held_out, epochs, seed, folder, progress).run()
    held = None if valid is None else ("validation", valid)
    if planned and hasattr(step, "guide"):  # a generator that plays against a critic has none to evaluate with
        result.trained = (step.model, step.guide, *(held or ("training", data)))
    return result


def unpacked(data: Any, valid: Any, transform: Any) -> tuple[Any, Any, Any]:
    """Take training data, validation data and the transform out of `Splits`."""
    if data is None:
        raise ValueError("data: nothing to train on; pass pv.data.load(...), a tensor, a Dataset or a DataLoader")
    if isinstance(valid, Splits):
        valid = valid.valid
    if isinstance(data, Splits):
        valid = data.valid if valid is None else valid
        transform = data.info.transform if transform is None else transform
        data = data.train
    return data, valid, transform


def _make_step(
    model: Program | None,
    guide: Program | None,
    train: Source,
    held_out: Source | None,
    objective: Objective | PyroELBO,
    particles: int,
    optimizer: Optimizer | None,
    options: Mapping[str, Any],
) -> Step:
    if model is None or guide is None:
        raise ValueError("model, guide: pass both, or a step that brings its own")
    model, guide = alike(model, guide)
    pyros = isinstance(objective, PyroELBO)
    (check_elbo if pyros else check_options)(objective, particles, options["compile"])
    # What Pyro's objectives ask besides is between Pyro and the programs.
    hold_to_contract = check_callable if pyros else partial(check, log_prior=options.get("log_prior"))
    batch = Programs(model, guide).on_device(train.first())
    hold_to_contract(model, guide, batch)  # before an optimizer is made of parameters that may not exist yet
    if not isinstance(optimizer, torch.optim.Optimizer):
        programs = Programs(model, guide, objective).run_once(model, guide, batch)
        parameters = to_train(programs, objective)
        optimizer = made(optimizer or adam, parameters)
    step = svi_step(model, guide, objective, particles, optimizer=optimizer, **options)
    step.prepare(batch)
    if held_out is not None:
        hold_to_contract(model, guide, step.programs.on_device(held_out.first()))
    return step


def restore(model: Program, guide: Program, out: str | Path, like: Any = None) -> None:
    """Copy the best parameters of a run folder into a model and a guide.

    Args:
        model: Pyro program of the same sizes as the one that was trained.
        guide: its guide.
        out: the folder that `fit` wrote.
        like: a batch to run the programs on first, needed where parameters are made on the way
            (``pyro.param``, lazy layers).

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: the parameters do not fit; nothing has been changed.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> sizes = {"x_dim": 6, "z_dim": 2, "hidden": (8,)}
        >>> _ = pv.fit(VAE(**sizes), Normal(**sizes), torch.ones(40, 6), epochs=1, out="run")
        >>> model, guide = VAE(**sizes), Normal(**sizes)
        >>> pv.restore(model, guide, "run")
    """
    model, guide = alike(model, guide)
    programs = Programs(model, guide)
    if like is not None:
        programs.run_once(model, guide, as_batch(like))
    programs.load_state_dict(runs.read_programs(Path(out)))


class _Loop:
    """One training run."""

    def __init__(
        self,
        step: Step,
        train: Source,
        valid: Source | None,
        epochs: int,
        seed: int,
        folder: Path | None,
        progress: bool | None,
    ):
        self.step, self.train, self.valid = step, train, valid
        self.epochs, self.seed, self.folder, self.progress = epochs, seed, folder, progress
        # Seeded from the noise's generator, so that order and noise are different streams.
        self.order = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self.result = Fit(out=folder)
        self._lower_is_better = facts(getattr(step, "objective", None)).upper
        self.best_state = copy.deepcopy(step.state_dict())

    def run(self) -> Fit:
        started = time.perf_counter()
        per_epoch = self.train.batches
        try:
            with progress_bar("Training", per_epoch and per_epoch * self.epochs, self.progress) as bar:
                for epoch in range(1, self.epochs + 1):
                    row = {"epoch": epoch, **self._train_epoch(epoch, bar)}
                    if self.valid is not None:
                        row["valid_bound"] = self._validate()
                    row["seconds"] = time.perf_counter() - started
                    self._refuse_nan(row)
                    self._record(row)
        except LostWorker as error:
            where = f"in {self.folder}" if self.folder else "back in the programs"
            best = self.result.best
            kept = f"the parameters of epoch {best['epoch']} are {where}" if best else "none had ended"
            raise LostWorker(f"{error}. Training stopped in epoch {epoch}; {kept}") from error
        finally:  # also when a person stops it, or the bound is no number
            self.step.load_state_dict(self.best_state)
        self.result.graphs = getattr(self.step, "graphs", 0)
        return self.result

    def _train_epoch(self, epoch: int, bar: Bar) -> dict[str, float]:
        """Step through one epoch and return the mean bound and penalties over its data."""
        totals: dict[str, Tensor] = {}
        rows = 0
        for batch in self.train.shuffled(self.order):
            info, n = self.step(batch), len(batch[0])
            # Summed as tensors: a step must not wait for the device.
            prior = {} if info.log_prior is None else {"log_prior": info.log_prior}
            for name, value in {"train_bound": info.bound, **prior, **info.penalties}.items():
                totals[name] = totals.get(name, 0.0) + value * n
            rows += n
            bar.advance(partial(_note, epoch, self.epochs, totals["train_bound"], rows))
        return {name: float(total) / rows for name, total in totals.items()}

    def _validate(self) -> float:
        with forked_random_state(self.seed):  # the same noise each time, so that epochs compare
            bounds = torch.cat([self.step.bound(batch) for batch in self.valid])
        return float(bounds.double().mean())

    def _is_finite(self) -> bool:
        """Tell whether every floating tensor of the state is finite; asked once an epoch."""
        tensors = [t for t in _tensors(self.step.state_dict()) if t.is_floating_point()]
        return all(bool(t.isfinite().all()) for t in tensors)

    def _record(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            self.result.history.setdefault(name, []).append(value)
        bound = row.get("valid_bound", row["train_bound"])
        best = self.result.best.get("bound")
        if self.valid is None or best is None or (bound < best if self._lower_is_better else bound > best):
            self.result.best = {"epoch": row["epoch"], "bound": bound}
            self.best_state = copy.deepcopy(self.step.state_dict())
            if self.folder:
                runs.write_checkpoint(self.folder, self.best_state, self.result.best)
        if self.folder:
            runs.append_metrics(self.folder, row)

    def _refuse_nan(self, row: dict[str, float]) -> None:
        """Stop before a state is kept whose bound or parameters are not numbers."""
        wrong = [f"the {name} became {v}" for name, v in row.items() if not math.isfinite(v)]
        if not wrong and not self._is_finite():
            wrong = ["a parameter became NaN or infinite"]
        if wrong:
            repair = self._rows_not_finite() or (
                "Look at the data, try a smaller learning rate, or put a floor under the scales that networks give"
            )
            raise FloatingPointError(
                f"{wrong[0]} in epoch {row['epoch']}; the programs have their best parameters so far back. {repair}"
            )

    def _rows_not_finite(self) -> str:
        """Say which of the data in memory are not numbers where no mask covers them."""
        model = getattr(self.step, "model", None)
        for name, data in (("data", self.train), ("valid", self.valid)):
            tensors = getattr(data, "tensors", ())
            if rows := not_finite(unmasked(model, tensors) if callable(model) else tensors):
                return f"{name}: {rows}"
        return ""


def _tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts and sequences."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def _note(epoch: int, epochs: int, total: Tensor, rows: int) -> str:
    return f"epoch {epoch}/{epochs}, bound {float(total) / rows:.2f} nats per datum"
