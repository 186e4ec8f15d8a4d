"""Latency of models, timed in turns so that a machine's drift affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tutelage.core.runtime import synchronise

Call = Callable[[], object]
Clock = Callable[[Call], float]  # makes a call, and gives its time in ms


@dataclass(frozen=True)
class Latency:
    """Latency of a call, in milliseconds.

    Attributes:
        median_ms: the 50th percentile.
        p10_ms: the 10th percentile.
        p90_ms: the 90th percentile.
        rounds: how many calls were timed.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int


def alternating_latency(
    calls: Mapping[str, Call],
    *,
    rounds: int = 15,
    warmup: int = 3,
    seconds: float = 60.0,
    settling: int = 3,
    burst: int = 4,
    clock: Clock | None = None,
) -> dict[str, Latency]:
    """Time calls in turns: in each round every call has its turn, in an order that moves on by one.

    A turn is some untimed calls and then a few timed ones. Without the first, a small model would be timed while
    it fetches its weights back from where the big one before it drove them out of the caches, and while that
    one's threads still spin: its time would depend on who else is in the table.

    Args:
        calls: by name; each returns when its work is done (on a GPU it has to wait for it).
        rounds: number of turns of each call.
        warmup: calls of each before the first round, which are not counted.
        seconds: no further round begins after this time, once three are timed.
        settling: untimed calls that begin a turn.
        burst: timed calls of a turn.
        clock: None: `wall_clock`.
    """
    timed = clock or wall_clock
    names = list(calls)
    for _ in range(warmup):
        for name in names:
            calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - begin > seconds:
            break
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            for _ in range(settling):
                calls[name]()
            times[name] += [timed(calls[name]) for _ in range(burst)]
    return {name: _summary(taken) for name, taken in times.items()}


def forward_call(module: nn.Module, shape: tuple[int, int, int, int], device: torch.device) -> Call:
    """A call that runs a module on noise of shape (B, 3, H, W), both on the device, and waits for it.

    The noise lies channels last in memory, or as the module's attribute `memory_format` says.
    """
    layout = getattr(module, "memory_format", torch.channels_last)
    images = torch.randn(shape).to(device, memory_format=layout)

    def call() -> None:
        with torch.inference_mode():
            module(images)
        synchronise(device)

    return call


def wall_clock(call: Call) -> float:
    """Return the time that passes during a call, in ms."""
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e6


def _summary(taken: list[float]) -> Latency:
    p10, median, p90 = np.percentile(taken, [10, 50, 90])
    return Latency(float(median), float(p10), float(p90), len(taken))
