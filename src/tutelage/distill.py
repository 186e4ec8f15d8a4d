"""The stations of a run, in order. Each leaves its part in the run directory, so a run can go on anywhere.

data -> models -> teacher's fit -> pre-flight -> control -> train -> choose -> measure -> diagnose -> report
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor

from tutelage import batchnorm, precision, preflight, resolutions
from tutelage.checkpoint import State, state_of
from tutelage.choose import Choice, choose
from tutelage.context import Context, new_accelerator
from tutelage.data.decoded import decode_once
from tutelage.data.joined import join
from tutelage.data.loading import BadImages
from tutelage.data.splits import Part, Splits, make_splits
from tutelage.diagnose import Figures, diagnose, lines
from tutelage.diagnose.evidence import of_training
from tutelage.errors import TutelageError
from tutelage.evaluate import Predictions, in_common, predict_logits
from tutelage.heads import Heads, agree
from tutelage.inputs import InputSpec
from tutelage.losses import mean_teacher_logits
from tutelage.measure import targets as soft_targets
from tutelage.measure.quality import Quality, quality
from tutelage.measure.table import Row, Table
from tutelage.models import Model, load_model, save_weights, set_resolution
from tutelage.progress import Progress, Silent, Tracked
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
from tutelage.report.build import write_report
from tutelage.run import Run, entry, read_json, write_digests, write_json, write_text
from tutelage.sharing import made_once, stage_key, state_digest, train_once
from tutelage.task import Task
from tutelage.teacher import TargetSource, Teacher, cached_teacher
from tutelage.trackers import open_trackers
from tutelage.train import Interrupted, Stage, Trained, stop_requests, train
from tutelage.versions import versions

TRAIN_IMAGES = 500  # of which the teacher's answers are held against the labels


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
    accelerator = new_accelerator()
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


def distill(recipe: Recipe, run: Run, progress: Progress, shared: Path | None = None) -> dict[str, Any]:
    """Run all stations that are not done yet, and return comparison.json's content.

    Args:
        recipe: of the run.
        run: its directory.
        progress: told what happens.
        shared: where runs of a study keep what they would compute alike; None: a run by itself.

    Raises:
        TutelageError: bad input, or the pre-flight says no.
        Interrupted: asked to stop; `distill` on the same run goes on.
    """
    accelerator = new_accelerator()
    with run.held() if accelerator.is_main_process else nullcontext():
        tracker = open_trackers(recipe.track if accelerator.is_main_process else (), run)
        tracker.on_start(recipe.model_dump(mode="json"))
        work = prepare(recipe, run, Tracked(progress, tracker), shared)
        fit_teachers(work)
        fit_head(work)
        check(work)
        control = train_control(work)
        choice = train_student(work)
        result = measure(work, control, choice)
        explain(work)
        if accelerator.is_main_process:
            if recipe.export.enabled:
                deploy(run, progress)
            write_digests(run)
            page = write_report(run)
            tracker.on_end([page, run.recipe, run.comparison, run.diagnosis, run.student], work.student)
            shutil.rmtree(run.cache, ignore_errors=True)  # it was for the next epoch
        accelerator.wait_for_everyone()
    return result


# --- data and models


def prepare(recipe: Recipe, run: Run, progress: Progress, shared: Path | None = None) -> Work:
    """Splits and models, with heads that agree."""
    torch.manual_seed(recipe.train.seed)  # new heads and students from scratch begin the same
    splits = make_splits(recipe.data)
    names = [recipe.teacher.model, *recipe.teacher.others]
    loaded, student = [load_model(name) for name in names], _load_student(recipe)
    torch.manual_seed(recipe.train.seed)  # so that the teacher's new head does not depend on the student
    teachers, student, heads = agree(loaded, student, splits.classes)
    teachers = [_with_input(t, recipe.teacher) for t in teachers]
    student = _with_input(student, recipe.student)
    accelerator = new_accelerator()
    context = Context(
        run,
        accelerator,
        progress if accelerator.is_main_process else Silent(),
        recipe.data.workers,
        BadImages(recipe.data.max_bad_images),
        shared=shared,
    )
    _record_splits(splits, context)
    context.progress.say(_data_line(splits))
    for who, model in [*(("teacher", t) for t in teachers), ("student", student)]:
        context.progress.say(f"{who}: {model.spec} ({model.origin}), {model.input.height} px")
    splits = _decoded(recipe, splits, _inputs(recipe, teachers, student), context)
    return Work(recipe, context, splits, teachers, student, heads)


def _record_splits(splits: Splits, context: Context) -> None:
    """Keep what the images are, or see that they are still the same."""
    record, path = splits.record(), context.run.splits
    if path.exists():
        before = entry(path, "parts")
        changed = [role for role, part in record["parts"].items() if part != before.get(role)]
        if changed:
            raise TutelageError(
                f"data.{changed[0]}: the images changed since the run began ({path}); "
                "put them back, or begin a new run"
            )
    elif context.writes:
        write_json(path, record)


def _inputs(recipe: Recipe, teachers: list[Model], student: Model) -> list[InputSpec]:
    """Of all models, at the highest resolution they may look at the images with."""
    probed = recipe.preflight.probe_resolutions
    taught = [model.input for model in teachers]
    if probed or recipe.teacher.resolution == "best":
        taught = [resolutions.reach(spec) for spec in taught]
    return [*taught, resolutions.reach(student.input) if probed else student.input]


def _decoded(recipe: Recipe, splits: Splits, specs: list[InputSpec], context: Context) -> Splits:
    """Images decoded once, as far as they fit; a resumed run does as it did before."""
    path = context.run.splits
    with context.accelerator.main_process_first():
        record = read_json(path)
        splits, decoded = decode_once(splits, specs, recipe, context, record.get("decoded"))
        if context.writes:
            write_json(path, record | {"decoded": decoded})
    return splits


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
    return train_once(stage, work.context)


def _keep_best(work: Work, model: Model, trained: Trained) -> None:
    """The best of a fit's states on val, by NLL: a teacher is used for its probabilities."""
    scores = {name: _weigh(work, model, state)["nll"] for name, state in trained.states.items() if state}
    model.module.load_state_dict(trained.states[min(scores, key=scores.__getitem__)])
    model.module.eval()


