"""Where a run reports to: the protocol, and one that reports nothing."""

from __future__ import annotations

from typing import Any, Protocol

from rich.console import RenderableType


class Tabular(Protocol):
    """What can be shown as a table."""

    def rich(self) -> RenderableType:
        """For a terminal."""

    def records(self) -> list[dict[str, Any]]:
        """For a machine."""


class Progress(Protocol):
    """Where a run reports to."""

    def say(self, text: str) -> None:
        """One line of plain words."""

    def begin(self, stage: str, steps: int) -> None:
        """A stage starts that has so many steps in all."""

    def step(self, losses: dict[str, float], images: int) -> None:
        """A step is done; losses are running means of the epoch, images the step's."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch's row of metrics.jsonl."""

    def end(self) -> None:
        """The stage is over."""

    def table(self, table: Tabular) -> None:
        """The final table."""


class Silent:
    """Reports nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, stage: str, steps: int) -> None:
        """Nothing."""

    def step(self, losses: dict[str, float], images: int) -> None:
        """Nothing."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def table(self, table: Tabular) -> None:
        """Nothing."""
