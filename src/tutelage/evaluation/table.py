"""The table of models: size, speed and quality, each with its change against the first model."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from tutelage.evaluation.paired import Paired
from tutelage.evaluation.roles import NAMES, Role

ABSENT = "–"
DITTO = "″"
ACROSS = 4  # models that fit side by side into 80 columns
LIKE = {"size_mb": "size", "latency_ms": "latency", "images_per_s": "images/s"}  # also compared like for like


@dataclass(frozen=True)
class Row:
    """One model's figures. A figure that is None has its reason in `why`, by its name.

    Attributes:
        model: NAME@WEIGHTS, or a deployed file's name.
        role: in a run (``teacher``, ``start``, ``control``, ``distilled``, ``onnx``...); else empty.
        origin: where the weights come from.
        resolution: height of its input images, in pixels.
        size_mb: parameters and buffers, or the file, in MiB (2^20 bytes).
        params_m: parameters in millions.
        gmacs: multiply-accumulates of an image in 10^9.
        latency_ms: of one image, median, in ms.
        latency_p10: of one image, 10th percentile, in ms.
        latency_p90: of one image, 90th percentile, in ms.
        images_per_s: throughput in batches.
        top1: percent, over all of the head's classes.
        top5: percent, over all of the head's classes; None, without a why, where these are five or fewer.
        nll: nats, over all of the head's classes.
        ece: percent, over all of the head's classes.
        top1_data: percent, over the data set's classes only; None, without a why, where these are the head's.
        top5_data: percent, over the data set's classes only; None where these are five or fewer.
        recall: percent, mean over classes; None, without a why, where all have about as many images.
        agreement: percent of the images on which it and the teacher give the same class; where there are no labels.
        fidelity: mean KL from the teacher's probabilities to its own, in nats; where there are no labels.
        n: number of images that quality was measured on: the labelled ones, or all where there are no labels.
        is_probe: its head is a linear probe on pretrained features, and nothing was trained further.
        paired: comparison with the first row on the same images.
        like: factors of a deployed file against the first model in the same runtime and precision, by figure:
            the gain of a smaller network, without that of the runtime.
        why: reasons of absent figures.
        conditions: of the measurement: device, threads, batch size, data.
    """

    model: str
    role: str = ""
    origin: str = ""
    resolution: int | None = None
    size_mb: float | None = None
    params_m: float | None = None
    gmacs: float | None = None
    latency_ms: float | None = None
    latency_p10: float | None = None
    latency_p90: float | None = None
    images_per_s: float | None = None
    top1: float | None = None
    top5: float | None = None
    nll: float | None = None
    ece: float | None = None
    top1_data: float | None = None
    top5_data: float | None = None
    recall: float | None = None
    agreement: float | None = None
    fidelity: float | None = None
    n: int | None = None
    is_probe: bool = False
    paired: Paired | None = None
    like: Mapping[str, float] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The row's name in the table: its role, else its model; ``start (linear probe)`` where it is one."""
        if self.role in NAMES:
            return NAMES[Role(self.role)]
        return f"{self.role} (linear probe)" if self.role and self.is_probe else self.role or self.model

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """The inverse of an entry of `Table.records`; unknown keys are ignored."""
        known = {key: value for key, value in values.items() if key in cls.__dataclass_fields__}
        if known.get("paired"):
            known["paired"] = Paired(**known["paired"])
        return cls(**known)


@dataclass(frozen=True)
class Figure:
    """How a figure of the table is written, and how its change against the first row is expressed."""

    key: str
    title: str
    digits: int
    change: Literal["smaller", "bigger", "difference"]


FIGURES = (
    Figure("size_mb", "size, MiB", 2, "smaller"),
    Figure("params_m", "parameters, M", 2, "smaller"),
    Figure("gmacs", "GMACs", 3, "smaller"),
    Figure("latency_ms", "latency, ms", 2, "smaller"),
    Figure("images_per_s", "images/s", 1, "bigger"),
    Figure("top1", "top-1, %", 2, "difference"),
    Figure("top5", "top-5, %", 2, "difference"),
    Figure("top1_data", "top-1, data only, %", 2, "difference"),
    Figure("top5_data", "top-5, data only, %", 2, "difference"),
    Figure("recall", "mean recall of classes, %", 2, "difference"),
    Figure("nll", "NLL", 3, "difference"),
    Figure("ece", "ECE, %", 2, "difference"),
    Figure("agreement", "agreement with the teacher, %", 2, "difference"),
    Figure("fidelity", "KL from the teacher, nats", 3, "difference"),
)

SPREAD = "p10–p90, ms"
COSTS = {figure.title for figure in FIGURES if figure.change != "difference"} | {SPREAD}


def change(figure: Figure, row: Row, first: Row) -> float | None:
    """A row's change against the first: a factor (above 1 is better), a difference, or None where one is absent."""
    mine, theirs = _value(row, figure.key), _value(first, figure.key)
    if mine is None or theirs is None:
        return None
    if figure.change == "difference":
        return mine - theirs
    over, under = (theirs, mine) if figure.change == "smaller" else (mine, theirs)
    return over / under if under else None


def factors(row: Row, first: Row) -> dict[str, float]:
    """The factors of size and speed that both rows have, for `Row.like`."""
    found = {f.key: change(f, row, first) for f in FIGURES if f.key in LIKE}
    return {key: factor for key, factor in found.items() if factor is not None}


