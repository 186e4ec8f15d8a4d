"""Runs in processes of their own that are stopped at a chosen moment: after so many calls in a station.

A moment is counted in calls of functions (Python's and C's), not in seconds: it is the same on every machine, lies
anywhere (between opening a file and renaming it, say), and needs no hook in the program. Processes are forked from
one that has imported everything, so that a start takes no seconds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

STATIONS = ("prepare", "fit_teachers", "fit_head", "preflight", "train_control", "train_student", "measure")
SECONDS = 300  # after which a process counts as hanging
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

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
    """How a process ended, what it wrote on the terminal, and the calls of each station."""

    code: int | None
    output: str
    calls: dict[str, int]


def tutelage(
    *arguments: str | Path, log: Path, moment: Moment | None = None, file_bytes: int | None = None
) -> Ended:
    """`tutelage ...` to its end.

    Args:
        arguments: of the command line.
        log: where its output goes.
        moment: when it is stopped.
        file_bytes: a disk that takes no larger file.
    """
    receiver, sender = _server.Pipe(duplex=False)
    process = _start(list(map(str, arguments)), log, sender, moment, file_bytes)
    sender.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"tutelage {arguments} hangs\n{log.read_text()}")
    calls = receiver.recv() if process.exitcode is not None and process.exitcode >= 0 else {}
    return Ended(process.exitcode, log.read_text(), calls)


def together(*arguments: str | Path, log: Path, port: int, moment: Moment | None = None) -> list[Ended]:
    """`tutelage ...` in two processes, as a launcher starts them; a moment is that of the first."""
    ranks = []
    for rank in range(2):
        places = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_WORLD_SIZE": 2,
            "MASTER_PORT": port,
        }
        environment = {key: str(value) for key, value in places.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        path = log.with_suffix(f".{rank}")
        ranks.append(
            (
                path,
                _start(
                    list(map(str, arguments)), path, None, moment if rank == 0 else None, None, environment
                ),
            )
        )
    for number, (_, process) in enumerate(ranks):
        process.join(SECONDS if number == 0 else 30)
        if process.is_alive():  # a launcher ends the others when one has failed
            process.kill()
            process.join()
    return [Ended(process.exitcode, path.read_text(), {}) for path, process in ranks]


def _start(
    arguments: list[str],
    log: Path,
    sender: Any,
    moment: Moment | None,
    file_bytes: int | None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    given = ONE_THREAD | dict(environment or {})
    process = _server.Process(target=_command, args=(arguments, str(log), sender, moment, file_bytes, given))
    process.start()
    return process


def _command(
    arguments: list[str],
    log: str,
    sender: Any,
    moment: Moment | None,
    file_bytes: int | None,
    environment: dict[str, str],
) -> None:
    import torch

    from tutelage.cli import main

    gc.freeze()  # what was imported is not searched at each collection
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["tutelage", *arguments]
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    calls: dict[str, int] = {}
    if sender or moment:
        _count(calls, moment)
    try:
        main(arguments)
    finally:
        sys.setprofile(None)
        sys.stdout.flush()
        sys.stderr.flush()
        if sender:
            sender.send(calls)


def _count(calls: dict[str, int], moment: Moment | None) -> None:
    station = ""
    left = moment.calls if moment else -1
    reached = False

    def look(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal station, left, reached
        if event == "call":
            code = frame.f_code
            if code.co_name in STATIONS and "tutelage/pipeline/stages/" in code.co_filename:
                station = code.co_name
                calls[station] = 0
                reached = reached or bool(moment and station == moment.station)
        elif event != "c_call":
            return
        if station:
            calls[station] += 1
        if reached and left > 0:
            left -= 1
            if left == 0 and moment:
                os.kill(os.getpid(), moment.signal)

    sys.setprofile(look)
