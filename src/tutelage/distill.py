"""The stations of a run, in order. Each leaves its part in the run directory, so a run can go on anywhere.

data -> models -> teacher's fit -> pre-flight -> control -> train -> choose -> measure -> report
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from tutelage import batchnorm, precision, preflight
from tutelage.checkpoint import State, state_of
from tutelage.choose import Choice, best_of, choose
from tutelage.context import Context
from tutelage.data.joined import join
from tutelage.data.loading import BadImages
from tutelage.data.splits import Splits, make_splits
from tutelage.errors import TutelageError
from tutelage.evaluate import predict_logits
from tutelage.heads import Heads, agree
from tutelage.losses import mean_teacher_logits
from tutelage.measure.quality import Quality, quality
from tutelage.measure.table import Row, Table
from tutelage.models import Model, load_model, save_weights, set_resolution
from tutelage.progress import Progress
from tutelage.proof import Contestant, prove
from tutelage.recipe import (
    FitRecipe,
    LossRecipe,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
    dump_recipe,
)
from tutelage.run import Run, read_json, write_json, write_text
from tutelage.task import Task
from tutelage.teacher import Teacher
from tutelage.train import Stage, Trained, train
from tutelage.versions import versions


@dataclass
class Work:
    """What the stations hand on in memory."""

    recipe: Recipe
    context: Context
    splits: Splits
    teachers: list[Model]
    student: Model
    heads: Heads
    start: State = field(default_factory=dict)
    teacher_precision: precision.Precision = "fp32"

    @property
    def run(self) -> Run:
        """Where it is written."""
        return self.context.run

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.context.accelerator.device


def begin(recipe: Recipe, root: Path, command: str, seeds: int = 1) -> Run:
    """Make a new run directory with its recipe and versions, before anything is computed.

    Raises:
        TutelageError: it exists, or cannot be written.
    """
    accelerator = Accelerator()
    answer: list[Any] = [None, None]  # the path, or why there is none
    if accelerator.is_main_process:
        try:
            run = Run.create(root, recipe.name or _default_name(recipe))
            write_text(run.recipe, dump_recipe(recipe))
            write_json(run.versions, versions(command) | {"seeds": seeds})
            answer[0] = run.path
        except TutelageError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise TutelageError(answer[1])
    return Run(answer[0])


def _default_name(recipe: Recipe) -> str:
    student, teacher = (m.model.partition("@")[0] for m in (recipe.student, recipe.teacher))
    return f"{student}-from-{teacher}-{datetime.now():%Y%m%d-%H%M%S}"


def distill(recipe: Recipe, run: Run, progress: Progress) -> dict[str, Any]:
    """Run all stations that are not done yet, and return comparison.json's content.

    Raises:
        TutelageError: bad input, or the pre-flight says no.
        Interrupted: asked to stop; `distill` on the same run goes on.
    """
    work = prepare(recipe, run, progress)
    fit_teachers(work)
    fit_head(work)
    check(work)
    control = train_control(work)
    choice = train_student(work)
    return measure(work, control, choice)


# --- data and models


def prepare(recipe: Recipe, run: Run, progress: Progress) -> Work:
    """Splits and models, with heads that agree."""
    torch.manual_seed(recipe.train.seed)  # new heads and students from scratch begin the same
    splits = make_splits(recipe.data)
    names = [recipe.teacher.model, *recipe.teacher.others]
    teachers, student, heads = agree(
        [load_model(name) for name in names], _load_student(recipe), splits.classes
    )
    teachers = [_with_input(t, recipe.teacher) for t in teachers]
    student = _with_input(student, recipe.student)
    context = Context(
        run,
        Accelerator(),
        progress,
        recipe.data.workers,
        BadImages(recipe.data.max_bad_images),
    )
    _record_splits(splits, context)
    progress.say(_data_line(splits))
    for who, model in [*(("teacher", t) for t in teachers), ("student", student)]:
        progress.say(f"{who}: {model.spec} ({model.origin}), {model.input.height} px")
    return Work(recipe, context, splits, teachers, student, heads)


def _record_splits(splits: Splits, context: Context) -> None:
    """Keep what the images are, or see that they are still the same."""
    record, path = splits.record(), context.run.splits
    if path.exists():
        before = read_json(path)
        changed = [role for role, part in record["parts"].items() if part != before["parts"].get(role)]
        if changed:
            raise TutelageError(
                f"data.{changed[0]}: the images changed since the run began ({path}); "
                "put them back, or begin a new run"
            )
    elif context.writes:
        write_json(path, record)


def _load_student(recipe: Recipe) -> Model:
    name = recipe.student.model
    if recipe.train.from_scratch:
        name = f"{name.partition('@')[0]}@none"
    return load_model(name, dropout=recipe.student.dropout)


def _with_input(model: Model, wish: TeacherRecipe | StudentRecipe) -> Model:
    if isinstance(wish.resolution, int):
        model = set_resolution(model, wish.resolution)
    if wish.crop_pct is not None:
        model = replace(model, input=replace(model.input, crop_pct=wish.crop_pct))
    return model


def _data_line(splits: Splits) -> str:
    extra = f" and {len(splits.unlabelled):,} unlabelled" if splits.unlabelled else ""
    return (
        f"data: {len(splits.train):,} images to train on{extra}, {len(splits.val):,} to choose by, "
        f"{len(splits.test):,} to report on, {len(splits.classes)} classes"
    )


# --- fitting what is new to the data


def fit_teachers(work: Work) -> None:
    """Fit each teacher that the data is new to with hard labels."""
    recipe = work.recipe.teacher.fit
    for place, model in enumerate(work.teachers):
        wanted = recipe == "auto" and model.spec in work.heads.new
        settings = recipe if isinstance(recipe, FitRecipe) else FitRecipe() if wanted else None
        if settings is None or settings.epochs == 0:
            continue
        name = "teacher-fit" if place == 0 else f"teacher-fit-{place + 1}"
        trained = _fit(work, name, model, settings)
        _keep_best(work, model, trained)
        if place == 0:
            _save(work, model, work.run.teacher)


def fit_head(work: Work) -> None:
    """Fit a new head of the student alone: what is compared as the start has seen the data's classes."""
    recipe, student = work.recipe.student.head_fit, work.student
    wanted = recipe == "auto" and student.spec in work.heads.new and student.pretrained
    settings = recipe if isinstance(recipe, FitRecipe) else FitRecipe(lr=3e-3) if wanted else None
    if settings is not None and settings.epochs > 0:
        _keep_best(work, student, _fit(work, "head-fit", student, settings, head_only=True))
    work.start = state_of(student.module)
    _save(work, student, work.run.start)


