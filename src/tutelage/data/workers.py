"""Loader processes: what each of them needs, and what is said when one dies."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tutelage.core.errors import TutelageError, one_line


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turn torch's error about a dead worker into one line. Use it around code that reads batches.

    torch raises the error in a signal handler, wherever the main process is at that moment. Where that is while a batch
    is handed over, the connection to the worker fails first.

    Raises:
        TutelageError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _died(error) from None
    except (ConnectionError, EOFError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any("multiprocessing" in frame.filename for frame in frames):
            raise
        raise _died(error) from None


def _died(error: Exception) -> TutelageError:
    return TutelageError(f"a loader process died ({one_line(error)}); try data.workers=0")


def as_it_is(batch: Any) -> Any:
    """A collate function for a data set that makes whole batches: nothing is left to do."""
    return batch


def deaf_to_interrupts(worker: int) -> None:
    """Ignore Ctrl-C in workers: the main process gets it too and ends them, and they print no tracebacks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
