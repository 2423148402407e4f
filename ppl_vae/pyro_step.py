"""Pyro's own objectives, ``Trace_ELBO`` and its kin, as steps of this library."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.infer import RenyiELBO, ReweightedWakeSleep
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_vae.batches import Batch
from ppl_vae.checking import check_arguments
from ppl_vae.contract import DATA_PLATE, latents
from ppl_vae.diagnosing import explain_replay
from ppl_vae.objectives import elbo, facts
from ppl_vae.optimizers import check_optimizer, moved_by
from ppl_vae.programs import Program, modes_and_buffers_kept, own_parameters, undisturbed
from ppl_vae.svi import Info, SVIStep, check_options

__all__ = ["PyroStep", "check_callable", "check_elbo"]

# Where TraceGraph_ELBO keeps the running averages that it takes off costs.
AVERAGES = "__baseline_avg_downstream_cost_"

_shown = nn.Parameter(torch.zeros(()))


class PyroStep(SVIStep):
    """One gradient step on an objective of Pyro's, which says what it allows; made by `svi_step`.

    The contract between model and guide is Pyro's here: global latents, autoguides and nested plates
    are welcome where the objective can handle them.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        objective: a ``pyro.infer.ELBO``; a copy of it is used, since it writes into itself what it
            learns about a model.
        optimizer: a torch optimizer over the parameters that are to move.

    Raises:
        ValueError: on the first batch, a parameter that the optimizer holds gets no gradient; nothing
            has been changed.

    Reference: E. Bingham et al., "Pyro: Deep Universal Probabilistic Programming", JMLR 2019,
    https://jmlr.org/papers/v20/18-403.html.

    Example:
        >>> from pyro.infer import TraceGraph_ELBO
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=()), Normal(x_dim=6, z_dim=2, hidden=())
        >>> optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)
        >>> step = pv.svi_step(model, guide, TraceGraph_ELBO(num_particles=3), optimizer=optimizer)
        >>> step(torch.ones(4, 6)).bound
        tensor(-...)
    """

    def __init__(self, model: Program, guide: Program, objective: PyroELBO, optimizer: torch.optim.Optimizer):
        # Pyro's objectives read their totals off the device, which no graph can hold.
        super().__init__(model, guide, copy.deepcopy(objective), objective.num_particles, optimizer, compile=False)
        self._averages: dict[str, Tensor] = {}

    def __call__(self, x: Any) -> Info:
        """Move the optimizer's parameters up Pyro's objective on one batch.

        The first batch is looked at with Pyro's validation before anything moves; later ones run
        without it.
        """
        batch = self._batch(x)
        self._check_once(batch)
        held, averages = self._trained(), self._averages
        with self.update.guarded(self.programs):
            with pyro.validation_enabled(False), _gradients_kept(self._not_held()):
                bound = torch.tensor(self._ascend(batch), dtype=torch.float64)
            self.update(held, [p.grad for p in held], len(batch[0]), [bound.to(held[0].device)])
        if not self.update.finite:  # Pyro has waited for the device anyway
            self._averages = averages
        return Info(bound, finite=self.update.finite)

    def explain(self, x: Any, rows: Tensor | None = None) -> str:
        """Say what is no finite number on a batch, and where it comes from; see `ppl_vae.diagnosing.explain`."""
        batch, averages = self._batch(x), self._averages
        trained = moved_by(self.optimizer, self.programs, self.role)

        def replay() -> tuple[Mapping[str, Tensor], list[Tensor | None]]:
            with _gradients_kept([*self._trained(), *self._not_held()]):
                bound = torch.tensor(self._ascend(batch), dtype=torch.float64)
                return {"the objective": bound}, [p.grad for p in trained.values()]

        try:
            roles = {"model": self.model, "guide": self.guide}
            return explain_replay(replay, roles, self.programs, batch, trained, rows)
        finally:
            self._averages = averages

    def bound(self, x: Any) -> Tensor:
        """Return the mean over the batch for each of its rows, ``(B,)``: Pyro gives no more than totals."""
        batch = self._batch(x)
        with modes_and_buffers_kept(self.programs, training=False), pyro.validation_enabled(False), torch.no_grad():
            value, _ = self._run(self.objective.loss, batch)
        return torch.full((len(batch[0]),), value, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, buffers, the optimizer's state and Pyro's running averages."""
        return {**super().state_dict(), "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; the programs change only if all of it fits them."""
        super().load_state_dict(state)
        device = self.programs.device
        self._averages = {name: average.to(device or average.device) for name, average in state["averages"].items()}

    def _check_once(self, batch: Batch) -> None:
        if self._checked:
            return
        self.programs.run_once(self.model, self.guide, batch)
        check_optimizer(self.optimizer, self.programs, self.objective)
        averages = self._averages
        try:
            with pyro.validation_enabled(True), undisturbed(self.programs):
                self._check_gradients(batch)
        finally:
            self._averages = averages
        self._checked = True

    def _check_gradients(self, batch: Batch) -> None:
        """Every parameter that the optimizer holds gets a gradient (it may be zero)."""
        with _gradients_kept([*self._trained(), *self._not_held()]):
            self._ascend(batch)
            untrained = [p for p in self._trained() if p.grad is None]
        if untrained:
            raise ValueError(
                f"parameter {self._names(untrained)}: the optimizer holds it, but {facts(self.objective).name} gives "
                "it no gradient, so it would never train; use it in the model or the guide, freeze it with "
                "requires_grad_(False), or leave it out of the optimizer"
            )
        self._warn_of_untrained_draws(batch)

    def _warn_of_untrained_draws(self, batch: Batch) -> None:
        """At order 0 RenyiELBO drops the score of a draw, which its own log q in the weight cancels."""
        if not isinstance(self.objective, RenyiELBO) or self.objective.alpha != 0:
            return
        with own_parameters(), torch.no_grad():
            drawn = latents(poutine.trace(self.guide).get_trace(*batch))
        discrete = [name for name, site in drawn.items() if not site["fn"].has_rsample]
        if discrete:
            warnings.warn(
                f"objective: RenyiELBO(alpha=0) gives the guide no gradient through site '{discrete[0]}', which is "
                "drawn without reparameterisation, so that it stays as it is; train on pv.objectives.vimco",
                stacklevel=2,
            )

    def _ascend(self, batch: Batch) -> float:
        """Put gradients in ``.grad`` as they are for one datum, and return the bound."""
        held = self._trained()
        for parameter in held:
            parameter.grad = None
        bound, size = self._run(self.objective.loss_and_grads, batch)
        for parameter in held:
            if parameter.grad is not None:
                parameter.grad /= size
        return bound

    def _run(self, loss: Callable[..., Any], batch: Batch) -> tuple[float, int]:
        """Return minus a loss of Pyro's for one datum, and the number of data in the loss."""
        with own_parameters(), self._averages_in_store(), _DataSize(len(batch[0])) as data:
            total = float(loss(_with_param_site(self.model), self.guide, *batch))
        return -total / data.size, data.size

    @contextmanager
    def _averages_in_store(self) -> Iterator[None]:
        """Lend Pyro the running averages of this step, whose names may be those of another model's in the store."""
        store = pyro.get_param_store()
        others = _taken_out(store)
        for name, average in self._averages.items():
            store[name] = average
        try:
            yield
            # Copies, as the next batch, which may be refused, adds to them in place.
            self._averages = {name: store[name].detach().clone() for name in store if name.startswith(AVERAGES)}
        finally:
            _taken_out(store)
            for name, average in others.items():
                store[name] = average

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def _not_held(self) -> list[Tensor]:
        held = {id(p) for p in self._trained()}
        return [p for p in self.programs.parameters().values() if id(p) not in held]

    def _names(self, tensors: Iterable[Tensor]) -> str:
        names = {id(p): name for name, p in self.programs.parameters().items()}
        return ", ".join(names.get(id(p), f"of shape {tuple(p.shape)}, of neither program") for p in tensors)


def _taken_out(store: Any) -> dict[str, Tensor]:
    """Take the running averages out of Pyro's store, and return them."""
    found = {name: store[name].detach() for name in store if name.startswith(AVERAGES)}
    for name in found:
        del store[name]
    return found


class _DataSize(Messenger):
    """Learns from the plates around observed sites over how many data Pyro's total goes.

    That is the full size of a plate that stands for a part of the data, else the rows of the batch.
    """

    def __init__(self, rows: int):
        super().__init__()
        self.rows = self.size = rows

    def _pyro_post_sample(self, message: Any) -> None:
        if message["is_observed"]:
            plates = [f for f in message["cond_indep_stack"] if f.name == DATA_PLATE or f.size == self.rows]
            self.size = max([self.size, *(f.full_size or f.size for f in plates)])


def _with_param_site(model: Program) -> Program:
    """Return the model with a param site: Pyro computes gradients only if it meets one, and nn.Modules have none."""

    def showing(*args: Any) -> Any:
        pyro.param("_shown", _shown)
        return model(*args)

    return showing


@contextmanager
def _gradients_kept(parameters: list[Tensor]) -> Iterator[None]:
    """Start without gradients of these parameters, and give them back as they were."""
    before = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def check_elbo(objective: PyroELBO, particles: int = 1, compile: bool | str = "auto") -> None:  # noqa: A002
    """Raise if an objective of Pyro's cannot be driven by a step, or with these options.

    Args:
        objective: a ``pyro.infer.ELBO``.
        particles: 1, as Pyro's objectives bring their own.
        compile: see `svi_step`.

    Raises:
        TypeError: it is a bound of this library in Pyro's form, or gives no single loss.
        ValueError: ``particles`` is not 1.

    Example:
        >>> check_elbo(pyro.infer.Trace_ELBO(), particles=5)
        Traceback (most recent call last):
        ...
        ValueError: particles: Trace_ELBO brings its own (it has 1), found 5; leave particles out and pass ...
    """
    name = type(objective).__name__
    check_options(elbo, particles, compile)
    if hasattr(objective, "objective"):
        raise TypeError(
            f"objective: found {facts(objective.objective).name} as a pyro.infer.ELBO, which is for Pyro's SVI; pass "
            "the bound itself: objective=elbo.objective, particles=elbo.num_particles"
        )
    if isinstance(objective, ReweightedWakeSleep):
        raise TypeError(f"objective: {name} has two losses, found where one is trained; drive it with Pyro's SVI")
    if name.startswith("Jit"):
        raise TypeError(f"objective: {name} compiles through Pyro's parameter store; pass {name.removeprefix('Jit')}")
    if particles != 1:
        raise ValueError(
            f"particles: {name} brings its own (it has {objective.num_particles}), found {particles}; leave particles "
            f"out and pass objective={name}(num_particles={particles})"
        )
    if compile is True:
        warnings.warn(
            f"compile: steps on {name} run eagerly, since Pyro reads its loss off the device in every one; objectives "
            "of this library, such as pv.objectives.elbo, can be compiled",
            stacklevel=3,
        )


def check_callable(model: Program, guide: Program, batch: Batch) -> None:
    """Raise if a program cannot be called with the tensors of a batch: all that is asked before Pyro is.

    Example:
        >>> check_callable(lambda x, y: None, lambda x: None, (torch.ones(3),))
        Traceback (most recent call last):
        ...
        ppl_vae.contract.ContractError: model: it takes (x, y), but the batch has 1 tensors ...
    """
    check_arguments(model, "model", batch)
    check_arguments(guide, "guide", batch)
