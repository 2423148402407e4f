"""Variational EM: the guide's parameters and the model's move up a bound in turn."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae.batches import Batch, as_batch, source
from ppl_vae.checking import check
from ppl_vae.compiling import Compiled
from ppl_vae.diagnosing import NOTHING_FOUND
from ppl_vae.fitted import Fit
from ppl_vae.indexing import alike, with_index
from ppl_vae.log_priors import LogPrior, prior_options
from ppl_vae.objectives import Objective, elbo, facts
from ppl_vae.objectives.options import whole
from ppl_vae.optimizers import Role, adam, made
from ppl_vae.ownership import check_apart, check_e_steps, check_owner, owned
from ppl_vae.programs import Program, Programs, forked_random_state, program_name
from ppl_vae.steps import svi_step
from ppl_vae.svi import Info, SVIStep, check_options
from ppl_vae.training import Optimizer, fit, unpacked

__all__ = ["VariationalEMStep", "variational_em", "variational_em_step"]


class VariationalEMStep:
    """E-steps, then M-steps, on one batch. Made by `ppl_vae.variational_em_step`.

    Attributes:
        e_step: moves the guide's parameters; None where there are none to move.
        m_step: moves the model's.
    """

    accumulate = 1

    def __init__(self, e_step: SVIStep | None, m_step: SVIStep, e_steps: int, m_steps: int):
        self.e_step, self.m_step = e_step, m_step
        m_step.role = Role("model_optimizer", "model.parameters()")
        if e_step is not None:
            e_step.role = Role("guide_optimizer", "guide.parameters()")
        self.e_steps, self.m_steps = e_steps, m_steps
        self.model, self.guide, self.objective = m_step.model, m_step.guide, (e_step or m_step).objective
        # An estimator's own parameters and state are known to the step that it is given to.
        self.programs = (e_step or m_step).programs
        self._prepared = False

    def prepare(self, x: Any) -> None:
        """Hold programs, objective and both optimizers to the contract on a first batch; change nothing."""
        batch = self.programs.on_device(as_batch(x))
        check(self.model, self.guide, batch, self.m_step.log_prior)
        self.check_training(batch)

    def check_training(self, batch: Batch) -> None:
        """Hold objective and both optimizers to the contract, on a batch that the programs fit."""
        for step in self._steps():
            step.check_training(batch)
        if self.e_step is None:
            _, of_guide = owned(self.model, self.guide, self.m_step.objective, batch)
            check_owner(self.m_step.optimizer, "model_optimizer", of_guide, "guide")
        self._prepared = True

    def __call__(self, x: Any) -> Info:
        """Update the guide ``e_steps`` times, then the model ``m_steps`` times; report what the last update found."""
        if not self._prepared:
            self.prepare(x)
        for step in self._steps():  # before either moves, as parameters may have been frozen since
            step.follow_optimizer()
        finite = []
        if self.e_step is not None:
            for _ in range(self.e_steps):
                finite.append(self.e_step(x).finite)
        for _ in range(self.m_steps):
            info = self.m_step(x)
            finite.append(info.finite)
        return replace(info, finite=torch.stack(finite).all())

    def explain(self, x: Any, rows: Tensor | None = None) -> str:
        """Say what is no finite number on a batch, and where it comes from: in the first step that meets any."""
        found = [step.explain(x, rows) for step in self._steps()]
        return next((words for words in found if words != NOTHING_FOUND), NOTHING_FOUND)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers by their names as arguments."""
        return {name: optimizer for step in self._steps() for name, optimizer in step.optimizers().items()}

    @property
    def faults(self) -> Tensor:
        """How many updates were refused, ``()``; nobody has waited for it."""
        return torch.stack([step.faults for step in self._steps()]).sum()

    @property
    def in_a_row(self) -> Tensor:
        """The longest row of updates of either kind, each refused, up to now, ``()``."""
        return torch.stack([step.in_a_row for step in self._steps()]).amax()

    def bound(self, x: Any) -> Tensor:
        """Return the bound of each datum, ``(B,)``, in evaluation mode and without gradient."""
        return self.m_step.bound(x)

    def plan(self, updates: int, validations: int = 0) -> None:
        """Say how many batches are to come, by which ``compile="auto"`` decides."""
        self.m_step.plan(self.m_steps * updates, validations)
        if self.e_step is not None:
            self.e_step.plan(self.e_steps * updates)

    @property
    def graphs(self) -> int:
        """How many graphs were made of both."""
        return sum(step.graphs for step in self._steps())

    def functions(self) -> dict[str, Compiled]:
        """Return what may become graphs, by name."""
        return {f"{name}.{part}": f for name, step in self._named().items() for part, f in step.functions().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, buffers and the state of both optimizers."""
        return {"programs": self.programs.state_dict()} | {
            name: {key: part for key, part in step.state_dict().items() if key != "programs"}
            for name, step in self._named().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; nothing changes unless all of it fits."""
        wanted = {"programs": self.programs, **self._named()}
        if state.keys() != wanted.keys():
            raise ValueError(
                f"state: it has {', '.join(state)}, expected {', '.join(wanted)}; take that of a variational_em_step "
                f"{'without' if self.e_step is None else 'with'} a guide_optimizer, as this one is"
            )
        for name, step in self._named().items():
            step.check_state({"programs": {}, **state[name]})
        self.programs.load_state_dict(state["programs"])
        for name, step in self._named().items():
            # With the whole objective loaded, so is the part of it that the M-step takes.
            step.load_state_dict({"programs": step.programs.state_dict(), **state[name]})

    def _named(self) -> dict[str, SVIStep]:
        return {name: step for name in ("e_step", "m_step") if (step := getattr(self, name)) is not None}

    def _steps(self) -> list[SVIStep]:
        return [*self._named().values()]


def variational_em_step(
    model: Program,
    guide: Program,
    objective: Objective = elbo,
    particles: int = 1,
    *,
    guide_optimizer: torch.optim.Optimizer | None,
    model_optimizer: torch.optim.Optimizer,
    e_steps: int = 1,
    m_steps: int = 1,
    compile: bool | str = "auto",  # noqa: A002 - the public name
    chunk: int | None = None,
    clip_norm: float | None = None,
    precision: torch.dtype | None = None,
    log_prior: LogPrior | None = None,
    data_size: int | None = None,
) -> VariationalEMStep:
    """Return one step of variational EM, for `fit` (``fit(step=...)``) or a loop of your own.

    Block-coordinate ascent of a bound L in the guide's parameters phi and the model's theta, on each batch::

        E-step, e_steps times:    phi   <- phi + update(grad_phi L(theta, phi))
        M-step, m_steps times:    theta <- theta + update(grad_theta [L(theta, phi) + log p(theta) / N])

    Each update is one of `svi_step` over its own optimizer, with noise of its own: with one of each, a step is two
    of those in turn. An estimator that is a module (``NVIL``, ``Concrete``, ...) trains the guide, and the model is
    trained on its ``bound``. A schedule (``Scheduled``) counts updates of both kinds.

    Args:
        model: Pyro program.
        guide: as for `variational_em`.
        objective: a lower bound, ``Particles -> (B,)``.
        particles: K, draws per datum.
        guide_optimizer: a torch optimizer over the guide's parameters and the objective's own, or None where there is
            nothing to move (a guide that is the exact posterior): then there are M-steps alone.
        model_optimizer: a torch optimizer over the model's parameters.
        e_steps: updates of the guide on each batch.
        m_steps: updates of the model on each batch.
        compile: see `svi_step`, as for the next three.
        chunk: particles at a time.
        clip_norm: the largest norm of the gradient, of either kind.
        precision: ``torch.bfloat16`` for mixed precision.
        log_prior: log p(theta) in nats, for the M-step; see `svi_step`.
        data_size: N, with ``log_prior``.

    Returns:
        A `Step`; ``info.bound`` is that of the last M-step, before its update.

    Raises:
        TypeError: an optimizer is not one, or the objective not a bound of this library.
        ValueError: a number is out of range; a parameter is in both optimizers, or in the model's with none for the
            guide, whose it is; the bound is an upper one.

    Reference: R. Neal, G. Hinton, "A View of the EM Algorithm that Justifies Incremental, Sparse, and
    Other Variants", 1998, https://doi.org/10.1007/978-94-011-5014-9_12; M. Jordan et al., "An Introduction
    to Variational Methods for Graphical Models", 1999, https://doi.org/10.1023/A:1007665907178.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=()), Normal(x_dim=6, z_dim=2, hidden=())
        >>> optimizers = [torch.optim.Adam(program.parameters(), lr=1e-3) for program in (guide, model)]
        >>> optimizers = dict(zip(("guide_optimizer", "model_optimizer"), optimizers))
        >>> step = pv.variational_em_step(model, guide, e_steps=5, **optimizers)
        >>> step(torch.ones(4, 6)).bound
        tensor(-...)
    """
    whole("e_steps", e_steps)
    whole("m_steps", m_steps)
    check_options(objective, particles, compile)
    if facts(objective).upper:
        raise ValueError(
            f"objective: {facts(objective).name} is an upper bound, which trains the guide alone, so that there is no "
            "M-step; take a lower bound such as elbo"
        )
    check_apart(guide_optimizer, model_optimizer, Programs(model, guide, objective))
    options = {"compile": compile, "chunk": chunk, "clip_norm": clip_norm, "precision": precision}
    prior = {"log_prior": log_prior, "data_size": data_size}
    bound = getattr(objective, "bound", objective) if hasattr(objective, "estimate") else objective
    m_step = svi_step(model, guide, bound, particles, optimizer=model_optimizer, **options, **prior)
    if guide_optimizer is None:
        return VariationalEMStep(None, m_step, e_steps, m_steps)
    e_step = svi_step(model, guide, objective, particles, optimizer=guide_optimizer, **options)
    return VariationalEMStep(e_step, m_step, e_steps, m_steps)


def variational_em(
    model: Program,
    guide: Program,
    x: Any,
    *,
    e_steps: int = 1,
    m_steps: int = 1,
    objective: Objective = elbo,
    particles: int = 1,
    epochs: int = 20,
    batch_size: int = 128,
    guide_optimizer: Optimizer | None = None,
    model_optimizer: Optimizer | None = None,
    valid: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    compile: bool | str = "auto",  # noqa: A002 - the public name
    transform: Callable[[Tensor], Tensor] | None = None,
    progress: bool | None = None,
    chunk: int | None = None,
    clip_norm: float | None = None,
    precision: torch.dtype | None = None,
    log_prior: LogPrior | None = None,
) -> Fit:
    """Train a model and a guide in place by variational EM: on each batch the guide first, then the model.

    The formulas are at `variational_em_step`. With many E-steps the guide comes as near to the posterior as its
    family and the batch let it, and the M-steps are those of EM. A parameter that both programs hold belongs to the
    model if its densities use it, otherwise to the guide (so ``vae.model`` and ``vae.guide`` of one object come
    apart); one that the model reads without holding it, such as a guide's encoder in its prior, is the guide's.
    Each is moved by its owner's updates alone. A guide without parameters of its own has no E-step, and is refused
    with what asks for some.

    Args:
        model: Pyro program, with trainable parameters.
        guide: Pyro program with the same arguments, amortised or with parameters of its own for each datum (see `fit`,
            also for the optimizers that go with those).
        x: training data, in any of the forms of `fit`.
        e_steps: updates of the guide on each batch.
        m_steps: updates of the model on each batch.
        objective: a lower bound, ``Particles -> (B,)``.
        particles: K, draws per datum.
        epochs: passes over the data.
        batch_size: data per step.
        guide_optimizer: a torch optimizer over the guide's parameters (and the objective's own), or a function from
            parameters to one; Adam with 1e-3 when left out.
        model_optimizer: likewise, over the model's.
        valid: see `fit`, as for the next seven.
        out: a new folder for the run.
        seed: seeds order and draws. The caller's random state does not move.
        compile: whether to compile both kinds of update.
        transform: applied to x in every training batch.
        progress: whether to show a bar.
        chunk: particles at a time.
        clip_norm: the largest norm of the gradient, of either kind.
        precision: ``torch.bfloat16`` for mixed precision.
        log_prior: log p(theta) in nats, such as ``normal_prior(model)``, for a maximum a posteriori estimate.

    Returns:
        `Fit`, whose history has the bound of each epoch's data as ``"elbo"`` too, in nats per datum: the mean of what
        the last M-step on each batch found, of whatever bound was trained.

    Raises:
        ContractError: model, guide and the first batch do not fit; nothing has been changed.
        ValueError: the model has nothing to train; an optimizer holds what the other program owns; ``e_steps`` above
            one, ``guide_optimizer`` or an estimator with parameters, and the guide has nothing of its own to move; or
            as for `variational_em_step`.
        FileExistsError, FloatingPointError: as for `fit`.

    Reference: as `variational_em_step`.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=(8,)), Normal(x_dim=6, z_dim=2, hidden=(8,))
        >>> fit = pv.variational_em(model, guide, torch.ones(40, 6), e_steps=3, epochs=10, batch_size=10)
        >>> fit.history["elbo"][-1] > fit.history["elbo"][0]
        True
    """
    check_options(objective, particles, compile)
    options = {"compile": compile, "chunk": chunk, "clip_norm": clip_norm, "precision": precision}
    options |= {"e_steps": e_steps, "m_steps": m_steps}
    with forked_random_state(seed):
        train, held_out, changed = unpacked(x, valid, transform)
        train = source(with_index(train, held_out, model, guide), batch_size, changed)
        options |= prior_options(log_prior, train.rows)
        programs = Programs(model, guide, objective)
        batch = programs.on_device(train.first())
        check(model, guide, batch, log_prior)  # before optimizers are made of parameters that may not exist yet
        if held_out is not None:
            check(model, guide, programs.on_device(source(held_out, batch_size).first()), log_prior)
        of_model, of_guide = owned(model, guide, objective, batch)
        asked = {"e_steps": e_steps != 1, "guide_optimizer": guide_optimizer is not None}
        check_e_steps(alike(model, guide)[1], batch, of_model, of_guide, asked)
        options["guide_optimizer"] = _optimizer("guide", guide_optimizer, of_guide, "model", of_model)
        options["model_optimizer"] = _optimizer("model", model_optimizer, of_model, "guide", of_guide)
        step = variational_em_step(model, guide, objective, particles, **options)
        step.check_training(batch)
    settings = {"method": "variational_em", "objective": facts(objective).name, "particles": particles}
    settings |= {"e_steps": e_steps, "m_steps": m_steps, "epochs": epochs, "batch_size": train.batch_size}
    settings |= {"seed": seed, "model": program_name(model), "guide": program_name(guide)}
    loop = {"transform": transform, "progress": progress, "config": settings, "out": out, "seed": seed}
    result = fit(step=step, data=x, valid=valid, epochs=epochs, batch_size=batch_size, **loop)
    result.history["elbo"] = result.history["train_bound"]
    return result


def _optimizer(
    owner: str, optimizer: Optimizer | None, own: Mapping[str, Tensor], other: str, others: Mapping[str, Tensor]
) -> torch.optim.Optimizer | None:
    """Return the optimizer of one program's parameters, made of them if need be."""
    name = f"{owner}_optimizer"
    if isinstance(optimizer, torch.optim.Optimizer):
        check_owner(optimizer, name, others, other)
        return optimizer
    return made(optimizer or adam, [*own.values()], name) if own else None
