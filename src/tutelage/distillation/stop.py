"""Requests to stop a run, from Ctrl-C or a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """The run was asked to stop, and everything needed to resume it is on the disk."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Let Ctrl-C (SIGINT) and SIGTERM set a flag; the second one raises KeyboardInterrupt.

    Outside the main thread, which alone can handle signals, the flag is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
