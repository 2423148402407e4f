"""The API reference: a page for the names of ``ppl_vae`` and one for each of its public modules."""

import importlib
import inspect
from types import ModuleType
from typing import Any

import ppl_vae
from docs.generating.writing import Pages, directive, table, toctree
from ppl_vae import objectives

# The verbs of the library in the order in which people meet them.
GROUPS = {
    "Check, weigh and train": ["check", "weigh", "Particles", "Path", "fit", "Fit", "restore", "svi_step", "Info"],
    "Evaluate": ["evaluate", "Evaluation", "compare", "ais", "bdmc"],
    "Draw": ["sample", "reconstruct", "decode", "impute"],
    "Look inside": ["active_units", "perplexity", "elbo_surgery", "aggregate_kl"],
    "Measure gradients": ["gradient_statistics", "exact_gradient"],
    "EM and mean field": ["em", "em_step", "PointEstimate", "cavi", "cavi_step", "robbins_monro", "MeanField"],
    "Other ways to train": [
        "variational_em",
        "variational_em_step",
        "normal_prior",
        "gan_step",
        "adversarial_step",
    ],
    "With Pyro": ["ELBO", "registered", "ContractError"],
}

# Modules that people import themselves, besides those that ``import ppl_vae`` names.
FURTHER = [
    "batches",
    "callbacks",
    "components",
    "conjugate_priors",
    "diagnostics",
    "guarding",
    "latent_plots",
    "lightning",
    "log_priors",
    "optimizers",
    "parallel",
    "plots",
    "traversing",
    "zoo",
]

# What functions return and take, which nobody makes by hand.
RETURNED = [
    "steps.Step",
    "svi.SVIStep",
    "alternating.VariationalEMStep",
    "em_steps.EMStep",
    "cavi_steps.CAVIStep",
    "players.AdversarialStep",
    "comparing.Comparison",
    "annealing.Annealing",
    "annealing.Sandwich",
    "surgery.Surgery",
    "aggregation.AggregateKL",
    "latents.ActiveUnits",
    "codes.Perplexity",
    "filling.Imputation",
    "laboratory.GradientStatistics",
    "point_estimate.Point",
    "laboratory.GroupStatistics",
    "comparing.Row",
    "figures.Figure",
    "annealing_runs.Settings",
]
RETURNED_PAGE = """# Steps and results

What verbs return and what options are made of: objects of these classes are made by functions, not by hand."""


def write(pages: Pages) -> None:
    """Write the pages of the API reference."""
    pages.write("api/ppl_vae.md", top())
    for name in modules():
        pages.write(f"api/{name}.md", of_module(name))
    entries = [entry(*f"ppl_vae.{name}".rsplit(".", 1)) for name in RETURNED]
    pages.write("api/returned.md", "\n\n".join([RETURNED_PAGE, *entries]))
    rows = [(f"[`ppl_vae.{name}`]({name}.md)", first_line(module(name))) for name in modules()]
    listed = table(("module", "what it has"), [("[`ppl_vae`](ppl_vae.md)", first_line(ppl_vae)), *rows])
    rows.append(("[steps and results](returned.md)", "What verbs return."))
    contents = toctree(["ppl_vae", *modules(), "returned"], hidden="", maxdepth="1")
    pages.write("api/index.md", f"# API reference\n\n{INTRODUCTION}\n\n{listed}\n\n{contents}")


INTRODUCTION = """Examples write `import ppl_vae as pv`. Every public name is here; models and guides stand in the
[zoo](/_generated/zoo/models.md), bounds and estimators have [pages](/_generated/bounds.md) of
[their own](/_generated/estimators.md). Every example runs as a test."""


def module(name: str) -> ModuleType:
    """Return a module of the library."""
    return importlib.import_module(f"ppl_vae.{name}")


def modules() -> list[str]:
    """Return the names of all public modules.

    Example:
        >>> {"objectives", "data", "guarding"} <= set(modules())
        True
    """
    of_package = [name for name in ppl_vae.__all__ if inspect.ismodule(getattr(ppl_vae, name))]
    return [*of_package, *FURTHER]


def public() -> list[str]:
    """Return every public name in full, which the reference must have.

    Example:
        >>> {"ppl_vae.fit", "ppl_vae.nets.MLP"} <= set(public())
        True
    """
    found = [f"ppl_vae.{name}" for name in ppl_vae.__all__ if not inspect.ismodule(getattr(ppl_vae, name))]
    for name in modules():
        found += [f"ppl_vae.{name}.{member}" for member in members(name)]
    return found


def members(name: str) -> list[str]:
    """Return the public names of a module that are no modules."""
    made = module(name)
    return [member for member in made.__all__ if not inspect.ismodule(getattr(made, member))]


def top() -> str:
    """Return the page of ``ppl_vae``.

    Raises:
        ValueError: a public name is in no group.
    """
    names = [name for name in ppl_vae.__all__ if not inspect.ismodule(getattr(ppl_vae, name))]
    if missing := {*names} - {name for group in GROUPS.values() for name in group}:
        raise ValueError(f"docs/generating/api.py: no group of the API reference has {', '.join(sorted(missing))}")
    parts = [f"# ppl_vae\n\n{inspect.getdoc(ppl_vae)}", rst(".. py:module:: ppl_vae")]
    for heading, group in GROUPS.items():
        parts += [f"## {heading}", *(entry("ppl_vae", name) for name in group)]
    return "\n\n".join(parts)


def of_module(name: str) -> str:
    """Return the page of a module; objectives that have pages of their own are listed."""
    full, doc = f"ppl_vae.{name}", inspect.getdoc(module(name)) or ""
    parts = [f"# {full}", rst(f".. py:module:: {full}"), rst(doc)]
    own = {*objectives.every(), *objectives.estimators()} if name == "objectives" else set()
    if own:
        links = ", ".join(f"[`{objective}`](/_generated/objectives/{objective}.md)" for objective in sorted(own))
        parts.append(f"Bounds and estimators have pages of their own: {links}.")
    parts += [entry(full, member) for member in members(name) if member not in own]
    return "\n\n".join(parts)


def entry(where: str, name: str) -> str:
    """Return the entry of one name."""
    value: Any = getattr(importlib.import_module(where), name)
    if inspect.isclass(value):
        return rst(f".. autoclass:: {where}.{name}\n   :members:")
    if inspect.isroutine(value):
        return rst(f".. autofunction:: {where}.{name}")
    return rst(f".. autodata:: {where}.{name}\n   :no-value:")


def rst(text: str) -> str:
    """Return what is written for Sphinx, not for Markdown."""
    return directive("eval-rst", text)


def first_line(made: ModuleType) -> str:
    """Return the first sentence of a module."""
    return (inspect.getdoc(made) or "").split("\n\n")[0].replace("\n", " ")
