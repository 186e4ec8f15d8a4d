"""The pre-flight: teacher and student are measured before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tutelage.core.files import entry, read_json, write_json
from tutelage.core.runtime import Precision
from tutelage.data.splits import sample
from tutelage.distillation.objective import soft_temperature
from tutelage.distillation.teacher import Teacher
from tutelage.evaluation import calibration as soft_targets
from tutelage.evaluation import resolution
from tutelage.evaluation.predict import Predictions
from tutelage.evaluation.quality import Quality
from tutelage.models import precision
from tutelage.models.digest import state_digest
from tutelage.models.source import Model
from tutelage.pipeline.memo import made_once
from tutelage.pipeline.stages import checks
from tutelage.pipeline.stages.work import Work, figures_on, labels_of, probed, teacher_on_val

TRAIN_IMAGES = 500  # of which the teacher's answers are held against the labels


def check(work: Work) -> None:
    """Measure both models on val, choose the precision, estimate, and stop where there is nothing to teach."""
    with made_once(work.context, work.run.preflight, lambda: _preflight_key(work)):
        _check(work)


def _preflight_key(work: Work) -> dict[str, Any]:
    recipe = work.recipe
    return {
        "recipe": recipe.model_dump(mode="json", include={"teacher", "student", "preflight", "control"}),
        "train": recipe.train.model_dump(mode="json", include={"epochs", "batch_size", "precision"}),
        "loss": recipe.loss.model_dump(mode="json"),
        "metric": recipe.selection.metric,
        "states": [state_digest(model.module.state_dict()) for model in [*work.teachers, work.student]],
        "images": [work.splits.train.digest(), work.splits.val.digest()],
    }


def _check(work: Work) -> None:
    recipe, run = work.recipe, work.run
    if run.preflight.exists():
        _use_precision(
            work, entry(run.preflight, "precision", "chosen"), entry(run.preflight, "teacher", "precision")
        )
        _use_resolutions(work, read_json(run.preflight).get("resolutions", []))
        Teacher(work.teachers, work.device)
        return
    found = _probe_resolutions(work)
    _use_resolutions(work, found)
    Teacher(work.teachers, work.device)
    found_checks = checks.structure(work.teachers, work.student, work.class_mapping)
    chosen, rates = _probe(work)
    predictions, teacher = teacher_on_val(work)
    student = figures_on(work, work.student, work.splits.val)
    work.context.progress.say(
        f"pre-flight: on val the teacher has {teacher.top1:.2f} top-1, the student {student.top1:.2f}: "
        f"an advantage of {teacher.top1 - student.top1:+.2f} points"
    )
    found_checks += checks.strength(
        teacher, student, len(work.class_mapping.class_ids), recipe.preflight.allow_weak_teacher
    )
    ahead = checks.estimate(
        recipe, len(work.splits.train), {k: max(v.values()) for k, v in rates.items()}, work.student, run.path
    )
    work.context.progress.say(
        f"pre-flight: {ahead['steps']:,} steps in {chosen} (teacher in {work.teacher_precision}), "
        f"about {ahead['estimated_seconds'] / 60:.1f} minutes and {ahead['disk_mb']:.0f} MB"
    )
    record = {
        "teacher": _who(work.teachers[0], teacher, _sureness(work, predictions))
        | {"precision": work.teacher_precision, "train": _teacher_on_train(work)},
        "student": _who(work.student, student),
        "val": {"n": student.n},
        "chance_top1": 100 / len(work.class_mapping.class_ids),
        "advantage": teacher.top1 - student.top1,
        "target_entropy": soft_targets.entropy(predictions.logits, soft_temperature(recipe.loss)),
        "precision": {"chosen": chosen, "images_per_s": rates},
        "checks": found_checks,
        "resolutions": found,
        **ahead,
    }
    if work.context.runtime.is_main:
        write_json(run.preflight, record)


def _probe_resolutions(work: Work) -> list[dict[str, Any]]:
    """Figures at neighbouring resolutions: of the teachers where their best is wanted, of all where asked for."""
    asked = work.recipe.preflight.probe_resolutions
    teachers = work.teachers if asked or work.recipe.teacher.resolution == "best" else []
    models = [(_teacher_name(place), model) for place, model in enumerate(teachers)]
    models += [("student", work.student)] if asked else []
    return [row for who, model in models for row in probed(work, who, model)]


def _use_resolutions(work: Work, found: list[dict[str, Any]]) -> None:
    if work.recipe.teacher.resolution == "best":
        metric = work.recipe.selection.metric
        work.teachers = [
            model.at(resolution.best(found, _teacher_name(place), metric))
            for place, model in enumerate(work.teachers)
        ]


def _teacher_name(place: int) -> str:
    return "teacher" if place == 0 else f"teacher-{place + 1}"


def _sureness(work: Work, predictions: Predictions) -> dict[str, float]:
    """Whether the teacher is as sure as it is right."""
    return {
        "confidence": soft_targets.confidence(predictions.logits),
        "best_temperature": soft_targets.best_temperature(
            predictions.logits, labels_of(work, work.splits.val, predictions)
        ),
    }


def _teacher_on_train(work: Work) -> dict[str, float] | None:
    """Whether the training labels are what the teacher sees in the plain images; None without labels."""
    subset = sample(work.splits.train, TRAIN_IMAGES)
    if not (subset.labels >= 0).any():
        return None
    figures = figures_on(work, work.teachers[0], subset)
    return {"top1": figures.top1, "nll": figures.nll, "n": figures.n}


def _who(model: Model, figures: Quality, more: dict[str, float] | None = None) -> dict[str, Any]:
    return {
        "model": model.spec,
        "origin": model.origin,
        "resolution": model.input_spec.height,
        "input": model.input_spec.to_dict(),
        "val": {"top1": figures.top1, "nll": figures.nll, "ece": figures.ece, **(more or {})},
    }


def _probe(work: Work) -> tuple[Precision, dict[str, dict[str, float]]]:
    device, size = work.device, work.recipe.train.batch_size
    student, teacher = work.student, work.teachers[0]
    student.module.to(device)
    rates = {
        "student": precision.probe_training(student.module, student.input_spec, size, device),
        "teacher": precision.probe_inference(teacher.module, teacher.input_spec, size, device),
    }
    wanted = work.recipe.train.precision
    both = [precision.faster(rates[who]) if wanted == "auto" else wanted for who in ("student", "teacher")]
    both = work.context.runtime.from_main(both)  # clocks differ: every process takes what the first one found
    _use_precision(work, *both)
    return both[0], {who: {str(p): rate for p, rate in found.items()} for who, found in rates.items()}


def _use_precision(work: Work, student: Precision, teacher: Precision) -> None:
    work.context = replace(work.context, runtime=replace(work.context.runtime, precision=student))
    work.teacher_precision = teacher
