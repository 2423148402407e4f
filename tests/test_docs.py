"""What the documents say runs: README's blocks, the recipes of CONTRIBUTING."""

import doctest
import importlib
import inspect
import re
from functools import partial
from pathlib import Path
from types import ModuleType

import every
import pairs
import pyro
import pytest
import test_laws
import test_objectives
import torch
from small import DISCRETE

import ppl_vae as pv
from ppl_vae import zoo

ROOT = Path(__file__).parents[1]


def blocks(document):
    """Return the Python code blocks of a Markdown file."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_readmes_code_runs_from_top_to_bottom(capsys):
    namespace = {}
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert "Log-likelihood of VAE (guide Normal) on digits" in capsys.readouterr().out
    assert namespace["images"].shape == (16, 64)
    assert namespace["log_w"].shape == (10, 100)


def test_readmes_table_of_bounds_is_the_decorators_facts():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    listed = [*pv.objectives.every().values(), *pv.objectives.estimators().values()]
    assert rows == [(b.facts.name, b.facts.formula, b.facts.reference) for b in listed]


def test_readme_names_every_program():
    text = (ROOT / "README.md").read_text()
    for kind in zoo.KINDS:
        assert all(f"`{name}`" in text for name in zoo.discover(kind))


def recipe(path):
    """Return the code of the recipe for a file."""
    (code,) = [block for block in blocks("CONTRIBUTING.md") if block.startswith(f"# {path}\n")]
    return code


def laws(module, about, **given):
    """Yield the tests that ask for one fixture, and others out of these, ready to be called."""
    for name, test in vars(module).items():
        asks = set(inspect.signature(test).parameters) if name.startswith("test_") else set()
        if about in asks and asks <= set(given):
            yield partial(test, **{argument: given[argument]() for argument in asks})


def run_examples(module):
    """Run a module's docstring examples as the suite does."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, extraglobs={"pv": pv, "torch": torch}, optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(("kind", "name", "partner"), [("models", "counts", "normal"), ("guides", "laplace", "vae")])
def test_the_recipes_for_programs_obey_the_laws(tmp_path, kind, name, partner):
    (tmp_path / f"{name}.py").write_text(recipe(f"{kind}/{name}.py"))
    package = importlib.import_module(f"ppl_vae.{kind}")
    package.__path__.append(str(tmp_path))
    try:
        names = (name, partner) if kind == "models" else (partner, name)
        assert names in pairs.names()
        found = list(laws(test_laws, "pair", pair=lambda: pairs.make(*names)))
        assert len(found) >= 7
        for objective in every.ONE_OF_EACH_KIND:
            pair = pairs.make(*names)
            given = {"pair": lambda p=pair: p, "objective": lambda o=objective, p=pair: every.make(o, p)}
            found += laws(test_laws, "objective", **given)
        assert len(found) >= 7 + 3 * len(every.ONE_OF_EACH_KIND)
        for law in found:
            pyro.clear_param_store()
            law()
        test_laws.test_docstrings_say_what_a_program_is(kind)
        run_examples(importlib.import_module(f"ppl_vae.{kind}.{name}"))
    finally:
        package.__path__.remove(str(tmp_path))


def test_the_recipe_for_a_bound_obeys_the_laws():
    module = ModuleType("recipe")
    exec(recipe("ppl_vae/objectives/bounds.py"), vars(module))
    found = list(laws(test_objectives, "bound", bound=lambda: module.renyi_half))
    assert len(found) >= 7
    for law in found:
        law()
    for latents in DISCRETE:
        test_objectives.test_gradients_of_discrete_latents_are_unbiased(module.renyi_half, latents)
    vars(module)["renyi_half"].__module__ = "recipe"
    run_examples(module)
