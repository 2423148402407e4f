"""What the documents say runs: README, the pages of `docs/`, the recipes of CONTRIBUTING."""

import doctest
import importlib
import inspect
import re
from contextlib import redirect_stdout
from functools import cache, partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType

import every
import matplotlib as mpl
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
README = ROOT / "README.md"
FENCED = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)")
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")


def written():
    """Return the pages that people write, those with code or without."""
    made = ("_generated", "_build")
    return [path for path in sorted((ROOT / "docs").rglob("*.md")) if not set(made) & set(path.parts)]


def blocks(document):
    """Return the Python code blocks of a Markdown file."""
    return [code for kind, code in FENCED.findall((ROOT / document).read_text()) if kind == "python"]


def missing(code):
    """Return the package that a block needs, says so in its first line, and does not find."""
    needed = re.match(r"# Needs (\w+)\.", code)
    return needed and find_spec(needed[1].lower()) is None


def same_words(printed, shown):
    """Tell whether a page shows what its code printed, numbers and the ends of lines apart; `...` is anything."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(NUMBER.sub("#", shown), NUMBER.sub("#", printed), flags)


@cache
def run(path):
    """Run a page from top to bottom in one namespace; a block of text is what the block before it printed."""
    namespace, printed = {"__name__": "__main__"}, ""
    for kind, block in FENCED.findall(path.read_text()):
        if kind == "text":
            assert printed is None or same_words(printed, block), f"it prints:\n{printed}"
        elif missing(block):
            printed = None
        else:
            with redirect_stdout(StringIO()) as out:
                exec(compile(at(path, block), str(path), "exec"), namespace)
            printed = out.getvalue()
    return namespace, printed


def at(path, block):
    """Return a block under as many empty lines as stand above it, so that errors and warnings name its lines."""
    return path.read_text().partition(block)[0].count("\n") * "\n" + block


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("path", [README, *written()], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_of_a_page_runs_from_top_to_bottom(path):
    mpl.use("agg")
    run(path)


@pytest.mark.usefixtures("uncompiled")
def test_readmes_program_prints_the_sentence_for_the_paper():
    namespace, printed = run(README)
    assert "Log-likelihood of VAE (guide Normal) on digits" in printed
    assert namespace["images"].shape == (16, 64)


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("*/README.md"))], ids=str)
def test_links_between_files_lead_somewhere(path):
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target


def test_readmes_table_of_bounds_is_the_decorators_facts():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", README.read_text(), re.MULTILINE)
    listed = [*pv.objectives.every().values(), *pv.objectives.estimators().values()]
    assert rows == [(b.facts.name, b.facts.formula, b.facts.reference) for b in listed]


def test_readme_names_every_program():
    for kind in zoo.KINDS:
        assert all(f"`{name}`" in README.read_text() for name in zoo.discover(kind))


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
