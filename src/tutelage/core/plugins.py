"""Loading of what installed packages add to tutelage through entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from tutelage.core.errors import TutelageError


def plugin_names(group: str) -> list[str]:
    """Return the names of all entry points of a group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def load_plugin(group: str, name: str, what: str) -> Any:
    """Import the object that an entry point names.

    Args:
        group: such as ``tutelage.sources``.
        name: one of `plugin_names`.
        what: what the user wrote, to begin the error message with.

    Raises:
        TutelageError: no installed package has such an entry point, or its module cannot be imported.
    """
    for point in entry_points(group=group, name=name):
        try:
            return point.load()
        except Exception as error:  # a package's module may raise anything while it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise TutelageError(
                f"{what}: {plugin_title(group, name)} cannot be loaded ({reason}); "
                "repair or uninstall that package"
            ) from error
    raise TutelageError(f"{what}: no installed package has an entry point {name!r} in {group}")


def plugin_title(group: str, name: str) -> str:
    """Return an entry point as error messages name it: with its name, the object that it names, and its group."""
    value = next((point.value for point in entry_points(group=group, name=name)), "?")
    return f"the entry point {name} = {value} ({group})"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.0) -> str:
    """Return the known word most similar to this one; "" where none has a similarity of `cutoff` (0 to 1)."""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=cutoff)), "")
