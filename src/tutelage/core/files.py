"""Atomic writing of files (to a temporary name, flushed, then renamed), and reading with errors for damaged ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tutelage.core.errors import TutelageError


def digest(path: Path) -> dict[str, Any]:
    """Return the size in bytes and the SHA-256 of a file."""
    with open(path, "rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    Raises:
        TutelageError: the disk is full or the directory cannot be written.
    """
    with _whole(path, mode="wb") as stream:
        stream.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file for writing, which gets its name when the block ends; where it fails, nothing is left.

    Raises:
        TutelageError: the disk is full or the directory cannot be written.
    """
    # a name that is no UTF-8 ends no command
    with _whole(path, mode="w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        yield stream


@contextmanager
def _whole(path: Path, **how: str) -> Iterator[Any]:
    """Open a temporary file as `open` does by `how`; when the block ends, flush it to the disk and rename it."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, **how) as stream:  # type: ignore[call-overload]
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; there may be none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files_in(path: Path) -> list[Path]:
    """Return a file itself, or all files in a folder and its subfolders; none where nothing is there."""
    return [file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name by a hard link, which takes no space; copy it where hard links do not work.

    A file that has the second name is replaced. Sharing is safe, since files are replaced as a whole, never changed.

    Raises:
        TutelageError: the disk is full or the directory cannot be written.
    """
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        write_bytes(target, source.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)  # `os.replace` leaves it where both names are the same file already


def _temporary(path: Path) -> Path:
    """Return the name that a file has until it is complete; `Run.held` removes those that a killed process leaves."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def unwritable(path: Path, error: OSError) -> TutelageError:
    """Return the error for a file that the system refuses to write."""
    return TutelageError(
        f"{path}: cannot be written ({error.strerror}); free some space or change its permissions"
    )


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write_bytes` does; NaN is refused, since many JSON readers cannot read it."""
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
        raise TutelageError(f"{path}: damaged ({error}); restore it from a copy or run again") from None


def entry(path: Path, *keys: str) -> Any:
    """Read one value of a run's JSON file.

    Raises:
        TutelageError: the file is missing or damaged, or has no such entry.
    """
    value = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise TutelageError(f"{path}: damaged (no {'.'.join(keys)}); restore it from a copy or run again")
        value = value[key]
    return value


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one line; a crash can leave it incomplete, which `read_jsonl` recognises."""
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise unwritable(path, error) from None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a JSON-lines file; an incomplete line at the end, left by a crash, is skipped."""
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