# --- pre-flight


def check(work: Work) -> None:
    """Measure both models on val, choose the precision, estimate, and stop where there is nothing to teach."""
    with made_once(work.context, work.run.preflight, lambda: _preflight_key(work)):
        _check(work)


def _preflight_key(work: Work) -> dict[str, Any]:
    recipe = work.recipe
    return {
        "recipe": recipe.model_dump(mode="json", include={"teacher", "student", "preflight", "control"}),
        "train": recipe.train.model_dump(mode="json", include={"epochs", "batch_size", "precision"}),
        "temperature": recipe.loss.temperature,
        "metric": recipe.choose.metric,
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
    checks = preflight.structure(work.teachers, work.student, work.heads)
    chosen, rates = _probe(work)
    said, teacher = _teacher_on_val(work)
    student = _on(work, work.student, work.splits.val)
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
        "teacher": _who(work.teachers[0], teacher, _sureness(work, said))
        | {"precision": work.teacher_precision, "train": _teacher_on_train(work)},
        "student": _who(work.student, student),
        "val": {"n": student.n},
        "chance_top1": 100 / len(work.heads.class_ids),
        "advantage": teacher.top1 - student.top1,
        "target_entropy": soft_targets.entropy(said.logits, recipe.loss.temperature),
        "precision": {"chosen": chosen, "images_per_s": rates},
        "checks": checks,
        "resolutions": found,
        **ahead,
    }
    if work.context.writes:
        write_json(run.preflight, record)


def _probe_resolutions(work: Work) -> list[dict[str, Any]]:
    """Figures at neighbouring resolutions: of the teachers where their best is wanted, of all where asked for."""
    asked = work.recipe.preflight.probe_resolutions
    teachers = work.teachers if asked or work.recipe.teacher.resolution == "best" else []
    models = [(_teacher_name(place), model) for place, model in enumerate(teachers)]
    models += [("student", work.student)] if asked else []
    return [row for who, model in models for row in _probed(work, who, model)]


