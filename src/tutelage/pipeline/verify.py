"""Verify that the files of a run directory are still as the run left them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tutelage.core.errors import TutelageError
from tutelage.core.files import digest, read_json
from tutelage.core.run_dir import Run, own_files


@dataclass(frozen=True)
class Verification:
    """Names of files, relative to the run directory.

    Attributes:
        intact: files that are as they were.
        changed: files with other content.
        missing: files that are gone, or links now.
        new: files that were added since, and cannot be verified.
    """

    intact: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file that the run left is as it was."""
        return not (self.changed or self.missing)

    def lines(self) -> Iterator[str]:
        """Lines to print: one for each difference, and a last one that sums up."""
        for what in ("changed", "missing", "new"):
            yield from (f"{what}: {name!r}" for name in getattr(self, what))
        verdict = "as the run left it" if self.ok else "NOT as the run left it"
        yield (
            f"{verdict}: {len(self.intact)} files intact, {len(self.changed)} changed, "
            f"{len(self.missing)} missing, {len(self.new)} new"
        )


def verify(run: Run) -> Verification:
    """Compare each file with the size and the SHA-256 that were recorded at the end of the run.

    Raises:
        TutelageError: the run has not ended, or its list of digests is damaged.
    """
    if not run.digests.exists():
        raise TutelageError(
            f"{run.path}: has no {run.digests.name}, since the run has not ended; resume it first"
        )
    noted = _noted(run.digests)
    states = {name: _state(run.path / name, noted[name]) for name in sorted(noted)}
    states |= dict.fromkeys(sorted(set(own_files(run)) - noted.keys()), "new")
    intact, changed, missing, new = (
        tuple(name for name, found in states.items() if found == state)
        for state in ("intact", "changed", "missing", "new")
    )
    return Verification(intact, changed, missing, new)


def _noted(path: Path) -> dict[str, object]:
    noted = read_json(path)
    if not isinstance(noted, dict):
        raise TutelageError(f"{path}: damaged (no list of files); take it from a copy")
    for name in noted:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise TutelageError(f"{path}: {name!r} is refused: it is outside the run directory")
    return noted


def _state(path: Path, wanted: object) -> str:
    if path.is_symlink() or not path.is_file():  # a link could lead anywhere
        return "missing"
    try:
        return "intact" if digest(path) == wanted else "changed"
    except OSError as error:
        raise TutelageError(f"{path}: cannot be read ({error.strerror})") from None
