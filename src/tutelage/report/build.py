"""Make the pages: of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError
from tutelage.report.facts import read_facts
from tutelage.report.page import encode, render_page
from tutelage.report.sections import run_sections
from tutelage.report.several import several_sections
from tutelage.run import Run, read_json, write_bytes

DIRECTORIES = ("*/recipe.yaml", "*/*/recipe.yaml")  # a study keeps its trials in a folder of their own


def write_report(run: Run) -> Path:
    """Make the run's page from what it has left so far, and return its path."""
    facts = read_facts(run)
    write_bytes(run.report, encode(render_page(facts.name, run_sections(facts))))
    return run.report


def report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Make the page of a run, of several, of its seeds, or of a study's directory of runs.

    Args:
        paths: run directories, or directories of them.
        out: where the page of several runs is written; None: into the directory given, or here if there
            are more than one.

    Returns:
        Where the page is.

    Raises:
        TutelageError: a path is no run and holds none, or `out` is given for one run's page.
    """
    runs = find_runs(paths)
    if len(paths) == 1 and runs[0].path == paths[0]:
        if out:
            raise TutelageError(
                f"--out {out}: the page of one run is {runs[0].report}; copy it where you like"
            )
        return write_report(runs[0])
    folder = paths[0] if len(paths) == 1 else Path.cwd()
    page = out or folder / "report.html"
    title = paths[0].resolve().name if len(paths) == 1 else f"{len(runs)} runs side by side"
    facts = [read_facts(run, predictions=False) for run in runs]
    seeds = _seeds(paths[0]) if len(paths) == 1 else None
    sections = several_sections(facts, title, page.parent, seeds)
    write_bytes(page, encode(render_page(title, sections)))
    return page


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at the paths or, where a path is a directory of them, in it; each once.

    Raises:
        TutelageError: a path holds none.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        patterns = ["seed-*/recipe.yaml", "recipe.yaml"] if Run(path).recipe.is_file() else DIRECTORIES
        recipes = next(filter(None, (sorted(path.glob(pattern)) for pattern in patterns)), [])
        if not recipes:
            raise TutelageError(
                f"{path}: neither a run directory nor a directory of runs (no recipe.yaml in it)"
            )
        found |= {recipe.parent.resolve(): Run(recipe.parent) for recipe in recipes}
    return list(found.values())


def _seeds(path: Path) -> dict[str, Any] | None:
    """What was found over several seeds, where that is what lies here."""
    seeds = Run(path).seeds
    return read_json(seeds) if seeds.exists() else None
