"""Calls to trackers that may never answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
SECONDS = 10.0  # a tracker that takes longer for a call is given up
LOCAL_SECONDS = 120.0  # on this machine, where a busy disk takes long to make the tables, but always answers


def within(call: Callable[[], T]) -> T:
    """Call a function in a thread of its own, and return its result or raise its exception.

    Raises:
        TimeoutError: it has not returned in time; its thread is left alone.
    """
    seconds = SECONDS if is_remote() else LOCAL_SECONDS
    results: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    if raised:
        raise raised[0]
    return results[0]


def is_remote() -> bool:
    """Whether MLflow's store is a server, not a file on this machine."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")[0] not in {"", "file", "sqlite"}
