"""Training of the control and of the student, each followed by model selection on val."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load_file

from tutelage.core.files import write_json
from tutelage.core.progress import shown
from tutelage.core.recipe import SelectionRecipe
from tutelage.data.joined import join
from tutelage.data.splits import Splits, Subset
from tutelage.distillation.checkpoint import State
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.objective import Objective, body_state, label_smoothing_of, terms_of
from tutelage.distillation.selection import Choice, Screening, choose, count, distinct
from tutelage.distillation.stage import Stage, Trained
from tutelage.distillation.stop import Interrupted, stop_requests
from tutelage.distillation.teacher import TargetSource, cached_teacher, passes
from tutelage.distillation.two_heads import TwoHeads
from tutelage.evaluation.fidelity import FIDELITY
from tutelage.evaluation.predict import Predictions
from tutelage.models import batchnorm
from tutelage.models.source import Model
from tutelage.models.weights import with_state
from tutelage.pipeline.diagnose.evidence import of_training
from tutelage.pipeline.memo import made_once, stage_key, train_once
from tutelage.pipeline.stages.evaluate import (
    batches,
    evaluate_state,
    evaluate_two_heads,
    fidelity_of_state,
    predict,
    probe_resolutions,
)
from tutelage.pipeline.stages.fit import teacher_of_targets
from tutelage.pipeline.stages.preflight import Checked
from tutelage.pipeline.stages.prepare import Prepared


@dataclass(frozen=True)
class Distilled:
    """The student that the run keeps.

    Attributes:
        model: with the weights of the kept candidate.
        choice: all candidates, and the one that was kept.
        resolutions: its figures on val at neighbouring resolutions; empty where these were not requested.
    """

    model: Model
    choice: Choice
    resolutions: list[dict[str, Any]]


def train_control(checked: Checked) -> Model | None:
    """Train the same student with hard labels only, and select on val in the same way.

    Where all training images have labels, control and student have the same order of images, the same views and the
    same steps, and differ only in their targets. Where some have none, the control has the labelled images alone, for
    as many steps as the student and with full batches: it sees each of them more often, always in a new view. That
    makes it stronger than a control whose batches are shared with images it cannot learn from.
    """
    prepared, student = checked.prepared, checked.student
    recipe, run = prepared.recipe, prepared.run
    if not recipe.control:
        return None
    stage = control_stage(checked)
    key = {
        "stage": stage_key(stage, prepared.context),
        "choose": recipe.selection.model_dump(mode="json"),
    }
    trained = train_once(stage, prepared.context)
    with made_once(prepared.context, run.control, lambda: key) as found:
        if found:
            return student.copied(load_file(run.control))
        with _selecting(checked, student, trained):
            kept = _choose(checked, trained).kept
        control = student.copied(kept.state)
        prepared.save(control, run.control)
    return control


def control_stage(checked: Checked) -> Stage:
    """Define the training of the control, see `train_control`."""
    prepared = checked.prepared
    recipe, splits = prepared.recipe, prepared.splits
    stage = _stage(checked, "control", splits.train)
    if not splits.unlabelled:
        return stage
    steps = len(_images(splits)) // recipe.train.batch_size
    settings = recipe.train.model_copy(update={"labelled_share": None})
    return replace(stage, steps=steps, settings=settings)


def train_student(checked: Checked) -> Distilled:
    """Distil, select on val, and write the kept student to the run."""
    prepared, student = checked.prepared, checked.student
    splits, run = prepared.splits, prepared.run
    subset = _images(splits)
    on_val = checked.teacher_on_val
    # by position; zeros for images that cannot be decoded, which the loss on val leaves out
    val_targets = on_val.logits.new_zeros(len(splits.val), on_val.logits.shape[1])
    val_targets[on_val.index] = on_val.logits / prepared.recipe.loss.teacher_temperature
    stage = replace(
        _stage(checked, "distill", subset), teacher=_targets(checked, subset), val_targets=val_targets
    )
    if prepared.recipe.targets.mode == "cached":
        stage = replace(stage, views=passes(prepared.recipe))  # no other views have targets
    two_heads = TwoHeads(student) if prepared.recipe.loss.two_heads else None
    if two_heads:
        stage = replace(stage, model=two_heads.model.copied())
    trained = prepared.context.train(stage)
    with _selecting(checked, two_heads.model if two_heads else student, trained, evidence=3):
        choice = _choose(checked, trained, two_heads)
        evidence = _evidence(checked, stage, trained, choice)
    model = student.copied(choice.kept.state)
    prepared.save(model, run.student)
    wanted = prepared.recipe.preflight.probe_resolutions
    resolutions = probe_resolutions(prepared, "distilled", model) if wanted else []
    if prepared.context.runtime.is_main:
        record = {**choice.record(), "resolutions": resolutions, "training": evidence}
        write_json(run.candidates, record)
        prepared.context.progress.say(kept_line(choice.kept.name, evidence.get("kept_against_start")))
    return Distilled(model, choice, resolutions)


def kept_line(kept: str, against_start: Mapping[str, Any] | None) -> str:
    """Say which candidate was kept, and whether val shows that it is better than the start.

    Args:
        kept: its name.
        against_start: its paired difference from the start on val; None: val has no labels.
    """
    if kept == "start":
        return "kept: start; no trained candidate is better on val"
    if against_start is None:
        return f"kept: {kept}"
    low, high, n = (against_start[key] for key in ("low", "high", "n"))
    noise = ", which is within noise" if against_start["within_noise"] else ""
    return (
        f"kept: {kept}, {against_start['difference']:+.2f} points of top-1 against the start on val "
        f"(95% interval {low:+.2f} to {high:+.2f}, {n:,} images){noise}"
    )


def _images(splits: Splits) -> Subset:
    """Return the training images of the student: the labelled ones, followed by the unlabelled ones."""
    return join(splits.train, splits.unlabelled) if splits.unlabelled else splits.train


def _stage(checked: Checked, name: str, subset: Subset) -> Stage:
    """Define the training of a copy of the starting student, with the recipe's loss or (the control) hard labels."""
    prepared = checked.prepared
    recipe = prepared.recipe
    terms = (
        terms_of(recipe.loss) if name == "distill" else [CrossEntropy(1.0, label_smoothing_of(recipe.loss))]
    )
    if recipe.loss.class_weights != "none":
        labels = torch.from_numpy(prepared.class_mapping.labels(prepared.splits.train.labels))
        for term in terms:
            if isinstance(term, CrossEntropy):
                term.weigh_classes(recipe.loss.class_weights, labels, checked.student.num_classes)
    start = body_state(checked.student, checked.start, prepared.device) if recipe.train.l2_sp else {}
    two_heads = recipe.loss.two_heads and name == "distill"
    objective = Objective(terms, l2_sp=recipe.train.l2_sp, start=start, two_heads=two_heads)
    return Stage(
        name,
        checked.student.copied(),
        recipe.train,
        recipe.view,
        objective,
        subset,
        prepared.splits.val,
        prepared.class_mapping.index,
        views=recipe.targets.views,
        metric=_metric(prepared),
    )


