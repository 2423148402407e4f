"""The generated pages of the site: nothing is left out, out of date, or linked to nowhere.

``make docs`` builds all of it, which takes minutes; here are the pages alone.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from docutils.utils.math.latex2mathml import tex2mathml

import ppl_vae as pv
from benchmarks import zoo as measured
from docs.generating import api, everything, formulas, graphs, objectives, pictures
from docs.generating.mathml import known
from docs.generating.writing import DOCS
from ppl_vae import objectives as library
from ppl_vae import pairing, zoo

PROGRAMS = [(kind, name) for kind in ("models", "guides") for name in zoo.discover(kind)]
OBJECTIVES = {**library.every(), **library.estimators()}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of all generated pages."""
    folder = tmp_path_factory.mktemp("site")
    everything.write(folder)
    return folder


@cache
def formulas_of(page):
    """Return the formulas of a page."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    blocks = re.findall(r"^\$\$\n(.*?)\n\$\$", text, re.DOTALL | re.MULTILINE)
    return [*blocks, *re.findall(r"(?<![\\$])\$([^$\n]+)\$", re.sub(r"^\$\$\n.*?\n\$\$", "", text, flags=re.S | re.M))]


@pytest.mark.parametrize(("kind", "name"), PROGRAMS)
def test_every_program_has_a_page_with_all_its_parts(site, kind, name):
    page = (site / "zoo" / kind / f"{name}.md").read_text()
    for part in ("$$", "| symbol", "## Graph", "## Picture", "## Constructor", "## Example", "## Reference"):
        assert part in page or (name == "empty" and part == "| symbol"), part


@pytest.mark.parametrize(("kind", "name"), PROGRAMS)
def test_every_graph_is_that_of_the_program_now(kind, name):
    drawing = graphs.checked(kind, name)
    # The drawing is of the text beside it: it has its nodes.
    nodes = re.findall(r"^\s*(\w+) \[label=\w+ fillcolor", drawing.with_suffix(".dot").read_text(), re.MULTILINE)
    assert set(re.findall(r'class="node">\n<title>(\w+)</title>', drawing.read_text())) >= set(nodes)


def test_a_graph_of_another_program_is_refused(monkeypatch):
    monkeypatch.setattr(graphs, "source", lambda kind, name: "digraph {}")
    with pytest.raises(
        ValueError, match=r"models-vae\.svg: the program has changed .* docs\.generating\.graphs models/vae"
    ):
        graphs.checked("models", "vae")


def test_pictures_are_small_and_belong_to_programs():
    found = {path.stem: path for path in (DOCS / "zoo" / "pictures").glob("*.png")}
    assert set(found) == {f"{kind}-{name}" for kind, name in PROGRAMS}
    for path in found.values():
        assert path.stat().st_size <= pictures.MOST
        assert path.with_suffix(".txt").read_text().strip().endswith(".")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_page_and_an_entry(site, name):
    page = (site / "objectives" / f"{name}.md").read_text()
    for part in ("Value", "When to use it", "Facts", "Which programs it trains", "Reference", "In the API"):
        assert f"\n## {part}\n" in page
    lists = (site / "bounds.md").read_text() + (site / "estimators.md").read_text()
    assert f"objectives/{name}.md" in lists


def test_facts_tell_upper_bounds_from_lower_ones():
    assert "an upper bound on log p(x)" in objectives.facts("EUBO", library.EUBO)
    assert "a lower bound on log p(x)" in objectives.facts("iwae", library.iwae)
    assert "may overshoot log p(x)" in objectives.facts("jackknife", library.jackknife)


def test_advice_is_given_for_all_objectives_and_for_nothing_else():
    assert list(objectives.advice()) == list(OBJECTIVES)


def test_every_public_name_is_in_the_reference(site):
    text = "".join(page.read_text() for page in [*(site / "api").glob("*.md"), *(site / "objectives").glob("*.md")])
    entries = re.findall(r"auto(?:class|function|data):: ([\w.]+)", text)
    assert set(api.public()) <= set(entries)
    assert len(entries) == len(set(entries))


def test_links_and_pictures_of_generated_pages_lead_somewhere(site):
    for page in site.rglob("*.md"):
        text = re.sub(r"```(?!\{).*?```", "", page.read_text(), flags=re.DOTALL)
        targets = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text) + re.findall(r"\{(?:image|figure)\} (\S+)", text)
        for target in targets:
            assert place(site, page, target).exists(), (page.name, target)


def place(site, page, target):
    """Return the file that a link leads to."""
    if target.startswith("/_generated/"):
        return site / target.removeprefix("/_generated/")
    return DOCS / target[1:] if target.startswith("/") else page.parent / target


def test_formulas_of_all_pages_can_be_shown(site):
    pages = [*site.rglob("*.md"), *(path for path in DOCS.rglob("*.md") if "_generated" not in path.parts)]
    shown = [tex2mathml(known(text)) for page in pages for text in formulas_of(page)]
    assert len(shown) > 300


def test_a_formula_that_cannot_be_read_says_where():
    with pytest.raises(ValueError, match="no index or power after place 2"):
        formulas.latex("x_+")


def test_pages_say_nothing_of_the_machine(site):
    for page in site.rglob("*"):
        assert page.is_dir() or not re.search(r"/(tmp|home|root|work)/\w", page.read_text()), page.name


def test_what_is_no_longer_written_is_removed(tmp_path):
    (tmp_path / "old.md").write_text("old")
    pages = everything.Pages(Path(tmp_path))
    pages.write("new.md", "new")
    pages.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["new.md"]


def test_pictures_and_benchmarks_warm_up_each_pair_anew():
    pair = measured.made(("hierarchical", "ladder"), pairing.SMALL)
    x = torch.ones(8, pairing.SMALL["x_dim"])
    for _ in range(2):
        objective = measured.suitable(("hierarchical", "ladder"), pair, x)["objective"]
        pv.fit(pair.model, pair.guide, x, epochs=1, objective=objective, progress=False)
        assert objective.step == 1
