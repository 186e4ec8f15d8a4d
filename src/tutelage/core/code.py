"""Which code of the user's may be run: that named by the user, and never by a recipe, a run or weights from elsewhere.

The command line does its work within `only_named`. A program runs code anyway, so that nothing is refused outside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tutelage.core.errors import TutelageError

FLAG = "--allow-code"
_REFERENCE = re.compile(r"torch:([\w.]+:\w+)")
_named: set[str] | None = None  # None: no restriction


@contextmanager
def only_named(words: Iterable[str]) -> Iterator[None]:
    """Let `refuse_unnamed` pass only the functions that a command line itself names, or all of them with `FLAG`."""
    global _named
    words = list(words)
    _named = None if FLAG in words else {found for word in words for found in _REFERENCE.findall(word)}
    try:
        yield
    finally:
        _named = None


def refuse_unnamed(reference: str) -> None:
    """Refuse a function that a recipe or a run names, and not the command line.

    Args:
        reference: ``package.module:factory``.

    Raises:
        TutelageError: it may not be run.
    """
    if _named is not None and reference not in _named:
        raise TutelageError(
            f"model torch:{reference}: is code that the recipe or the run names, and not this command; read it, and "
            f"repeat the command with {FLAG} if you trust it"
        )
