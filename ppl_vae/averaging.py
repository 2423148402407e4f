"""Exponential moving averages of parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ppl_vae.objectives.options import checked

__all__ = ["Average"]


class Average:
    """The exponential moving average of parameters over updates.

    After n of them the next one is taken in as::

        average <- d average + (1 - d) parameter,    d = min(decay, (1 + n) / (10 + n))

    The smaller d of the first updates lets the average forget where parameters started.

    Args:
        parameters: by name.
        decay: from 0 to 1, 1 excluded; 0.999 averages over about a thousand updates.

    Raises:
        ValueError: decay is out of range.

    Reference: B. Polyak, A. Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control
    Optim. 1992, https://doi.org/10.1137/0330046, for averages of what stochastic gradients find.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(()))
        >>> average = Average({"weight": weight}, decay=0.5)
        >>> weight.data.fill_(1.0), average.update()
        (tensor(1.), None)
        >>> with average.in_place():
        ...     weight.item()
        0.8999...
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float):
        checked("ema", decay, "a number from 0 to 1, 1 excluded", lambda d: 0 <= d < 1)
        self.parameters, self.decay, self.updates = dict(parameters), decay, 0
        self.means = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters after an update."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_([*self.means.values()], [p.detach() for p in self.parameters.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the parameters be their averages inside."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._set(self.means)
        try:
            yield
        finally:
            self._set(own)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of updates."""
        return {"means": dict(self.means), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of the same parameters."""
        for name, mean in self.means.items():
            mean.copy_(state["means"][name])
        self.updates = state["updates"]

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
