"""The memory of the machine, and how the C library manages it."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from typing import Any

# of <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST = 2**31 - 1  # both are an int
OF_OLDER = 32 * 2**20  # glibc before 2.35 refuses more for the second


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation, in place of handing it back to the system.

    A network's activations on a CPU are allocated and freed in each step. By default large ones go back to the system,
    and the next step waits for a page fault, and for zeros, for every 4 KiB. Where the C library is another one,
    nothing changes.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGEST)
        _ = mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, OF_OLDER)


def give_back_freed_memory() -> None:
    """Hand freed memory back to the system, which `keep_freed_memory` keeps, where something else needs it."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """Return a function of the C library; None where that is another one, such as musl."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def machine_memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
