"""`fit`: programs or a step, data and options made ready for the one loop."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from ppl_vae import runs
from ppl_vae.arguments import whole, whole_seed
from ppl_vae.batches import Source, as_batch, source
from ppl_vae.checking import check
from ppl_vae.data.splits import Splits
from ppl_vae.fitted import Fit
from ppl_vae.guarding import Policy, stop
from ppl_vae.indexing import alike, check_reach, with_index
from ppl_vae.learning_rates import Scheduler
from ppl_vae.log_priors import LogPrior, prior_options
from ppl_vae.loop import Loop
from ppl_vae.objectives import Objective, elbo, facts
from ppl_vae.optimizers import adam, made, to_train
from ppl_vae.parallel import Workers, workers
from ppl_vae.programs import Program, Programs, forked_random_state, program_name
from ppl_vae.pyro_step import check_callable, check_elbo
from ppl_vae.rules import Rules, check_rules
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
    scheduler: Scheduler | Mapping[str, Scheduler] | None = None,
    ema: float | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callable[[Mapping[str, float]], Any]] = (),
    on_fault: Policy = stop,
    resume: bool = False,
    overwrite: bool = False,
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
        out: a new folder for the run: ``config.toml``, ``metrics.csv``, the best state in ``best.pt``, and in
            ``last.pt`` what a run goes on from that was stopped, killed or lost its machine.
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
        scheduler: from an optimizer to one of torch's learning-rate schedulers of it, such as
            ``partial(CosineAnnealingLR, T_max=epochs)``, or such functions by the optimizer's name. They move after
            each epoch, but for ``OneCycleLR`` and ``CyclicLR``, which move after each update; ``ReduceLROnPlateau`` is
            given minus the validation bound.
        ema: decay of an exponential moving average of the parameters over updates, such as 0.999. It is what is
            validated, kept as best, and left in the programs.
        patience: epochs without a better validation bound after which training ends; none count while a schedule of
            the objective still moves.
        callbacks: functions that are given the row of the history after each epoch; one that returns True ends
            training.
        on_fault: what to do about a batch whose bound or gradients are NaN or infinite. Such a batch never moves
            anything. `ppl_vae.guarding.stop` stops, and says where the number came from, `ppl_vae.guarding.skip` goes
            on without it, ``ppl_vae.guarding.back_off()`` goes on with smaller learning rates; the history then counts
            such batches as ``"faults"``.
        resume: go on with the run in ``out``, if there is one, with the same programs, data and settings (more epochs
            may be asked for; refused where the optimizer, scheduler, average or the like is another): on a CPU its end
            is that of a run without interruption, bit for bit. What data loaders draw from other generators than
            torch's is not part of that.
        overwrite: replace the run in ``out``, if there is one.

    Returns:
        `Fit`.

    Raises:
        ContractError: model, guide and the first batch do not fit; nothing has been changed.
        FileExistsError: ``out`` holds a run already, or something else.
        BlockingIOError: another run is at work in ``out``.
        KeyboardInterrupt, SystemExit: somebody pressed Ctrl-C, or sent SIGTERM; with ``out``, the run is saved there.
            The best parameters so far are back.
        FloatingPointError: a bound, a gradient or a parameter became NaN or infinite; the message names the site or
            parameter, the datum and the tensor where it began. The best parameters so far are back.

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
        planned, together = isinstance(step, PlannedStep), workers()
        _check_batches(train, epochs, step.accumulate if planned else 1, together)
        rules = Rules(epochs, seed, patience, ema, scheduler, callbacks, on_fault)
        check_rules(rules, held_out, resume, overwrite, out)
        drawn = getattr(objective, "num_particles", particles)
        settings = {"objective": facts(objective).name, "particles": drawn, "epochs": epochs}
        settings |= {"batch_size": train.batch_size, "seed": seed, "model": program_name(model or step)}
        given = {"chunk": chunk, "clip_norm": clip_norm, "precision": precision, "ema": ema}
        same = _same(settings, given | {"log_prior": log_prior is not None}, step, train, held_out)
        if planned:
            train, held_out = (part and part.on(step.programs.device) for part in (train, held_out))
        if planned and train.batches:
            step.plan(epochs * train.batches, epochs * (held_out.batches or 0) if held_out else 0)
        with runs.taken(out, together, resume, overwrite) as folder:  # only once model, guide and data fit
            progress = progress if together is None or together.leads else False
            loop = Loop(step, train, held_out, rules, same, folder, progress)
            _begin(loop, folder, together, resume, config or settings)
            result = loop.run()
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


def _check_batches(train: Source, epochs: int, accumulate: int, together: Workers | None) -> None:
    """Raise if there are too few batches for an update, or they cannot be shared out."""
    if train.batches and (batches := epochs * train.batches) < accumulate:
        raise ValueError(f"accumulate: {batches} batches in {epochs} epochs are too few for one update of {accumulate}")
    if together and train.batch_size % together.size:
        raise ValueError(
            f"batch_size: {train.batch_size} rows cannot be shared out evenly to {together.size} processes; choose "
            "a multiple"
        )


def _begin(loop: Loop, folder: Path | None, together: Workers | None, resume: bool, config: Mapping[str, Any]) -> None:
    """Go on with the run in a folder, in all processes, or record the settings of a new one."""
    saved = runs.read_last(folder) if folder and resume else None
    saved = together.told(saved) if together else saved
    if saved is not None:
        loop.take_up(saved)
    elif folder:
        runs.write_config(folder, config)


def _same(
    settings: Mapping[str, Any], given: Mapping[str, Any], step: Step, train: Source, held_out: Source | None
) -> dict[str, Any]:
    """Return what must be the same where a run goes on, by name."""
    same = {name: value for name, value in settings.items() if name != "epochs"}
    same |= {"data": train.digest(), "valid": held_out and held_out.digest(), **given}
    same |= {"guide": program_name(step.guide) if hasattr(step, "guide") else None}
    # Numbers that it was made with, as schedulers move those in its groups: a saved state brings its own.
    optimizers = step.optimizers() if hasattr(step, "optimizers") else {}
    numbers = {f"{o} {name}": value for o in optimizers for name, value in optimizers[o].defaults.items()}
    same |= {name: value for name, value in numbers.items() if type(value) in (int, float, tuple)}
    return same | {"accumulate": getattr(step, "accumulate", 1)}


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
    programs.load_state_dict(runs.read_programs(runs.folder_of(out)))
