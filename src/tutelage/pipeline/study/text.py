"""How the tables of a study write figures, intervals and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tutelage.pipeline.study.trials import SEARCHED, Entry


class Interval(Protocol):
    """A difference in points of top-1, with the ends of its 95% interval."""

    @property
    def difference(self) -> float:
        """New minus old."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


class Compared(Protocol):
    """A trial, or the trials of a variant, with its differences; None where there is nothing to compare with."""

    @property
    def start(self) -> Interval | None:
        """From its start."""

    @property
    def control(self) -> Interval | None:
        """From its labels-only control."""

    @property
    def best(self) -> Interval | None:
        """From the best one."""

    @property
    def named(self) -> Interval | None:
        """From the variant that all are held against."""


def figure(val: float, metric: str) -> str:
    """Write a figure of val, top-1 in % or NLL."""
    return f"{val:.2f}" if metric == "top1" else f"{val:.4f}"


def extent(figures: Sequence[Mapping[str, float]]) -> str:
    """Write figures that trials have in common, or the lowest and highest top-1 where they differ."""
    low, high = (f"{most(one['top1'] for one in figures):.2f}" for most in (min, max))
    return f"{low} to {high}" if low != high else f"{low} ({figures[0]['nll']:.3f})"


def interval(pair: Interval | None, digits: int = 2) -> str:
    """Write a difference and its interval; an empty text where there is none."""
    return f"{pair.difference:+.2f} [{pair.low:+.{digits}f} {pair.high:+.{digits}f}]" if pair else ""


def differences(rows: Sequence[Compared], against: str | None, every: bool) -> dict[str, list[str]]:
    """Return the columns of differences: with two decimals in a table that has `every` column, else with one."""
    digits = 2 if every else 1
    columns = {
        "Against control": [interval(one.control, digits) for one in rows],
        "Against start": [interval(one.start, digits) for one in rows],
        "Against best": [interval(one.best, digits) for one in rows],
    }
    if against:
        columns[_named(against)] = [interval(one.named, digits) for one in rows]
    return columns


def left_out(table: Mapping[str, Sequence[str]], against: str | None, every: bool) -> list[str]:
    """Return the columns that are not shown.

    A terminal of 80 characters has the difference from the control, or from the start where there is no control, and
    that from the named variant, or from the best where none is named.
    """
    if every:
        return []
    other = "Against start" if any(table["Against control"]) else "Against control"
    return ["NLL", "Kept", other, *(["Against best"] if against else [])]


def title(one: Entry) -> str:
    """Return a variant's name, or the settings of a searched trial."""
    short = {key.rpartition(".")[2]: value for key, value in one.overrides.items()}
    return one.name if one.name != SEARCHED else settings(short)


def settings(overrides: Mapping[str, Any]) -> str:
    """Write settings as ``key=value, key=value``."""
    return ", ".join(f"{key}={_value(value)}" for key, value in overrides.items())


def markdown(table: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines of a table that is given by column."""
    lines = zip(*table.values(), strict=True)
    return [
        "| " + " | ".join(table) + " |",
        "|" + "---|" * len(table),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines),
    ]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False).strip('"')


def _named(against: str) -> str:
    """Return the heading of the column that holds all against a named variant."""
    return f"Against {against}" + (" (variant)" if against in ("control", "start", "best") else "")
