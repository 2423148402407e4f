"""Iterations that stop at a tolerance, and restarts of which the best is kept. No mathematics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Protocol

from ppl_vae.progress import Bar, progress_bar

__all__ = ["Algorithm", "Iterated", "check_iterations", "check_seed", "iterated"]

History = dict[str, list[float]]


class Algorithm(Protocol):
    """What `iterated` asks of an algorithm. Values are nats per datum."""

    def begin(self, seed: int) -> Mapping[str, float]:
        """Start from what was last loaded; return the values at the start."""

    def update(self) -> Mapping[str, float]:
        """Iterate once; return the values afterwards."""

    def state(self) -> Any:
        """Return all that `load` needs, in memory of its own."""

    def load(self, state: Any) -> None:
        """Go back to a state."""


@dataclass(frozen=True)
class Iterated:
    """What iterating did.

    Attributes:
        history: name to values in nats per datum; ``[0]`` is at the start, ``[i]`` after i iterations.
        converged: whether the last iteration changed the tracked value by less than the tolerance.
        runs: the tracked value at the end of each restart.
    """

    history: Mapping[str, list[float]]
    converged: bool
    runs: tuple[float, ...]

    @property
    def iterations(self) -> int:
        """How many iterations the best restart took."""
        return len(next(iter(self.history.values()))) - 1


def iterated(
    algorithm: Algorithm,
    tracked: str,
    *,
    iterations: int,
    tol: float,
    restarts: int = 1,
    seed: int = 0,
    title: str = "Iterating",
    progress: bool | None = None,
) -> Iterated:
    """Iterate an algorithm to its tolerance, several times, and leave it in the best state that was reached.

    Each restart begins at the state in which the algorithm was found, with a seed of its own (``seed``, ``seed + 1``,
    ...). An iteration that changes the tracked value by less than ``tol`` is the last one.

    Args:
        algorithm: what to iterate.
        tracked: the name of the value that is to rise.
        iterations: at most so many, for each restart.
        tol: nats per datum; with 0 none stops early.
        restarts: how many times to begin.
        seed: of the first restart.
        title: text before the progress bar.
        progress: whether to show it; by default where a terminal or notebook does.

    Returns:
        `Iterated`: history and convergence of the best restart.

    Raises:
        FloatingPointError: a value is no finite number. After this and any other error the algorithm is in the state
            in which it was found.

    Example:
        >>> class Halving:
        ...     x = 1.0
        ...     def begin(self, seed):
        ...         return {"value": -self.x}
        ...     def update(self):
        ...         self.x /= 2
        ...         return {"value": -self.x}
        ...     def state(self):
        ...         return self.x
        ...     def load(self, state):
        ...         self.x = state
        >>> done = iterated(Halving(), "value", iterations=100, tol=0.1)
        >>> done.history["value"], done.converged
        ([-1.0, -0.5, -0.25, -0.125, -0.0625], True)
    """
    check_iterations(iterations, tol, restarts)
    found = best = algorithm.state()
    runs: list[tuple[History, bool]] = []
    kept = 0
    try:
        with progress_bar(title, iterations * restarts, progress) as bar:
            for restart in range(restarts):
                algorithm.load(found)
                runs.append(_run(algorithm, tracked, iterations, tol, seed + restart, bar))
                if restart == 0 or _final(runs[restart], tracked) > _final(runs[kept], tracked):
                    kept, best = restart, algorithm.state()
    except BaseException:
        algorithm.load(found)
        raise
    algorithm.load(best)
    history, converged = runs[kept]
    return Iterated(history, converged, tuple(_final(run, tracked) for run in runs))


def _run(algorithm: Algorithm, tracked: str, iterations: int, tol: float, seed: int, bar: Bar) -> tuple[History, bool]:
    history = {name: [_finite(value, name, 0)] for name, value in algorithm.begin(seed).items()}
    for i in range(1, iterations + 1):
        for name, value in algorithm.update().items():
            history[name].append(_finite(value, name, i))
        bar.advance(partial(_note, i, tracked, history[tracked][-1]))
        if abs(history[tracked][-1] - history[tracked][-2]) < tol:
            bar.advance(by=iterations - i)
            return history, True
    return history, False


def _final(run: tuple[History, bool], tracked: str) -> float:
    return run[0][tracked][-1]


def _finite(value: float, name: str, iteration: int) -> float:
    if not math.isfinite(value):
        when = f"after {iteration} iteration{'s' * (iteration != 1)}" if iteration else "at the start"
        raise FloatingPointError(
            f"the {name.replace('_', '-')} is {value} {when}; all is as it was before the call. Look for data outside "
            "the likelihood's support and for scales that shrink to zero; fewer components, or a prior, keep them away"
        )
    return value


def _note(iteration: int, tracked: str, value: float) -> str:
    return f"iteration {iteration}, {tracked.replace('_', '-')} {value:.4f} nats per datum"


def check_iterations(iterations: int, tol: float, restarts: int) -> None:
    """Raise if these do not say when to stop.

    Example:
        >>> check_iterations(10, 1e-6, restarts=0)
        Traceback (most recent call last):
            ...
        ValueError: restarts: expected a whole number of at least 1, found 0
    """
    for name, value in {"iterations": iterations, "restarts": restarts}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, found {value!r}")
    if isinstance(tol, bool) or not isinstance(tol, Real) or not tol >= 0:
        raise ValueError(f"tol: expected nats per datum, zero or more, found {tol!r}")


def check_seed(seed: int) -> None:
    """Raise if this is no seed.

    Example:
        >>> check_seed(None)
        Traceback (most recent call last):
            ...
        TypeError: seed: expected a whole number, found None
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected a whole number, found {seed!r}")
