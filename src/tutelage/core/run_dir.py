"""The run directory: the only place that knows its file names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tutelage.core.errors import TutelageError
from tutelage.core.files import digest, unwritable, write_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=-]{0,120}")


class Run:
    """The directory of one run. Every file in it is written atomically, so that none is ever incomplete.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.versions = path / "versions.json"
        self.begun = path / "begun.json"
        self.splits = path / "splits.json"
        self.preflight = path / "preflight.json"
        self.choices = path / "choices.json"  # what `auto` became
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.teacher = path / "teacher.safetensors"
        self.start = path / "start.safetensors"
        self.control = path / "control.safetensors"
        self.teacher_check = path / "teacher_check.json"
        self.student = path / "student.safetensors"
        self.candidates = path / "candidates.json"
        self.speed = path / "speed.json"
        self.comparison = path / "comparison.json"
        self.robustness = path / "robustness.json"
        self.heat_maps = path / "gradcam.npz"
        self.seeds = path / "seeds.json"
        self.predictions = path / "predictions.npz"
        self.diagnosis = path / "diagnosis.json"
        self.cascade = path / "cascade.json"
        self.deploy = path / "deploy"
        self.example = path / "example.png"  # a test image of the quickstart
        self.digests = path / "digests.json"
        self.lock = path / ".lock"
        self.report = path / "report.html"
        self.cache = path / "cache"
        self.tensorboard = path / "tensorboard"
        self.mlflow = path / "mlflow"

    @classmethod
    def create(cls, root: Path, name: str) -> Run:
        """Create a new run directory ``root/name``.

        Raises:
            TutelageError: the name is a path, or the directory exists, or it cannot be written.
        """
        check_name(root, name)
        path = root / name
        try:
            root.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=_not_begun(path))
        except FileExistsError:  # made by another process a moment ago
            raise TutelageError(
                f"{path}: cannot be created; another process or a file has this name"
            ) from None
        except OSError as error:
            raise TutelageError(f"{path}: cannot be created ({error.strerror})") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run directory.

        Raises:
            TutelageError: it is not a run directory.
        """
        run = cls(path)
        if not run.recipe.is_file():
            raise TutelageError(f"{path}: not a run directory (it has no recipe.yaml)")
        return run

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from working on the same run, and remove the temporary files of a killed process.

        The lock belongs to this process alone: it is released when the process dies, however it dies, even while
        processes that it has forked (those of data loaders) live on. `FileLock` closes its file in forked processes.

        Raises:
            TutelageError: another process works on this run, or its directory cannot be written.
        """
        lock = FileLock(self.lock)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise TutelageError(
                f"{self.path}: another process works on this run; wait for it or stop it"
            ) from None
        except OSError as error:
            raise unwritable(self.path, error) from None
        try:
            for temporary in [*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")]:
                temporary.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def discard(self) -> None:
        """Remove the directory of a run that was refused before anything was computed; leave any other."""
        own = {
            self.recipe,
            self.versions,
            self.begun,
            self.splits,
            self.example,
            self.lock,
            self.tensorboard,
            self.mlflow,
            self.cache,
        }
        if set(self.path.iterdir()) <= own:
            shutil.rmtree(self.path, ignore_errors=True)


def check_name(root: Path, name: str) -> None:
    """Refuse the name of a new run that is a path, or whose directory exists.

    Raises:
        TutelageError: names the directory, and says how to continue.
    """
    if not NAME.fullmatch(name):
        raise TutelageError(f"run name {name!r}: use letters, digits and . _ - + @ = only, not a path")
    path = root / name
    if path.exists() and not _not_begun(path):
        raise TutelageError(
            f"{path}: this run exists; continue it with `tutelage resume {path}` or use another --name"
        )


def _not_begun(path: Path) -> bool:
    """Whether a directory was left by a run that was killed before it began."""
    return path.is_dir() and all(
        file.name in {"recipe.yaml", "begun.json"} or file.suffix == ".tmp" for file in path.iterdir()
    )


def write_digests(run: Run) -> None:
    """Record the size and the SHA-256 of each file of a run, for `tutelage verify`."""
    write_json(run.digests, {name: digest(run.path / name) for name in sorted(own_files(run))})


def own_files(run: Run) -> Iterator[str]:
    """Yield the names of a run's own files: not caches, logs of other programs or the page, which can be made again."""
    foreign = {run.cache, run.tensorboard, run.mlflow, run.digests, run.report}
    for path in run.path.rglob("*"):
        own = not foreign & {path, *path.parents} and not path.name.startswith(".")
        if own and path.is_file() and not path.is_symlink():
            yield path.relative_to(run.path).as_posix()
