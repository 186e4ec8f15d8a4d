"""The notebooks run from beginning to end, somewhere else than where they lie, and carry the outputs of their code."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes of a notebook with its outputs
SCRIPT = runpy.run_path(str(FOLDER / "execute.py"))
EPOCHS = re.compile(r"""(\bepochs=|"epochs": )\d+""")


def outputs(notebook: NotebookNode) -> list[list[Any]]:
    """The outputs of each code cell."""
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: NotebookNode) -> list[list[tuple[str, list[str]]]]:
    """What each code cell gives: text, a table, a picture."""
    return [[(o.output_type, sorted(o.get("data", {}))) for o in cell] for cell in outputs(notebook)]


def row_names(notebook: NotebookNode) -> list[str]:
    """The first cells of the rows of all tables."""
    tables = [
        o.data["text/markdown"]
        for cell in outputs(notebook)
        for o in cell
        if "text/markdown" in o.get("data", {})
    ]
    return [
        line.split("|")[1].strip() for table in tables for line in table.splitlines() if line.startswith("|")
    ]


def test_both_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["distillation", "from-scratch"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_carries_the_outputs_of_its_code(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    told = f"{path.name} is out of date: run `python notebooks/execute.py {path.name}`"
    assert notebook.metadata["tutelage"]["code"] == SCRIPT["code_digest"](notebook), told
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # from beginning to end
    assert any("image/png" in o.get("data", {}) for cell in outputs(notebook) for o in cell)
    assert row_names(notebook)
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_names_no_place_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for place in ("site-packages", "/home/", "/tmp/", "/Users/", str(FOLDER.parent), sys.prefix, '"stderr"'):
        assert place not in text, place


def shortened(path: Path, folder: Path) -> Path:
    """Copy a notebook whose trainings have two epochs; nothing else is changed."""
    notebook = nbformat.read(path, as_version=4)
    changed = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, found = EPOCHS.subn(r"\g<1>2", cell.source)
            changed += found
    assert changed == 2  # the fit of the teacher, and the trainings of the student
    nbformat.write(notebook, folder / path.name)
    return folder / path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("length", ["short", pytest.param("whole", marks=pytest.mark.slow)])
def test_notebook_runs_and_gives_what_it_carries(path: Path, length: str, tmp_path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    fresh = SCRIPT["executed"](shortened(path, tmp_path) if length == "short" else path, tmp_path)
    assert kinds(fresh) == kinds(kept)
    assert row_names(fresh) == row_names(kept)
    shown = [output for cell in outputs(fresh) for output in cell]
    text = "".join(o.get("text", "") + str(o.get("data", {}).get("text/plain", "")) for o in shown)
    assert "test images" in text  # the verdict
    assert len(list(tmp_path.glob("runs/*/comparison.json"))) == 1
