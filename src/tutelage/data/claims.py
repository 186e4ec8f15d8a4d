"""Who writes a part of a store: processes of one machine or of several share the work without asking each other."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

ABANDONED = 120.0  # seconds without a write, after which a part is taken from the process that claimed it


def aside_of(part: Path) -> Path:
    """The name that a part has until this process has written it whole."""
    return part.with_name(f".{part.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextlib.contextmanager
def claimed(claim: Path) -> Iterator[Path | None]:
    """Claim a part for this process; None where another process writes it.

    A claim only saves work. Where two processes write a part nonetheless, the later one replaces it by the same.
    """
    with contextlib.suppress(FileNotFoundError):
        if time.time() - claim.stat().st_mtime > ABANDONED or _ended(claim.read_text()):
            claim.unlink()
    try:
        with open(claim, "x") as stream:
            stream.write(f"{socket.gethostname()} {os.getpid()}")
    except FileExistsError:
        yield None
        return
    try:
        yield claim
    finally:
        claim.unlink(missing_ok=True)


def _ended(owner: str) -> bool:
    """Whether a claim is by a process of this machine that has ended."""
    host, _, process = owner.partition(" ")
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # another user's
    return False


def clear_abandoned(place: Path) -> None:
    """Remove what processes that were killed have left."""
    for file in place.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink()
