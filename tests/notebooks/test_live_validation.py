"""The validation notebook runs from recorded files."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def test_the_validation_notebook_runs() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "live_validation.ipynb", as_version=4)
    check = nbformat.v4.new_code_cell("import sys\nassert 'torch' not in sys.modules")
    notebook.cells.append(check)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
