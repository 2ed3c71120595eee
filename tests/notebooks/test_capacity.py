"""The planner's notebook runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "capacity.ipynb"


def test_the_notebook_reaches_a_decision() -> None:
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=180, resources={"metadata": {"path": str(NOTEBOOK.parents[1])}}
    ).execute()
    decision = notebook.cells[-1].outputs[0].text
    policy, _, numbers = decision.partition(": ")
    assert policy == "dspark-async"
    chosen, baseline = (int(word) for word in numbers.split() if word.isdigit())
    assert 0 < chosen <= baseline
