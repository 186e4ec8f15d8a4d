"""Make the pages: of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_json, write_bytes
from tutelage.core.run_dir import Run
from tutelage.report.page import Section, encode, render_page
from tutelage.report.run_records import RunRecords, read_run_records
from tutelage.report.sections import run_sections
from tutelage.report.several import several_sections

DIRECTORIES = ("*/recipe.yaml", "*/*/recipe.yaml")  # a study keeps its trials in a folder of their own


def write_report(run: Run) -> Path:
    """Make the run's page (or that of its seeds) from what it has left so far, and return the page's path."""
    return _write(run.report, *contents(run.path))


def report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Make the page of a run, of several, of its seeds, or of a study's directory of runs.

    Args:
        paths: run directories, or directories of them.
        out: where the page of several paths is written; None: into the current directory.

    Returns:
        Where the page is.

    Raises:
        TutelageError: a path is no run and holds none, or `out` is given for one path's page.
    """
    if len(paths) == 1:
        page = Run(paths[0]).report
        if out:
            raise TutelageError(
                f"--out {out}: the page of one run is written to {page}; leave --out away and copy the page from there"
            )
        return _write(page, *contents(paths[0]))
    page = out or Path.cwd() / "report.html"
    runs = find_runs(paths)
    title = f"{len(runs)} runs side by side"
    return _write(page, title, several_sections(_all_records(runs), title, page.parent))


def contents(path: Path) -> tuple[str, list[Section]]:
    """Make the title and the sections of the page of a run, of its seeds, or of a directory of runs.

    Raises:
        TutelageError: the path is no run and holds none.
    """
    runs, title = find_runs([path]), path.resolve().name
    if [run.path for run in runs] == [path]:
        return title, run_sections(read_run_records(runs[0]))
    seeds = Run(path).seeds
    found = read_json(seeds) if seeds.exists() else None
    return title, several_sections(_all_records(runs), title, path, found)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Find the runs at the paths or, where a path is a directory of them, in it; each once.

    Raises:
        TutelageError: a path holds none.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        patterns = ("recipe.yaml",) if Run(path).recipe.is_file() else DIRECTORIES
        recipes = next(filter(None, (sorted(path.glob(pattern)) for pattern in patterns)), [])
        if not recipes:
            raise TutelageError(
                f"{path}: neither a run directory nor a directory of runs (no recipe.yaml in it)"
            )
        for recipe in recipes:  # a run with several seeds has a run for each of them in its directory
            seeds = sorted(recipe.parent.glob("seed-*/recipe.yaml"))
            found |= {one.parent.resolve(): Run(one.parent) for one in seeds or [recipe]}
    return list(found.values())


def _all_records(runs: Sequence[Run]) -> list[RunRecords]:
    return [read_run_records(run, predictions=False) for run in runs]


def _write(path: Path, title: str, sections: Sequence[Section]) -> Path:
    write_bytes(path, encode(render_page(title, sections)))
    return path
