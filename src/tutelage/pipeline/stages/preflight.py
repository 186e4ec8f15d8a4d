"""The pre-flight: checks of teacher and student before the student is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, read_json, write_json
from tutelage.core.progress import shown
from tutelage.core.runtime import Precision
from tutelage.data.splits import sample
from tutelage.distillation.checkpoint import State, state_of
from tutelage.distillation.objective import soft_temperature
from tutelage.distillation.teacher import Teacher, pooled_width
from tutelage.evaluation import calibration, resolution
from tutelage.evaluation.fidelity import FIDELITY, fidelity
from tutelage.evaluation.input_variants import DESCRIPTIONS
from tutelage.evaluation.predict import Predictions, in_common
from tutelage.evaluation.quality import Quality, quality
from tutelage.models import precision
from tutelage.models.batchnorm import decode_sample
from tutelage.models.class_mapping import ClassMapping
from tutelage.models.digest import state_digest
from tutelage.models.source import Model
from tutelage.pipeline.memo import made_once
from tutelage.pipeline.stages.estimate import Amounts, estimate
from tutelage.pipeline.stages.evaluate import (
    batches,
    joint,
    labels_of,
    predict,
    predict_jointly,
    probe_resolutions,
    quality_on,
)
from tutelage.pipeline.stages.fit import Fitted
from tutelage.pipeline.stages.prepare import Prepared
from tutelage.pipeline.stages.speeds import Probe, measured
from tutelage.pipeline.stages.teacher_inputs import as_checks, check_descriptions, faults, say_faults
from tutelage.pipeline.stages.temperatures import answers_on_val, view_batches, with_temperatures

TRAIN_IMAGES = 500  # on which the teacher's predictions are compared with the labels
SPEEDS = 3  # that are measured
NEAR_CHANCE = 2.0  # a teacher with a top-1 below this many times chance is refused
ACCURACY = ("top1", "nll", "ece")  # figures on val in preflight.json; null where val has no labels


@dataclass(frozen=True)
class Checked:
    """The models that passed the pre-flight, as the following stages use them.

    Attributes:
        prepared: the data, the recipe and the context of the run; its runtime has the precision of the training.
        teachers: at the resolution of their targets, frozen and in eval mode.
        student: the starting student.
        teacher_precision: precision in which the teachers' targets are computed.
        each_on_val: each teacher's logits on val.
        teacher_on_val: the teachers' joint logits on val.
    """

    prepared: Prepared
    teachers: tuple[Model, ...]
    student: Model
    teacher_precision: Precision
    each_on_val: Sequence[Predictions]
    teacher_on_val: Predictions

    @cached_property
    def start(self) -> State:
        """The starting student's weights, on the CPU."""
        return state_of(self.student.module)

    @cached_property
    def batchnorm_images(self) -> list[Tensor]:
        """The training images for measuring BatchNorm statistics, decoded once for all candidates of the run."""
        prepared = self.prepared
        return decode_sample(prepared.splits.train, self.student.input_spec, prepared.context.loading)


def preflight(fitted: Fitted) -> Checked:
    """Measure teacher and student on val, choose the precision, and estimate the time and the disk space.

    Where `preflight.json` exists, the choices are read from there.

    Raises:
        TutelageError: the teacher is too weak, or the disk is too small.
    """
    prepared = fitted.prepared
    path, progress = prepared.run.preflight, prepared.context.progress
    begun = time.monotonic()
    with made_once(prepared.context, path, lambda: _key(fitted)):
        before = read_json(path) if path.exists() else None
        say_faults(progress, (before or {}).get(DESCRIPTIONS, []))
        resolutions = before.get("resolutions", []) if before else _probe_resolutions(fitted)
        teachers = _at_used_resolution(fitted, resolutions)
        Teacher(teachers, prepared.device)  # freezes them
        with shown(progress, "preflight", _steps(prepared, teachers, before)):
            rates = None if before else _rates(prepared, teachers[0], fitted.student)
            chosen: Sequence[Precision]
            if rates is None:
                chosen = entry(path, "precision", "chosen"), entry(path, "teacher", "precision")
            else:
                chosen = _choose_precision(prepared, rates)
            prepared = _with_precision(prepared, chosen[0])
            each = in_common([predict(prepared, one, prepared.splits.val) for one in teachers])
            on_val = joint(each)
            answers = on_val if before else answers_on_val(prepared, teachers, on_val)
            prepared = with_temperatures(prepared, teachers, chosen[1], answers, before)
            checked = Checked(prepared, teachers, fitted.student, chosen[1], each, on_val)
            if rates is not None:
                record = _measure(checked, rates, answers) | {"resolutions": resolutions}
        if rates is not None:
            record |= _ahead(checked, rates, time.monotonic() - begun)
            if prepared.context.runtime.is_main:
                write_json(path, record)
    return checked


