"""Progress of a run, shown to a person (bars, or plain lines for a log) or to a program (JSON lines)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
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

from tutelage.core.errors import TutelageError
from tutelage.core.progress import Progress, Silent, Tabular

STAGE_WORDS = {
    "teacher-fit": "fitting the teacher",
    "images": "decoding images",
    "targets": "computing the teacher's targets",
    "head-fit": "fitting the student's head",
    "control": "training the labels-only control",
    "distill": "distilling",
    "preflight": "checking teacher and student",
    "lr-range": "trying learning rates",
    "resolutions": "trying resolutions",
    "selection": "evaluating the candidates on val",
    "evaluation": "evaluating on test",
}

WITHOUT_EPOCHS = (
    "preflight",
    "lr-range",
    "resolutions",
    "selection",
    "evaluation",
)  # of which else nothing would be seen in a log


def open_progress(kind: str) -> Progress:
    """What the option ``--progress`` asks for: auto, rich, plain, json or none.

    ``auto`` is rich on a terminal, and plain elsewhere.

    Raises:
        TutelageError: it is none of them.
    """
    console = Console()
    if kind == "rich" or (kind == "auto" and console.is_terminal):
        return Bars(console)
    if kind in {"auto", "plain"}:
        return Plain(console if kind == "auto" else Console(no_color=True))
    if kind == "json":
        return JsonLines()
    if kind == "none":
        return Silent()
    raise TutelageError(f"--progress {kind}: use auto, rich, plain, json or none")


@contextmanager
def shown_steps() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being done, on stderr.

    On a terminal each line replaces the one before; elsewhere, in a log file, lines are printed one after the other.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: print(line, file=sys.stderr, flush=True)
        return
    with console.status("loading") as status:
        yield lambda line: status.update(escape(line))


class JsonLines(Silent):
    """Writes messages, stages, epochs and the table to standard output, one JSON object per line."""

    def _write(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=sys.stdout, flush=True)

    def say(self, text: str) -> None:
        """Write `{"event": "message"}`."""
        self._write("message", text=text)

    def begin(self, stage: str, steps: int) -> None:
        """Write `{"event": "stage"}`."""
        self._write("stage", stage=stage, steps=steps)

    def epoch(self, row: dict[str, Any]) -> None:
        """Write `{"event": "epoch"}` with the fields of the row."""
        self._write("epoch", **row)

    def table(self, table: Tabular) -> None:
        """Write `{"event": "table"}` with its rows."""
        self._write("table", rows=table.records())


class Plain(Silent):
    """Prints messages, and a table of the epochs of each stage."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown: tuple[str, list[str]] | None = (
            None  # the stage and the columns of the last line of figures
        )

    def say(self, text: str) -> None:
        """Print a line, or several where it is long."""
        self.shown = None
        style = "yellow" if text.startswith("warning: ") else None
        self.console.print(text, style=style, highlight=False, markup=False)

    def begin(self, stage: str, steps: int) -> None:
        """Print a line for a stage that may take minutes and has no epochs."""
        if stage in WITHOUT_EPOCHS:
            self.say(STAGE_WORDS[stage])

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the figures of an epoch; above those of the first one, the stage and the names of the columns."""
        title, key = (
            ("val top-1", "top1") if row["val"]["top1"] is not None else ("val agreement", "agreement")
        )
        columns = {"epoch": f"{row['epoch']}/{row['epochs']}"}
        columns |= {name: f"{value:.3f}" for name, value in row["loss"].items() if value is not None}
        columns[title] = f"{row['val'][key]:.2f}"
        if row["ema_val"]:
            columns["of EMA"] = f"{row['ema_val'][key]:.2f}"
        columns["images/s"] = f"{row['images_per_s']:.0f}"
        if self.shown != (row["stage"], list(columns)):
            self._print([STAGE_WORDS.get(row["stage"], row["stage"])])
            self._print([f"{name:>{_width(name)}}" for name in columns])
        self._print([f"{value:>{_width(name)}}" for name, value in columns.items()])
        self.shown = (row["stage"], list(columns))

    def _print(self, cells: list[str]) -> None:
        self.console.print("  ".join(cells), highlight=False, markup=False)

    def table(self, table: Tabular) -> None:
        """Print the table."""
        self.console.print(table.rich())


def _width(column: str) -> int:
    """The width of a column of figures; names are seldom longer than the figures below them."""
    return max(len(column), 7)


class Bars(Plain):
    """Shows a bar per stage (images/s, time left, each loss term) and a line per epoch."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bars: RichBars | None = None
        self.task = TaskID(0)
        self.images = 0.0

    def begin(self, stage: str, steps: int) -> None:
        """Start a new bar; lines are printed above it."""
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
        """Advance the bar."""
        if self.bars is None:
            return
        self.images += images
        elapsed = self.bars.tasks[0].elapsed or 0.0
        rate = f"{self.images / elapsed:.0f} images/s" if elapsed and self.images else ""
        terms = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.bars.update(self.task, advance=1, rate=rate, losses=terms)

    def end(self) -> None:
        """Remove the bar."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None