def _targets(checked: Checked, subset: Subset) -> TargetSource:
    """Return the teachers, or their cached targets for the run's views."""
    prepared = checked.prepared
    recipe, context = prepared.recipe, prepared.context
    teacher = teacher_of_targets(
        prepared, checked.teachers, checked.teacher_precision, recipe.loss.teacher_temperature
    )
    if recipe.targets.mode == "live":
        return teacher
    with stop_requests() as stop:

        def on_batch() -> None:
            if stop.is_set():
                raise Interrupted

        return cached_teacher(
            teacher,
            subset,
            recipe,
            context.cache_directory(recipe) / "targets",
            context.loading,
            context.progress,
            on_batch,
        )


def _selecting(
    checked: Checked, model: Model, trained: Trained, evidence: int = 0
) -> AbstractContextManager[None]:
    """Show the progress of `_choose`, and of what follows.

    Args:
        checked: the start.
        model: of the trained states.
        trained: the states.
        evidence: how often val is predicted afterwards, at most.
    """
    prepared = checked.prepared
    recipe = _selection_recipe(checked)
    again = _has_new_statistics(prepared, model)
    work = count(len(distinct(trained.states)), recipe, again, _is_faster(prepared))
    steps = (work.evaluations + evidence) * batches(prepared, prepared.splits.val)
    images = min(len(prepared.splits.train), batchnorm.IMAGES)
    steps += work.recalibrations * math.ceil(images / batchnorm.BATCH)
    steps += work.screened * math.ceil(min(images, batchnorm.SCREENED) / batchnorm.BATCH)
    return shown(prepared.context.progress, "selection", steps)


