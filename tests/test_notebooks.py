"""The notebooks run from beginning to end, somewhere else than where they lie, and are kept without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_both_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["distillation", "from-scratch"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_its_plots(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    plots = [o for o in shown if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(plots) >= 4
    assert all(o["data"]["application/vnd.plotly.v1+json"]["data"] for o in plots)
    text = "".join(o.get("text", "") + str(o.get("data", {}).get("text/plain", "")) for o in shown)
    assert "test images" in text  # the verdict
    assert len(list(tmp_path.glob("runs/*/comparison.json"))) == 1
