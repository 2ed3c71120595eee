"""The planner's notebook runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

ROUGH = """
import simulator.planning.plan as planning
planning.REPLICATIONS = planning.GRID_REPLICATIONS = 2
"""
"""Runs before the notebook: trials are repeated twice. ``DOCS_EXECUTE=true scripts/docs`` repeats all."""

SMALLER = {
    '"requests": 400': '"requests": 200',
    "[1, 20, 50, 100, 128]": "[20, 128]",
}
"""Shorter trials of fewer loads, in place of what the notebook asks for."""

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "capacity.ipynb"


def test_the_notebook_reaches_a_decision() -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    asked = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for large, small in SMALLER.items():
        assert large in asked.source
        asked.source = asked.source.replace(large, small)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(ROUGH))
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parents[1])}}
    ).execute()
    decision = notebook.cells[-1].outputs[0].text
    policy, _, numbers = decision.partition(": ")
    assert policy == "dspark-async"
    chosen, baseline = (int(word) for word in numbers.split() if word.isdigit())
    assert 0 < chosen <= baseline
