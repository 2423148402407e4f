"""What the options of the command line name: functions, classes and values, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from ppl_vae import guarding, nets, objectives, priors, zoo
from ppl_vae.objectives import Objective, Scheduled, beta_elbo, cyclical, free_bits, linear

__all__ = [
    "CHOSEN",
    "COMPILE",
    "LIKELIHOODS",
    "LR_SCHEDULES",
    "OBJECTIVES",
    "ON_FAULT",
    "PRECISION",
    "PRIORS",
    "WITH_FLOOR",
    "WITH_WEIGHT",
    "annealed",
    "floored",
    "scheduler",
]

PRECISION = {"float32": None, "bfloat16": torch.bfloat16}
COMPILE = {"auto": "auto", "true": True, "false": False}
OBJECTIVES = objectives.every() | objectives.estimators()
LIKELIHOODS = {
    "bernoulli": nets.ToBernoulli,
    "gaussian": nets.ToNormalOneScale,
    "gaussian_fixed": nets.ToNormalFixedScale,
    "gaussian_pixels": nets.ToNormalPixelScale,
    "gaussian_predicted": nets.ToNormal,
    "discretised_logistic": nets.ToDiscretisedLogistic,
    "continuous_bernoulli": nets.ToContinuousBernoulli,
}
PRIORS = {
    "standard_normal": priors.StandardNormal,
    "mixture": priors.MixtureOfNormals,
    "vamp": priors.VampPrior,
    "exemplar": priors.Exemplar,
    "autoregressive_flow": priors.AutoregressiveFlow,
    "coupling_flow": priors.CouplingFlow,
}
# Settings that choose a part of the model, and the constructor's argument for it.
CHOSEN = {"likelihood": "decoder", "prior": "prior"}
# Objectives whose KL divergence has a weight that can rise, or a floor, and the bound that has it as an option.
WITH_WEIGHT = {"elbo": beta_elbo, "beta_elbo": beta_elbo}
WITH_FLOOR = {"elbo": free_bits, "free_bits": free_bits}


def annealed(bound: Objective, updates: int, cycles: int | None) -> Scheduled:
    """Return a bound whose KL divergence's weight rises from 0 to 1 while so many updates are made, once or in cycles.

    Example:
        >>> annealed(beta_elbo, updates=10, cycles=None).values()["beta"]
        tensor(0.)
    """
    if cycles is None:
        return Scheduled(bound, beta=linear(0.0, 1.0, steps=max(updates, 1)))
    return Scheduled(bound, beta=cyclical(0.0, 1.0, period=max(updates // cycles, 1), cycles=cycles))


def floored(bound: Objective, floor: float) -> Objective:
    """Return a bound in which a latent's divergence costs at least a floor, in nats per site and datum.

    Example:
        >>> floored(free_bits, 0.5).keywords
        {'floor': 0.5}
    """
    return partial(bound, floor=floor)


def objective(name: str, sizes: Mapping[str, Any]) -> Any:
    """Return a bound, or an estimator made with those sizes that its constructor takes."""
    return zoo.build(OBJECTIVES[name], sizes)


def _cosine(epochs: int, updates: int, rate: float) -> Callable[[Optimizer], Any]:
    return partial(lr_scheduler.CosineAnnealingLR, T_max=epochs)


def _step(epochs: int, updates: int, rate: float) -> Callable[[Optimizer], Any]:
    return partial(lr_scheduler.StepLR, step_size=max(epochs // 3, 1), gamma=0.1)


def _plateau(epochs: int, updates: int, rate: float) -> Callable[[Optimizer], Any]:
    # In nats: torch's relative threshold is one of a loss that is positive.
    return partial(lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=10, threshold=1e-4, threshold_mode="abs")


def _one_cycle(epochs: int, updates: int, rate: float) -> Callable[[Optimizer], Any]:
    return partial(lr_scheduler.OneCycleLR, max_lr=rate, total_steps=max(updates, 1))


# What each makes of the learning rate; `fit` steps the cycle after each update, the others after each epoch.
LR_SCHEDULES = {"none": None, "cosine": _cosine, "step": _step, "plateau": _plateau, "one_cycle": _one_cycle}


def scheduler(name: str, epochs: int, updates: int, rate: float) -> Callable[[Optimizer], Any] | None:
    """Return the function that makes a schedule of the learning rate.

    Args:
        name: one of ``LR_SCHEDULES``.
        epochs: of training.
        updates: in all of them.
        rate: the learning rate, which schedules begin with; ``one_cycle`` rises to it.

    Example:
        >>> optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> schedule = scheduler("cosine", epochs=2, updates=10, rate=0.1)(optimizer)
        >>> optimizer.step(); schedule.step(); schedule.get_last_lr()
        [0.05]
    """
    made = LR_SCHEDULES[name]
    return made and made(epochs, updates, rate)


# What training does about a bound or a gradient that is no number.
ON_FAULT = {"stop": guarding.stop, "skip": guarding.skip, "back-off": guarding.back_off()}