def _steps(prepared: Prepared, teachers: Sequence[Model], before: dict[str, Any] | None) -> int:
    """Return how many steps are shown: batches of images, and measurements of speed."""
    on_val = batches(prepared, prepared.splits.val)
    if before:
        return len(teachers) * on_val
    on_train = batches(prepared, sample(prepared.splits.train, TRAIN_IMAGES))
    speeds = SPEEDS - teachers[0].looks_up
    return speeds + on_val + len(teachers) * (on_val + on_train) + view_batches(prepared)


def _key(fitted: Fitted) -> dict[str, Any]:
    recipe, splits = fitted.prepared.recipe, fitted.prepared.splits
    parts = {"teacher", "student", "preflight", "control", "view", "targets"}  # views: for loss.temperature
    return {
        "recipe": recipe.model_dump(mode="json", include=parts),
        "train": recipe.train.model_dump(mode="json", include={"epochs", "batch_size", "precision"}),
        "loss": recipe.loss.model_dump(mode="json"),
        "metric": recipe.selection.metric,
        "folds": recipe.train.seed if recipe.targets.folds else None,  # which images are in which fold
        "states": [state_digest(model.module.state_dict()) for model in [*fitted.teachers, fitted.student]],
        "images": [
            part.digest() for part in (splits.train, splits.val, splits.unlabelled) if part is not None
        ],
    }


def _probe_resolutions(fitted: Fitted) -> list[dict[str, Any]]:
    """Evaluate at neighbouring resolutions: the teachers if their best one is wanted, all models if requested."""
    prepared = fitted.prepared
    probe_all = prepared.recipe.preflight.probe_resolutions
    teachers = fitted.teachers if probe_all or prepared.recipe.teacher.resolution == "best" else ()
    models = [(_teacher_name(place), model) for place, model in enumerate(teachers) if not model.looks_up]
    models += [("student", fitted.student)] if probe_all else []
    return [row for name, model in models for row in probe_resolutions(prepared, name, model)]


def _at_used_resolution(fitted: Fitted, probed: list[dict[str, Any]]) -> tuple[Model, ...]:
    recipe = fitted.prepared.recipe
    if recipe.teacher.resolution != "best":
        return fitted.teachers
    return tuple(
        resolution.at(model, resolution.best(probed, _teacher_name(place), recipe.selection.metric))
        for place, model in enumerate(fitted.teachers)
    )


def _teacher_name(place: int) -> str:
    return "teacher" if place == 0 else f"teacher-{place + 1}"


def _rates(prepared: Prepared, teacher: Model, student: Model) -> dict[str, dict[Precision, float]]:
    """Measure images/s of one process: a training step of the student, and inference of both.

    Only the precisions that the run may use are measured, with the batch of one process. The student is evaluated in
    float32. A teacher whose answers are looked up has no speed.
    """
    recipe, progress = prepared.recipe.train, prepared.context.progress
    precisions = precision.BOTH if recipe.precision == "auto" else (recipe.precision,)

    def rates_of(
        name: str, probe: Probe, model: Model, wanted: Sequence[Precision]
    ) -> dict[Precision, float]:
        found = measured(prepared, probe, model, f"pre-flight: {name}", wanted)
        progress.step({}, 0)
        return found

    training, inference = precision.probe_training, precision.probe_inference
    rates = {"student": rates_of("training of the student", training, student, precisions)}
    if not teacher.looks_up:
        rates["teacher"] = rates_of("answers of the teacher", inference, teacher, precisions)
    return rates | {"student_inference": rates_of("answers of the student", inference, student, ("fp32",))}


