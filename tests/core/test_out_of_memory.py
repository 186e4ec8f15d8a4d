"""Errors that say that memory ran out are known, and are tried again with fewer images."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tests.helpers.small_memory import CPU, GPU

from tutelage.core.errors import TutelageError
from tutelage.core.out_of_memory import (
    batch_too_large,
    halve_until_it_fits,
    is_out_of_memory,
    largest_that_fits,
    named,
    or_refuse,
)


@pytest.mark.parametrize(
    "error",
    [
        GPU,
        CPU,
        RuntimeError("could not create a primitive"),
        MemoryError("Unable to allocate 9 GiB"),
        MemoryError(),
    ],
)
def test_memory_that_ran_out(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("size mismatch"),
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
        RuntimeError(ValueError("wrapped")),
        RuntimeError(),
        OSError(12),
    ],
)
def test_other_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)

    def fail(*_: object) -> None:
        raise error

    for call in (
        lambda: or_refuse(fail, TutelageError),
        lambda: halve_until_it_fits(fail, 8),
        lambda: largest_that_fits(fail, 8, 1),
    ):
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error
    with pytest.raises(type(error)) as raised, named(str):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(("start", "fitting", "found"), [(64, 100, 64), (64, 20, 16), (63, 4, 3), (5, 2, 2)])
def test_the_number_is_halved_until_it_fits(start: int, fitting: int, found: int) -> None:
    def step(count: int) -> str:
        if count > fitting:
            raise GPU
        return "done"

    assert halve_until_it_fits(step, start, 2) == (found, "done")
    assert largest_that_fits(step, start, 2) == found


def test_nothing_fits() -> None:
    tried = []

    def step(count: int) -> None:
        tried.append(count)
        raise CPU

    assert largest_that_fits(step, 9, 2) == 0
    assert tried == [9, 4, 2]
    assert largest_that_fits(step, 1, 2) == 0
    assert tried == [9, 4, 2]
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        halve_until_it_fits(step, 2, 2)


def test_what_filled_the_memory_is_free_before_it_is_tried_again() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def fill(*_: object) -> None:
        alive.append(sum(one() is not None for one in kept))
        activations = torch.zeros(3)
        kept.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(*GPU.args)  # GPU itself would keep the frames of its last traceback

    gc.disable()
    try:
        largest_that_fits(fill, 8, 1)

        def refuse(reason: str) -> TutelageError:
            alive.append(sum(one() is not None for one in kept))
            return TutelageError(reason)

        with pytest.raises(TutelageError, match="CUDA out of memory"):
            or_refuse(fill, refuse)
    finally:
        gc.enable()
    assert alive == [0] * 6


@pytest.mark.parametrize(
    ("fitting", "end"),
    [
        (8, "a batch of 8 fits: begin a new run with train.batch_size=8, or resume"),
        (None, "use a smaller batch: begin a new run with train.batch_size=32, or resume"),
        (
            0,
            "no smaller batch fits: use smaller models, or a smaller teacher.resolution or student.resolution",
        ),
    ],
)
def test_the_line_names_the_batch(fitting: int | None, end: str) -> None:
    line = str(batch_too_large("control on cuda:0", 64, fitting, "CUDA out of memory"))
    assert line.startswith(
        "train.batch_size=64: control on cuda:0: out of memory (CUDA out of memory); " + end
    )


def test_a_long_message_is_one_short_line() -> None:
    long = torch.OutOfMemoryError("CUDA out of memory. Tried\n" + "more " * 400)
    with pytest.raises(TutelageError) as raised, named(lambda: "free some"):
        raise long
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 300
    assert line.endswith("free some")
