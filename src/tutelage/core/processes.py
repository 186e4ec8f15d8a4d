"""How the processes of a run wait for each other, and how they end together where one of them fails.

PyTorch's collective operations give up after 10 minutes (NCCL) or 30 (gloo), no signal interrupts them, and where one
process has ended they fail without its reason. So a process that waits for what another one does asks for it in the
store through which the processes found each other, and there an error of one process is told to all.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from tutelage.core.errors import TutelageError, one_line

PATIENCE = 24 * 3600.0  # seconds after which a process does not wait any longer for work of the first one
PAUSE = 0.5  # seconds between two looks into the store, at most
GRACE = 3.0  # seconds in which a process may end by itself after another one has failed

Say = Callable[[Exception], None]  # shows an error to the user


class OtherFailed(TutelageError):  # noqa: N818 - the error is in another process
    """Another process of the run has failed: its message, and the exit code that it means."""

    def __init__(self, line: str = "another process has failed", exit_code: int = 2) -> None:
        super().__init__(line)
        self.exit_code = exit_code


class Peers:
    """The processes of a run, as one of them sees them.

    Args:
        store: shared by all.
        rank: of this process.
        size: number of processes.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._calls = count()  # all processes make the same calls in the same order
        self._said = self._counted = False
        self._ending = threading.Lock()
        self._told = threading.Event()

    def follow_main(self) -> None:
        """Return when the first process has called this too; it returns at once there.

        Raises:
            OtherFailed: a process has failed meanwhile.
            TutelageError: the first process has not called it within `PATIENCE`.
        """
        key = f"main/{next(self._calls)}"
        if self.rank == 0:
            self._store.set(key, "")
        else:
            self._wait_for(key)

    def meet(self) -> None:
        """Return when all processes have called this; errors are those of `follow_main`."""
        key = f"all/{next(self._calls)}"
        if self._store.add(key, 1) == self.size:
            self._store.set(f"{key}/here", "")
        self._wait_for(f"{key}/here")

    def _wait_for(self, key: str) -> None:
        """Wait for a key in short steps, so that signals are answered and failures noticed meanwhile."""
        begun, pause = time.monotonic(), 0.001
        while not self._store.check([key]):
            if failure := self.failure():
                raise failure
            if time.monotonic() - begun > PATIENCE:
                raise TutelageError(
                    f"process {self.rank}: has waited {PATIENCE / 3600:g} hours for the others; "
                    "stop the run and look what they do"
                )
            time.sleep(pause)
            pause = min(2 * pause, PAUSE)

    # --- failures

    def failure(self) -> OtherFailed | None:
        """Return what a process has told of its failure; None: none has failed."""
        if not self._store.check(["failure"]):
            return None
        line, code = json.loads(self._store.get("failure"))
        return OtherFailed(line, code)

    def end(self, error: Exception, say: Say) -> Exception:
        """Tell the others that this process fails, and return the error with which it ends.

        It returns when all have said theirs, or after a while: a launcher stops them as soon as one has ended.

        Args:
            error: of this process. One that only follows from the failure of another is replaced by that one's.
            say: shows the error with which this process ends to the user; called once.
        """
        with self._ending:  # held to the end: either this thread ends the process, or the one that watches
            self._told.set()
            try:
                found = self._tell(error)
            except RuntimeError:  # the store has ended with its process
                found = as_told(error)
            if not self._said:
                say(found)
                self._said = True
            with suppress(RuntimeError):
                self._linger()
            return found

    def _tell(self, error: Exception) -> Exception:
        own = as_told(error)
        told = (str(own), own.exit_code) if isinstance(own, TutelageError) else (self._named(own), 1)
        self._store.compare_set("failure", "", json.dumps(told))
        first = self.failure()
        return first if first and isinstance(own, OtherFailed) else error

    def _named(self, error: Exception) -> str:
        return f"process {self.rank}: {type(error).__name__}: {one_line(error)}"

    def _linger(self) -> None:
        """Stay until all processes have said why they end: a launcher kills the others when one has ended.

        The first one stays the longest, since it may hold the store that the others look into.
        """
        until = time.monotonic() + 3 * GRACE
        if not self._counted:
            self._counted = True
            self._store.add("ended", 1)
        self._count("ended", self.size, until)
        if self.rank == 0:
            self._count("left", self.size - 1, until)
        else:
            self._store.add("left", 1)

    def _count(self, key: str, wanted: int, until: float) -> None:
        """Wait until so many processes have added themselves to a key, or for a time of `time.monotonic`."""
        while self._store.add(key, 0) < wanted and time.monotonic() < until:
            time.sleep(0.05)

    def watch(self) -> None:
        """End this process where another one fails, also while it waits in a collective operation.

        Its main thread gets `OtherFailed`. A collective operation does not let go of it: then the process ends without
        its clean-up.
        """
        main = threading.main_thread().ident
        threading.Thread(target=self._watch, args=(main,), name="tutelage-peers", daemon=True).start()

    def _watch(self, main: int) -> None:
        while not self._told.wait(PAUSE):
            try:
                failure = self.failure()
            except RuntimeError:  # the store has ended with its process
                return
            if failure is None:
                continue
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(OtherFailed))
            if self._told.wait(GRACE):
                return
            with self._ending:
                if self._told.is_set():
                    return
                sys.stdout.flush()
                print(f"\nerror: {one_line(failure)}", file=sys.stderr, flush=True)
                with suppress(RuntimeError):
                    self._linger()
                os._exit(failure.exit_code)


_current: Peers | None = None
_failures = 0


def peers() -> Peers | None:
    """Return the processes of this run; None: there is only this one, or the others are not connected yet."""
    global _current
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    if _current is None:
        store = PrefixStore(f"tutelage-{_failures}", _get_default_store())
        _current = Peers(store, distributed.get_rank(), distributed.get_world_size())
        _current.watch()
    return _current


def _not_here(error: Exception) -> None:
    """Leave it to the caller of `end_together` to show the error."""


def end_together(error: Exception, say: Say = _not_here) -> Exception:
    """Tell the other processes of an error, and return the one with which this process ends.

    It is the same one, or that of another process, where this one only follows from it.

    Args:
        error: of this process.
        say: shows the returned error to the user, before any process of the run ends. What is shown later can be lost:
            a launcher such as torchrun stops the other processes as soon as one has ended.
    """
    try:
        return _end_together(error, say)
    except OtherFailed:  # thrown in by `Peers.watch` at the last moment
        return _end_together(error, say)


def _end_together(error: Exception, say: Say) -> Exception:
    global _current, _failures
    found = peers()
    if found is None:
        say(error)
        return error
    first = found.end(error, say)
    _current, _failures = None, _failures + 1  # a program may go on with another run
    return first


def as_told(error: Exception) -> Exception:
    """Return an error that means something to the user, for one of a connection to a process that has ended."""
    lost = isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )
    if not lost:
        return error
    return OtherFailed(
        f"another process of the run has ended without a message ({one_line(error)[:200]}), as when the system "
        "kills it for its memory; resume the run",
        1,
    )
