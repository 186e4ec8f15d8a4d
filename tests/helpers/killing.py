"""Runs in processes of their own that are stopped at a chosen moment: after so many calls in a station.

A moment is counted in calls of functions (Python's and C's), not in seconds: it is the same on every machine, lies
anywhere (between opening a file and renaming it, say), and needs no hook in the program. Processes are forked from
one that has imported everything, so that a start takes no seconds.
"""

from __future__ import annotations

import cProfile
import gc
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

STATIONS = ("prepare", "fit_teachers", "fit_head", "preflight", "train_control", "train_student", "measure")
SECONDS = 300  # after which a process counts as hanging
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
Before = Callable[[int], None]

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "tutelage.cli",
        "tutelage.pipeline.run",
        "tutelage.report.build",
        "sklearn.datasets",
        "tests.helpers.killing",
    ]
)


@dataclass(frozen=True)
class Moment:
    """The so-manieth call after a station began; what is sent then."""

    station: str
    calls: int
    signal: int = signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a process ended, what it wrote on the terminal, and the calls of each station where they are counted."""

    code: int | None
    output: str
    calls: dict[str, int]


def tutelage(
    *arguments: str | Path,
    log: Path,
    moment: Moment | None = None,
    count: bool = False,
    file_bytes: int | None = None,
) -> Ended:
    """`tutelage ...` to its end.

    Args:
        arguments: of the command line.
        log: where its output goes.
        moment: when it is stopped.
        count: count the calls of each station.
        file_bytes: a disk that takes no larger file.
    """
    receiver, sender = _server.Pipe(duplex=False)
    command = _Command(tuple(map(str, arguments)), moment, file_bytes, sender if count else None)
    process = started(command, log=log)
    sender.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"tutelage {arguments} hangs\n{log.read_text()}")
    calls = receiver.recv() if count else {}
    return Ended(process.exitcode, log.read_text(), calls)


def free_port() -> int:
    """Return a port by which processes can find each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(
    *arguments: str | Path,
    log: Path,
    port: int,
    moment: Moment | None = None,
    processes: int = 2,
    before: Before | None = None,
) -> list[Ended]:
    """`tutelage ...` in several processes, as a launcher starts them.

    Args:
        arguments: of the command line.
        log: where the output of each goes, with its rank as the suffix.
        port: by which they find each other.
        moment: when the first one is stopped.
        processes: how many there are.
        before: a module's function that each one calls with its rank before the command, for example to make it fail.
    """
    words = tuple(map(str, arguments))
    commands = [_Command(words, None if rank else moment, before=before) for rank in range(processes)]
    begun = in_ranks(commands, log=log, port=port)
    for number, (_, process) in enumerate(begun):
        process.join(SECONDS if number == 0 else 30)
        if process.is_alive():  # a launcher ends the others when one has failed
            process.kill()
            process.join()
    return [Ended(process.exitcode, path.read_text(), {}) for path, process in begun]


def in_ranks(calls: Sequence[Callable[[], object]], *, log: Path, port: int) -> list[tuple[Path, Any]]:
    """Start a process for each of some calls, with what a launcher puts into the environment.

    Returns:
        The file of its output and the process, for each call.
    """
    common = {"WORLD_SIZE": len(calls), "LOCAL_WORLD_SIZE": len(calls), "MASTER_PORT": port}
    begun = []
    for rank, call in enumerate(calls):
        places = common | {"RANK": rank, "LOCAL_RANK": rank}
        environment = {key: str(value) for key, value in places.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        path = log.with_suffix(f".{rank}")
        begun.append((path, started(call, log=path, environment=environment)))
    return begun


def started(call: Callable[[], object], *, log: Path, environment: Mapping[str, str] | None = None) -> Any:
    """Start a process that has everything imported already, and calls something that can be pickled.

    Args:
        call: what it does.
        log: where its output goes.
        environment: added to that of this process.

    Returns:
        The process: a `multiprocessing.Process`.
    """
    given = ONE_THREAD | dict(environment or {})
    process = _server.Process(target=_called, args=(call, str(log), given))
    process.start()
    return process


def command(*arguments: str | Path) -> Callable[[], None]:
    """`tutelage ...`, for `started`."""
    return _Command(tuple(map(str, arguments)))


def _called(call: Callable[[], object], log: str, environment: dict[str, str]) -> None:
    import torch

    gc.freeze()  # what was imported is not searched at each collection
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    call()


@dataclass(frozen=True)
class _Command:
    """`tutelage ...` in the process that calls this; the fields are those of `tutelage` and `together`."""

    arguments: tuple[str, ...]
    moment: Moment | None = None
    file_bytes: int | None = None
    counted: Any = None  # the pipe that is sent the calls of each station
    before: Before | None = None

    def __call__(self) -> None:
        from tutelage.cli import main

        sys.argv = ["tutelage", *self.arguments]
        if self.file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))
        if self.before:
            self.before(int(os.environ["RANK"]))
        counter = _Counter()
        if self.moment:
            _stop_at(self.moment)
        elif self.counted:
            _when_stations_begin(counter.next)
        try:
            main(list(self.arguments))
        finally:
            sys.setprofile(None)
            sys.stdout.flush()
            sys.stderr.flush()
            if self.counted:
                counter.next("")
                self.counted.send(counter.calls)


def _when_stations_begin(entered: Callable[[str], None]) -> None:
    """Let a function be called with the name of each station of a run when the run comes to it."""
    from tutelage.pipeline import run

    def announced(name: str, station: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            entered(name)
            return station(*arguments, **options)

        return call

    for name in STATIONS:
        setattr(run, name, announced(name, getattr(run, name)))


class _Counter:
    """The calls of each station, counted in C: counted in Python, they take several times as long as the run."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self._station = ""
        self._profile = cProfile.Profile()

    def next(self, station: str) -> None:
        """End a station, and begin the next; "" is none."""
        self._profile.disable()
        if self._station:
            self.calls[self._station] = sum(entry.callcount for entry in self._profile.getstats())
        self._station = station
        self._profile.clear()
        if station:
            self._profile.enable()


def _stop_at(moment: Moment) -> None:
    left = moment.calls

    def look(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal left
        if event in {"call", "c_call"}:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), moment.signal)

    def entered(station: str) -> None:
        if station == moment.station:
            sys.setprofile(look)

    _when_stations_begin(entered)
