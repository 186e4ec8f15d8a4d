"""The control and the student: trained, and chosen on val."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from safetensors.torch import load_file

from tutelage.core.files import write_json
from tutelage.data.joined import join
from tutelage.data.splits import Subset
from tutelage.distillation.checkpoint import State, state_of
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.objective import Objective, body_state, label_smoothing_of, terms_of
from tutelage.distillation.selection import Choice, choose
from tutelage.distillation.stage import Stage, Trained
from tutelage.distillation.stop import Interrupted, stop_requests
from tutelage.distillation.teacher import TargetSource, Teacher, cached_teacher
from tutelage.evaluation.predict import Predictions
from tutelage.models import batchnorm
from tutelage.pipeline.diagnose.evidence import of_training
from tutelage.pipeline.memo import made_once, stage_key, train_once
from tutelage.pipeline.stages.work import (
    Work,
    evaluate,
    predict_on,
    probed,
    save_model,
    spread,
    teacher_on_val,
)


def train_control(work: Work) -> State | None:
    """The same student, views and budget with hard labels only, and the same choice on val."""
    if not work.recipe.control:
        return None
    work.student.module.load_state_dict(work.start)
    stage = _stage(work, "control", work.splits.train)
    key = {"stage": stage_key(stage, work.context), "choose": work.recipe.selection.model_dump(mode="json")}
    trained = train_once(stage, work.context)
    with made_once(work.context, work.run.control, lambda: key) as there:
        if there:
            return load_file(work.run.control)
        kept = _choose(work, trained).kept
        work.student.module.load_state_dict(kept.state)
        save_model(work, work.student, work.run.control)
    return kept.state


def train_student(work: Work) -> Choice:
    """Distil, choose on val, and keep the choice as the run's student."""
    student, splits = work.student, work.splits
    student.module.load_state_dict(work.start)
    subset = join(splits.train, splits.unlabelled) if splits.unlabelled else splits.train
    stage = replace(
        _stage(work, "distill", subset),
        teacher=_targets(work, subset),
        val_targets=spread(teacher_on_val(work)[0], len(splits.val)),
    )
    trained = work.context.train(stage)
    choice = _choose(work, trained)
    evidence = _evidence(work, stage, trained, choice)
    student.module.load_state_dict(choice.kept.state)
    save_model(work, student, work.run.student)
    if work.recipe.preflight.probe_resolutions:
        choice = replace(choice, resolutions=probed(work, "distilled", student))
    if work.context.runtime.is_main:
        write_json(work.run.candidates, {**choice.record(), "training": evidence})
    return choice


def _stage(work: Work, name: str, subset: Subset) -> Stage:
    """Of the student, from where it stands; with an objective that distils, unless it is the control's."""
    recipe = work.recipe
    terms = (
        terms_of(recipe.loss) if name == "distill" else [CrossEntropy(1.0, label_smoothing_of(recipe.loss))]
    )
    start = body_state(work.student, work.start, work.device) if recipe.train.l2_sp else {}
    objective = Objective(terms, l2_sp=recipe.train.l2_sp, start=start)
    return Stage(
        name,
        work.student,
        recipe.train,
        recipe.view,
        objective,
        subset,
        work.splits.val,
        work.class_mapping.index,
        views=recipe.targets.views,
        metric=recipe.selection.metric,
    )


def _choose(work: Work, trained: Trained) -> Choice:
    recipe, student = work.recipe.selection, work.student
    # between random and trained weights there is nothing worth weighing
    interpolate = recipe.interpolate and student.pretrained
    return choose(
        work.start,
        trained.states,
        evaluate=lambda state: evaluate(work, student, state),
        recalibrate=lambda state: _mend(work, state),
        recipe=recipe.model_copy(update={"interpolate": interpolate}),
    )


def _targets(work: Work, subset: Subset) -> TargetSource:
    """The teachers themselves, or what they said of the run's views."""
    teacher = Teacher(work.teachers, work.device, work.teacher_precision)
    if work.recipe.targets.mode == "live":
        return teacher
    with stop_requests() as stop:

        def on_batch() -> None:
            if stop.is_set():
                raise Interrupted

        context = work.context
        return cached_teacher(
            teacher,
            subset,
            work.recipe,
            context.cache_directory(work.recipe) / "targets",
            context.loading,
            context.progress,
            on_batch,
        )


def _evidence(work: Work, stage: Stage, trained: Trained, choice: Choice) -> dict[str, Any]:
    assert stage.val_targets is not None
    module = work.student.module

    def predictions(state: State) -> Predictions:
        module.load_state_dict(state)
        return predict_on(work, work.student, work.splits.val)

    return of_training(
        choice,
        trained.states["last"],
        module,
        predictions,
        work.class_mapping.labels(work.splits.val.labels),
        work.class_mapping.class_ids,
        stage.objective,
        stage.val_targets,
    )


def _mend(work: Work, state: State) -> State:
    module = work.student.module
    if work.recipe.train.frozen_batchnorm or not batchnorm.has_batchnorm(module):
        return state
    module.load_state_dict(state)
    batchnorm.recalibrate(module, work.student.input_spec, work.splits.train, work.device)
    return state_of(work.student.module)
