"""Verification that the files of a run directory have not changed since the end of the run."""

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
        intact: files that have not changed.
        changed: files with other content.
        missing: files that are gone, or have become links.
        new: files that were added since, and cannot be verified.
    """

    intact: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no file of the run has changed or is missing."""
        return not (self.changed or self.missing)

    def lines(self) -> Iterator[str]:
        """Yield lines to print: one for each difference, and a summary."""
        for what in ("changed", "missing", "new"):
            yield from (f"{what}: {name!r}" for name in getattr(self, what))
        verdict = "as the run left it" if self.ok else "NOT as the run left it"
        yield (
            f"{verdict}: {len(self.intact)} files intact, {len(self.changed)} changed, "
            f"{len(self.missing)} missing, {len(self.new)} new"
        )


def verify(run: Run) -> Verification:
    """Compare each file with the size and the SHA-256 recorded at the end of the run.

    Raises:
        TutelageError: the run has not ended, or its list of digests is damaged.
    """
    if not run.digests.exists():
        raise TutelageError(
            f"{run.path}: has no {run.digests.name}, since the run has not ended; resume it first"
        )
    recorded = _recorded(run.digests)
    states = {name: _state(run.path / name, recorded[name]) for name in sorted(recorded)}
    states |= dict.fromkeys(sorted(set(own_files(run)) - recorded.keys()), "new")
    intact, changed, missing, new = (
        tuple(name for name, found in states.items() if found == state)
        for state in ("intact", "changed", "missing", "new")
    )
    return Verification(intact, changed, missing, new)


def _recorded(path: Path) -> dict[str, object]:
    recorded = read_json(path)
    if not isinstance(recorded, dict):
        raise TutelageError(f"{path}: damaged (no list of files); restore it from a copy")
    for name in recorded:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise TutelageError(f"{path}: {name!r} is refused, since it is outside the run directory")
    return recorded


def _state(path: Path, recorded: object) -> str:
    if path.is_symlink() or not path.is_file():  # a link could lead anywhere
        return "missing"
    try:
        return "intact" if digest(path) == recorded else "changed"
    except OSError as error:
        raise TutelageError(f"{path}: cannot be read ({error.strerror})") from None
