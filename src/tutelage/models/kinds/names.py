"""What is written after ``KIND:``: a name or a path, weights after ``@``, and settings after ``?``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from urllib.parse import parse_qsl

import yaml

from tutelage.core.errors import TutelageError, one_line


def split_weights(where: str) -> tuple[str, str | None]:
    """Return the name and what follows the last ``@``: ``none``, a file, or None without one.

    Raises:
        TutelageError: nothing follows the ``@``.
    """
    name, at, source = where.rpartition("@")
    if not at:
        return where, None
    if not source or not name:
        raise TutelageError(f"model {where!r}: write a name before the @, and a file, or none, after it")
    return name, source


def split_settings(spec: str, known: Collection[str]) -> tuple[str, dict[str, object]]:
    """Return the path and the settings of ``PATH?KEY=VALUE&KEY=VALUE``; values are read as YAML.

    Raises:
        TutelageError: a key is unknown or a value cannot be read.
    """
    path, _, query = spec.partition("?")
    found: dict[str, object] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise TutelageError(f"{spec}: unknown setting {key!r}; use {', '.join(sorted(known))}")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise TutelageError(f"{spec}: {key}={value} cannot be read ({one_line(error)})") from None
    return path, found


def listed_classes(path: Path) -> tuple[str, ...]:
    """Return the classes that a file lists, one a line in the order of the head.

    Raises:
        TutelageError: the file cannot be read, or lists a class twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TutelageError(
            f"{path}: cannot be read ({one_line(error)}); write one class a line, in UTF-8"
        ) from None
    classes = tuple(line.strip() for line in lines if line.strip())
    if len(set(classes)) != len(classes):
        raise TutelageError(f"{path}: lists a class twice; write each class once, in the order of the head")
    return classes
