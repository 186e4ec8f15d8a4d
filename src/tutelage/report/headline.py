"""How the student compares with the role that a run's headline is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tutelage.evaluation.paired import Paired
from tutelage.evaluation.verdict import OPPONENTS, outcome_of
from tutelage.evaluation.verdict import outcome as paired_outcome
from tutelage.report.run_records import RunRecords

CSS_CLASSES = {"better": "better", "worse": "worse"}  # of the outcomes; of any other: same


@dataclass(frozen=True)
class Comparison:
    """The outcome of comparing the student with a role: ``better``, ``not significantly different`` or ``worse``."""

    against: str
    outcome: str
    doubted: bool = False  # the diagnosis has a reason not to call the run good
    but: str = ""  # that reason, where it is to be told here

    @property
    def css_class(self) -> str:
        """The CSS class that colours the outcome."""
        return "same" if self.doubted else CSS_CLASSES.get(self.outcome, "same")

    @property
    def words(self) -> str:
        """``better than its start`` or ``not significantly different from its start``."""
        opponent = OPPONENTS.get(self.against, self.against)
        if self.outcome in CSS_CLASSES:
            return f"{self.outcome} than {opponent}{f', but {self.but}' if self.but else ''}"
        return f"{self.outcome} from {opponent}"


def headline(records: RunRecords) -> list[Comparison]:
    """Compare the student with its start or, where that had random weights, with the control and the teacher.

    "Better" is doubted where the diagnosis has a reason not to call the run good, and the first one tells that reason.
    """
    reasons = records.reservations
    found = _comparisons(records)
    if not reasons:
        return found
    better = [c for c in found if c.outcome == "better"]
    return [
        replace(c, doubted=True, but=reasons[0] if c is better[0] else "") if c in better else c
        for c in found
    ]


def _comparisons(records: RunRecords) -> list[Comparison]:
    verdict = records.verdict
    if not verdict:
        return []
    if not records.random_start:
        outcome = outcome_of(verdict)
        return [Comparison("start", outcome)] if outcome else []
    found = {role: records.pair(role) for role in ("control", "teacher")}
    stated = verdict.get("against")
    return [
        Comparison(role, verdict["outcome"] if role == stated else outcome_of_pair(pair))
        for role, pair in found.items()
        if pair
    ]


def outcome_of_pair(pair: Mapping[str, Any]) -> str:
    """Derive the outcome of a recorded pair by the rule of the verdict."""
    return paired_outcome(pair_of(pair))


def pair_of(record: Mapping[str, Any]) -> Paired:
    """A recorded pair as it was measured."""
    return Paired(**{key: record[key] for key in Paired.__dataclass_fields__})


def sentence(records: RunRecords) -> str:
    """Write the verdict in one sentence.

    Older runs of a student that started from random weights say how much better it is than those. For them the
    sentence is made again from the pairs.
    """
    verdict = records.verdict
    if verdict.get("against") or not records.random_start or not headline(records):
        return str(verdict.get("sentence", ""))
    parts = []
    for comparison in headline(records):
        pair = records.pair(comparison.against) or {}
        interval = f"95% interval {pair['low']:+.2f} to {pair['high']:+.2f}"
        parts.append(f"{comparison.words} ({pair['difference']:+.2f} points top-1, {interval})")
    return f"The kept student is {' and '.join(parts)}, on {pair['n']:,} test images."
