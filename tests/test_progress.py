"""Bars are shown where somebody looks."""

import io

import nbformat
from nbclient import NotebookClient
from rich.progress import TimeRemainingColumn

from ppl_vae.progress import progress_bar

SHOWN = """
from ppl_vae.progress import progress_bar
with progress_bar("Training", 3, None) as bar:
    for _ in range(3):
        bar.advance(lambda: "a note")
"""


def test_a_notebook_shows_a_bar():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SHOWN)])
    done = NotebookClient(notebook, timeout=120).execute()
    widgets = done.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    (outputs,) = [found for w in widgets.values() if (found := w["state"].get("outputs"))]
    text = "".join(part["data"]["text/plain"] for part in outputs)
    assert "Training" in text
    assert "100%" in text


def test_nothing_is_shown_where_nobody_looks(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with progress_bar("Training", 3, None) as bar:
        for _ in range(3):
            bar.advance(lambda: "a note")
    import sys

    assert sys.stderr.getvalue() == capsys.readouterr().out == ""


def test_a_terminal_is_told_the_time_left():
    with progress_bar("Training", 3, show=False) as bar:
        assert any(isinstance(column, TimeRemainingColumn) for column in bar._progress.columns)
