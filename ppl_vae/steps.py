"""Steps: what one batch does to the parameters. The loop in `ppl_vae.training` drives any of them."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from torch import Tensor

from ppl_vae.chunking import check_chunk
from ppl_vae.compiling import Compiled
from ppl_vae.log_priors import LogPrior, check_prior_options
from ppl_vae.objectives import Objective, elbo, facts
from ppl_vae.programs import Program, Programs
from ppl_vae.pyro_step import PyroStep, check_elbo
from ppl_vae.svi import Info, SVIStep, check_options

__all__ = ["PlannedStep", "Step", "svi_step"]


class Step(Protocol):
    """What the training loop asks of a step; write your own to drive something else with `fit`."""

    def __call__(self, x: Any) -> Info:
        """Update parameters on one batch."""

    def bound(self, x: Any) -> Tensor:
        """Return the bound of each datum, ``(B,)``, changing nothing but the random state; for validation."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the step needs to go on as if never stopped."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""


@runtime_checkable
class PlannedStep(Step, Protocol):
    """A step on programs, which the loop helps with what it knows of the data.

    Attributes:
        model: Pyro program; if it, or a ``guide`` that the step has beside it, names ``index``, the loop supplies it.
        programs: whose device data in memory are moved to.
        accumulate: batches for one update.
    """

    model: Program
    programs: Programs
    accumulate: int

    def prepare(self, x: Any) -> None:
        """Look at all on a first batch; change nothing."""

    def functions(self) -> dict[str, Compiled]:
        """Return what may become graphs, by name."""

    def plan(self, updates: int, validations: int = 0) -> None:
        """Be told how many batches are to come."""


def svi_step(
    model: Program,
    guide: Program,
    objective: Objective | pyro.infer.ELBO = elbo,
    particles: int = 1,
    *,
    optimizer: torch.optim.Optimizer,
    compile: bool | str = "auto",  # noqa: A002 - the public name
    chunk: int | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    precision: torch.dtype | None = None,
    log_prior: LogPrior | None = None,
    data_size: int | None = None,
) -> SVIStep:
    """Return one training step, for a loop of your own.

    Args:
        model: Pyro program.
        guide: Pyro program with the same arguments.
        objective: a bound, ``Particles -> (B,)``, or one of Pyro's, such as ``Trace_ELBO(num_particles=5)``.
        particles: K, draws per datum; Pyro's objectives bring their own.
        optimizer: a torch optimizer over the parameters of both (or of those that are to move).
        compile: whether to capture loss and gradients as one graph and compile it: True, from the first
            step on; ``"auto"``, once so many steps have run that compiling would have paid; False, never.
            A compiled step draws and does what the eager one does, to rounding; both are run, and compared, on the
            first batch of each of the first eight sizes. What cannot be captured, or was compiled wrongly, runs
            eagerly, with a warning that says why. When numbers that the programs read change, another graph is made;
            not seen are changes within libraries, and in arrays and containers of more than a thousand numbers.
            Programs that keep a value for later, in an attribute that is no buffer, keep it in eager steps alone. See
            `ppl_vae.watching`.
        chunk: particles at a time, a divisor of K, for bounds on many particles: memory then grows with
            the chunk, and a step takes about one and a half times as long. The gradient is the same
            for the same noise, which a seed draws in another order than without chunks.
        accumulate: batches for one update; their gradients are averaged over all their data.
        clip_norm: the largest norm of all gradients together; longer ones are shortened to it.
        precision: ``torch.bfloat16`` for mixed precision (``torch.autocast``): matrix products in it,
            parameters in float32. The heads in `ppl_vae.nets` give densities in float32; make
            distributions of your own from float32 tensors too.
        log_prior: a function without arguments that returns log p(theta) in nats, such as ``normal_prior(model)``,
            for a maximum a posteriori estimate: a step then moves up ``bound + log p(theta) / N``. Both are reported,
            apart. It draws nothing, and reads the parameters off their modules when it is called (a step with one that
            holds tensors itself cannot be captured). A parameter that it alone reads, such as the scale of a normal
            prior, is an attribute of the model; freeze it before `evaluate`, where nothing would train it.
        data_size: N, the number of training data (not of a batch), with ``log_prior``.

    Returns:
        A `Step`: ``info = step(x)`` with ``info.bound``, nats per datum, and, where there is a prior,
        ``info.log_prior``, log p(theta) / N. Where options of the bound follow the step (`objectives.Scheduled`),
        ``info.bound`` has them at their ends, and ``info.annealed``, from the same draws, as they are.
        A batch whose bound or gradients are NaN or infinite moves nothing: ``info.finite`` is False, ``step.faults``
        counts such batches, and ``step.explain(x)``, from the random state before the step, says which number came
        first and why.

    Raises:
        ValueError: the bound needs more particles; ``compile`` is none of the three; there is a prior under an upper
            bound, which is made small, or one of Pyro's objectives, which have priors as sites of the model.

    Reference: M. Hoffman, D. Blei, C. Wang, J. Paisley, "Stochastic Variational Inference", JMLR
    2013, https://jmlr.org/papers/v14/hoffman13a.html; gradients as in D. P. Kingma, M. Welling,
    "Auto-Encoding Variational Bayes", ICLR 2014, https://arxiv.org/abs/1312.6114.

    Example:
        >>> from ppl_vae.models.vae import VAE
        >>> from ppl_vae.guides.normal import Normal
        >>> model, guide = VAE(x_dim=6, z_dim=2, hidden=()), Normal(x_dim=6, z_dim=2, hidden=())
        >>> optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)
        >>> step = pv.svi_step(model, guide, pv.objectives.iwae, particles=5, optimizer=optimizer)
        >>> step(torch.ones(4, 6)).bound
        tensor(-...)
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch optimizer over the parameters of both, found {optimizer!r}")
    if isinstance(objective, pyro.infer.ELBO):
        check_elbo(objective, particles, compile)
        given = {"chunk": chunk, "clip_norm": clip_norm, "precision": precision, "accumulate": accumulate}
        given |= {"log_prior": log_prior, "data_size": data_size}
        for name, value in given.items():
            if value != {"accumulate": 1}.get(name):
                raise ValueError(f"{name}: steps on Pyro's objectives have no such option; leave it out")
        return PyroStep(model, guide, objective, optimizer)
    check_options(objective, particles, compile)
    check_chunk(objective, particles, chunk)
    if precision not in (None, torch.bfloat16):
        raise ValueError(
            f"precision: expected torch.bfloat16 or None, found {precision!r}; the programs' own type is that of their "
            "parameters (model.double()), and float16 would need gradients to be scaled"
        )
    check_prior_options(log_prior, data_size)
    if log_prior is not None and facts(objective).upper:
        raise ValueError(
            f"log_prior: {facts(objective).name} is an upper bound, which is made small and trains the guide alone; "
            "leave log_prior out, or train on a lower bound"
        )
    options = (compile, chunk, accumulate, clip_norm, precision, log_prior, data_size)
    return SVIStep(model, guide, objective, particles, optimizer, *options)
