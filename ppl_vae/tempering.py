"""Move chains along a path of distributions, from one that can be drawn from to a posterior, and weigh them."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.batches import Batch
from ppl_vae.coordinates import Coordinates
from ppl_vae.hmc import Density, Evaluate, transition
from ppl_vae.particles import Particles, log_sum, total
from ppl_vae.programs import Program
from ppl_vae.tracing import Unobserved
from ppl_vae.weighing import weigh

__all__ = [
    "Annealed",
    "Ends",
    "Point",
    "Steps",
    "anneal",
    "densities",
    "ends",
    "evaluator",
    "pilot",
    "sigmoid_schedule",
]

# Temperatures, from 0 to 1, for a number of distributions.
Schedule = Callable[[int], Tensor]
Tick = Callable[[], None]

ACCEPTANCE = 0.65
GAIN = 0.3
FIRST_STEP = 0.5
# The pilot run: the most distributions that it goes through, and its transitions at each (at the first).
PILOT_DISTRIBUTIONS = 50
PILOT_TRANSITIONS = 4
PILOT_FIRST = 30


class Point(NamedTuple):
    """What is known where chains are.

    Attributes:
        position: real coordinates u of the latents, ``(K, B, D)``.
        log_base: log density of u in the distribution at the path's start, ``(K, B)``.
        log_target: log joint density of x and u, ``(K, B)``.
        base_slope: gradient of ``log_base`` in u, ``(K, B, D)``.
        target_slope: that of ``log_target``.
    """

    position: Tensor
    log_base: Tensor
    log_target: Tensor
    base_slope: Tensor
    target_slope: Tensor


class Ends(NamedTuple):
    """Both ends of a path: what densities they have, ``(K, B)``.

    Attributes:
        base: log density by site in the distribution at the start.
        target: log density by site of the model, data included.
        log_base: of the real coordinates, in the distribution at the start.
        log_target: likewise, jointly with the data.
    """

    base: Mapping[str, Tensor]
    target: Mapping[str, Tensor]
    log_base: Tensor
    log_target: Tensor


def sigmoid_schedule(distributions: int) -> Tensor:
    """Return temperatures from 0 to 1, closest at both ends, where the path's distributions differ most.

    With s the logistic function and t from -4 to 4 in even steps::

        b_t = (s(t) - s(-4)) / (s(4) - s(-4))

    Args:
        distributions: how many, both ends included.

    Returns:
        Temperatures in float64, ``(distributions,)``.

    Reference: Y. Wu, Y. Burda, R. Salakhutdinov, R. Grosse, "On the Quantitative Analysis of
    Decoder-Based Generative Models", ICLR 2017, https://arxiv.org/abs/1611.04273.

    Example:
        >>> sigmoid_schedule(5)
        tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    s = torch.linspace(-4, 4, distributions, dtype=torch.float64).sigmoid()
    return (s - s[0]) / (s[-1] - s[0])


def temperatures_of(schedule: Schedule, distributions: int) -> list[float]:
    """Return a schedule's temperatures as numbers.

    Raises:
        ValueError: they are not so many, ascending from 0 to 1.

    Example:
        >>> temperatures_of(lambda n: torch.ones(n), 3)
        Traceback (most recent call last):
        ...
        ValueError: schedule: expected 3 temperatures that ascend from 0 to 1, found [1.0, 1.0, 1.0]
    """
    found = torch.as_tensor(schedule(distributions), dtype=torch.float64).flatten().tolist()
    ascends = all(low < high for low, high in pairwise(found))
    if len(found) != distributions or not ascends or (found[0], found[-1]) != (0.0, 1.0):
        shown = found if len(found) < 6 else f"{len(found)} from {found[0]} to {found[-1]}"
        raise ValueError(f"schedule: expected {distributions} temperatures that ascend from 0 to 1, found {shown}")
    return found