def _probed(work: Work, who: str, model: Model) -> list[dict[str, Any]]:
    part = resolutions.sample(work.splits.val)
    model.module.to(work.device)
    metric = work.recipe.choose.metric
    found = resolutions.probe(model, who, lambda there: _on(work, there, part), metric)
    best = resolutions.best(found, who, metric)
    figures = ", ".join(
        f"{row['resolution']} px: {row['top1']:.2f}" for row in found if row["top1"] is not None
    )
    work.context.progress.say(f"{who} is best at {best} px (top-1 on val at {figures})")
    return found


def _use_resolutions(work: Work, found: list[dict[str, Any]]) -> None:
    if work.recipe.teacher.resolution == "best":
        metric = work.recipe.choose.metric
        work.teachers = [
            set_resolution(model, resolutions.best(found, _teacher_name(place), metric))
            for place, model in enumerate(work.teachers)
        ]


def _teacher_name(place: int) -> str:
    return "teacher" if place == 0 else f"teacher-{place + 1}"


def _sureness(work: Work, said: Predictions) -> dict[str, float]:
    """Whether the teacher is as sure as it is right."""
    return {
        "confidence": soft_targets.confidence(said.logits),
        "best_temperature": soft_targets.best_temperature(said.logits, _labels(work, work.splits.val, said)),
    }


def _teacher_on_train(work: Work) -> dict[str, float] | None:
    """Whether the training labels are what the teacher sees in the plain images; None without labels."""
    part = resolutions.sample(work.splits.train, TRAIN_IMAGES)
    if not (part.labels >= 0).any():
        return None
    figures = _on(work, work.teachers[0], part)
    return {"top1": figures.top1, "nll": figures.nll, "n": figures.n}


