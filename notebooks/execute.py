"""Run the notebooks in a directory of their own, and keep their outputs: `python notebooks/execute.py [NOTEBOOK]...`.

Each keeps the digest of the code that made its outputs, by which a test knows when they are out of date.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent


def code_digest(notebook: NotebookNode) -> str:
    """Return the SHA-256 of the sources of all code cells."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def executed(path: Path, directory: Path) -> NotebookNode:
    """Run a notebook from beginning to end in a directory, and return it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(directory)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":  # warnings name files of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "tutelage": {"code": code_digest(notebook)},
    }
    return notebook


def main(names: Sequence[str]) -> None:
    """Execute the named notebooks, or all of them."""
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        with TemporaryDirectory() as directory:
            notebook = executed(path, Path(directory))
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
