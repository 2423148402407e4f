"""Every objective of the library, functions and modules, made for a pair of programs."""

import pairs
import torch
from pyro import poutine

import ppl_vae as pv
from ppl_vae import contract, objectives
from ppl_vae.batches import as_batch

NAMES = [*objectives.every(), *objectives.estimators()]

# A bound, one of closed-form KLs, one with a score, one that follows the path, one that takes draws as given, an
# estimator.
ONE_OF_EACH_KIND = ["elbo", "elbo_kl", "vimco", "stl", "rws", "NVIL"]


def meetings():
    """Return pairs with objectives, for laws that take a second each.

    Every objective meets every kind of pair, and every pair every kind of objective.
    """
    apart = pairs.one_of_each_kind()
    return [(pair, name) for pair in pairs.names() for name in (NAMES if pair in apart else ONE_OF_EACH_KIND)]


def make(name, pair):
    """Return an objective by name; estimators with networks get them in the pair's sizes."""
    if name in objectives.every():
        return objectives.every()[name]
    options = {
        "NVIL": {"x_dim": as_batch(pair.data())[0].shape[1]},
        "RELAX": networks(pair.guide, pair.data()),
        "EUBO": {"posterior": pair.guide},
    }
    torch.manual_seed(0)
    return objectives.estimators()[name](**options.get(name, {})).double()


def networks(guide, x):
    """Return a small network for each discrete site of a guide."""
    latents = contract.latents(poutine.trace(guide).get_trace(*as_batch(x)))
    discrete = {name: site["value"] for name, site in latents.items() if not site["fn"].has_rsample}
    return {name: pv.nets.MLP(value.shape[-1], (4,), 1) for name, value in discrete.items()}


def refusal(name, pair):
    """Return why a pair cannot be trained so, by the kind of its sites; None where it can."""
    sites = contract.latents(poutine.trace(pair.guide).get_trace(*as_batch(pair.data()))).values()
    if name == "dreg" and any(not site["fn"].has_rsample for site in sites):
        return "dreg needs reparameterised sites"
    return None


def is_upper(name):
    return {**objectives.every(), **objectives.estimators()}[name].facts.upper