def _choose_precision(
    prepared: Prepared, rates: dict[str, dict[Precision, float]]
) -> tuple[Precision, Precision]:
    """Choose the precision of the student's training and of the teacher, the same in every process."""
    wanted = prepared.recipe.train.precision
    chosen = [
        (precision.faster(rates[model]) if model in rates else "fp32") if wanted == "auto" else wanted
        for model in ("student", "teacher")
    ]
    # measurements differ: every process uses those of the first one
    student, teacher = prepared.context.runtime.from_main(chosen)
    return student, teacher


def with_measured_precision(prepared: Prepared) -> Prepared:
    """Replace ``train.precision=auto`` by the precision in which the student is trained faster, for fits too."""
    runtime, train = prepared.context.runtime, prepared.recipe.train
    rates = measured(prepared, precision.probe_training, prepared.student, "training of the student")
    (chosen,) = runtime.from_main([precision.faster(rates)])
    recipe = prepared.recipe.model_copy(update={"train": train.model_copy(update={"precision": chosen})})
    return _with_precision(replace(prepared, recipe=recipe), chosen)


def _with_precision(prepared: Prepared, chosen: Precision) -> Prepared:
    return replace(prepared, context=prepared.context.in_precision(chosen))


def _measure(
    checked: Checked, rates: dict[str, dict[Precision, float]], answers: Predictions
) -> dict[str, Any]:
    """Measure and check the models, and return what preflight.json records; `answers`: of the targets, on val."""
    prepared, teachers = checked.prepared, checked.teachers
    recipe, classes = prepared.recipe, len(prepared.class_mapping.class_ids)
    checks = structure(teachers, checked.student, prepared.class_mapping)
    if prepared.splits.val.labelled:
        figures, more = _accuracies(checked, classes)
        checks += more
    else:
        figures = _likeness(checked)
    return {
        "teacher": _model_record(teachers[0], figures["teacher"])
        | {"precision": checked.teacher_precision, "train": _teacher_on_train(checked)},
        "student": _model_record(checked.student, figures["student"]),
        "val": {"n": figures["n"]},
        "chance_top1": 100 / classes,
        "advantage": figures["advantage"],
        "temperatures": recipe.loss.model_dump(include={"teacher_temperature", "temperature"}),
        "target_entropy": calibration.entropy(
            answers.logits / recipe.loss.teacher_temperature, soft_temperature(recipe.loss)
        ),
        "precision": {
            "chosen": prepared.context.runtime.precision,
            "images_per_s": {
                model: {str(p): rate for p, rate in found.items()} for model, found in rates.items()
            },
        },
        "checks": checks,
        DESCRIPTIONS: figures.get(DESCRIPTIONS, []),
    }


def _ahead(checked: Checked, rates: dict[str, dict[Precision, float]], spent: float) -> dict[str, Any]:
    """Estimate what the run takes, and report it.

    Args:
        checked: the models.
        rates: as measured, of one process.
        spent: seconds that the pre-flight has taken.
    """
    prepared = checked.prepared
    runtime = prepared.context.runtime
    ahead = estimate(
        prepared.recipe,
        Amounts.of(prepared.splits),
        {model: max(found.values()) * runtime.world_size for model, found in rates.items()},
        checked.student,
        prepared.run.path,
        spent,
        pooled_width(prepared.recipe, checked.teachers[0]),
        screened=runtime.precision != "fp32",
    )
    parts = [f"{name} {seconds / 60:.1f}" for name, seconds in ahead["seconds"].items()]
    prepared.context.progress.say(
        f"pre-flight: {ahead['steps']:,} steps in {runtime.precision} (teacher in {checked.teacher_precision}), "
        f"about {ahead['estimated_seconds'] / 60:.1f} minutes ({', '.join(parts)}) and {ahead['disk_mb']:.0f} MB"
    )
    return ahead


