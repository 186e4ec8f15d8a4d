"""The ranking of a study's trials: by val, with figures on test and intervals of the differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tutelage.core.files import entry
from tutelage.core.recipe import load_recipe
from tutelage.core.records import read_predictions
from tutelage.core.run_dir import Run
from tutelage.evaluation.paired import Paired, paired
from tutelage.evaluation.roles import Role
from tutelage.evaluation.verdict import Outcome, outcome

Reached = Literal["running", "done", "failed"]

# Of models that the trials are held against, in the order in which the note below the table has them.
REFERENCES = {
    Role.TEACHER: "the teacher",
    Role.START: "the start",
    Role.PROBE: "a linear probe",
    Role.TEACHER_PROBE: "a probe of the teacher's features",
    Role.CONTROL: "labels only",
}


@dataclass(frozen=True)
class Entry:
    """A trial that has begun.

    Attributes:
        number: of the trial.
        name: of its variant.
        overrides: settings that differ from the base, by key.
        run: its run directory.
        state: `done` where it has its figures.
        reason: why it failed; None where it did not.
    """

    number: int
    name: str
    overrides: Mapping[str, Any]
    run: Run
    state: Reached
    reason: str | None = None


@dataclass(frozen=True, eq=False)  # compared by identity, as a key of computed pairs
class TopClass:
    """The most probable class of each test image, by model.

    Attributes:
        ids: (N,) ids of the images.
        labels: (N,) int64, -1 where an image has no label.
        by_role: (N,) classes of each model, by its role.
    """

    ids: np.ndarray
    labels: np.ndarray
    by_role: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ranked:
    """A finished trial with its figures, and its differences from its start, its control and the best trial.

    Attributes:
        entry: the trial.
        val: figures of the kept student on val.
        kept: name of the kept candidate.
        test: top-1 in % and NLL of each model on test, by its role.
        from_scratch: whether the student began with random weights.
        start_is_probe: whether it began with a linear probe as its head.
        top_class: of each test image.
        start, control, best: the student compared with these; None where there is nothing to compare with.
    """

    entry: Entry
    val: dict[str, float]
    kept: str
    test: Mapping[str, dict[str, float]]
    from_scratch: bool
    start_is_probe: bool
    top_class: TopClass
    start: Paired | None = None
    control: Paired | None = None
    best: Paired | None = None

    @property
    def test_top1(self) -> float:
        """The student's top-1 on test, in %."""
        return self.test[Role.DISTILLED]["top1"]


