"""The tutorials: each runs at small sizes, and stands in the tree as it ran in full."""

import ast
import re
import runpy
from pathlib import Path

import matplotlib as mpl
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from ppl_vae.data import files

PATHS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
LARGEST = 1_500_000  # bytes, pictures included

each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def codes(notebook):
    """Return the cells of code, with their numbers."""
    return [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def tags(cell):
    """Return what a cell is marked as: "parameters", or "full" if it holds at full size alone."""
    return set(cell.metadata.get("tags", ()))


def assigned(cell):
    """Return the names that a cell gives values to."""
    nodes = ast.walk(ast.parse(cell.source))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No data sets but the digits."""
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path))
    monkeypatch.setattr(files, "download", lambda *_, **__: pytest.fail("small sizes need no download"))


@each
@pytest.mark.usefixtures("offline")
def test_tutorials_run_at_small_sizes(path):
    mpl.use("agg")
    notebook = nbformat.read(path, as_version=4)
    namespace = {"__name__": "__main__"}
    for i, cell in codes(notebook):
        if "full" not in tags(cell):
            exec(compile(cell.source, f"{path.name}[{i}]", "exec"), namespace)
        if "parameters" in tags(cell):
            namespace.update(notebook.metadata["short"])


@each
def test_tutorials_carry_the_outputs_of_a_run_in_full(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for _, cell in codes(notebook)]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run `make tutorials`"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert cells[-1].outputs[-1].text == "All of it holds.\n"
    assert path.stat().st_size < LARGEST


@each
def test_tutorials_state_sizes_that_can_be_small_claims_and_exercises(path):
    notebook = nbformat.read(path, as_version=4)
    (sizes,) = [cell for _, cell in codes(notebook) if "parameters" in tags(cell)]
    assert set(notebook.metadata["short"]) <= assigned(sizes)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.match(rf"# {int(path.stem[:2])}\. ", text)
    assert [title in text for title in ("## Exercises", "### Solutions", "## What this tutorial claims")] == [True] * 3
    assert sum(cell.source.count("assert ") for _, cell in codes(notebook)) >= 4


def test_tutorials_are_numbered_in_order():
    assert [int(path.stem[:2]) for path in PATHS] == list(range(1, len(PATHS) + 1))


def test_tutorials_are_executed_where_they_stand(tmp_path):
    execute = runpy.run_path(PATHS[0].parent / "execute.py")["execute"]
    path, broken = tmp_path / "one.ipynb", tmp_path / "broken.ipynb"
    for file, source in ((path, "print(1)\nprint(2)"), (broken, "print(1)\nraise ValueError")):
        nbformat.write(new_notebook(cells=[new_code_cell(source, id="a")]), file)
    execute(path)
    once = path.read_text()
    (cell,) = nbformat.reads(once, as_version=4).cells
    assert [output.text for output in cell.outputs] == ["1\n2\n"]
    execute(path)
    assert path.read_text() == once
    before = broken.read_text()
    with pytest.raises(CellExecutionError):
        execute(broken)
    assert broken.read_text() == before
