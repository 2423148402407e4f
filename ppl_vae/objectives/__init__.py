"""Bounds and gradient estimators.

Functions from `Particles` to ``(B,)`` nats, and, where draws, data or state of their own are needed,
modules with ``estimate(model, guide, batch, particles)``, which gives a value and a surrogate.
"""

from typing import Any

from torch import nn

from ppl_vae.objectives.antithetic import ARM, DisARM
from ppl_vae.objectives.bounds import ciwae, cubo, elbo, iwae, jackknife, miwae, renyi
from ppl_vae.objectives.discrete import ovis, reinforce, rloo, vimco, vimco_arithmetic
from ppl_vae.objectives.drawn_elsewhere import EUBO, WakeSleep
from ppl_vae.objectives.muprop import MuProp
from ppl_vae.objectives.nvil import NVIL
from ppl_vae.objectives.parts import beta_elbo, elbo_kl, free_bits, parts
from ppl_vae.objectives.paths import dreg, piwae, score_function, stl
from ppl_vae.objectives.rebar import REBAR, RELAX
from ppl_vae.objectives.relaxed import Concrete, StraightThrough, StraightThroughGumbel
from ppl_vae.objectives.schedules import Scheduled, cyclical, exponential, linear, settled
from ppl_vae.objectives.vocabulary import (
    Estimate,
    Facts,
    Objective,
    facts,
    mean_penalty,
    mean_with_score,
    objective,
    split_path,
    with_score,
    with_signal,
)
from ppl_vae.objectives.weighted import rws, tvo, tvo_upper

__all__ = [
    "ARM",
    "EUBO",
    "NVIL",
    "REBAR",
    "RELAX",
    "Concrete",
    "DisARM",
    "Estimate",
    "Facts",
    "MuProp",
    "Objective",
    "Scheduled",
    "StraightThrough",
    "StraightThroughGumbel",
    "WakeSleep",
    "beta_elbo",
    "ciwae",
    "cubo",
    "cyclical",
    "dreg",
    "elbo",
    "elbo_kl",
    "estimators",
    "every",
    "exponential",
    "facts",
    "free_bits",
    "iwae",
    "jackknife",
    "linear",
    "mean_penalty",
    "mean_with_score",
    "miwae",
    "objective",
    "ovis",
    "parts",
    "piwae",
    "reinforce",
    "renyi",
    "rloo",
    "rws",
    "score_function",
    "settled",
    "split_path",
    "stl",
    "tvo",
    "tvo_upper",
    "vimco",
    "vimco_arithmetic",
    "with_score",
    "with_signal",
]


def every() -> dict[str, Objective]:
    """Return every bound of the library that is a function, by name, for tests, tables and the command line.

    Example:
        >>> {"elbo", "iwae", "vimco"} <= set(every())
        True
    """
    return {name: bound for name, bound in _with_facts().items() if not isinstance(bound, type)}


def estimators() -> dict[str, type[nn.Module]]:
    """Return the class of every estimator that is a module, by name.

    Example:
        >>> {"NVIL", "REBAR", "Concrete"} <= set(estimators())
        True
    """
    return {name: bound for name, bound in _with_facts().items() if isinstance(bound, type)}


def _with_facts() -> dict[str, Any]:
    return {name: value for name, value in globals().items() if isinstance(getattr(value, "facts", None), Facts)}