@dataclass(frozen=True)
class Table:
    """Rows, of which the others are compared with the first, and notes below them."""

    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def records(self) -> list[dict[str, Any]]:
        """Rows as JSON values; absent figures are null, ``why`` has the reason, ``change`` is against the first row."""
        return [self._record(row) for row in self.rows]

    def csv(self) -> str:
        """Comma-separated, a header and a line a model; nested entries flattened (``change_size_mb``)."""
        flat = [dict(_flat(record)) for record in self.records()]
        nested = {"paired"}  # null in the first row
        names = list(dict.fromkeys(name for record in flat for name in record if name not in nested))
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(flat)
        return out.getvalue()

    def markdown(self) -> str:
        """A table in GitHub's Markdown: a row per figure and a column per model, with notes below."""
        names = [row.name.replace("|", "\\|") for row in self.rows]
        lines = [_line(["", *names]), _line(["---", *["---:"] * len(names)])]
        for title, cells in self._grid(" ({})"):
            lines.append(_line([title, *cells]))
        return "\n".join([*lines, *(f"\n{note}" for note in self.footnotes())]) + "\n"

    def rich(self) -> RenderableType:
        """For a terminal: a row per figure and a column per model, in tables of at most `ACROSS` models."""
        grid = list(self._grid("\n{}"))
        tables = []
        for begin in range(0, len(self.rows), ACROSS):
            some = slice(begin, begin + ACROSS)
            rows = self.rows[some]
            lines = [[title, *_once(title, cells[some], rows)] for title, cells in grid]
            tables.append(_rich(["", *(row.name for row in rows)], lines))
        return Group(*tables, *(Text(note, style="dim") for note in self.footnotes()))

    def footnotes(self) -> list[str]:
        """The notes, and the reasons why figures are absent, each once."""
        reasons: dict[str, dict[str, list[str]]] = {}
        for row in self.rows:
            for figure in FIGURES:
                if _value(row, figure.key) is None and figure.key in row.why:
                    per_row = reasons.setdefault(row.why[figure.key], {})
                    per_row.setdefault(row.name, []).append(figure.title.split(",")[0])
        return [*self.notes, *(_reason(why, rows, len(self.rows)) for why, rows in reasons.items())]

    def _record(self, row: Row) -> dict[str, Any]:
        record = _finite(asdict(row))
        why = dict(row.why)
        for figure in FIGURES:
            value = getattr(row, figure.key)
            if value is not None and record[figure.key] is None:
                why[figure.key] = "not a finite number"
        changes = {figure.key: change(figure, row, self.rows[0]) for figure in FIGURES}
        return record | {"why": why, "change": changes}

    def _grid(self, pattern: str) -> Iterator[tuple[str, list[str]]]:
        """(title, cell of each row) of each figure that a row has, or lacks for a stated reason."""
        if any(row.resolution for row in self.rows):
            yield "resolution, px", [str(row.resolution or ABSENT) for row in self.rows]
        for figure in FIGURES:
            if any(_value(row, figure.key) is not None or figure.key in row.why for row in self.rows):
                yield figure.title, [self._cell(figure, row, pattern) for row in self.rows]
            if figure.key == "latency_ms" and any(row.latency_p10 for row in self.rows):
                yield SPREAD, [_spread(row) for row in self.rows]
            if figure.key == "images_per_s":
                yield from self._likes()
            if figure.key == "top1" and any(row.paired for row in self.rows):
                yield "its 95% interval", [_interval(row) for row in self.rows]
        if any(row.paired for row in self.rows):
            yield "agreement, %", [f"{row.paired.agreement:.2f}" if row.paired else "" for row in self.rows]

    def _likes(self) -> Iterator[tuple[str, list[str]]]:
        for key, title in LIKE.items():
            if any(key in row.like for row in self.rows):
                cells = [f"{row.like[key]:.2f}x" if key in row.like else "" for row in self.rows]
                yield f"{title}, like for like", cells

    def _cell(self, figure: Figure, row: Row, pattern: str) -> str:
        value = _value(row, figure.key)
        if value is None:
            return ABSENT
        text = f"{value:,.{figure.digits}f}"
        changed = None if row is self.rows[0] else change(figure, row, self.rows[0])
        if changed is None:
            return text
        if figure.change != "difference":
            return text + pattern.format(f"{changed:.2f}x")
        return text + pattern.format(f"{changed:+.{figure.digits}f}")


def _once(title: str, cells: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Replace a cost by a ditto mark where it stands beside the same one of the same network in another role.

    The start, the control and the student of a run differ in their weights only, and are measured once.
    """
    found = [cells[0]]
    for place in range(1, len(cells)):
        left, row = rows[place - 1], rows[place]
        alike = row.role and left.role and row.model == left.model and cells[place] == cells[place - 1]
        found.append(DITTO if alike and title in COSTS and cells[place] != ABSENT else cells[place])
    return found


def _spread(row: Row) -> str:
    if row.latency_p10 is None or row.latency_p90 is None:
        return ABSENT
    digits = 1 if row.latency_p90 < 100 else 0
    return f"{row.latency_p10:,.{digits}f}–{row.latency_p90:,.{digits}f}"


def _interval(row: Row) -> str:
    return f"{row.paired.low:+.2f} to {row.paired.high:+.2f}" if row.paired else ""


def _value(row: Row, key: str) -> float | None:
    value = getattr(row, key)
    return value if value is not None and math.isfinite(value) else None


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}_")
        else:
            yield f"{prefix}{key}", value


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rich(header: Sequence[str], lines: Sequence[Sequence[str]]) -> RichTable:
    table = RichTable(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(_styled, line))
    return table


def _styled(cell: str) -> Text:
    figure, _, changed = cell.partition("\n")
    return Text.assemble(figure, (f"\n{changed}" if changed else "", "dim"))


def _reason(why: str, rows: Mapping[str, Sequence[str]], all_rows: int) -> str:
    titles = ", ".join(dict.fromkeys(title for named in rows.values() for title in named))
    who = "" if len(rows) == all_rows else f" of {', '.join(rows)}"
    return f"{ABSENT} {titles}{who}: {why}"
