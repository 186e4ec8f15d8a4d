"""The records of a run directory, read once; those that do not exist yet are None."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import read_json, read_jsonl
from tutelage.core.recipe_tree import rename_keys
from tutelage.core.records import RunPredictions, read_predictions
from tutelage.core.run_dir import Run
from tutelage.report.style import stage_name

T = TypeVar("T")

STAGES = {
    "teacher-fit": "the fit of the teacher",
    "head-fit": "the fit of the student’s new head",
    "control": "the labels-only control",
    "distill": "the distillation",
}
FITS, TRAININGS = ("teacher-fit", "head-fit"), ("control", "distill")  # before and after the pre-flight


@dataclass(frozen=True)
class StageState:
    """One stage of a run. `state` is ``done``, ``going``, ``ahead`` or ``skipped``."""

    name: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class RunRecords:
    """A run directory's contents.

    Attributes:
        run: the directory.
        recipe: the parsed recipe.
        metrics: a row an epoch, every stage.
        damaged: one line for each file that is there and cannot be read.
    """

    run: Run
    recipe: dict[str, Any]
    recipe_text: str
    versions: dict[str, Any] | None
    splits: dict[str, Any] | None
    preflight: dict[str, Any] | None
    choices: dict[str, Any]
    teacher_check: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    candidates: dict[str, Any] | None
    comparison: dict[str, Any] | None
    diagnosis: dict[str, Any] | None
    predictions: RunPredictions | None
    robustness: dict[str, Any] | None = None
    cascade: dict[str, Any] | None = None
    damaged: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The run directory's name."""
        return self.run.path.resolve().name

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the comparison table."""
        return list((self.comparison or {}).get("rows") or [])

    @property
    def verdict(self) -> dict[str, Any]:
        """The verdict; empty before the final evaluation."""
        return (self.comparison or {}).get("verdict") or {}

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings of the diagnosis."""
        return list((self.diagnosis or {}).get("findings") or [])

    @property
    def reservations(self) -> list[str]:
        """The reasons of the diagnosis not to call the run good."""
        return [finding["reservation"] for finding in self.findings if finding.get("reservation")]

    @property
    def kept(self) -> dict[str, Any] | None:
        """The candidate that was kept."""
        options = (self.candidates or {}).get("candidates") or []
        return next((c for c in options if c.get("kept")), None)

    @property
    def random_start(self) -> bool:
        """Whether the student started from random weights, so that its start is not worth comparing with."""
        stated = self.verdict.get("against")
        if stated:
            return bool(stated != "start")
        # older runs, and those that have no verdict yet
        student, train = self.recipe.get("student") or {}, self.recipe.get("train") or {}
        return str(student.get("model", "")).endswith("@none") or bool(train.get("from_scratch"))

    @property
    def copies(self) -> str:
        """The copies of held-out images that the run left out, as JSON; empty where an older version made the run."""
        found = (self.splits or {}).get("copies")
        return json.dumps(found, sort_keys=True) if isinstance(found, dict) else ""

    @property
    def baseline(self) -> str:
        """The role that the student's single predictions are compared with."""
        if stated := self.verdict.get("against"):
            return str(stated)
        if not self.random_start:
            return "start"
        return "teacher" if self.recipe.get("control") is False else "control"

    @property
    def labelled_test(self) -> bool:
        """Whether there are labels of test images, so that accuracies are known."""
        return self.predictions is None or bool((self.predictions.labels >= 0).any())

    def pair(self, old: str) -> dict[str, Any] | None:
        """The paired difference between the student and another role."""
        return next((p for p in self.verdict.get("pairs") or [] if p["old"] == old), None)

    @property
    def metric(self) -> str:
        """The metric by which weights are selected: ``top1``, ``nll``, or ``fidelity`` where val has no labels."""
        stated = (self.candidates or {}).get("metric")
        return stated or (self.recipe.get("selection") or {}).get("metric") or "top1"

    def predictions_of(self, *roles: str) -> RunPredictions | None:
        """The predictions for the test images, where those of all these roles are among them."""
        known = self.predictions.roles if self.predictions else {}
        return self.predictions if set(roles) <= known.keys() else None

    def stage(self, name: str) -> list[dict[str, Any]]:
        """Give the metrics of one stage in order; of an epoch that ran twice, the later row."""
        rows = {row["epoch"]: row for row in self.metrics if row.get("stage") == name}
        return [rows[epoch] for epoch in sorted(rows)]

    @cached_property
    def stages(self) -> list[StageState]:
        """The stages of the run in order, and how far along it is."""
        return _stages(self)

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return all(s.state in {"done", "skipped"} for s in self.stages)

    @property
    def stopped(self) -> str:
        """Why the run stopped by itself before the distillation; empty where it did not, or has been continued."""
        check = self.teacher_check or {}
        allowed = (self.recipe.get("preflight") or {}).get("allow_weak_teacher")
        begun = self.stage("distill") or self.candidates
        return str(check.get("sentence", "")) if check.get("weak") and not allowed and not begun else ""

    @property
    def reached(self) -> str:
        """How far the run has got, as a clause without a full stop."""
        if self.stopped:
            return "it stopped before the distillation, since the teacher is not shown to be better than the control"
        going = next((s for s in self.stages if s.state in {"going", "ahead"}), None)
        if going is None:
            return "all stages are finished"
        if going.state == "going":
            return f"it had reached {going.detail}"
        done = [s.name for s in self.stages if s.state == "done"]
        return f"it had finished “{done[-1]}”, and “{going.name}” was next" if done else "it had just begun"

    @property
    def last_written(self) -> datetime:
        """When the newest of the run's files was written."""
        files = [p for p in _watched(self.run) if p.exists()]
        return datetime.fromtimestamp(max(p.stat().st_mtime for p in files))

    @property
    def seconds(self) -> float:
        """Seconds of training in all stages."""
        return sum(row.get("seconds") or 0 for row in self.metrics)


