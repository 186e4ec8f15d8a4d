"""The tables of the page, as plain text and the values they sort by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.core.recipe import Recipe
from tutelage.core.recipe_tree import flat
from tutelage.evaluation.table import FIGURES, Figure, Row, Table
from tutelage.report.run_records import RunRecords
from tutelage.report.style import accuracy_key, loss_name, role_name, stage_name

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """A cell: text, sort key (None sorts last), small second line, role whose colour it shows, and link."""

    text: str
    sort: float | str | None = None
    note: str = ""
    role: str = ""
    link: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table; the first column has the names of the rows, and columns outside `words` have figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: frozenset[int] = field(default_factory=frozenset)
    strong: frozenset[int] = field(default_factory=frozenset)


def comparison(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """List every model and deployed file; below a figure is its change compared with the first row."""
    # quality first: on a phone, the columns after it are beyond the edge
    figures = sorted(FIGURES, key=lambda figure: figure.change != "difference")
    shown = [
        f for f in figures if any(r.get(f.key) is not None or f.key in (r.get("why") or {}) for r in rows)
    ]
    lines = [[_model(row), *(_figure(row, f, row is rows[0]) for f in shown)] for row in rows]
    columns = ["Model", *(_heading(f.title) for f in shown)]
    if any(r.get("paired") for r in rows):
        columns.append("Agreement, %")
        for row, line in zip(rows, lines, strict=True):
            line.append(number((row.get("paired") or {}).get("agreement"), 1))
    strong = frozenset(i for i, row in enumerate(rows) if row.get("role") == "distilled")
    return Sheet(columns, lines, strong=strong)


def footnotes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say why figures are missing."""
    named = [dict(row) | {"role": _model(row).text, "is_probe": False} for row in rows]
    return Table([Row.from_dict(row) for row in named]).footnotes()


def pairs(records: RunRecords) -> Sheet:
    """List the paired differences."""
    lines = []
    for pair in records.verdict.get("pairs") or []:
        interval = f"{signed(pair['low'])} to {signed(pair['high'])}"
        lines.append(
            [
                Cell(f"{role_name(pair['new'])} − {role_name(pair['old']).lower()}", role=pair["old"]),
                Cell(signed(pair["difference"]), pair["difference"]),
                Cell(interval, pair["low"]),
                Cell(f"{pair['mcnemar_p']:.2g}", pair["mcnemar_p"]),
                number(pair["negative_flips"], 0),
                number(pair["corrections"], 0),
                number(pair["agreement"], 1),
            ]
        )
    columns = [
        "Pair", "Top-1, points", "95% interval", "McNemar p", "Negative flips", "Corrections", "Agreement, %",
    ]  # fmt: skip
    return Sheet(columns, lines)


