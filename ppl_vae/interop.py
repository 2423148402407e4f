"""Both ways with Pyro: our programs under its ``SVI``, our bounds as its ``ELBO``."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

from ppl_vae.batches import Batch, as_batch
from ppl_vae.checking_objectives import check_objective
from ppl_vae.estimation import estimate
from ppl_vae.gradients import zero_with_gradient
from ppl_vae.objectives.vocabulary import Objective, advance, facts
from ppl_vae.programs import Program, Programs, modules_of, program_name, pyros_parameters, undisturbed
from ppl_vae.svi import check_options

__all__ = ["ELBO", "registered"]

_instances = count()


def registered(program: Program) -> nn.Module:
    """Return the program with its parameters visible to Pyro's ``SVI``.

    ``SVI`` optimises the parameters that it meets as param sites. A plain ``nn.Module`` has none,
    so nothing would train, and nothing would say so. This adds ``pyro.module`` under a name of its
    own for each instance, so that no other program's tensors can be trained in its place.

    Args:
        program: an ``nn.Module`` that is a Pyro program, or a bound method of one.

    Raises:
        TypeError: the program has no module.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=()), Normal(x_dim=6, z_dim=2, hidden=())
        >>> optimizer = pyro.optim.Adam({"lr": 1e-3})
        >>> svi = SVI(pv.registered(model), pv.registered(guide), optimizer, Trace_ELBO())
        >>> svi.step(torch.ones(4, 6)) > 0
        True
    """
    owners = modules_of(program)
    if not owners:
        raise TypeError(
            f"program: {program_name(program)} has no modules; SVI sees the pyro.param and pyro.module statements "
            "of a plain function without help"
        )
    return _Registered(program, owners)


class _Registered(nn.Module):
    """A program that declares its modules' parameters before it runs."""

    def __init__(self, program: Program, owners: list[nn.Module]):
        super().__init__()
        self.owners = nn.ModuleList(owners)
        self._program = (program,)  # in a tuple, or a module would be listed twice
        self._names = [f"{type(owner).__name__}_{next(_instances)}" for owner in owners]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for name, owner in zip(self._names, self.owners, strict=True):
            for parameter in owner.parameters():
                # Of any other layout (channels_last) Pyro's store would keep and train a copy.
                parameter.data = parameter.data.contiguous()
            pyro.module(name, owner)
        return self._program[0](*args, **kwargs)


def _trainable(model: Program) -> list[nn.Parameter]:
    return [p for module in modules_of(model) for p in module.parameters() if p.requires_grad]


@contextmanager
def _frozen(model: Program) -> Iterator[None]:
    """Leave a model's parameters out of the graphs that are made inside."""
    parameters = _trainable(model)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* was not registered in the param store")
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_()


class _WithObjective(ELBOModule):
    """Pyro's module, with an estimator's parameters and buffers among its own."""

    def __init__(self, model: nn.Module, guide: nn.Module, elbo: "ELBO"):
        super().__init__(model, guide, elbo)
        if isinstance(elbo.objective, nn.Module):
            self.objective = elbo.objective


class ELBO(PyroELBO):
    """Any bound of this library as a ``pyro.infer.ELBO``.

    Works in ``SVI``, and as ``ELBO(...)(model, guide)`` with torch optimizers, also under
    ``torch.no_grad``. As in Pyro the loss is minus the *sum* over data, times the common scale of
    the plate "data"; that of an upper bound, which is made small, is plus the sum.

    An estimator's own parameters are trained with the others. What follows the step (schedules) takes
    each loss that is computed with gradients, in training mode, for an update. An upper bound fits the
    guide alone: it would teach a model to make the data unlikely, whose parameters get no gradient.

    Args:
        objective: a bound, ``Particles -> (B,)``, or an estimator.
        num_particles: K.

    Raises:
        ContractError, ValueError: the programs do not fit each other, or the objective, looked at with the
            first loss of a pair, breaks what it promises.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=()), Normal(x_dim=6, z_dim=2, hidden=())
        >>> loss = pv.ELBO(pv.objectives.iwae, num_particles=5)(model, guide)
        >>> loss(torch.ones(4, 6)).backward()
    """

    def __init__(self, objective: Objective, num_particles: int = 1):
        check_options(objective, num_particles, compile=False)
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.objective = objective
        self._name = f"{facts(objective).name}_{next(_instances)}"
        self._checked: list[tuple[Program, Program]] = []

    def __call__(self, model: nn.Module, guide: nn.Module) -> ELBOModule:
        """Return a module whose parameters are those of model, guide and objective, and whose value is the loss."""
        return _WithObjective(model, guide, self)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any) -> Tensor:
        """Return minus the bound, summed over data, with its gradient."""
        batch, learning = as_batch(args), torch.is_grad_enabled()
        with pyros_parameters():
            if learning:
                self._check_once(model, guide, batch)
            with _frozen(model) if facts(self.objective).upper else nullcontext():
                found = estimate(self.objective, model, guide, batch, self.num_particles)
        if learning and getattr(self.objective, "training", True):
            advance(self.objective)
        # The value is the bound's; a surrogate that only has a gradient is worth nothing.
        cost = found.trained if facts(self.objective).upper else -found.trained
        loss = cost - sum(found.penalties.values())
        return found.scale * (loss - zero_with_gradient(found.surrogate)).sum()

    def loss(self, model: Program, guide: Program, *args: Any) -> float:
        """Return minus the bound, summed over data, as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any) -> float:
        """Return the loss as a number and add its gradients to the parameters' ``.grad``.

        Warns if no param site was met: then ``SVI`` has nothing to train (see `registered`).
        """
        with poutine.trace(param_only=True) as tracer:
            self._declare()
            loss = self.differentiable_loss(model, guide, *args)
        if not tracer.trace.nodes:
            warnings.warn(
                "no param site was met, so SVI would train nothing; wrap programs in pv.registered", stacklevel=2
            )
        loss.backward()
        return loss.item()

    def _declare(self) -> None:
        """Show an estimator's own parameters to Pyro, which trains what it meets."""
        if isinstance(self.objective, nn.Module) and any(True for _ in self.objective.parameters()):
            pyro.module(self._name, self.objective)

    def _check_once(self, model: Program, guide: Program, batch: Batch) -> None:
        """Hold the objective to what it promises, with the first loss of each pair."""
        if any(model is one and guide is other for one, other in self._checked):
            return
        programs = Programs(model, guide, self.objective)
        with undisturbed(programs):
            check_objective(self.objective, model, guide, batch, self.num_particles)
        if facts(self.objective).upper and _trainable(model):
            warnings.warn(
                f"objective: {facts(self.objective).name} is an upper bound, which fits the guide alone: the model's "
                "parameters get no gradient",
                stacklevel=3,
            )
        self._checked.append((model, guide))

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        raise NotImplementedError("traces are made by ppl_vae.weigh")
