"""The table, the verdict on test, and what the figures say."""

from __future__ import annotations

from typing import Any

from tutelage import resolutions
from tutelage.checkpoint import State, state_of
from tutelage.choose import Choice
from tutelage.diagnose import Figures, diagnose
from tutelage.proof import Contestant, prove
from tutelage.run import write_json
from tutelage.stations.work import Work


def measure(work: Work, control: State | None, choice: Choice) -> dict[str, Any]:
    """The table and the verdict on test."""
    student = work.student
    teacher_state = state_of(work.teachers[0].module)
    contestants = [
        Contestant("teacher", work.teachers[0], teacher_state),
        Contestant("start", student, work.start),
        *([Contestant("control", student, control)] if control else []),
        Contestant("distilled", student, choice.kept.state),
        *_at_best_resolution(work, choice),
    ]
    return prove(contestants, work.splits.test, work.heads, choice.kept.name, work.context)


def _at_best_resolution(work: Work, choice: Choice) -> list[Contestant]:
    """The kept student at the resolution it is best at on val, where that is another: quality for speed."""
    if not choice.resolutions:
        return []
    student = work.student
    best = resolutions.best(choice.resolutions, "distilled", work.recipe.choose.metric)
    if best == student.input.height:
        return []
    student.module.load_state_dict(choice.kept.state)
    there = resolutions.at(student, best)
    return [Contestant(f"distilled@{best}", there, state_of(there.module))]


def explain(work: Work) -> None:
    """What the run's figures say of it, with what to try."""
    if work.context.writes:
        findings = diagnose(Figures.of(work.run))
        write_json(work.run.diagnosis, {"findings": [finding.record() for finding in findings]})
