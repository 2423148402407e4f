"""Every objective of the library, functions and modules, and the pairs of programs that it is to meet."""

from functools import lru_cache

import pairs
from pyro import poutine
from torch.distributions import constraints

from ppl_vae import applicability, contract, objectives
from ppl_vae.batches import as_batch
from ppl_vae.indexing import alike

make = applicability.objective_for


def networks(guide, x):
    """Return a small network for each discrete site of a guide."""
    return applicability.networks(guide, as_batch(x))


NAMES = [*objectives.every(), *objectives.estimators()]

# A bound, one of closed-form KLs, one with a score, one that follows the path, one that takes draws as given, an
# estimator.
ONE_OF_EACH_KIND = ["elbo", "elbo_kl", "vimco", "stl", "rws", "NVIL"]


def meetings():
    """Return pairs with objectives, for laws that take a tenth of a second each.

    Every objective meets a pair of every kind; some pairs, in which every program is, objectives of every kind; the
    others the ELBO.
    """
    return _meetings(pairs.one_of_each_kind(), pairs.with_every_program())


def slow_meetings():
    """Return pairs with objectives, for laws that take a second each: all of them meet path and score alone."""
    apart = pairs.one_of_each_kind()
    return _meetings([pair for pair in apart if pairs.kind(*pair) in SIMPLE], apart)


SIMPLE = [frozenset({("path", 1)}), frozenset({("scored", 1)})]


def _meetings(with_all, with_some):
    found = {pair: ["elbo"] for pair in (*pairs.names(), *pairs.variants())}
    found |= dict.fromkeys(with_some, ONE_OF_EACH_KIND) | dict.fromkeys(with_all, NAMES)
    return [(pair, name) for pair, names in found.items() for name in names]


def refusal(name, pair):
    """Return why a pair cannot be trained so, by the kind of its sites; None where it can."""
    reasons = {reason for reason, (refused, holds) in REFUSALS.items() if name in refused and holds(kinds(pair))}
    if is_upper(name) and not [*pair.guide.parameters()]:
        reasons.add("an upper bound trains the guide alone")
    return ", ".join(reasons) or None


@lru_cache(maxsize=4)  # every objective asks
def kinds(pair):
    """Return what matters of the ways in which a guide draws."""
    batch, programs = as_batch(pair.data()), alike(pair.model, pair.guide)
    wanted, drawn = (contract.latents(poutine.trace(program).get_trace(*batch)) for program in programs)
    sites = drawn.values()
    found = {"rows"} if "index" in pair.arguments else set()
    found |= {"upward"} if [name for name in wanted if name in drawn] != [*drawn] else set()
    for fn in (site["fn"] for site in sites if not contract.is_marked(site)):
        one_hot = contract.innermost(fn).support is constraints.one_hot
        found |= {"straight through"} if one_hot and fn.has_rsample else set()
        found |= set() if fn.has_rsample else {"scored", "one-hot"} if one_hot else {"scored"}
    return found | ({"enumerated"} if any(map(contract.is_marked, sites)) else set())


REFUSALS = {
    "dreg follows the path": ({"dreg"}, lambda kinds: "scored" in kinds),
    "opposite draws exist for bits": ({"ARM", "DisARM"}, lambda kinds: "one-hot" in kinds),
    "the mass of a value cancels": (
        {"iwae", "jackknife", "miwae", "ovis", "vimco", "vimco_arithmetic"},
        lambda kinds: "enumerated" in kinds,
    ),
    "draws are told apart, not values": ({"dreg", "piwae"}, lambda kinds: "enumerated" in kinds),
    "a point mass has no density that learns": (
        {"cubo", "dreg", "score_function", "rws", "tvo", "tvo_upper", "EUBO", "WakeSleep"},
        lambda kinds: "straight through" in kinds,
    ),
    "closed forms need the model's order": ({"elbo_kl"}, lambda kinds: "upward" in kinds),
    "dreams have no rows": ({"WakeSleep"}, lambda kinds: "rows" in kinds),
}


def is_upper(name):
    return {**objectives.every(), **objectives.estimators()}[name].facts.upper