def _fit(work: Work, name: str, model: Model, fit: FitRecipe, head_only: bool = False) -> Trained:
    base = work.recipe.train
    settings = TrainRecipe(
        epochs=fit.epochs,
        lr=fit.lr,
        weight_decay=fit.weight_decay,
        batch_size=base.batch_size,
        optimizer=base.optimizer,
        seed=base.seed,
        checkpoint_minutes=base.checkpoint_minutes,
        max_bad_steps=base.max_bad_steps,
    )
    view = work.recipe.view
    if not fit.mixed:
        view = view.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    task = Task(LossRecipe(label_smoothing=fit.label_smoothing), distil=False)
    stage = Stage(
        name,
        model,
        settings,
        view,
        task,
        work.splits.train,
        work.splits.val,
        work.heads.index,
        head_only=head_only,
    )
    return train(stage, work.context)


def _keep_best(work: Work, model: Model, trained: Trained) -> None:
    """The best of a fit's states on val, by NLL: a teacher is used for its probabilities."""
    scores = {name: _weigh(work, model, state)["nll"] for name, state in trained.states.items() if state}
    model.module.load_state_dict(trained.states[min(scores, key=scores.__getitem__)])
    model.module.eval()


# --- pre-flight


def check(work: Work) -> None:
    """Measure both models on val, choose the precision, estimate, and stop where there is nothing to teach."""
    recipe, run = work.recipe, work.run
    if run.preflight.exists():
        record = read_json(run.preflight)
        _use_precision(work, record["precision"]["chosen"], record["teacher"]["precision"])
        Teacher(work.teachers, work.device)
        return
    Teacher(work.teachers, work.device)
    checks = preflight.structure(work.teachers, work.student, work.heads)
    chosen, rates = _probe(work)
    targets, teacher = _teacher_on_val(work)
    student = _on_val(work, work.student)
    work.context.progress.say(
        f"pre-flight: on val the teacher has {teacher.top1:.2f} top-1, the student {student.top1:.2f}: "
        f"an advantage of {teacher.top1 - student.top1:+.2f} points"
    )
    checks += preflight.strength(
        teacher, student, len(work.heads.class_ids), recipe.preflight.allow_weak_teacher
    )
    ahead = preflight.estimate(
        recipe, len(work.splits.train), {k: max(v.values()) for k, v in rates.items()}, work.student, run.path
    )
    work.context.progress.say(
        f"pre-flight: {ahead['steps']:,} steps in {chosen} (teacher in {work.teacher_precision}), "
        f"about {ahead['estimated_seconds'] / 60:.1f} minutes and {ahead['disk_mb']:.0f} MB"
    )
    record = {
        "teacher": _who(work.teachers[0], teacher) | {"precision": work.teacher_precision},
        "student": _who(work.student, student),
        "chance_top1": 100 / len(work.heads.class_ids),
        "advantage": teacher.top1 - student.top1,
        "target_entropy": preflight.entropy(targets, recipe.loss.temperature),
        "precision": {"chosen": chosen, "images_per_s": rates},
        "checks": checks,
        **ahead,
    }
    if work.context.writes:
        write_json(run.preflight, record)


def _who(model: Model, figures: Quality) -> dict[str, Any]:
    return {
        "model": model.spec,
        "origin": model.origin,
        "resolution": model.input.height,
        "val": {"top1": figures.top1, "nll": figures.nll},
    }