def _accuracies(checked: Checked, classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure teacher and student against the labels of val, and check that the teacher is strong enough."""
    prepared, on_val = checked.prepared, checked.teacher_on_val
    labels = labels_of(prepared, prepared.splits.val, on_val)
    teacher = quality(on_val.logits, labels)
    student = quality_on(prepared, checked.student, prepared.splits.val)
    advantage = teacher.top1 - student.top1
    prepared.context.progress.say(
        f"pre-flight: on val the teacher has {teacher.top1:.2f} top-1, the student {student.top1:.2f}: "
        f"an advantage of {advantage:+.2f} points"
    )
    described = check_descriptions(prepared, checked.teachers, checked.each_on_val)
    figures = {
        "teacher": {
            **{name: getattr(teacher, name) for name in ACCURACY},
            "confidence": calibration.confidence(on_val.logits),
            "best_temperature": calibration.best_temperature(on_val.logits, labels),
        },
        "student": {name: getattr(student, name) for name in ACCURACY},
        "n": student.n,
        "advantage": advantage,
        DESCRIPTIONS: described,
    }
    allowed, causes = prepared.recipe.preflight.allow_weak_teacher, faults(described)
    return figures, [*strength(teacher, student, classes, allowed, causes), *as_checks(described)]


def _likeness(checked: Checked) -> dict[str, Any]:
    """Compare the starting student with the teacher on a val without labels, where no accuracy is known."""
    prepared, on_val = checked.prepared, checked.teacher_on_val
    found = predict_jointly(prepared, [checked.student], prepared.splits.val)
    ours, theirs = in_common([found, on_val])
    close = fidelity(ours.logits, theirs.logits)
    prepared.context.progress.say(
        f"pre-flight: val has no labels; before training the student agrees with the teacher on {close.agreement:.2f}% "
        f"of it, and the mean KL is {close.kl:.3f} nats"
    )
    unknown = dict.fromkeys(ACCURACY)
    return {
        "teacher": {**unknown, "confidence": calibration.confidence(on_val.logits), "best_temperature": None},
        "student": {**unknown, "agreement": close.agreement, FIDELITY: close.kl},
        "n": close.n,
        "advantage": None,
    }


def _teacher_on_train(checked: Checked) -> dict[str, float] | None:
    """Measure the teacher on plain training images against their labels; None where none has a label."""
    subset = sample(checked.prepared.splits.train, TRAIN_IMAGES)
    if not (subset.labels >= 0).any():
        return None
    found = predict_jointly(checked.prepared, checked.teachers, subset)
    figures = quality(found.logits, labels_of(checked.prepared, subset, found))
    return {"top1": figures.top1, "nll": figures.nll, "n": figures.n}


def _model_record(model: Model, val: dict[str, float | None]) -> dict[str, Any]:
    return {
        "model": model.spec,
        "origin": model.origin,
        "licence": model.licence,
        "stored": model.looks_up,
        "resolution": model.input_spec.height,
        "input": model.input_spec.to_dict(),
        "val": val,
    }


def structure(teachers: Sequence[Model], student: Model, class_mapping: ClassMapping) -> list[dict[str, Any]]:
    """Check what does not depend on accuracies: frozen teachers in eval mode, and one list of classes."""
    frozen = all(not p.requires_grad for t in teachers for p in t.module.parameters())
    in_eval = all(not m.training for t in teachers for m in t.module.modules())
    aligned = all(m.num_classes == len(class_mapping.class_ids) for m in [*teachers, student])
    return [
        _check("teacher frozen", frozen, "no parameter of the teacher takes a gradient"),
        _check("teacher in eval mode", in_eval, "dropout off, BatchNorm statistics untouched"),
        _check("heads agree", aligned, f"{len(class_mapping.class_ids)} classes in one order"),
    ]


def strength(
    teacher: Quality, student: Quality, classes: int, allow_weak: bool, causes: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Check that the teacher is above chance and better than the student; `causes` say what is wrong and what to do.

    Raises:
        TutelageError: the teacher is near chance or worse than the student, and the recipe does not allow it.
    """
    chance = 100 / classes
    checks = [
        _check(
            "teacher above chance",
            teacher.top1 > NEAR_CHANCE * chance,
            f"teacher top-1 {teacher.top1:.2f} on val, chance {chance:.2f}",
        ),
        _check(
            "teacher better than student",
            teacher.top1 > student.top1,
            f"teacher top-1 {teacher.top1:.2f} on val, student {student.top1:.2f} before training",
        ),
    ]
    for check in checks:
        if not check["ok"] and not allow_weak:
            advice = "; ".join(causes) or "fit it with teacher.fit, check its classes and resolution"
            raise TutelageError(
                f"pre-flight: failed: {check['name']} ({check['detail']}); {advice}, or set "
                "preflight.allow_weak_teacher=true"
            )
    return checks


def _check(name: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail}
