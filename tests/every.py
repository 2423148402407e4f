"""Every objective of the library, functions and modules, and the pairs of programs that it is to meet."""

import pairs
from pyro import poutine

from ppl_vae import applicability, contract, objectives
from ppl_vae.batches import as_batch

make = applicability.objective_for
NAMES = [*objectives.every(), *objectives.estimators()]

# A bound, one of closed-form KLs, one with a score, one that follows the path, one that takes draws as given, an
# estimator.
ONE_OF_EACH_KIND = ["elbo", "elbo_kl", "vimco", "stl", "rws", "NVIL"]


def meetings():
    """Return pairs with objectives, for laws that take a second each.

    Every objective meets every kind of pair, and every pair every kind of objective.
    """
    apart = pairs.one_of_each_kind()
    found = [*pairs.names(), *pairs.variants()]
    return [(pair, name) for pair in found for name in (NAMES if pair in apart else ONE_OF_EACH_KIND)]


def refusal(name, pair):
    """Return why a pair cannot be trained so, by the kind of its sites; None where it can."""
    sites = contract.latents(poutine.trace(pair.guide).get_trace(*as_batch(pair.data()))).values()
    if name == "dreg" and any(not site["fn"].has_rsample for site in sites):
        return "dreg needs reparameterised sites"
    return None


def is_upper(name):
    return {**objectives.every(), **objectives.estimators()}[name].facts.upper