def ends(model: Program, guide: Program | None, space: Coordinates, batch: Batch, position: Tensor) -> Ends:
    """Return the log densities of real coordinates at both ends of the path.

    Args:
        model: Pyro program.
        guide: the distribution at the path's start; the model's prior if None.
        space: coordinates of the latents.
        batch: tensors.
        position: ``(K, B, D)``.

    Example:
        >>> from ppl_vae.coordinates import coordinates
        >>> from ppl_vae.models.vae import VAE
        >>> model, batch = VAE(), (torch.ones(4, 784),)
        >>> ends(model, None, coordinates(model, batch), batch, torch.zeros(3, 4, 20)).log_target.shape
        torch.Size([3, 4])
    """
    values, log_jacobian = space.values(position)
    record = _weighed(model, guide or space.stand_in, batch, values)
    base = _base(model, guide, space, batch, values, record)
    both = (_summed(record, sites) + log_jacobian for sites in (base, record.log_p))
    return Ends(base, record.log_p, *both)


def _base(
    model: Program,
    guide: Program | None,
    space: Coordinates,
    batch: Batch,
    values: Mapping[str, Tensor],
    record: Particles,
) -> Mapping[str, Tensor]:
    if guide is not None:
        return record.log_q
    if values.keys() <= record.log_p.keys():
        return {name: record.log_p[name] for name in values}
    # A latent's prior hangs together with what is summed out.
    return _weighed(Unobserved()(model), space.stand_in, batch, values).log_p


def _weighed(model: Program, guide: Program, batch: Batch, values: Mapping[str, Tensor]) -> Particles:
    chains = next(iter(values.values())).shape[0]
    return weigh(model, guide, batch, chains, draw=lambda name, fn: values.get(name))


def _summed(record: Particles, densities: Mapping[str, Tensor]) -> Tensor:
    """Return a log density, values that the guide enumerates summed out."""
    density = total(densities)
    return log_sum(density.flatten(0, -3)) if record.enumerated else density


def densities(model: Program, guide: Program | None, space: Coordinates) -> Callable[..., tuple[Tensor, ...]]:
    """Return the function of a batch and positions that `Compiled` runs: both log densities and their slopes.

    Its tensors begin with the axis of data, as a batch's do: positions come as ``(B, K, D)``, last of the
    batch. It differentiates in them alone.
    """

    def function(tensors: Mapping[str, Tensor], inputs: Batch) -> tuple[Tensor, ...]:
        *batch, rows = inputs
        with torch.inference_mode(False), torch.enable_grad():
            rows = rows.detach().requires_grad_()
            found = ends(model, guide, space, tuple(batch), rows.transpose(0, 1))
            densities = (found.log_base, found.log_target)
            slopes = [_slope(density, rows) for density in densities]
        return *(density.detach().mT for density in densities), *slopes

    return function


def _slope(density: Tensor, rows: Tensor) -> Tensor:
    if not density.requires_grad:  # a uniform one
        return torch.zeros_like(rows)
    (slope,) = torch.autograd.grad(density.sum(), rows, retain_graph=True, allow_unused=True, materialize_grads=True)
    return slope


def evaluator(function: Callable[[Batch], tuple[Tensor, ...]], batch: Batch) -> Evaluate:
    """Return what evaluates positions ``(K, B, D)`` on a batch, as a `Point`."""

    def evaluate(position: Tensor) -> Point:
        found = function((*batch, position.transpose(0, 1)))
        # A graph that a GPU replays overwrites what it returned; and noise like a tensor follows its layout.
        copies = (part.transpose(0, 1).clone(memory_format=torch.contiguous_format) for part in found)
        return Point(position, *copies)

    return evaluate


def _at(temperature: float) -> Density:
    """Return the log density ``(1 - b) log base + b log target`` at a point, and its gradient."""

    def density(point: Point) -> tuple[Tensor, Tensor]:
        log_f = torch.lerp(point.log_base, point.log_target, temperature)
        return log_f, torch.lerp(point.base_slope, point.target_slope, temperature)

    return density


