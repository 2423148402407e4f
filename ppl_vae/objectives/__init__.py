"""Bounds and gradient estimators: small pure functions from `Particles` to ``(B,)`` nats."""

from ppl_vae.objectives.bounds import elbo, iwae
from ppl_vae.objectives.vocabulary import Facts, Objective, facts, mean_penalty, objective, with_score

__all__ = ["Facts", "Objective", "elbo", "every", "facts", "iwae", "mean_penalty", "objective", "with_score"]


def every() -> dict[str, Objective]:
    """Return every bound of the library by name, for tests, tables and the command line.

    Example:
        >>> sorted(every())
        ['elbo', 'iwae']
    """
    return {name: bound for name, bound in globals().items() if isinstance(getattr(bound, "facts", None), Facts)}
