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
