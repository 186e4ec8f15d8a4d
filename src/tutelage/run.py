"""The run directory: the only place that knows its file names."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tutelage.errors import TutelageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=-]{0,120}")


class Run:
    """One run's directory. Every file in it is written aside and renamed, so none is ever half there.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.versions = path / "versions.json"
        self.splits = path / "splits.json"
        self.preflight = path / "preflight.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.teacher = path / "teacher.safetensors"
        self.start = path / "start.safetensors"
        self.control = path / "control.safetensors"
        self.student = path / "student.safetensors"
        self.candidates = path / "candidates.json"
        self.speed = path / "speed.json"
        self.comparison = path / "comparison.json"
        self.seeds = path / "seeds.json"
        self.predictions = path / "predictions.npz"
        self.diagnosis = path / "diagnosis.json"
        self.deploy = path / "deploy"
        self.digests = path / "digests.json"
        self.lock = path / ".lock"
        self.report = path / "report.html"
        self.cache = path / "cache"
        self.tensorboard = path / "tensorboard"
        self.mlflow = path / "mlflow"

    @classmethod
    def create(cls, root: Path, name: str) -> Run:
        """Make a new run directory ``root/name``.

        Raises:
            TutelageError: the name is a path, or the directory exists, or it cannot be written.
        """
        if not NAME.fullmatch(name):
            raise TutelageError(f"run name {name!r}: use letters, digits and . _ - + @ = only, not a path")
        path = root / name
        try:
            root.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            if not _unbegun(path):
                raise TutelageError(
                    f"{path}: this run exists; go on with `tutelage resume {path}` or take another --name"
                ) from None
        except OSError as error:
            raise TutelageError(f"{path}: cannot be made ({error.strerror})") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run directory.

        Raises:
            TutelageError: it is no run directory.
        """
        run = cls(path)
        if not run.recipe.is_file():
            raise TutelageError(f"{path}: not a run directory (it has no recipe.yaml)")
        return run

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from working on the same run; what a killed one left half-written goes.

        Raises:
            TutelageError: another process is at work on it, or it cannot be written.
        """
        try:
            lock = open(self.lock, "w")  # noqa: SIM115 - closed below
        except OSError as error:
            raise _unwritable(self.path, error) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # falls when this process dies, however
            except BlockingIOError:
                raise TutelageError(
                    f"{self.path}: another process is at work on this run; wait for it or stop it"
                ) from None
            for aside in [*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")]:
                aside.unlink(missing_ok=True)
            self.digests.unlink(missing_ok=True)  # of files that are about to change
            yield


def _unbegun(path: Path) -> bool:
    """Whether a directory is what a run leaves that is killed before it is begun."""
    return path.is_dir() and all(
        file.name == "recipe.yaml" or file.suffix == ".tmp" for file in path.iterdir()
    )


def write_digests(run: Run) -> None:
    """Note size and SHA-256 of each file that a run has, for `tutelage check`."""
    write_json(run.digests, {name: digest(run.path / name) for name in sorted(own_files(run))})


def digest(path: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of a file."""
    with open(path, "rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def own_files(run: Run) -> Iterator[str]:
    """Names of a run's own files; not of caches, other programs' logs and the page, which are made again."""
    foreign = {run.cache, run.tensorboard, run.mlflow, run.digests, run.report}
    for path in run.path.rglob("*"):
        own = not foreign & {path, *path.parents} and not path.name.startswith(".")
        if own and path.is_file() and not path.is_symlink():
            yield path.relative_to(run.path).as_posix()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to the disk and rename it into place.

    Raises:
        TutelageError: the disk is full or the place cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> TutelageError:
    return TutelageError(f"{path}: cannot be written ({error.strerror}); free some space or rights")


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`write_text` for JSON; NaN is refused, since other readers cannot read it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        TutelageError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TutelageError(f"{path}: missing; the run did not get this far") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TutelageError(f"{path}: damaged ({error}); take it from a copy or run again") from None


def entry(path: Path, *keys: str) -> Any:
    """A value of a run's JSON file.

    Raises:
        TutelageError: the file is missing or damaged, or has no such entry.
    """
    value = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise TutelageError(f"{path}: damaged (no {'.'.join(keys)}); take it from a copy or run again")
        value = value[key]
    return value


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Add one line; a line is written whole or, on a crash, recognisably cut."""
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise _unwritable(path, error) from None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file; a line cut by a crash at the end is passed over."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                return
            raise TutelageError(f"{path}: line {number} is damaged; remove it") from None
        if isinstance(row, dict):
            yield row