def _who(model: Model, figures: Quality, more: dict[str, float] | None = None) -> dict[str, Any]:
    return {
        "model": model.spec,
        "origin": model.origin,
        "resolution": model.input.height,
        "input": model.input.to_dict(),
        "val": {"top1": figures.top1, "nll": figures.nll, "ece": figures.ece, **(more or {})},
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
    both = [precision.faster(rates[who]) if wanted == "auto" else wanted for who in ("student", "teacher")]
    broadcast_object_list(both)  # clocks differ: every process takes what the first one found
    _use_precision(work, *both)
    return both[0], {who: {str(p): rate for p, rate in found.items()} for who, found in rates.items()}


def _use_precision(work: Work, student: precision.Precision, teacher: precision.Precision) -> None:
    work.context = replace(work.context, precision=student)
    work.teacher_precision = teacher


# --- training


def train_control(work: Work) -> State | None:
    """The same student, views and budget with hard labels only, and the same choice on val."""
    if not work.recipe.control:
        return None
    work.student.module.load_state_dict(work.start)
    stage = _stage(work, "control", work.splits.train)
    key = {"stage": stage_key(stage, work.context), "choose": work.recipe.choose.model_dump(mode="json")}
    trained = train_once(stage, work.context)
    with made_once(work.context, work.run.control, lambda: key) as there:
        if there:
            return load_file(work.run.control)
        kept = _choose(work, trained).kept
        work.student.module.load_state_dict(kept.state)
        _save(work, work.student, work.run.control)
    return kept.state


def train_student(work: Work) -> Choice:
    """Distil, choose on val, and keep the choice as the run's student."""
    student, splits = work.student, work.splits
    student.module.load_state_dict(work.start)
    part = join(splits.train, splits.unlabelled) if splits.unlabelled else splits.train
    stage = replace(
        _stage(work, "distill", part),
        teacher=_targets(work, part),
        val_targets=_spread(_teacher_on_val(work)[0], len(splits.val)),
    )
    trained = train(stage, work.context)
    choice = _choose(work, trained)
    evidence = _evidence(work, stage, trained, choice)
    student.module.load_state_dict(choice.kept.state)
    _save(work, student, work.run.student)
    if work.recipe.preflight.probe_resolutions:
        choice = replace(choice, resolutions=_probed(work, "distilled", student))
    if work.context.writes:
        write_json(work.run.candidates, {**choice.record(), "training": evidence})
    return choice


def _stage(work: Work, name: str, part: Part) -> Stage:
    """Of the student, from where it stands; with a task that distils, unless it is the control's."""
    recipe = work.recipe
    task = Task(
        recipe.loss,
        distil=name == "distill",
        l2_sp=recipe.train.l2_sp,
        start={name: tensor.to(work.device) for name, tensor in work.start.items()},
    )
    return Stage(
        name,
        work.student,
        recipe.train,
        recipe.view,
        task,
        part,
        work.splits.val,
        work.heads.index,
        views=recipe.targets.views,
    )


def _choose(work: Work, trained: Trained) -> Choice:
    recipe, student = work.recipe.choose, work.student
    # between random and trained weights there is nothing worth weighing
    interpolate = recipe.interpolate and student.pretrained
    return choose(
        work.start,
        trained.states,
        weigh=lambda state: _weigh(work, student, state),
        mend=lambda state: _mend(work, state),
        recipe=recipe.model_copy(update={"interpolate": interpolate}),
    )


def _targets(work: Work, part: Part) -> TargetSource:
    """The teachers themselves, or what they said of the run's views."""
    teacher = Teacher(work.teachers, work.device, work.teacher_precision)
    if work.recipe.targets.mode == "live":
        return teacher
    with stop_requests() as stop:

        def check() -> None:
            if stop.is_set():
                raise Interrupted

        return cached_teacher(teacher, part, work.recipe, work.context, check)


def _evidence(work: Work, stage: Stage, trained: Trained, choice: Choice) -> dict[str, Any]:
    assert stage.val_targets is not None
    module = work.student.module

    def said(state: State) -> Predictions:
        module.load_state_dict(state)
        return _said_on(work, work.student, work.splits.val)

    return of_training(
        choice,
        trained.states["last"],
        module,
        said,
        work.heads.labels(work.splits.val.labels),
        work.heads.class_ids,
        stage.task,
        stage.val_targets,
    )


def _mend(work: Work, state: State) -> State:
    module = work.student.module
    if work.recipe.train.frozen_batchnorm or not batchnorm.has_batchnorm(module):
        return state
    module.load_state_dict(state)
    batchnorm.recalibrate(module, work.student.input, work.splits.train, work.device)
    return state_of(work.student.module)


# --- figures


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


def deploy(run: Run, progress: Progress) -> None:
    """Write the kept student's deployed files, with rows of their own in the table."""
    from tutelage.deploy.named import export_run  # the extra `deploy` is needed here only

    report = export_run(run, say=progress.say)
    for name, reason in report.rejected.items():
        progress.say(f"{name} is not fit to be deployed: {reason}")


def _teacher_on_val(work: Work) -> tuple[Predictions, Quality]:
    """The teachers' joint logits on val, and their quality."""
    part = work.splits.val
    said = in_common([_said_on(work, model, part) for model in work.teachers])
    logits = [one.logits for one in said]
    joint = Predictions(logits[0] if len(logits) == 1 else mean_teacher_logits(logits), said[0].index)
    return joint, quality(joint.logits, _labels(work, part, joint))


def _spread(said: Predictions, images: int) -> Tensor:
    """Logits (images, C) by position; zeros where an image cannot be decoded."""
    return said.logits.new_zeros(images, said.logits.shape[1]).index_copy_(0, said.index, said.logits)


def _weigh(work: Work, model: Model, state: State) -> dict[str, float]:
    model.module.load_state_dict(state)
    figures = _on(work, model, work.splits.val)
    return {"top1": figures.top1, "nll": figures.nll}


def _on(work: Work, model: Model, part: Part) -> Quality:
    said = _said_on(work, model, part)
    return quality(said.logits, _labels(work, part, said))


def _said_on(work: Work, model: Model, part: Part) -> Predictions:
    context = work.context
    return predict_logits(
        model.module,
        model.input,
        part,
        context.accelerator,
        workers=context.workers,
        bad=context.bad,
    )


def _labels(work: Work, part: Part, said: Predictions) -> Tensor:
    return torch.from_numpy(work.heads.labels(part.labels))[said.index]


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
    for line in lines(read_json(run.diagnosis)["findings"]):
        progress.say(line)
    progress.say(f"everything is in {run.path}; the page to look at is {run.report}")
