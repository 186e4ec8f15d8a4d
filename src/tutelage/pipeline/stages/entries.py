"""Which models a run compares, the linear probe among them."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.distillation.probe import can_be_probed, load_probe
from tutelage.evaluation import resolution
from tutelage.evaluation.roles import Role
from tutelage.models.digest import state_digest
from tutelage.models.source import Model
from tutelage.pipeline.stages.fit import probe_file
from tutelage.pipeline.stages.preflight import Checked
from tutelage.pipeline.stages.prepare import Prepared
from tutelage.pipeline.stages.train import Distilled


@dataclass(frozen=True)
class ModelEntry:
    """A row of the comparison.

    Attributes:
        role: a `Role`, or ``distilled@224`` for the student at another resolution.
        models: one model, or several teachers, which are compared by their joint predictions.
        is_probe: its head is a linear probe on pretrained features, and nothing was trained further.
    """

    role: str
    models: tuple[Model, ...]
    is_probe: bool = False


def entries_of(
    checked: Checked, control: Model | None, distilled: Distilled
) -> tuple[list[ModelEntry], list[str]]:
    """Return all models to compare in the order of the table, and notes below it.

    A linear probe of the student's frozen features takes seconds, so that every other figure is to be seen beside it.
    It has a row of its own where the starting student is another one; for a student with random weights, a probe of the
    teacher's features stands in for it. A note says why a student has no probe.
    """
    prepared, student = checked.prepared, checked.student
    own = _probe_of(prepared, "head-fit", student)
    its = None if student.pretrained else _probe_of(prepared, "teacher-fit", prepared.teachers[0])
    start_is_probe = own is not None and _same(own, student)
    teacher_is_probe = its is not None and len(checked.teachers) == 1 and _same(its, checked.teachers[0])
    rows = [ModelEntry(Role.TEACHER, checked.teachers, teacher_is_probe)]
    if its is not None and not teacher_is_probe:
        rows.append(ModelEntry(Role.TEACHER_PROBE, (its,), True))
    if own is not None and not start_is_probe:
        rows.append(ModelEntry(Role.PROBE, (own,), True))
    rows.append(ModelEntry(Role.START, (student,), start_is_probe))
    if control is not None:
        rows.append(ModelEntry(Role.CONTROL, (control,)))
    rows.append(ModelEntry(Role.DISTILLED, (distilled.model,)))
    rows += _at_best_resolution(distilled, prepared.recipe.selection.metric)
    return rows, [] if own is not None else [f"no linear probe of the student: {_why_no_probe(prepared)}"]


def _probe_of(prepared: Prepared, name: str, model: Model) -> Model | None:
    """Return a model with the head that a linear probe on its features gave; None where none was fitted."""
    path = probe_file(prepared, name)
    if not path.exists():
        return None
    probed = load_probe(path).put_on(model)
    probed.module.to(prepared.device).eval()
    return probed


def _same(one: Model, other: Model) -> bool:
    return state_digest(one.module.state_dict()) == state_digest(other.module.state_dict())


def _why_no_probe(prepared: Prepared) -> str:
    student, mapping = prepared.student, prepared.class_mapping
    if not student.pretrained:
        return "its weights are random"
    if student.spec not in mapping.new:
        return "its own head already has these classes"
    if not prepared.splits.train.labelled:
        return "no training image has a label"
    if len(mapping.index) != student.num_classes:
        return "its head also has classes that the data does not have"
    if not can_be_probed(student):
        return "its head is not one linear layer with a bias"
    return "the recipe has student.head_fit: no"


def _at_best_resolution(distilled: Distilled, metric: str) -> list[ModelEntry]:
    """Return a row for the kept student at its best resolution on val, if that is not the one it has."""
    if not distilled.resolutions:
        return []
    best = resolution.best(distilled.resolutions, "distilled", metric)
    if best == distilled.model.input_spec.height:
        return []
    return [ModelEntry(f"{Role.DISTILLED}@{best}", (resolution.at(distilled.model, best),))]
