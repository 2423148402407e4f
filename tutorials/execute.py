"""Execute notebooks in full where they stand: ``python tutorials/execute.py [NOTEBOOK ...]``.

All of them when none is named. What a cell prints becomes one output, and neither times nor versions are recorded, so
that a notebook whose outputs are the same stays the same. One that fails is left as it was.
"""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LONGEST = 1800  # seconds a cell may take


def execute(path: Path) -> None:
    """Execute one notebook, in a folder that is thrown away, and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        options = {"timeout": LONGEST, "record_timing": False, "coalesce_streams": True}
        NotebookClient(notebook, **options, resources={"metadata": {"path": folder}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)


def main() -> None:
    """Execute what the command line names."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb"))
    for path in paths:
        began = time.perf_counter()
        execute(path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
