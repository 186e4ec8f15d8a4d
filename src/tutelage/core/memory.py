"""How the C library manages memory."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

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
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, LARGEST)
        _ = mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, OF_OLDER)
