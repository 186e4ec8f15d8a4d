"""The input of a diagnosis (figures of a run) and its output (findings)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.core.files import read_json, read_jsonl
from tutelage.core.recipe import Recipe
from tutelage.core.records import RunPredictions, read_predictions
from tutelage.core.run_dir import Run
from tutelage.evaluation.paired import Paired, paired
from tutelage.evaluation.roles import Role
from tutelage.evaluation.verdict import OPPONENTS, outcome
from tutelage.pipeline.choices import settings_of

Severity = Literal["problem", "note", "good"]
ABLE = 2.0  # times chance
STILL = 0.5  # points of top-1: a smaller change counts as none


@dataclass(frozen=True)
class Try:
    """A recipe key worth changing: the value as an override would have it, and why."""

    key: str
    value: str
    why: str


@dataclass(frozen=True)
class Finding:
    """One thing that the figures of a run show.

    Attributes:
        name: of the finding, the same in every run.
        severity: problem, note or good.
        sentence: in plain words.
        evidence: the figures it rests on.
        attempts: what to try, the most promising first.
        stage: of metrics.jsonl that it is about.
        epoch: since when.
        reservation: why the run is not to be called good, as a clause; empty where the finding is no reason for that.
    """

    name: str
    severity: Severity
    sentence: str
    evidence: Mapping[str, Any]
    attempts: Sequence[Try] = ()
    stage: str = "distill"
    epoch: int | None = None
    reservation: str = ""

    def record(self) -> dict[str, Any]:
        """The finding as diagnosis.json holds it."""
        return {
            "name": self.name,
            "severity": self.severity,
            "sentence": self.sentence,
            "evidence": dict(self.evidence),
            "try": [{"key": t.key, "value": t.value, "why": t.why} for t in self.attempts],
            "stage": self.stage,
            "epoch": self.epoch,
            "reservation": self.reservation,
        }


@dataclass(frozen=True)
class Figures:
    """A run's figures, as its files have them; what a run did not record is empty.

    Attributes:
        recipe: of the run.
        rows: of metrics.jsonl.
        preflight: preflight.json.
        candidates: candidates.json.
        comparison: comparison.json.
        predictions: of all models for the test images.
    """

    recipe: Recipe
    rows: Sequence[dict[str, Any]]
    preflight: Mapping[str, Any]
    candidates: Mapping[str, Any]
    comparison: Mapping[str, Any]
    predictions: RunPredictions

    @classmethod
    def of(cls, run: Run) -> Figures:
        """Read the figures of a run that was measured.

        Raises:
            TutelageError: a file is missing or damaged.
        """
        return cls(
            recipe=settings_of(run),
            rows=list(read_jsonl(run.metrics)),
            preflight=read_json(run.preflight),
            candidates=read_json(run.candidates),
            comparison=read_json(run.comparison),
            predictions=read_predictions(run.predictions),
        )

    @property
    def labelled_val(self) -> bool:
        """Whether there are accuracies on val."""
        return self.preflight["teacher"]["val"]["top1"] is not None

    @property
    def labelled_test(self) -> bool:
        """Whether there are accuracies on test."""
        return bool((self.predictions.labels >= 0).any())

    def stage(self, name: str) -> list[dict[str, Any]]:
        """The epochs of a stage, in order."""
        return [row for row in self.rows if row["stage"] == name]

    def row(self, role: str) -> Mapping[str, Any]:
        """A role's row of the final table; empty where it is not there."""
        return next((row for row in self.comparison["rows"] if row["role"] == role), {})

    def start_val(self) -> Mapping[str, Any]:
        """The starting student's figures on val: `top1`, `nll`, and `loss` (what distilling minimises)."""
        start = self.candidate("start")
        return {**(start["val"] if start else {}), **self.training("start_val")}

    def training(self, name: str) -> Mapping[str, Any]:
        """A part of what was recorded of the distilled student's training, beside the candidates."""
        return (self.candidates.get("training") or {}).get(name) or {}

    def candidate(self, name: str) -> Mapping[str, Any] | None:
        """Return one of the candidates by its name; None where there is none."""
        return next((c for c in self.candidates["candidates"] if c["name"] == name), None)

    def against(self, new: str, old: str) -> Paired | None:
        """Two roles on the test images; None where one of them is not there."""
        roles = self.predictions.roles
        if new not in roles or old not in roles:
            return None
        return paired(roles[new].first, roles[old].first, self.predictions.labels)

    def on_val(self, new: str, old: str) -> Paired | None:
        """Two roles on the validation images; None where they were not compared there."""
        pairs = (self.comparison.get("val") or {}).get("pairs") or []
        found = next((p for p in pairs if (p["new"], p["old"]) == (new, old)), None)
        return Paired(**{name: found[name] for name in Paired.__dataclass_fields__}) if found else None

    def worse(self, new: str, old: str) -> dict[str, Paired]:
        """By part of the data (``test``, ``val``), the comparisons in which a role is significantly worse."""
        return {part: pair for part, pair in self._parts(new, old).items() if outcome(pair) == "worse"}

    def lower(self, new: str, old: str) -> dict[str, Paired]:
        """By part, the comparisons in which a role is lower, where it is significantly better or worse in none."""
        parts = self._parts(new, old)
        if any(outcome(pair) != "not significantly different" for pair in parts.values()):
            return {}
        return {part: pair for part, pair in parts.items() if pair.difference < 0}

    def _parts(self, new: str, old: str) -> dict[str, Paired]:
        parts = {"test": self.against(new, old), "val": self.on_val(new, old)}
        return {part: pair for part, pair in parts.items() if pair is not None}

    @property
    def probe(self) -> str:
        """The role of the linear probe of the student's features: a row of its own, or the start; empty without one."""
        roles = [row["role"] for row in self.comparison["rows"] if row.get("is_probe")]
        return next((role for role in roles if role in {Role.PROBE, Role.START}), "")

    @property
    def opponents(self) -> list[str]:
        """The roles that the student is compared with, the most telling first; never a start with random weights."""
        there = [role for role in OPPONENTS if self.against(Role.DISTILLED, role) is not None]
        return [role for role in there if not (role == Role.START and self.recipe.random_start)]

    @property
    def gained(self) -> bool:
        """Whether the student is significantly better than the control, or than its start where no control ran."""
        opponents = [role for role in (Role.CONTROL, Role.START) if role in self.opponents]
        return bool(opponents) and self.is_better_than(opponents[0])

    def is_better_than(self, role: str) -> bool:
        """Whether the student is significantly better than another model, on test."""
        pair = self.against(Role.DISTILLED, role)
        return pair is not None and outcome(pair) == "better"

    @property
    def able(self) -> bool:
        """Whether the start is well above chance already, so that training can lose something."""
        return bool(self.start_val()["top1"] > ABLE * self.preflight["chance_top1"])

    @property
    def still(self) -> float:
        """Points of top-1 on val that count as no change: half a point, or two images of a small val."""
        images = (self.preflight.get("val") or {}).get("n")
        return max(STILL, 200 / images) if images else STILL

    @property
    def classes(self) -> int:
        """Number of classes of the heads."""
        return round(100 / self.preflight["chance_top1"])


def evidence_of(pair: Paired, prefix: str = "") -> dict[str, Any]:
    """The figures of a paired difference."""
    names = ("difference", "low", "high", "negative_flips", "corrections", "n")
    return {prefix + name: getattr(pair, name) for name in names}


def interval(pair: Paired) -> str:
    """A paired difference in words."""
    return f"{pair.difference:+.2f} points, 95% interval {pair.low:+.2f} to {pair.high:+.2f}"


def over_the_last(epochs: int, of: int) -> str:
    """Name the last epochs of a training in words."""
    return f"in the last of {of} epochs" if epochs == 1 else f"over the last {epochs} of {of} epochs"


def in_parts(pairs: Mapping[str, Paired]) -> str:
    """Paired differences by part of the data, in words."""
    return "; ".join(f"{interval(pair)}, on {part}" for part, pair in pairs.items())


def lines(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Findings as recorded in diagnosis.json, a line each and one for each thing to try."""
    text = []
    for finding in findings:
        text.append(f"{finding['severity']}: {finding['sentence']}")
        text += [f"  try {t['key']}={t['value']}: {t['why']}" for t in finding["try"]]
    return text