@dataclass(frozen=True)
class Steps:
    """Step sizes along the path, linear in their logarithm between the temperatures where they are known.

    Attributes:
        temperatures: ascending.
        log_step: logarithm of the step size at each for each datum, ``(temperatures, B)``.

    Example:
        >>> Steps([0.0, 1.0], torch.tensor([[0.0], [-2.0]])).at(0.5)
        tensor([0.3679])
    """

    temperatures: Sequence[float]
    log_step: Tensor

    def at(self, temperature: float) -> Tensor:
        """Return the step sizes at a temperature, ``(B,)``."""
        i = min(max(bisect_right(self.temperatures, temperature), 1), len(self.temperatures) - 1)
        low, high = self.temperatures[i - 1], self.temperatures[i]
        share = min(max((temperature - low) / (high - low), 0.0), 1.0)
        return torch.lerp(self.log_step[i - 1], self.log_step[i], share).exp()


class Annealed(NamedTuple):
    """What annealing gives: log-weights ``(K, B)`` in float64, and the mean acceptance ``(B,)``."""

    log_w: Tensor
    acceptance: Tensor


def anneal(
    start: Tensor, evaluate: Evaluate, temperatures: Sequence[float], steps: Steps | None, leapfrog: int, tick: Tick
) -> Annealed:
    """Move chains through tempered distributions ``f_b = base^(1-b) target^b``, and weigh them.

    ::

        log w = sum_t (b_(t+1) - b_t) (log target - log base)(u_t),    u_(t+1) ~ HMC at b_(t+1) from u_t

    With exact draws at the first temperature, the mean of w is the ratio of the normalising
    constants at the last and at the first: p(x) from 0 to 1, and 1 / p(x) from 1 to 0. It is so for any
    number of temperatures and any steps that are chosen beforehand.

    Args:
        start: draws from the distribution at the first temperature, ``(K, B, D)``.
        evaluate: from a position to a `Point`.
        temperatures: in the order of the path.
        steps: step sizes; not used where there are two temperatures alone.
        leapfrog: steps of a path.
        tick: called once a temperature.

    Reference: R. M. Neal, "Annealed Importance Sampling", Statistics and Computing 2001,
    https://arxiv.org/abs/physics/9803008.
    """
    point = evaluate(start)
    log_w = torch.zeros_like(point.log_base, dtype=torch.float64)
    accepted = torch.zeros_like(log_w)
    for before, now in pairwise(temperatures):
        log_w += (now - before) * (point.log_target - point.log_base).double()
        if now != temperatures[-1]:
            point, acceptance = transition(point, evaluate, _at(now), steps.at(now), leapfrog)
            accepted += acceptance
            tick()
    moves = len(temperatures) - 2
    return Annealed(log_w, accepted.mean(0) / moves if moves else torch.full_like(accepted[0], torch.nan))


def pilot(start: Tensor, evaluate: Evaluate, temperatures: Sequence[float], leapfrog: int, tick: Tick) -> Steps:
    """Find step sizes, for each datum and along the path, at which about 0.65 of the moves are accepted.

    Chains of their own go through the temperatures, and after each of a few transitions::

        log step <- log step + 0.3 (mean acceptance - 0.65)

    Args:
        start: draws from the base, ``(K, B, D)``.
        evaluate: from a position to a `Point`.
        temperatures: ascending from 0.
        leapfrog: steps of a path.
        tick: called once a temperature.

    Reference: optimal acceptance as in A. Beskos et al., "Optimal Tuning of the Hybrid Monte Carlo
    Algorithm", Bernoulli 2013, https://arxiv.org/abs/1001.4460.
    """
    point = evaluate(start)
    log_step = torch.full_like(point.log_base[0], FIRST_STEP).log()
    found = []
    for i, temperature in enumerate(temperatures[1:]):
        for _ in range(PILOT_TRANSITIONS if i else PILOT_FIRST):
            point, acceptance = transition(point, evaluate, _at(temperature), log_step.exp(), leapfrog)
            log_step = log_step + GAIN * (acceptance.mean(0) - ACCEPTANCE)
        found.append(log_step)
        tick()
    return Steps(temperatures[1:], torch.stack(found))