@dataclass(frozen=True)
class Ranking:
    """All trials of a study: finished ones, the best on val first, and the others."""

    name: str
    metric: str
    done: list[Ranked]
    others: list[Entry]

    def record(self) -> dict[str, Any]:
        """Return the content of study.json."""
        return {
            "name": self.name,
            "metric": self.metric,
            "best": self.done[0].entry.name if self.done else None,
            "sentence": self.sentence(),
            "trials": self.records(),
        }

    def records(self) -> list[dict[str, Any]]:
        """Return a record of each trial, in the order of the table."""
        return [*map(_ranked_record, self.done), *map(_entry_record, self.others)]

    def sentence(self) -> str:
        """Summarise the result of the study."""
        if not self.done:
            return f"No trial of {self.name} is finished yet."
        best = self.done[0]
        text = (
            f"Of {len(self.done)} finished trials {best.entry.name} (trial {best.entry.number}) is best on val "
            f"({self.metric} {_figure(best.val, self.metric)}); on test it has {best.test_top1:.2f} top-1"
        )
        if best.start:
            text += f", {_words(best.start)} its start ({_interval(best.start)})"
        same: Outcome = "not significantly different"
        level_with_it = [one.entry.name for one in self.done[1:] if one.best and outcome(one.best) == same]
        return text + (
            f". Not significantly different from it on test: {', '.join(level_with_it)}."
            if level_with_it
            else "."
        )

    def columns(self, every: bool = False) -> dict[str, list[str]]:
        """Return the table as text, by column.

        Args:
            every: all columns, with two decimals. Otherwise as many as fit 80 characters, with intervals of one
                decimal: of the differences from start and control, that from the control where there is one.
        """
        digits = 2 if every else 1
        table = {
            "#": [str(one.entry.number) for one in self.done],
            "Trial": [_title(one.entry) for one in self.done],
            "Val": [_figure(one.val, self.metric) for one in self.done],
            "Test": [f"{one.test_top1:.2f}" for one in self.done],
            "NLL": [f"{one.test[Role.DISTILLED]['nll']:.3f}" for one in self.done],
            "Against control": [_interval(one.control, digits) for one in self.done],
            "Against start": [_interval(one.start, digits) for one in self.done],
            "Against best": [_interval(one.best, digits) for one in self.done],
            "Kept": [one.kept for one in self.done],
        }
        if not every:
            controlled = any(table["Against control"])
            for name in ("NLL", "Kept", "Against start" if controlled else "Against control"):
                del table[name]
        for one in self.others:
            known = {
                "#": str(one.number),
                "Trial": one.name,
                "Val": one.state,
                "Against best": one.reason or "",
            }
            for name, cells in table.items():
                cells.append(known.get(name, ""))
        return table

    def markdown(self) -> str:
        """Return the content of study.md: the sentence, the table and the settings of each trial."""
        table = self.columns(every=True)
        head = ["| " + " | ".join(table) + " |", "|" + "---|" * len(table)]
        lines = zip(*table.values(), strict=True)
        rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        changes = [
            f"- {one.number} {one.name}: {_settings(one.overrides) or 'the same as the base'}"
            for one in sorted([*(r.entry for r in self.done), *self.others], key=lambda e: e.number)
        ]
        text = [f"# {self.name}", "", self.sentence(), "", *head, *rows, "", self.note(), "", *changes, ""]
        return "\n".join(text)

    def note(self) -> str:
        """Explain the table, and give the figures on test of the models that the trials are compared with."""
        found = [
            f"{name} {_extent([one.test[role] for one in self.done if role in one.test])}"
            for role, name in self._references().items()
        ]
        return _note(self.metric) + (f" On test, top-1 (NLL): {'; '.join(found)}." if found else "")

    def _references(self) -> dict[str, str]:
        known = {role for one in self.done for role in one.test}
        is_probe = any(one.start_is_probe for one in self.done)
        names = REFERENCES | ({Role.START: "the start (a linear probe)"} if is_probe else {})
        return {str(role): name for role, name in names.items() if role in known}

    def rich(self) -> Table:
        """Return the table for a terminal."""
        table = Table(
            title=self.name, caption=self.note(), box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
        )
        columns = self.columns()
        for column in columns:
            justify: Literal["left", "right"] = "left" if column == "Trial" else "right"
            table.add_column(column, justify=justify, overflow="fold", no_wrap=column != "Trial")
        for line in zip(*columns.values(), strict=True):
            table.add_row(*map(escape, line))
        return table


