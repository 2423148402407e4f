"""Which objectives can train which pairs, and the mathematical reason where one cannot."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from pyro import poutine
from torch import nn

from ppl_vae import contract, nets, objectives, zoo
from ppl_vae.batches import Batch, as_batch
from ppl_vae.checking_objectives import check_objective
from ppl_vae.indexing import alike
from ppl_vae.pairing import Names, Pair
from ppl_vae.programs import Program, forked_random_state

__all__ = ["networks", "objective_for", "reason_against", "reasons", "table"]

PARTICLES = 4


def objective_for(name: str, pair: Pair) -> Any:
    """Return an objective by name; an estimator that has networks gets small ones that fit the pair.

    Example:
        >>> from ppl_vae.pairing import make
        >>> type(objective_for("NVIL", make("sigmoid_belief_network", "bernoulli"))).__name__
        'NVIL'
    """
    if name in objectives.every():
        return objectives.every()[name]
    batch, made = as_batch(pair.data()), objectives.estimators()[name]
    with forked_random_state(0):
        if made is objectives.RELAX:
            return made(**networks(alike(pair.model, pair.guide)[1], batch)).double()
        return zoo.build(made, {"x_dim": batch[0].shape[1], "posterior": pair.guide}).double()


def networks(guide: Program, batch: Batch) -> dict[str, nn.Module]:
    """Return a small network for each discrete site that a guide draws, as `objectives.RELAX` has them.

    Example:
        >>> from ppl_vae.pairing import make
        >>> [*networks(make("sigmoid_belief_network", "bernoulli").guide, (torch.ones(2, 6).double(),))]
        ['z']
    """
    with forked_random_state(0):
        sites = contract.latents(poutine.trace(guide).get_trace(*batch))
    discrete = {n: s["fn"].event_shape for n, s in sites.items() if not (s["fn"].has_rsample or contract.is_marked(s))}
    return {n: nn.Sequential(nn.Flatten(-len(e)), nets.MLP(e.numel(), (4,), 1)) for n, e in discrete.items() if e}


def reason_against(name: str, pair: Pair) -> str | None:
    """Return why an objective cannot train a pair, None where it can.

    Example:
        >>> from ppl_vae.pairing import make
        >>> reason_against("elbo", make("vae", "normal")) is None
        True
        >>> reason_against("dreg", make("sigmoid_belief_network", "bernoulli"))
        "objective: site 'z' is drawn without reparameterisation, which dreg needs; ..."
    """
    model, guide = alike(pair.model, pair.guide)
    objective = objective_for(name, pair)
    if objectives.facts(objective).upper and not [*pair.guide.parameters()]:
        return "objective: an upper bound trains the guide alone, which has no parameters of its own; train on elbo"
    try:
        with forked_random_state(0):
            check_objective(objective, model, guide, as_batch(pair.data()), PARTICLES)
    except ValueError as error:
        return str(error)
    return None


def reasons(pair: Pair) -> dict[str, str]:
    """Return, for each objective that cannot train a pair, the reason, without names of sites and without repair.

    Example:
        >>> from ppl_vae.pairing import make
        >>> [*reasons(make("sigmoid_belief_network", "bernoulli"))]
        ['dreg']
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks about objectives that do train the pair
        found = {name: reason_against(name, pair) for name in (*objectives.every(), *objectives.estimators())}
    return {name: _in_general(text) for name, text in found.items() if text}


def _in_general(text: str) -> str:
    """Return what an error says of any program: its first clause."""
    clause = text.split(";")[0].removeprefix("objective: ").removeprefix("guide: ")
    return re.sub(r"'\w+'(, '\w+')*", "...", re.sub(r"site '\w+'", "a site", clause))


def table(found: Mapping[Names, Mapping[str, str]]) -> str:
    """Return a Markdown table of pairs and objectives, with a letter for each reason why one cannot train the other.

    Objectives that stand alike with all pairs share a column.

    Args:
        found: `reasons` by pair.

    Example:
        >>> print(table({("vae", "normal"): {}, ("sbn", "bernoulli"): {"dreg": "no path"}}).splitlines()[-1])
        (a) no path
    """
    letters = dict(zip(dict.fromkeys(r for row in found.values() for r in row.values()), _LETTERS, strict=False))
    columns: dict[tuple[str, ...], list[str]] = {}
    for name in (*objectives.every(), *objectives.estimators()):
        columns.setdefault(tuple(letters.get(row.get(name, ""), "x") for row in found.values()), []).append(name)
    lines = ["| model | guide | " + " | ".join(f"`{'`, `'.join(names)}`" for names in columns.values()) + " |"]
    lines += ["| --- | --- |" + " :---: |" * len(columns)]
    for i, (model, guide, *_) in enumerate(found):
        lines.append(f"| `{model}` | `{guide}` | " + " | ".join(cells[i] for cells in columns) + " |")
    return "\n".join([*lines, "", *(f"({letter}) {reason}" for reason, letter in letters.items())])


_LETTERS = "abcdefghijklmnopqrstuvw"
