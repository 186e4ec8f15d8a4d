"""Files that are whole or not there: written aside, flushed and renamed; and the errors of those that are damaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError


def digest(path: Path) -> dict[str, Any]:
    """Bytes and SHA-256 of a file."""
    with open(path, "rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to the disk and rename it into place.

    Raises:
        TutelageError: the disk is full or the place cannot be written.
    """
    aside = _aside(path)
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
        raise unwritable(path, error) from None


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name, in place of whatever has that name; where hard links do not work, copy it.

    A hard link takes no space on the disk. It is safe because files are replaced as a whole, never changed.

    Raises:
        TutelageError: the disk is full or the place cannot be written.
    """
    aside = _aside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, aside)
        os.replace(aside, target)
    except OSError:
        write_bytes(target, source.read_bytes())
    finally:
        aside.unlink(missing_ok=True)  # `os.replace` keeps it where both names are of the same file already


def _aside(path: Path) -> Path:
    """Where a file is made before it is renamed; `Run.held` removes what a killed process leaves of these."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def unwritable(path: Path, error: OSError) -> TutelageError:
    """The error of a file that the system refuses to write."""
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
        raise unwritable(path, error) from None


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
