"""Reporting of progress: the protocol, and an implementation that reports nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import RenderableType

EVERY = 5.0  # seconds between two reports of `Often`


class Tabular(Protocol):
    """Anything that can be shown as a table."""

    def rich(self) -> RenderableType:
        """Return the table for a terminal."""

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as JSON values."""


class Progress(Protocol):
    """Receives what a run reports."""

    def say(self, text: str) -> None:
        """Show one line of text."""

    def begin(self, stage: str, steps: int) -> None:
        """Begin a stage with this number of steps."""

    def step(self, losses: dict[str, float], images: int) -> None:
        """Count a finished step: the running means of the losses in the epoch, and the number of images in the step.

        Outside of a stage nothing is counted.
        """

    def epoch(self, row: dict[str, Any]) -> None:
        """Show an epoch's row of metrics.jsonl."""

    def end(self) -> None:
        """End the stage."""

    def table(self, table: Tabular) -> None:
        """Show the final table."""


class Silent:
    """Ignores all reports."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def begin(self, stage: str, steps: int) -> None:
        """Do nothing."""

    def step(self, losses: dict[str, float], images: int) -> None:
        """Do nothing."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def table(self, table: Tabular) -> None:
        """Do nothing."""


@contextmanager
def shown(progress: Progress, name: str, steps: int) -> Iterator[None]:
    """Begin a stage with this number of steps, and end it after the body of the `with`, however that ends."""
    progress.begin(name, steps)
    try:
        yield
    finally:
        progress.end()


class Often:
    """Counts within a long step, and reports the count every few seconds."""

    def __init__(self, report: Callable[[int], object]) -> None:
        self.report = report
        self.count = 0
        self._told = time.monotonic()

    def add(self, more: int) -> None:
        """Count on."""
        self.count += more
        if time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            self.report(self.count)