def epochs(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """List the metrics of every epoch."""
    terms = list(dict.fromkeys(term for row in rows for term in row["loss"]))
    val = _val_columns(rows[0]["val"])
    columns = ["Stage", "Epoch", *(_heading(loss_name(t)) for t in terms)]
    columns += [
        "Train top-1, %",
        *val.values(),
        f"{next(iter(val.values())).partition(',')[0]} of EMA, %",
        "Learning rate",
        "Images/s",
    ]
    lines = [
        [
            Cell(stage_name(row["stage"]), stage_name(row["stage"])),
            number(row["epoch"], 0),
            *(number(row["loss"].get(term), 4) for term in terms),
            number(row.get("train_top1"), 2),
            *(number(row["val"][key], digits) for key, digits in zip(val, (2, 3), strict=True)),
            number((row.get("ema_val") or {}).get(accuracy_key(row["val"])), 2),
            Cell(f"{row['lr']:.3g}", row["lr"]),
            number(row.get("images_per_s"), 0),
        ]
        for row in rows
    ]
    return Sheet(columns, lines)


def candidates(options: Sequence[Mapping[str, Any]]) -> Sheet:
    """List each candidate's figures on the validation images; of two heads also the share of the teacher's."""
    shared = any("share" in option for option in options)
    val = _val_columns(options[0]["val"])
    lines = [
        [
            Cell(option["name"], option["name"], _standing(option)),
            number(option.get("alpha"), 3),
            *([number(option.get("share"), 2)] if shared else []),
            *(number(option["val"][key], digits) for key, digits in zip(val, (2, 4), strict=True)),
        ]
        for option in options
    ]
    strong = frozenset(i for i, option in enumerate(options) if option.get("kept"))
    heads = ["Share of the teacher's head"] if shared else []
    return Sheet(["Candidate", "Trained share", *heads, *val.values()], lines, strong=strong)


def _standing(candidate: Mapping[str, Any]) -> str:
    if candidate.get("kept"):
        return "kept"
    return "screened in the training's precision" if candidate.get("screened") else ""


def _val_columns(val: Mapping[str, Any]) -> dict[str, str]:
    """Give the keys and the titles of the two figures that the validation images have."""
    if accuracy_key(val) == "top1":
        return {"top1": "Val top-1, %", "nll": "Val NLL"}
    return {"agreement": "Val agreement, %", "fidelity": "Val KL"}


def resolutions(entries: Sequence[Mapping[str, Any]]) -> Sheet:
    """List the figures on the validation images at each resolution that was tried."""
    lines = []
    for entry in entries:
        works = entry.get("top1") is not None
        lines.append(
            [
                Cell(entry["who"].capitalize(), note="" if works else "does not work at this resolution"),
                Cell(f"{entry['resolution']}", entry["resolution"]),
                number(entry.get("top1"), 2),
                number(entry.get("nll"), 3),
            ]
        )
    return Sheet(["Model", "Resolution, pixels", "Val top-1, %", "Val NLL"], lines)


def settings(recipe: Mapping[str, Any], choices: Mapping[str, Any] | None = None) -> Sheet:
    """List the keys of the recipe that differ from their defaults, and what the run chose for others (`choices`)."""
    own, defaults = flat(recipe), flat(Recipe().model_dump(mode="json"))
    lines = [
        [Cell(key, key), Cell(value(setting)), Cell(value(defaults.get(key, ABSENT)))]
        for key, setting in own.items()
        if defaults.get(key, ABSENT) != setting
    ]
    lines += [
        [Cell(key, key), Cell(f"{value(choice['value'])} ({choice['why']})"), Cell("auto")]
        for key, choice in (choices or {}).items()
    ]
    return Sheet(["Key", "Value", "Default"], lines, words=frozenset({1, 2}))


def times(records: RunRecords) -> Sheet:
    """List how long each stage trained."""
    stages = list(dict.fromkeys(row["stage"] for row in records.metrics))
    lines = []
    for stage in stages:
        rows = records.stage(stage)
        seconds = sum(row.get("seconds") or 0 for row in rows)
        speed = sum(row.get("images_per_s") or 0 for row in rows) / len(rows)
        lines.append(
            [
                Cell(stage_name(stage), stage_name(stage)),
                number(len(rows), 0),
                Cell(duration(seconds), seconds),
                number(speed, 1),
            ]
        )
    return Sheet(["Stage", "Epochs", "Training time", "Images/s, mean"], lines)


def duration(seconds: float) -> str:
    """Write a duration in at most two units: ``3 h 05 min``, ``12 min 30 s``, ``4.2 s``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign and a proper minus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _model(row: Mapping[str, Any]) -> Cell:
    role = row.get("role") or ""
    called = role_name(role) + (
        " (linear probe)" if row.get("is_probe") and role in {"start", "teacher"} else ""
    )
    return Cell(called if role else row["model"], None, short_model(row["model"]) if role else "", role)


def short_model(name: str) -> str:
    """Take NAME of NAME@WEIGHTS; the weights are often a long path and are shown with the checks."""
    return name.partition("@")[0]


def _heading(title: str) -> str:
    return title[0].upper() + title[1:]


def _figure(row: Mapping[str, Any], figure: Figure, first: bool) -> Cell:
    number, digits = row.get(figure.key), figure.digits
    if number is None:
        return Cell(ABSENT)
    small = 0 < abs(number) < 10**-digits
    return Cell(f"{number:.2g}" if small else f"{number:,.{digits}f}", number, _below(row, figure, first))


def _below(row: Mapping[str, Any], figure: Figure, first: bool) -> str:
    """Write the line below a figure: its change compared with the first row, and its spread."""
    pair, changed = row.get("paired"), (row.get("change") or {}).get(figure.key)
    notes = []
    if changed is not None and not first:
        notes.append(signed(changed, figure.digits) if figure.change == "difference" else f"{changed:.2f}×")
    if figure.key == "top1" and pair:
        notes.append(f"[{signed(pair['low'])}, {signed(pair['high'])}]")
    if figure.key == "latency_ms" and row.get("latency_p10") is not None:
        notes.append(f"{row['latency_p10']:.{figure.digits}f}–{row['latency_p90']:.{figure.digits}f}")
    return "\n".join(notes)


def number(value: float | None, digits: int) -> Cell:
    """Make the cell of a figure; a missing one sorts last."""
    return Cell(ABSENT) if value is None else Cell(f"{value:,.{digits}f}", value)


def value(setting: Any) -> str:
    """Write a recipe's value as YAML does."""
    if setting is None:
        return "null"
    return str(setting).lower() if isinstance(setting, bool) else str(setting)
