"""What a person (Rich) or a machine (JSON lines) sees while a run goes."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichBars,
)

from tutelage.trackers import Tracker

STAGE_WORDS = {
    "teacher-fit": "fitting the teacher",
    "images": "decoding images",
    "targets": "teacher's targets",
    "head-fit": "fitting the student's head",
    "control": "labels-only control",
    "distill": "distilling",
}


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


class JsonLines(Silent):
    """A JSON object a line on standard output: messages, stages and epochs."""

    def _write(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=sys.stdout, flush=True)

    def say(self, text: str) -> None:
        """As `{"event": "message"}`."""
        self._write("message", text=text)

    def begin(self, stage: str, steps: int) -> None:
        """As `{"event": "stage"}`."""
        self._write("stage", stage=stage, steps=steps)

    def epoch(self, row: dict[str, Any]) -> None:
        """As `{"event": "epoch"}` with the row's fields."""
        self._write("epoch", **row)

    def table(self, table: Tabular) -> None:
        """As `{"event": "table"}` with its rows."""
        self._write("table", rows=table.records())


class Bars:
    """A bar a stage with images/s, time left and each loss term; a line an epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars: RichBars | None = None
        self.task = TaskID(0)
        self.images = 0.0

    def say(self, text: str) -> None:
        """Above the bar."""
        self.console.print(text, highlight=False, markup=False)

    def begin(self, stage: str, steps: int) -> None:
        """A new bar."""
        self.bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]} {task.fields[losses]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bars.add_task(STAGE_WORDS.get(stage, stage), total=steps, rate="", losses="")
        self.images = 0
        self.bars.start()

    def step(self, losses: dict[str, float], images: int) -> None:
        """The bar goes on."""
        if self.bars is None:
            return
        self.images += images
        elapsed = self.bars.tasks[0].elapsed or 0.0
        rate = f"{self.images / elapsed:.0f} images/s" if elapsed else ""
        terms = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.bars.update(self.task, advance=1, rate=rate, losses=terms)

    def epoch(self, row: dict[str, Any]) -> None:
        """One line above the bar."""
        terms = "  ".join(f"{name} {value:.3f}" for name, value in row["loss"].items() if value is not None)
        ema = f" (EMA {row['ema_val']['top1']:.2f})" if row["ema_val"] else ""
        words = STAGE_WORDS.get(row["stage"], row["stage"])
        self.say(
            f"  {words}: epoch {row['epoch']}/{row['epochs']}  {terms}  "
            f"val top-1 {row['val']['top1']:.2f}{ema}  {row['images_per_s']:.0f} images/s"
        )

    def end(self) -> None:
        """The bar goes."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def table(self, table: Tabular) -> None:
        """As a Rich table."""
        self.console.print(table.rich())


class Tracked:
    """Another progress, whose epochs a tracker is told too."""

    def __init__(self, progress: Progress, tracker: Tracker) -> None:
        self.progress = progress
        self.tracker = tracker

    def say(self, text: str) -> None:
        """As the other."""
        self.progress.say(text)

    def begin(self, stage: str, steps: int) -> None:
        """As the other."""
        self.progress.begin(stage, steps)

    def step(self, losses: dict[str, float], images: int) -> None:
        """As the other."""
        self.progress.step(losses, images)

    def epoch(self, row: dict[str, Any]) -> None:
        """The other and the tracker."""
        self.progress.epoch(row)
        self.tracker.on_epoch(row)

    def end(self) -> None:
        """As the other."""
        self.progress.end()

    def table(self, table: Tabular) -> None:
        """As the other."""
        self.progress.table(table)
