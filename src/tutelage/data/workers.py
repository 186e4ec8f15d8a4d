"""Loader processes: what each of them needs, and what is said when one dies."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tutelage.core.errors import TutelageError, one_line


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turn torch's error about a dead worker into one line. Use it around code that reads batches.

    torch raises the error in a signal handler, wherever the main process is at that moment.

    Raises:
        TutelageError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = one_line(error)
        raise TutelageError(f"a loader process died ({reason}); try data.workers=0") from None


def as_it_is(batch: Any) -> Any:
    """A collate function for a data set that makes whole batches: nothing is left to do."""
    return batch


def deaf_to_interrupts(worker: int) -> None:
    """Ignore Ctrl-C in workers: the main process gets it too and ends them, and they print no tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