def read_run_records(run: Run, predictions: bool = True) -> RunRecords:
    """Read what a run has left. Damaged files are named in `RunRecords.damaged`, not raised.

    Args:
        run: the directory.
        predictions: also those of the test images.
    """
    damaged: list[str] = []

    def read(path: Path, reader: Callable[[Path], T]) -> T | None:
        if not path.exists():
            return None
        try:
            return reader(path)
        except TutelageError as error:
            damaged.append(str(error))
            return None

    return RunRecords(
        run=run,
        recipe=read(run.recipe, _read_yaml) or {},
        recipe_text=run.recipe.read_text(encoding="utf-8", errors="replace"),
        versions=read(run.versions, _read_mapping),
        splits=read(run.splits, _read_mapping),
        preflight=read(run.preflight, _read_mapping),
        choices=read(run.choices, _read_mapping) or {},
        teacher_check=read(run.teacher_check, _read_mapping),
        metrics=read(run.metrics, lambda path: list(read_jsonl(path))) or [],
        candidates=read(run.candidates, _read_mapping),
        comparison=read(run.comparison, _read_mapping),
        diagnosis=read(run.diagnosis, _read_mapping),
        predictions=read(run.predictions, read_predictions) if predictions else None,
        robustness=read(run.robustness, _read_mapping),
        cascade=read(run.cascade, _read_mapping),
        damaged=tuple(damaged),
    )


def fingerprint(run: Run) -> tuple[tuple[str, int, int], ...]:
    """Give name, time and size of each file that the page is made of; equal values mean the same page."""
    found = []
    for path in _watched(run):
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((path.name, stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def _watched(run: Run) -> list[Path]:
    return [
        run.recipe, run.versions, run.splits, run.preflight, run.choices, run.teacher_check, run.metrics,
        run.candidates, run.comparison, run.predictions, run.diagnosis, run.deploy, run.seeds,
        run.robustness, run.heat_maps, run.cascade,
    ]  # fmt: skip


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise TutelageError(f"{path}: damaged (not an object); restore it from a copy or run again")
    return content


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TutelageError(f"{path}: cannot be read ({one_line(error)})") from None
    return rename_keys(content, str(path)) if isinstance(content, dict) else {}


def _stages(records: RunRecords) -> list[StageState]:
    fits, training = _training(records, FITS), _training(records, TRAININGS)
    later = [
        ("model selection", "model selection", records.candidates is not None),
        ("final evaluation", "final evaluation", records.comparison is not None),
        ("diagnosis", "the diagnosis", records.diagnosis is not None),
    ]
    if (records.recipe.get("export") or {}).get("enabled"):
        later.append(("export", "the export", records.run.deploy.is_dir()))
    # a teacher, or a head, is fitted before the pre-flight looks at it
    states = [
        *fits,
        StageState("pre-flight", "done" if records.preflight else "ahead", "the pre-flight checks"),
        *training,
    ]
    states += [StageState(name, "done" if done else "ahead", detail) for name, detail, done in later]
    return _settle(states)


def _training(records: RunRecords, stages: Sequence[str]) -> list[StageState]:
    """Make an entry for each of these stages that was trained or will certainly be."""
    certain = {"distill", "control"} if records.recipe.get("control", True) else {"distill"}
    found = []
    for name in stages:
        rows, words = records.stage(name), STAGES[name]
        if rows:
            epoch, epochs = rows[-1]["epoch"], rows[-1].get("epochs") or rows[-1]["epoch"]
            detail = f"epoch {epoch} of {epochs} of {words}"
            found.append(StageState(stage_name(name), "done" if epoch >= epochs else "going", detail))
        elif name in certain:
            found.append(StageState(stage_name(name), "ahead", words))
    return sorted(found, key=lambda s: s.state == "ahead")


def _settle(stages: list[StageState]) -> list[StageState]:
    """Mark stages as skipped that left nothing although a later one is done.

    A training that ended before its last epoch (early stopping) is done where a later stage has begun.
    """
    last = max((i for i, s in enumerate(stages) if s.state == "done"), default=-1)
    begun = max((i for i, s in enumerate(stages) if s.state != "ahead"), default=-1)
    settled = []
    for i, s in enumerate(stages):
        state = s.state
        if state == "ahead" and i < last:
            state = "skipped"
        elif state == "going" and i < begun:
            state = "done"
        settled.append(StageState(s.name, state, s.detail))
    return settled