class Figures:
    """The figures of finished trials and their paired differences, each read or computed once.

    A study ranks all trials again after each of them, so this saves reading all files again. A trial whose files have
    changed since (such as a failed trial that was finished by hand) is read again.
    """

    def __init__(self) -> None:
        self._trials: dict[int, tuple[object, Ranked]] = {}
        self._pairs: dict[tuple[TopClass, TopClass, str], Paired] = {}

    def read(self, one: Entry) -> Ranked:
        """Read a finished trial, without comparisons."""
        files = (one.run.candidates, one.run.comparison, one.run.predictions)
        stamp = [(path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.exists()]
        known, found = self._trials.get(one.number, (None, None))
        if found is None or known != stamp:
            found = self._read(one)
            self._trials[one.number] = stamp, found
        return replace(found, entry=one)

    def _read(self, one: Entry) -> Ranked:
        kept = kept_candidate(one.run)
        rows = {row["role"]: row for row in entry(one.run.comparison, "rows")}
        scratch = load_recipe(one.run.recipe).random_start
        val = {key: kept["val"][key] for key in ("top1", "nll")}
        predictions = read_predictions(one.run.predictions)
        # a copy lets the classes after the first be freed
        first = {role: top.first.copy() for role, top in predictions.roles.items()}
        ids = next(  # trials have the same test images, whose ids are kept once
            (
                r.top_class.ids
                for _, r in self._trials.values()
                if np.array_equal(r.top_class.ids, predictions.ids)
            ),
            predictions.ids,
        )
        top_class = TopClass(ids, predictions.labels, first)
        test = {role: {key: row[key] for key in ("top1", "nll")} for role, row in rows.items()}
        is_probe = bool(rows.get(Role.START, {}).get("is_probe"))
        return Ranked(one, val, kept["name"], test, scratch, is_probe, top_class)

    def pair(self, new: Ranked, old: Ranked, role: str) -> Paired | None:
        """Compare the distilled student with a trial's model; None without that model or with other images."""
        ours, theirs = new.top_class, old.top_class
        same = ours.ids is theirs.ids or np.array_equal(ours.ids, theirs.ids)
        if role not in theirs.by_role or not same:
            return None
        key = (ours, theirs, role)
        if key not in self._pairs:
            student = ours.by_role[Role.DISTILLED]
            self._pairs[key] = paired(student, theirs.by_role[role], ours.labels)
        return self._pairs[key]


def kept_candidate(run: Run) -> dict[str, Any]:
    """Read the record of the kept student in candidates.json."""
    found: dict[str, Any] = next(c for c in entry(run.candidates, "candidates") if c["kept"])
    return found


def ranking(name: str, metric: str, entries: Sequence[Entry], figures: Figures | None = None) -> Ranking:
    """Rank the finished trials on val, and compare each with its start, its control and the best.

    A student from scratch is compared with the pretrained start of the best trial that has one, since a random start
    is no baseline.

    Args:
        name: of the study.
        metric: `top1` or `nll`, of the kept student on val.
        entries: the trials that have begun.
        figures: figures read for an earlier ranking of the same study.
    """
    figures = figures or Figures()
    done = sorted((figures.read(e) for e in entries if e.state == "done"), key=lambda r: _merit(r, metric))
    if done:
        best, reference = done[0], next((r for r in done if not r.from_scratch), None)
        done = [
            replace(
                one,
                start=figures.pair(one, reference if one.from_scratch and reference else one, Role.START),
                control=figures.pair(one, one, Role.CONTROL),
                best=figures.pair(one, best, Role.DISTILLED) if one is not best else None,
            )
            for one in done
        ]
    return Ranking(name, metric, done, [e for e in entries if e.state != "done"])


def _merit(one: Ranked, metric: str) -> tuple[float, float, int]:
    top1, nll = -one.val["top1"], one.val["nll"]
    return (top1, nll, one.entry.number) if metric == "top1" else (nll, top1, one.entry.number)


def _ranked_record(one: Ranked) -> dict[str, Any]:
    pairs = {"start": one.start, "control": one.control, "best": one.best}
    return _entry_record(one.entry) | {
        "val": one.val,
        "kept": one.kept,
        "test_top1": one.test_top1,
        "test": {str(role): figures for role, figures in one.test.items()},
        "against": {role: asdict(pair) if pair else None for role, pair in pairs.items()},
    }


def _entry_record(one: Entry) -> dict[str, Any]:
    return {
        "number": one.number,
        "name": one.name,
        "state": one.state,
        "overrides": dict(one.overrides),
        "run": f"{one.run.path.parent.name}/{one.run.path.name}",
        "reason": one.reason,
    }


def _figure(val: Mapping[str, float], metric: str) -> str:
    return f"{val[metric]:.2f}" if metric == "top1" else f"{val[metric]:.4f}"


def _extent(figures: Sequence[Mapping[str, float]]) -> str:
    """Return figures that trials have in common, or the lowest and highest top-1 where they differ."""
    low, high = (f"{most(one['top1'] for one in figures):.2f}" for most in (min, max))
    return f"{low} to {high}" if low != high else f"{low} ({figures[0]['nll']:.3f})"


def _interval(pair: Paired | None, digits: int = 2) -> str:
    return f"{pair.difference:+.2f} [{pair.low:+.{digits}f} {pair.high:+.{digits}f}]" if pair else ""


def _words(pair: Paired) -> str:
    found = outcome(pair)
    return f"{found} {'from' if found == 'not significantly different' else 'than'}"


def _title(one: Entry) -> str:
    """Return a variant's name, or the settings of a searched trial."""
    short = {key.rpartition(".")[2]: value for key, value in one.overrides.items()}
    return one.name if one.name != "search" else _settings(short)


def _settings(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in overrides.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False).strip('"')


def _note(metric: str) -> str:
    return (
        f"Ranked by {metric} on val. Test: top-1, %. Differences: points of top-1 on the same test images, with "
        "paired 95% intervals; a student from scratch is compared with the pretrained start."
    )