def _probe(work: Work) -> tuple[precision.Precision, dict[str, dict[str, float]]]:
    device, size = work.device, work.recipe.train.batch_size
    student, teacher = work.student, work.teachers[0]
    student.module.to(device)
    rates = {
        "student": precision.probe_training(student.module, student.input, size, device),
        "teacher": precision.probe_inference(teacher.module, teacher.input, size, device),
    }
    wanted = work.recipe.train.precision
    chosen = precision.faster(rates["student"]) if wanted == "auto" else wanted
    _use_precision(work, chosen, precision.faster(rates["teacher"]) if wanted == "auto" else wanted)
    return chosen, {who: {str(p): rate for p, rate in found.items()} for who, found in rates.items()}


def _use_precision(work: Work, student: precision.Precision, teacher: precision.Precision) -> None:
    work.context = replace(work.context, precision=student)
    work.teacher_precision = teacher


# --- training


def train_control(work: Work) -> Choice | None:
    """The same student, views and budget with hard labels only, and the same choice on val."""
    return _train_and_choose(work, "control") if work.recipe.control else None


def train_student(work: Work) -> Choice:
    """Distil, choose on val, and keep the choice as the run's student."""
    choice = _train_and_choose(work, "distill")
    if work.context.writes:
        write_json(work.run.candidates, choice.record())
    return choice


def _train_and_choose(work: Work, name: str) -> Choice:
    recipe, student = work.recipe, work.student
    distil = name == "distill"
    student.module.load_state_dict(work.start)
    teacher = Teacher(work.teachers, work.device, work.teacher_precision) if distil else None
    task = Task(
        recipe.loss,
        distil=distil,
        l2_sp=recipe.train.l2_sp,
        start={name: tensor.to(work.device) for name, tensor in work.start.items()},
    )
    splits = work.splits
    stage = Stage(
        name,
        student,
        recipe.train,
        recipe.view,
        task,
        join(splits.train, splits.unlabelled) if distil and splits.unlabelled else splits.train,
        splits.val,
        work.heads.index,
        teacher=teacher,
        val_targets=_teacher_on_val(work)[0] if distil else None,
    )
    trained = train(stage, work.context)
    choice = choose(
        work.start,
        trained.states,
        weigh=lambda state: _weigh(work, student, state),
        mend=lambda state: _mend(work, state),
        recipe=recipe.choose
        if not recipe.train.from_scratch
        else recipe.choose.model_copy(update={"interpolate": False}),
    )
    kept = best_of(choice.candidates, recipe.choose.metric)
    student.module.load_state_dict(kept.state)
    _save(work, student, work.run.student if distil else work.run.control)
    return choice


def _mend(work: Work, state: State) -> State:
    module = work.student.module
    if work.recipe.train.frozen_batchnorm or not batchnorm.has_batchnorm(module):
        return state
    module.load_state_dict(state)
    batchnorm.recalibrate(module, work.student.input, work.splits.train, work.device)
    return state_of(work.student.module)


# --- figures


def measure(work: Work, control: Choice | None, choice: Choice) -> dict[str, Any]:
    """The table and the verdict on test."""
    student = work.student
    teacher_state = state_of(work.teachers[0].module)
    contestants = [
        Contestant("teacher", work.teachers[0], teacher_state),
        Contestant("start", student, work.start),
        *([Contestant("control", student, control.kept.state)] if control else []),
        Contestant("distilled", student, choice.kept.state),
    ]
    return prove(contestants, work.splits.test, work.heads, choice.kept.name, work.context)


def _teacher_on_val(work: Work) -> tuple[Tensor, Quality]:
    """The teachers' joint logits on val, and their quality."""
    said = [_logits_on_val(work, model) for model in work.teachers]
    logits, labels = [entry[0] for entry in said], said[0][1]
    joint = logits[0] if len(logits) == 1 else mean_teacher_logits(logits)
    return joint, quality(joint, labels)


def _weigh(work: Work, model: Model, state: State) -> dict[str, float]:
    model.module.load_state_dict(state)
    figures = _on_val(work, model)
    return {"top1": figures.top1, "nll": figures.nll}


def _on_val(work: Work, model: Model) -> Quality:
    return quality(*_logits_on_val(work, model))


def _logits_on_val(work: Work, model: Model) -> tuple[Tensor, Tensor]:
    part = work.splits.val
    context = work.context
    said = predict_logits(
        model.module, model.input, part, context.accelerator, workers=context.workers, bad=context.bad
    )
    return said.logits, torch.from_numpy(work.heads.labels(part.labels))[said.index]


def _save(work: Work, model: Model, path: Path) -> None:
    """Weights with what is needed to use them: name, classes, input."""
    if work.context.writes:
        named = replace(model, class_ids=work.heads.class_ids)
        save_weights(model.module, path, named.metadata())


def show(run: Run, progress: Progress) -> None:
    """Print what a finished run has to say, and where it lies."""
    result = read_json(run.comparison)
    progress.table(Table([Row.from_dict(row) for row in result["rows"]]))
    progress.say(result["verdict"]["sentence"])
    progress.say(f"everything is in {run.path}")
