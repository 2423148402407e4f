"""Functions of the step, for options of a bound that change during training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.objectives.vocabulary import Objective, facts
from ppl_vae.particles import Particles

__all__ = ["Schedule", "Scheduled", "cyclical", "exponential", "linear"]

Schedule = Callable[[Tensor], Tensor]


def linear(start: float, end: float, steps: int) -> Schedule:
    """Return a schedule that goes from start to end in a straight line, and stays there.

    Example:
        >>> linear(0.0, 1.0, steps=4)(torch.tensor(1))
        tensor(0.2500)
    """
    return lambda step: start + (end - start) * (step / steps).clamp(0, 1)


def cyclical(start: float, end: float, period: int, cycles: int = 4, rise: float = 0.5) -> Schedule:
    """Return a schedule that rises from start to end in every period, and stays there after the last.

    Args:
        start: value at the beginning of each period.
        end: value after the rise.
        period: steps.
        cycles: how many periods.
        rise: share of the period that the rise takes.

    Reference: H. Fu et al., "Cyclical Annealing Schedule", NAACL 2019, https://arxiv.org/abs/1903.10145.

    Example:
        >>> cyclical(0.0, 1.0, period=4, cycles=2)(torch.tensor([0, 1, 2, 3, 4, 5, 8]))
        tensor([0.0000, 0.5000, 1.0000, 1.0000, 0.0000, 0.5000, 1.0000])
    """

    def at(step: Tensor) -> Tensor:
        # One step short of a whole period, the rise is over.
        within = torch.where(step < cycles * period, step.remainder(period), period)
        return start + (end - start) * (within / (rise * period)).clamp(0, 1)

    return at


def exponential(start: float, end: float, rate: float) -> Schedule:
    """Return a schedule that decays from start at a rate per step, never below end.

    Reference: as in E. Jang, S. Gu, B. Poole, "Categorical Reparameterization with Gumbel-Softmax",
    ICLR 2017, https://arxiv.org/abs/1611.01144.

    Example:
        >>> exponential(1.0, 0.5, rate=1e-2)(torch.tensor([0, 10, 1000]))
        tensor([1.0000, 0.9048, 0.5000])
    """
    return lambda step: (start * (-rate * step).exp()).clamp_min(end)


class Scheduled(nn.Module):
    """A bound whose options follow the step, for KL warm-up and the like.

    In training mode each update moves the step by one; it is saved and resumed. In evaluation mode
    the options have the values of the end, so that epochs are compared by one and the same bound.

    Args:
        bound: a bound with options, such as `beta_elbo`.
        options: option name to a schedule.

    Raises:
        TypeError: an option is not a function of the step.

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
        for name, schedule in options.items():
            if not callable(schedule):
                raise TypeError(f"{name}: expected a function of the step, such as linear(0.0, 1.0, steps=1000)")
        self.of, self.options = bound, options
        self.facts = facts(bound)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def values(self) -> dict[str, Any]:
        """Return the options as they are now, tensors of shape ``()``."""
        step = self.step if self.training else torch.full_like(self.step, torch.iinfo(torch.int32).max)
        return {name: schedule(step) for name, schedule in self.options.items()}

    def forward(self, particles: Particles) -> Tensor:
        """Return the bound, ``(B,)``, with the options of this step."""
        return self.of(particles, **self.values())

    def advance(self) -> None:
        """Take note that an update has been made."""
        self.step += 1
