"""What is done where the memory of a GPU, or of the machine, does not suffice.

On Linux, a CPU's memory often seems to suffice until the system kills the process; then no error can be caught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.memory import give_back_freed_memory

T = TypeVar("T")
ONEDNN = (
    "could not create a primitive"  # all that a CPU's library says of it; of what it cannot do, it says more
)
LONGEST = 200  # characters of PyTorch's message that are repeated


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    readable = len(error.args) == 1 and isinstance(error.args[0], str)  # accelerate expects a text
    return readable and (error.args[0] == ONEDNN or should_reduce_batch_size(error))


def or_refuse(call: Callable[[], T], refuse: Callable[[str], TutelageError]) -> T:
    """Call a function; where memory runs out, raise an error that says so in one line.

    Args:
        call: what needs memory. What it holds is free by the time that `refuse` is called.
        refuse: gets the reason in the words of PyTorch, and returns the error.

    Raises:
        TutelageError: that of `refuse`.
    """
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = one_line(error)[:LONGEST]
    # the error is gone by now, and with it the tensors in the frames of its traceback
    _free()
    raise refuse(reason)


def _free() -> None:
    clear_device_cache(garbage_collection=True)
    give_back_freed_memory()


def halve_until_it_fits(call: Callable[[int], T], start: int, least: int = 1) -> tuple[int, T]:
    """Call a function with a number of images, which is halved where memory runs out.

    Args:
        call: gets the number.
        start: the number to begin with.
        least: the smallest number that is tried.

    Returns:
        The number that fits, and the result of the call.

    Raises:
        RuntimeError: PyTorch's, where memory runs out even with `least`.
    """
    count = start
    while True:
        try:
            return count, call(count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or count <= least:
                raise
        _free()  # outside the handler, as in `or_refuse`
        count = max(least, count // 2)


def largest_that_fits(call: Callable[[int], object], start: int, least: int) -> int:
    """Return the number of images that `halve_until_it_fits` finds; 0 where not even `least` fits."""
    if start < least:
        return 0
    try:
        return halve_until_it_fits(call, start, least)[0]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 0


@contextmanager
def named(remedy: Callable[[], str]) -> Iterator[None]:
    """Turn an error that says that memory ran out into one line.

    Args:
        remedy: returns the end of the line, which says what to do.

    Raises:
        TutelageError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TutelageError(f"out of memory ({one_line(error)[:LONGEST]}); {remedy()}") from None


def batch_too_large(where: str, tried: int, fitting: int | None, reason: str) -> TutelageError:
    """Return the error of a batch that does not fit into memory.

    Args:
        where: the stage, and the device.
        tried: images of a batch, over all processes (``train.batch_size``).
        fitting: images of a batch that fits; 0: there is none; None: it is not known.
        reason: in the words of PyTorch.
    """
    if fitting == 0:
        remedy = (
            "no smaller batch fits: use smaller models, or a smaller teacher.resolution or student.resolution"
        )
    else:
        known = f"a batch of {fitting} fits" if fitting else "use a smaller batch"
        smaller = fitting or max(2, tried // 2)
        remedy = f"{known}: begin a new run with train.batch_size={smaller}, or resume this one with more free memory"
    return TutelageError(f"train.batch_size={tried}: {where}: out of memory ({reason}); {remedy}")
