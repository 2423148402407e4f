"""What inferred discrete latents say of the data: responsibilities, labels, components that hold hardly any."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Clusters", "nearly_empty", "responsibilities"]


class Clusters:
    """What results of iterations with probabilities of discrete latents, ``discrete``, have in common.

    Example:
        >>> found = Clusters()
        >>> found.discrete = {"y": torch.tensor([[0.9, 0.1], [0.2, 0.8]])}
        >>> found.labels
        tensor([0, 1])
    """

    discrete: Mapping[str, Tensor]
    runs: tuple[float, ...]
    converged: bool
    iterations: int
    warnings: tuple[str, ...]

    @property
    def responsibilities(self) -> Tensor:
        """Probabilities of the one discrete latent of each datum, ``(N, C)``."""
        return responsibilities(self.discrete)

    @property
    def labels(self) -> Tensor:
        """The most probable component of each datum, ``(N,)``."""
        return self.responsibilities.argmax(1)

    def _tables(self) -> dict[str, str]:
        """Return what an export calls the probabilities of each discrete latent: name to site."""
        alone = len(self.discrete) == 1
        return {"responsibilities" if alone else f"responsibilities_{site}": site for site in self.discrete}

    def _told(self, found: str) -> str:
        """Add how iterations ended, and what speaks against what they found."""
        times = f"the best of {len(self.runs)} restarts, " if len(self.runs) > 1 else ""
        ended = f"{'' if self.converged else 'not '}converged after {self.iterations} iteration"
        sentence = f"{found}, {times}{ended}{'s' * (self.iterations != 1)}."
        return "\n".join([sentence, *(f"Warning: {warning}." for warning in self.warnings)])


def responsibilities(discrete: Mapping[str, Tensor]) -> Tensor:
    """Return the probabilities of the one discrete latent of each datum, ``(N, C)``.

    Args:
        discrete: site name to probabilities.

    Raises:
        ValueError: there is none, or there are several.

    Example:
        >>> responsibilities({})
        Traceback (most recent call last):
            ...
        ValueError: responsibilities: the model has no discrete latent for each datum
    """
    if len(discrete) != 1:
        found = f"has {len(discrete)} discrete latents for each datum ({', '.join(discrete)}); see .discrete"
        raise ValueError(
            f"responsibilities: the model {found if discrete else 'has no discrete latent for each datum'}"
        )
    return next(iter(discrete.values()))


def nearly_empty(discrete: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return a sentence on the components that hold fewer than two data, for each latent that has any.

    Args:
        discrete: site name to probabilities ``(N, C)``.

    Example:
        >>> nearly_empty({"y": torch.tensor([[1.0, 0.0], [1.0, 0.0]])})
        ("site 'y': fewer than two data are held by component 1 (0.00); ...",)
    """
    held = {name: table.sum(0) for name, table in discrete.items()}
    few = {name: torch.nonzero(counts < 2).flatten().tolist() for name, counts in held.items()}
    return tuple(
        f"site '{name}': fewer than two data are held by {_listed(components, held[name])}; take fewer components, "
        "start elsewhere (restarts=10), or give its parameters a prior"
        for name, components in few.items()
        if components
    )


def _listed(components: list[int], counts: Tensor) -> str:
    shown = ", ".join(f"component {c} ({float(counts[c]):.2f})" for c in components[:5])
    return shown + (f" and {len(components) - 5} more" if len(components) > 5 else "")
