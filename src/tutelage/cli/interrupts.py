"""What Ctrl-C and SIGTERM do to a command.

Python would raise `KeyboardInterrupt` wherever it is, also in the middle of an import or below a library's native
code, which then ends with hundreds of lines or a segmentation fault. So a command ends at once, with one line and
without Python's clean-up, unless it has something to keep: then it asks for `KeyboardInterrupt` and answers it itself.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130  # exit code of a command that was stopped by Ctrl-C, as in shells


def interrupts_exit() -> None:
    """Let Ctrl-C and SIGTERM end the process at once, with one line on stderr."""

    def stop(_number: int, _frame: object) -> None:
        os.write(2, b"\nstopped\n")
        exit_now()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def interrupts_raise() -> None:
    """Let Ctrl-C and SIGTERM raise `KeyboardInterrupt`, for a command that says how to continue."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def exit_now() -> NoReturn:
    """End the process with the exit code of Ctrl-C, without the clean-up of libraries that may be in any state."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, RuntimeError):  # closed, a broken pipe, or interrupted while writing
            continue
    os._exit(INTERRUPTED)
