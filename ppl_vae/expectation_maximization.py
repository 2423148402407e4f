"""Expectation maximisation of any program whose latents can be conditioned on data exactly."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae import starts
from ppl_vae.ascent import STEPS
from ppl_vae.batches import Batch, as_batch
from ppl_vae.checking import check_arguments
from ppl_vae.clusters import nearly_empty
from ppl_vae.conditioning import Posterior, posterior
from ppl_vae.iterating import Iterated, check_iterations, check_seed, iterated
from ppl_vae.latent_structure import check_data, structure_of
from ppl_vae.latent_structure import log_prior as log_prior_of
from ppl_vae.log_priors import LogPrior, check_log_prior, check_prior_options
from ppl_vae.m_steps import by_ascent, by_method, method_of, naming_components
from ppl_vae.point_estimate import Point, PointEstimate, check_finite
from ppl_vae.programs import (
    Program,
    Programs,
    forked_random_state,
    modes_and_buffers_kept,
    own_parameters,
    program_name,
)

__all__ = ["em"]

# Of L-BFGS, where parameters first meet responsibilities, from which they may be far.
FIRST_STEPS = 100

State = tuple[dict[str, Tensor], dict[str, Tensor], Posterior | None]


def em(
    model: Program,
    x: Any,
    *,
    iterations: int = 100,
    tol: float = 1e-6,
    restarts: int = 1,
    start: Any = None,
    log_prior: LogPrior | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PointEstimate:
    """Maximise a likelihood exactly, by expectation maximisation, in place.

    With the latents z of each datum, an iteration is::

        q_n(z) = p(z | x_n, theta)
        theta <- argmax  sum_n E_q[log p(x_n, z; theta)] + log p(theta)

    Posteriors are exact: discrete latents are enumerated, continuous ones linear-Gaussian given them, which is checked
    (see `ppl_vae.conditioning`). The second line is the model's own ``m_step`` where it has one, else ascent by L-BFGS,
    which may stop short of the maximum but never lowers the value, so that the likelihood never falls. Ascent leaves
    frozen parameters (``requires_grad=False``) where they are; an ``m_step`` knows nothing of them, so that a model
    that has any is fitted by ascent. Latents outside the plate "data" are point masses: their density counts as
    log p(theta), at the value itself, without the Jacobian of any change of variables.

    Args:
        model: Pyro program. ``m_step(posterior, *batch)``, if it has it, sets its parameters; ``posterior`` maps a
            discrete site to probabilities ``(N, C)``, a Gaussian one to a ``MultivariateNormal`` of batch shape
            ``(N,)`` (``(N, C)`` given a discrete latent); it returns values of the global latents by name.
        x: all the data, a tensor ``(N, ...)`` or a tuple of them.
        iterations: at most so many.
        tol: nats per datum; an iteration that changes the value by less is the last. With 0 none stops early.
        restarts: how many times to start, with seeds ``seed``, ``seed + 1``, ...; the best is kept.
        start: responsibilities ``(N, C)``, or a function of `ppl_vae.starts`; from them the first parameters are those
            of an M-step. When left out, k-means where the model has exactly one discrete latent for each datum, else
            `ppl_vae.starts.as_they_are`. Global latents begin at a draw from their prior.
        log_prior: a function without arguments to ``log p(theta)``, ``()``, of the model's parameters. With it M-steps
            are by ascent.
        seed: seeds starts. The caller's random state does not move.
        progress: whether to show a bar; by default where a terminal or notebook shows it.

    Returns:
        `PointEstimate`. The model has the parameters of the best restart.

    Raises:
        ContractError: a latent has no exact posterior; the message names it and says what to do instead. Or the model
            is no program, or its plate "data" is larger than the data.
        TypeError: whole numbers meet a density of real ones, or an option is of another type.
        ValueError: data are NaN or infinite, or an option is out of range; a covariance is not positive definite.
        FloatingPointError: a datum is impossible under the model. After any error all is as it was.

    Reference: A. Dempster, N. Laird, D. Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm", JRSS B
    1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x; R. Neal, G. Hinton, "A View of the EM Algorithm that
    Justifies Incremental, Sparse, and Other Variants", 1998, https://doi.org/10.1007/978-94-011-5014-9_12.

    Example:
        >>> from ppl_vae.models.linear_gaussian import LinearGaussian
        >>> model, x = LinearGaussian(x_dim=6, z_dim=2).double(), torch.randn(40, 6).double()
        >>> found = pv.em(model, x, iterations=5)
        >>> found.history["log_likelihood"][-1] > found.history["log_likelihood"][0]
        True
    """
    check_iterations(iterations, tol, restarts)
    check_seed(seed)
    batch = as_batch(x)
    check_finite(batch)
    with forked_random_state(seed):
        algorithm = ExactEM(model, batch, start, log_prior)
        algorithm.check_start(restarts)
        title = f"EM on {program_name(model)}"
        options = {"iterations": iterations, "tol": tol, "restarts": restarts, "seed": seed}
        done = iterated(algorithm, algorithm.tracked, **options, title=title, progress=progress)
        return algorithm.estimate(done, tol)


class ExactEM:
    """E-steps and M-steps on one set of data: an `ppl_vae.iterating.Algorithm`.

    Args:
        model: Pyro program.
        batch: the data.
        start: as for `em`.
        log_prior: likewise.
    """

    def __init__(self, model: Program, batch: Batch, start: Any, log_prior: LogPrior | None):
        check_arguments(model, "model", batch)
        self.model, self.log_prior = model, log_prior
        self.programs = Programs(model, model).run_once(model, model, tuple(part[:2] for part in batch))
        self.batch = self.programs.on_device(batch)
        _check_types(self.programs, self.batch)
        self._check_log_prior()
        with self._evaluating():
            found, self.points = structure_of(model, self.batch)
            check_data(found, self.batch, self.points)
            self.structure = found
        self.start = starts.or_default(start, self.structure.discrete)
        self.own_m_step = method_of(model) if log_prior is None and not self._any_frozen() else None
        self.posterior: Posterior | None = None

    def _check_log_prior(self) -> None:
        if self.log_prior is not None:
            check_prior_options(self.log_prior, len(self.batch[0]))
            check_log_prior(self.log_prior, [*self.programs.parameters().values()])

    def _any_frozen(self) -> bool:
        modules = self.programs.modules.values()
        return not all(parameter.requires_grad for module in modules for parameter in module.parameters())

    @property
    def tracked(self) -> str:
        """Which value of the history rises."""
        return "log_posterior" if self.structure.prior or self.log_prior else "log_likelihood"

    def check_start(self, restarts: int) -> None:
        """Raise if a start does not fit the model, or restarts would all be the same."""
        starts.check(self.start, self.structure.discrete, restarts, drawn=bool(self.points))

    def begin(self, seed: int) -> Mapping[str, float]:
        """Put the parameters where iterations start."""
        torch.manual_seed(seed)
        with self._evaluating():
            _, self.points = structure_of(self.model, self.batch)
        if self.start is not starts.as_they_are:
            (components,) = self.structure.discrete.values()
            self._take(starts.responsibilities(self.start, self.batch[0], components, seed))
            self.maximise(FIRST_STEPS)
        self.expect()
        return self.values()

    def _take(self, given: Tensor) -> None:
        """Make a posterior of responsibilities; Gaussians are those of the parameters as they are."""
        if self.structure.continuous:
            self.expect()
            self.posterior = self.posterior.with_responsibilities(given)
        else:
            self.posterior = Posterior(self.structure, given.new_zeros(len(given)), given.mT)

    def update(self) -> Mapping[str, float]:
        """Maximise, then condition again."""
        self.maximise()
        self.expect()
        return self.values()

    def expect(self) -> None:
        """Condition on the data at the current parameters: the E-step."""
        with self._evaluating():
            self.posterior = posterior(self.structure, self.batch, self.points)

    def maximise(self, steps: int = STEPS) -> None:
        """Move the parameters given the posterior: the M-step."""
        if self.own_m_step is not None:
            with naming_components():  # a method may set buffers, which evaluating would put back
                self.points = by_method(self.own_m_step, self.posterior, self.batch, self.points)
            return
        with self._evaluating():
            parameters = [*self.programs.parameters().values()]
            self.points = by_ascent(self.posterior, self.batch, self.points, parameters, self.log_prior, steps)

    def values(self) -> dict[str, float]:
        """Return what the history keeps, nats per datum."""
        values = {"log_likelihood": float(self.posterior.log_px.double().mean())}
        if self.tracked == "log_posterior":
            values["log_posterior"] = values["log_likelihood"] + self._prior() / len(self.batch[0])
        return values

    def _prior(self) -> float:
        with torch.no_grad(), self._evaluating():
            own = float(log_prior_of(self.structure, self.batch, self.points))
            return own + (float(self.log_prior()) if self.log_prior else 0.0)

    def state(self) -> State:
        """Return parameters, values of global latents and the posterior."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.programs.tensors().items()}
        return tensors, self.points, self.posterior

    def load(self, state: State) -> None:
        """Go back to a state."""
        tensors, self.points, self.posterior = state
        with torch.no_grad():
            for name, tensor in self.programs.tensors().items():
                # What has not changed may be a view that cannot be written to.
                if name in tensors and not torch.equal(tensor, tensors[name]):
                    tensor.copy_(tensors[name])

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with naming_components(), modes_and_buffers_kept(self.programs, training=False):
            yield

    def parameters(self) -> dict[str, Tensor]:
        """Return values of the global latents and of all parameters, constrained ones as the program sees them."""
        named = {
            f"{owner.removeprefix('model').removeprefix('.')}.{name}".removeprefix("."): parameter
            for owner, module in self.programs.modules.items()
            for name, parameter in module.named_parameters()
        }
        with own_parameters(), torch.no_grad(), self._evaluating():
            tracer = poutine.trace(self.model, param_only=True)
            met = tracer.get_trace(*(part[:1] for part in self.batch)).nodes
            named |= {name: met[name]["value"] for name in self.programs.at_sites if name in met}
        return {name: value.detach().clone() for name, value in {**self.points, **named}.items()}

    def estimate(self, done: Iterated, tol: float) -> PointEstimate:
        """Return what was found."""
        tensors, points, found = self.state()
        return PointEstimate(
            parameters=self.parameters(),
            history=done.history,
            converged=done.converged,
            iterations=done.iterations,
            runs=done.runs,
            discrete={name: table.contiguous() for name, table in found.discrete.items()},
            log_px=found.log_px,
            warnings=self._warnings(done, tol),
            subject=program_name(self.model),
            point=Point(self.structure, self.programs, tensors, points),
        )

    def _warnings(self, done: Iterated, tol: float) -> tuple[str, ...]:
        values = torch.tensor(done.history[self.tracked], dtype=torch.float64)
        changes, name = values.diff(), self.tracked.replace("_", "-")
        found = []
        if tol and not done.converged:
            found.append(
                f"not converged: the last of {done.iterations} iterations changed the {name} by "
                f"{float(changes[-1]):.2g} nats per datum; allow more (iterations=)"
            )
        # Sums in another order differ by this much.
        rounding = torch.finfo(self.posterior.log_px.dtype).eps ** (2 / 3) * (1 + values[:-1].abs())
        falls = (changes < -rounding).nonzero().flatten()
        if len(falls):
            i = int(changes.argmin())
            found.append(
                f"the {name} fell in {len(falls)} of {done.iterations} iterations, most in iteration {i + 1}, by "
                f"{-float(changes[i]):.2g} nats per datum: the model's m_step does not maximise the expected log joint "
                "density (a floor under its covariances does that, too)"
            )
        return (*found, *nearly_empty(self.posterior.discrete))


def _check_types(programs: Programs, batch: Batch) -> None:
    """Raise if data and parameters are floating numbers of different types."""
    held = {p.dtype for p in programs.parameters().values() if p.is_floating_point()}
    given = {part.dtype for part in batch if part.is_floating_point()}
    if held and given and not held & given:
        raise ValueError(
            f"x: it is in {_named(given)}, the model's parameters are in {_named(held)}; give both one type, "
            "model.double() and x.double() to compute in float64"
        )


def _named(types: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