def _selection_recipe(checked: Checked) -> SelectionRecipe:
    """Return the recipe of model selection as this run can have it."""
    prepared = checked.prepared
    recipe = prepared.recipe.selection
    # networks between random and trained weights are no better than random
    interpolate = recipe.interpolate and checked.student.pretrained
    return recipe.model_copy(update={"interpolate": interpolate, "metric": _metric(prepared)})


def _choose(checked: Checked, trained: Trained, two_heads: TwoHeads | None = None) -> Choice:
    prepared, student = checked.prepared, checked.student
    model = two_heads.model if two_heads else student  # of the trained states

    def evaluate(state: State) -> dict[str, float]:
        if not prepared.splits.val.labelled:
            return fidelity_of_state(prepared, student, state, checked.teacher_on_val)
        if two_heads and state is not checked.start:
            return evaluate_two_heads(prepared, model, state)
        return evaluate_state(prepared, student, state)

    def in_training_precision(state: State) -> dict[str, float]:
        with prepared.context.runtime.autocast():
            return evaluate(state)

    def on_fewer_images(state: State) -> State:
        with prepared.context.runtime.autocast():
            return _recalibrated(checked, model, state, batchnorm.SCREENED // batchnorm.BATCH)

    return choose(
        checked.start,
        trained.states,
        evaluate,
        recalibrate=lambda state: _recalibrated(checked, model, state),
        recipe=_selection_recipe(checked),
        two_heads=two_heads,
        screening=Screening(on_fewer_images, in_training_precision if _is_faster(prepared) else None),
    )


def _is_faster(prepared: Prepared) -> bool:
    """Whether the precision of the training is a faster one than that of all figures."""
    return prepared.context.runtime.precision != "fp32"


def _metric(prepared: Prepared) -> str:
    """Return the metric of model selection: the recipe's, or the fidelity to the teacher where val has no labels."""
    return prepared.recipe.selection.metric if prepared.splits.val.labelled else FIDELITY


def _recalibrated(checked: Checked, model: Model, state: State, most: int | None = None) -> State:
    """Measure a state's BatchNorm statistics again; return the same state where there are none, or they are frozen.

    Args:
        checked: has the images.
        model: of the state.
        state: is not changed.
        most: number of batches of images; None: all.
    """
    prepared, module = checked.prepared, model.module
    if not _has_new_statistics(prepared, model):
        return state
    with with_state(module, state):
        batchnorm.recalibrate(
            module,
            model.input_spec,
            checked.batchnorm_images[:most],
            prepared.device,
            lambda images: prepared.context.progress.step({}, images),
        )
        # the weights are those of the state, which dozens of candidates need not hold twice
        found = {n: b.cpu().clone() for n, b in module.named_buffers(remove_duplicate=False) if n in state}
        return {**state, **found}


def _has_new_statistics(prepared: Prepared, model: Model) -> bool:
    """Whether there are BatchNorm statistics, and the training may have changed them."""
    return not prepared.recipe.train.frozen_batchnorm and batchnorm.has_batchnorm(model.module)


def _evidence(checked: Checked, stage: Stage, trained: Trained, choice: Choice) -> dict[str, Any]:
    """Compare the starting student with the best trained one on val, for the diagnosis."""
    prepared, student = checked.prepared, checked.student
    mapping, val = prepared.class_mapping, prepared.splits.val
    assert stage.val_targets is not None
    if not val.labelled:
        return {}  # all of it is about correct and wrong answers

    def predictions(state: State) -> Predictions:
        with with_state(student.module, state):
            return predict(prepared, student, val)

    return of_training(
        choice,
        trained.states["last"],
        student.module,
        predictions,
        mapping.labels(val.labels),
        mapping.class_ids,
        stage.objective.with_one_head(),  # as all candidates have by now
        stage.val_targets,
    )
