"""Functions of the step, for options of a bound that change during training."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.objectives.options import checked, finite, positive, whole
from ppl_vae.objectives.vocabulary import Objective, advance, facts
from ppl_vae.particles import Particles

__all__ = ["Schedule", "Scheduled", "Temperature", "cyclical", "exponential", "linear", "reported", "settled"]

Schedule = Callable[[Tensor], Tensor]


def linear(start: float, end: float, steps: int) -> Schedule:
    """Return a schedule that goes from start to end in a straight line, and stays there.

    Raises:
        ValueError: start or end is not finite, or there is not a step at least.

    Example:
        >>> linear(0.0, 1.0, steps=4)(torch.tensor(1))
        tensor(0.2500)
    """
    _check_ends(start, end)
    whole("steps", steps)
    return _stays(steps if start != end else 0, lambda step: start + (end - start) * (step / steps).clamp(0, 1))


def cyclical(start: float, end: float, period: int, cycles: int = 4, rise: float = 0.5) -> Schedule:
    """Return a schedule that rises from start to end in every period, and stays there after the last.

    Args:
        start: value at the beginning of each period.
        end: value after the rise.
        period: steps.
        cycles: how many periods.
        rise: share of the period that the rise takes.

    Raises:
        ValueError: start or end is not finite, period or cycles no whole number above 0, or rise
            outside (0, 1].

    Reference: H. Fu et al., "Cyclical Annealing Schedule", NAACL 2019, https://arxiv.org/abs/1903.10145.

    Example:
        >>> cyclical(0.0, 1.0, period=4, cycles=2)(torch.tensor([0, 1, 2, 3, 4, 5, 8]))
        tensor([0.0000, 0.5000, 1.0000, 1.0000, 0.0000, 0.5000, 1.0000])
    """
    _check_ends(start, end)
    whole("period", period)
    whole("cycles", cycles)
    checked("rise", rise, "a share from 0 to 1, 0 excluded", lambda r: 0 < r <= 1)

    def at(step: Tensor) -> Tensor:
        # One step short of a whole period, the rise is over.
        within = torch.where(step < cycles * period, step.remainder(period), period)
        return start + (end - start) * (within / (rise * period)).clamp(0, 1)

    return _stays(ceil((cycles - 1 + rise) * period) if start != end else 0, at)


def exponential(start: float, end: float, rate: float) -> Schedule:
    """Return a schedule that decays from start at a rate per step, never below end.

    Raises:
        ValueError: start or end is not finite, start lies below end, or rate is negative.

    Reference: as in E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with Gumbel-Softmax",
    ICLR 2017, https://arxiv.org/abs/1611.01144.

    Example:
        >>> exponential(1.0, 0.5, rate=1e-2)(torch.tensor([0, 10, 1000]))
        tensor([1.0000, 0.9048, 0.5000])
    """
    _check_ends(start, end)
    checked("start", start, f"at least end ({end})", lambda s: s >= end)
    checked("rate", rate, "a finite number of at least 0", lambda r: 0 <= r < inf)
    return lambda step: (start * (-rate * step).exp()).clamp_min(end)


def _check_ends(start: float, end: float) -> None:
    checked("start", start, "a finite number", finite)
    checked("end", end, "a finite number", finite)


LAST = torch.iinfo(torch.int32).max


def _stays(steps: int, schedule: Schedule) -> Schedule:
    """Note on a schedule after how many steps it stays as it is: its value could not tell a plateau from the end."""
    schedule.steps = steps
    return schedule


def _has_settled(schedule: Schedule, step: Tensor) -> bool:
    steps = getattr(schedule, "steps", None)
    if steps is not None:
        return int(step) >= steps
    return float(schedule(step)) == float(schedule(torch.full_like(step, LAST)))


class Temperature(nn.Module):
    """A temperature, fixed or following the step.

    Estimators whose gradient it changes report the bound on the discrete model, in which it has no part: there is
    nothing un-annealed to report beside it.

    Args:
        value: a positive number, or a schedule that stays positive.

    Raises:
        TypeError, ValueError: it is not positive; a schedule is looked at where it starts and ends.

    Example:
        >>> Temperature(exponential(1.0, 0.5, rate=1e-4))()
        tensor(1.)
    """

    step: Tensor

    def __init__(self, value: float | Schedule):
        super().__init__()
        if callable(value):
            for step in (0, LAST):
                checked("temperature", float(value(torch.tensor(step))), "positive numbers at every step", positive)
        else:
            value = float(value) if isinstance(value, Tensor) else value
            checked("temperature", value, "a positive number or a schedule", positive)
        self.value = value
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self) -> Tensor | float:
        """Return the temperature at this step."""
        return self.value(self.step) if callable(self.value) else self.value

    def settled(self) -> bool:
        """Tell whether the temperature has come to its end; waits for the device."""
        return not callable(self.value) or _has_settled(self.value, self.step)

    def advance(self) -> None:
        """Take note that an update has been made."""
        self.step += 1


def _try_ends(bound: Objective, options: Mapping[str, Schedule]) -> None:
    """Let a bound of the library look at its options as they are at the start and at the end."""
    none = Particles(log_p={"x": torch.zeros(facts(bound).min_particles, 1)}, log_q={})
    for step in (0, LAST):
        values = {name: float(schedule(torch.tensor(step))) for name, schedule in options.items()}
        try:
            bound(none, **values)
        except TypeError as error:
            raise TypeError(
                f"{', '.join(options)}: {facts(bound).name} takes no number there, which a schedule gives ({error})"
            ) from error


class Scheduled(nn.Module):
    """A bound whose options follow the step, for KL warm-up and the like.

    In training mode each update moves the step by one; it is saved and resumed, and goes on where it
    was when the object is used again. In evaluation mode the options have the values of the end, so
    that epochs are compared by one and the same bound. A step reports the bound of the end too, from the
    draws that it trains on (`ppl_vae.Info`), and what it trained as ``annealed``.

    Args:
        bound: a bound with options, such as `beta_elbo`.
        options: option name to a schedule: `linear`, `cyclical`, `exponential`, or any function from the step, a
            tensor ``()`` on the device, to a tensor ``()``. One that comes by its last value before it stays there
            tells by an attribute ``steps`` after how many it stays (see `settled`).

    Raises:
        TypeError: the bound has no such option, or an option is not a function of the step.
        ValueError: an option starts or ends where the bound does not take it.

    Reference: S. Bowman et al., "Generating Sentences from a Continuous Space", CoNLL 2016,
    https://arxiv.org/abs/1511.06349, for KL warm-up.

    Example:
        >>> from ppl_vae.objectives import Scheduled, beta_elbo, linear
        >>> warm_up = Scheduled(beta_elbo, beta=linear(0.0, 1.0, steps=1000))
        >>> warm_up(pv.Particles(log_p={"x": torch.tensor([[-2.0], [-4.0]])}, log_q={}))
        tensor([-3.])
    """

    step: Tensor

    def __init__(self, bound: Objective, **options: Schedule):
        super().__init__()
        if isinstance(bound, type) or hasattr(bound, "estimate"):
            raise TypeError(f"bound: expected a function of Particles with options, found {bound!r}")
        known = inspect.signature(bound).parameters
        for name, schedule in options.items():
            if name not in known:
                found = ", ".join(list(known)[1:]) or "none"
                raise TypeError(f"{name}: {facts(bound).name} has no such option; it has {found}")
            if not callable(schedule):
                raise TypeError(f"{name}: expected a function of the step, such as linear(0.0, 1.0, steps=1000)")
        if getattr(bound, "__module__", "").startswith("ppl_vae.objectives"):
            _try_ends(bound, options)
        self.of, self.options = bound, options
        self.facts = facts(bound)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def values(self) -> dict[str, Any]:
        """Return the options as they are now, tensors of shape ``()``."""
        step = self.step if self.training else torch.full_like(self.step, LAST)
        return {name: schedule(step) for name, schedule in self.options.items()}

    def forward(self, particles: Particles) -> Tensor:
        """Return the bound, ``(B,)``, with the options of this step."""
        return self.of(particles, **self.values())

    def settled(self) -> bool:
        """Tell whether all options have come to their ends; waits for the device."""
        return all(_has_settled(schedule, self.step) for schedule in self.options.values())

    def advance(self) -> None:
        """Take note that an update has been made."""
        self.step += 1
        advance(self.of)


def settled(objective: Any) -> bool:
    """Tell whether an objective stays as it is from here on: no schedule in it is on its way.

    Asked once an epoch, as it waits for the device: while a bound is still annealed, that validation gets no better
    says nothing. A schedule has settled after the number of steps that its attribute ``steps`` states, as those of
    `linear` and `cyclical` do; one without is asked whether it is where it ends.

    Args:
        objective: a bound, or a module that may hold `Scheduled` and other parts with a method ``settled``.

    Example:
        >>> warm_up = Scheduled(pv.objectives.beta_elbo, beta=linear(0.0, 1.0, steps=2))
        >>> before = settled(warm_up)
        >>> warm_up.advance(), warm_up.advance()
        (None, None)
        >>> before, settled(warm_up), settled(pv.objectives.elbo)
        (False, True, True)
    """
    parts = objective.modules() if isinstance(objective, nn.Module) else ()
    return all(part.settled() for part in parts if callable(getattr(part, "settled", None)))


def reported(bound: Objective, particles: Particles, trained: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a bound as validation has it, all options at their ends, and the annealed one, from the same draws.

    Args:
        bound: a function of Particles.
        particles: K draws.
        trained: the bound that it gives of them, ``(B,)``.

    Returns:
        Both ``(B,)``, without gradient; the second is None if no option of the bound follows the step.

    Example:
        >>> zeros = torch.zeros(3, 2)
        >>> particles = pv.Particles(log_p={"z": zeros - 1, "x": zeros - 5}, log_q={"z": zeros}, values={"z": zeros})
        >>> warm_up = Scheduled(pv.objectives.beta_elbo, beta=linear(0.0, 1.0, steps=2))
        >>> reported(warm_up, particles, warm_up(particles))
        (tensor([-6., -6.]), tensor([-5., -5.]))
    """
    parts = [*bound.modules()] if isinstance(bound, nn.Module) else []
    if not any(isinstance(part, Scheduled) and part.training for part in parts):
        return trained.detach(), None
    with _in_evaluation_mode(parts):
        return bound(_without_gradient(particles)), trained.detach()


@contextmanager
def _in_evaluation_mode(modules: list[nn.Module]) -> Iterator[None]:
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _without_gradient(particles: Particles) -> Particles:
    fields = {name: getattr(particles, name) for name in ("log_p", "log_q", "score", "values", "penalties", "kl")}
    # An empty field stays the object that it is: of chunks, one refuses to be read.
    stopped = {name: {n: t.detach() for n, t in ts.items()} for name, ts in fields.items() if len(ts)}
    return replace(particles, **stopped)
