"""What makes one of several processes slow, or lets it fail: called in each of them before the command.

All give collective operations a few seconds only, where PyTorch's own limits are 10 and 30 minutes.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed

from tutelage.core.errors import TutelageError
from tutelage.core.files import unwritable

SECONDS = 8  # of a collective operation
SLOW = 12


def impatient() -> None:
    """Let collective operations give up after `SECONDS`."""
    start = distributed.init_process_group
    distributed.init_process_group = functools.partial(start, timeout=timedelta(seconds=SECONDS))


def before(module: Any, name: str, act: Callable[[], None]) -> None:
    """Let something happen before each call of a function."""
    call = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        act()
        return call(*args, **kwargs)

    setattr(module, name, wrapped)


def slow_first(rank: int) -> None:
    """The first process takes long to decode the images, and to write the page."""
    from tutelage.pipeline import run
    from tutelage.pipeline.stages import prepare

    impatient()
    if rank == 0:
        before(prepare, "decode_once", lambda: time.sleep(SLOW))
        before(run, "write_report", lambda: time.sleep(SLOW))


def refused() -> None:
    raise TutelageError("photo.jpg: cannot be read by this process")


def broken() -> None:
    raise ValueError("a fault of the program")


def full() -> None:
    raise unwritable(Path("metrics.jsonl"), OSError(28, "No space left on device"))


def second_is_refused(rank: int) -> None:
    """The second process fails in a training step, while the first one is in a collective operation."""
    from tutelage.distillation.update import Updater

    impatient()
    if rank == 1:
        before(Updater, "apply", refused)


def second_is_slow_to_say(rank: int) -> None:
    """As `second_is_refused`, and it takes a while to write why, longer than a launcher waits for it."""
    from tutelage.cli import commands

    second_is_refused(rank)
    if rank == 1:
        before(commands, "one_line", lambda: time.sleep(2))


def second_is_broken(rank: int) -> None:
    """As `second_is_refused`, with an error that no one expects."""
    from tutelage.distillation.update import Updater

    impatient()
    if rank == 1:
        before(Updater, "apply", broken)


def first_has_no_space(rank: int) -> None:
    """The disk of the first process is full when it writes the metrics of an epoch, which the others do not."""
    from tutelage.pipeline import context

    impatient()
    if rank == 0:
        before(context, "write_stage_metrics", full)


def page_fails(rank: int) -> None:
    """The first process cannot write the page."""
    from tutelage.pipeline import run

    impatient()
    if rank == 0:
        before(run, "write_report", broken)


def stopped_in_training(rank: int) -> None:
    """The processes are asked to stop in the third training step, as by a launcher that got SIGTERM."""
    from tutelage.distillation.update import Updater

    steps = itertools.count(1)

    def stop() -> None:
        if next(steps) == 3:
            signal.raise_signal(signal.SIGTERM)

    before(Updater, "apply", stop)


if __name__ == "__main__":  # python -m tests.helpers.faults FAULT COMMAND...
    from tutelage.cli import main

    globals()[sys.argv[1]](int(os.environ["RANK"]))
    main(sys.argv[2:])
