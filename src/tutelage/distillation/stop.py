"""Requests to stop a run, from Ctrl-C or a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """The run was asked to stop, and everything needed to resume it is on the disk."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Let Ctrl-C (SIGINT) and SIGTERM set a flag; the second one raises KeyboardInterrupt.

    Outside the main thread, which alone can handle signals, the flag is never set.
    """
    stop = threading.Event()

    def ask(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with _handled(ask):
        yield stop


@contextmanager
def noted_interrupts() -> Iterator[threading.Event]:
    """Let Ctrl-C (SIGINT) and SIGTERM set a flag and raise KeyboardInterrupt.

    The flag is for code below which a native library may turn KeyboardInterrupt into an exception of its own.
    Outside the main thread, which alone can handle signals, the flag is never set.
    """
    came = threading.Event()

    def note(_number: int, _frame: object) -> None:
        came.set()
        raise KeyboardInterrupt

    with _handled(note):
        yield came


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Let a function handle SIGINT and SIGTERM, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
