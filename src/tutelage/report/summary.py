"""What a user wants to know first of a run: the file, its accuracy, the teacher's worth, and what to do next."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.deploy.runtimes.registry import VARIANTS
from tutelage.evaluation.roles import Role
from tutelage.evaluation.verdict import interval_text
from tutelage.report.headline import outcome_of_pair, pair_of
from tutelage.report.run_records import RunRecords

COLUMNS = 80  # of a terminal
QUESTIONS = {  # of the badges, in order, by the role that the student is compared with
    Role.CONTROL: ("Teacher helped?", "labels only"),
    Role.START: ("Start improved?", "the start"),
    Role.TEACHER: ("Teacher matched?", "the teacher"),
}
ANSWERS = {"better": "Yes", "worse": "No", "not significantly different": "Not shown"}
TOP1 = {  # whose top-1 is told, in order, but for a start with random weights
    Role.DISTILLED: "student",
    Role.TEACHER: "teacher",
    Role.CONTROL: "labels only",
    Role.PROBE: "linear probe",
    Role.START: "start",
}
INTERVALS = (
    "paired 95% intervals over the test images; another training seed can change the figures as well, which "
    "--seeds 3 shows"
)


@dataclass(frozen=True)
class Badge:
    """One answer.

    Attributes:
        question: in words.
        answer: ``Yes``, ``No`` or ``Not shown``, with a reservation where there is one.
        figures: the difference in points of top-1, with its paired 95% interval in brackets.
        css_class: ``better``, ``worse`` or ``same``.
    """

    question: str
    answer: str
    figures: str
    css_class: str


@dataclass(frozen=True)
class Summary:
    """The first screen of a run.

    Attributes:
        file: the file to deploy: a deployed one, or the student's weights where nothing has been exported.
        gains: its size, and how much smaller and faster than the teacher it is.
        top1: top-1 in percent by name, the student first; empty where the test images have no labels.
        images: number of test images.
        badges: what the comparisons show.
        note: the verdict in words where there are no comparisons, such as on images without labels; else empty.
        commands: what to type next, each with what it does.
    """

    file: Path
    gains: str
    top1: dict[str, float]
    images: int
    badges: tuple[Badge, ...]
    note: str
    commands: dict[str, str]

    @property
    def accuracy(self) -> tuple[str, str]:
        """The student's top-1, and that of the others."""
        if not self.top1:
            return "", ""
        (_, own), *others = self.top1.items()
        beside = ", ".join(f"{name} {value:.2f}" for name, value in others)
        return f"{own:.2f}% of {self.images:,} test images", beside

    def lines(self, example: str = "") -> list[str]:
        """Give the same for a terminal, in two aligned columns; `example` is a prediction of the file."""
        own, others = self.accuracy
        pairs = [
            ("file", f"{self.file}"),
            ("", self.gains),
            ("prediction", example),
            ("top-1", own),
            ("", others),
            ("result", self.note),
        ]
        pairs += [(badge.question, f"{badge.answer}: {badge.figures}") for badge in self.badges]
        pairs += [("", f"(in brackets: {INTERVALS})")] if self.badges else []
        pairs += [("next" if not k else "", command) for k, command in enumerate(self.commands)]
        width = max(len(name) for name, _ in pairs) + 2
        whole = {str(self.file), *self.commands}  # to be copied, so they are never broken into lines
        return [
            f"{name if not k else '':<{width}}{line}"
            for name, text in pairs
            for k, line in enumerate([text] if text in whole else _folded(text, COLUMNS - width))
        ]


def _folded(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def summary(records: RunRecords) -> Summary | None:
    """Summarise a run; None before its final evaluation."""
    rows = {row["role"]: row for row in records.rows}
    student = rows.get(Role.DISTILLED)
    if student is None or not records.verdict:
        return None
    places = {variant.role: records.run.deploy / variant.file for variant in VARIANTS}
    rejected = records.run.deploy / "rejected"
    files = [
        r for r in records.rows if r["role"] in places and not (rejected / places[r["role"]].name).exists()
    ]
    best = min(files, key=lambda row: row.get("latency_ms") or float("inf"), default=None)
    badges = _badges(records)
    return Summary(
        file=places[best["role"]] if best else records.run.student,
        gains=_gains(best or student, rows.get(Role.TEACHER)) + (" in PyTorch" if best else ""),
        top1=_top1(rows, records.random_start),
        images=student.get("n") or 0,
        badges=badges,
        note="" if badges else records.verdict["sentence"],
        commands=_commands(records, exported=best is not None),
    )


def _gains(row: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> str:
    """Tell the size of a file, and its size and latency compared with the teacher's."""
    size = row.get("size_mb")
    parts = [f"{size:.2f} MiB"] if size else []
    for key, word in (("size_mb", "smaller"), ("latency_ms", "faster")):
        own, other = row.get(key), (teacher or {}).get(key)
        if own and other:
            parts.append(
                f"{other / own:.1f}x {word}" if other >= own else f"{own / other:.1f}x {_OPPOSITE[word]}"
            )
    return f"{parts[0]}, {' and '.join(parts[1:])} than the teacher" if len(parts) > 1 else "".join(parts)


_OPPOSITE = {"smaller": "larger", "faster": "slower"}


def _top1(rows: Mapping[str, Mapping[str, Any]], random_start: bool) -> dict[str, float]:
    told = {}
    for role, name in TOP1.items():
        row = rows.get(role, {})
        if row.get("top1") is not None and not (role == Role.START and random_start):
            probe = row.get("is_probe") and role == Role.START
            told["linear probe" if probe else name] = row["top1"]
    return told


def _badges(records: RunRecords) -> tuple[Badge, ...]:
    reasons = records.reservations
    badges: list[Badge] = []
    for role, (question, other) in QUESTIONS.items():
        pair = records.pair(role)
        if pair is None or (role == Role.START and records.random_start):
            continue
        outcome = outcome_of_pair(pair)
        figures = f"{pair['difference']:+.2f} ({interval_text(pair_of(pair))}) points against {other}"
        answer, css_class = ANSWERS[outcome], {"better": "better", "worse": "worse"}.get(outcome, "same")
        if outcome == "better" and reasons and not any(badge.css_class == "same" for badge in badges):
            answer, css_class = f"Yes, but {reasons[0]}", "same"
        badges.append(Badge(question, answer, figures, css_class))
    return tuple(badges)


def _commands(records: RunRecords, exported: bool) -> dict[str, str]:
    path = shlex.quote(str(records.run.path))
    if exported:
        own = records.run.example
        photo = shlex.quote(str(own)) if own.exists() else "PHOTO.jpg"
        first = {f"tutelage predict {path} {photo}": "classify an image with the deployed file"}
    else:
        first = {f"tutelage export {path}": "write files for deployment, int8 ones too"}
    return first | {
        "tutelage advise --data PHOTOS": "see which student fits your own images",
        "tutelage distill --teacher T --student S --data PHOTOS": "distil your own model",
    }
