"""The table, the verdict on test, and what the figures say."""

from __future__ import annotations

from typing import Any

from tutelage.core.files import write_json
from tutelage.distillation.checkpoint import State, state_of
from tutelage.distillation.selection import Choice
from tutelage.evaluation import resolution
from tutelage.pipeline.diagnose import Figures, diagnose
from tutelage.pipeline.stages.proof import ModelEntry, prove
from tutelage.pipeline.stages.work import Work


def measure(work: Work, control: State | None, choice: Choice) -> dict[str, Any]:
    """The table and the verdict on test."""
    student = work.student
    teacher_state = state_of(work.teachers[0].module)
    contestants = [
        ModelEntry("teacher", work.teachers[0], teacher_state),
        ModelEntry("start", student, work.start),
        *([ModelEntry("control", student, control)] if control else []),
        ModelEntry("distilled", student, choice.kept.state),
        *_at_best_resolution(work, choice),
    ]
    random_start = work.recipe.random_start
    return prove(
        contestants, work.splits.test, work.class_mapping, choice.kept.name, work.context, random_start
    )


def _at_best_resolution(work: Work, choice: Choice) -> list[ModelEntry]:
    """The kept student at the resolution it is best at on val, where that is another: quality for speed."""
    if not choice.resolutions:
        return []
    student = work.student
    best = resolution.best(choice.resolutions, "distilled", work.recipe.selection.metric)
    if best == student.input_spec.height:
        return []
    student.module.load_state_dict(choice.kept.state)
    there = resolution.at(student, best)
    return [ModelEntry(f"distilled@{best}", there, state_of(there.module))]


def explain(work: Work) -> None:
    """What the run's figures say of it, with what to try."""
    if work.context.runtime.is_main:
        findings = diagnose(Figures.of(work.run))
        write_json(work.run.diagnosis, {"findings": [finding.record() for finding in findings]})
