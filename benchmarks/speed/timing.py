"""Time contenders side by side: in one process, in turns, by medians and their ratios."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Steps in a turn, and seconds before it, in which the last contender's threads stop to spin.
STEPS = 20
PAUSE = 0.02


@dataclass(frozen=True)
class Contender:
    """One way to do the same work.

    Attributes:
        name: for tables.
        run: does it; what it returns is not looked at.
        steps: how many steps a run takes.
        loss: the loss, in nats per datum, of the parameters at the start and of fresh noise, by which
            contenders show that they compute the same; None where one reports something else.
    """

    name: str
    run: Callable[[], Any]
    steps: int = 1
    loss: Callable[[], float] | None = None


def interleaved(contenders: Sequence[Contender], rounds: int, steps: int = STEPS) -> dict[str, float]:
    """Return the median time of a step of each contender, in seconds; a turn is so many steps.

    Contenders take turns, so that a machine that slows down slows all of them. A turn is as many
    steps as training takes in a row, so that each finds the caches as its own last step left them.
    """
    for contender in contenders:
        turn(contender, steps)
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    gc.disable()
    try:
        for _ in range(rounds):
            for contender in contenders:
                time.sleep(PAUSE)
                times[contender.name].append(turn(contender, steps) / steps)
    finally:
        gc.enable()
    return {name: statistics.median(measured) for name, measured in times.items()}


def turn(contender: Contender, steps: int) -> float:
    """Return the seconds that so many steps take."""
    started = time.perf_counter()
    for _ in range(steps // contender.steps):
        contender.run()
    return time.perf_counter() - started


def check_losses(contenders: Sequence[Contender], repeats: int = 40) -> dict[str, float]:
    """Return the mean loss of each contender; raise unless all agree within five standard errors.

    Raises:
        ValueError: a contender computes something else than the first.
    """
    means, errors = {}, {}
    for contender in contenders:
        if contender.loss is not None:
            values = [contender.loss() for _ in range(repeats)]
            means[contender.name] = statistics.fmean(values)
            errors[contender.name] = statistics.stdev(values) / len(values) ** 0.5
    first = next(iter(means))
    for name, mean in means.items():
        allowed = 5 * (errors[name] ** 2 + errors[first] ** 2) ** 0.5 + 1e-3
        if abs(mean - means[first]) > allowed:
            raise ValueError(
                f"{name} has a loss of {mean:.3f}, {first} one of {means[first]:.3f} (allowed: {allowed:.3f})"
            )
    return means
