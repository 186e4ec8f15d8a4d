"""Splits and models, with heads that agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tutelage import resolutions
from tutelage.context import Context, new_accelerator
from tutelage.data.decoded import decode_once
from tutelage.data.loading import BadImages
from tutelage.data.splits import Splits, make_splits
from tutelage.errors import TutelageError
from tutelage.heads import agree
from tutelage.inputs import InputSpec
from tutelage.models import Model, load_model, set_resolution
from tutelage.progress import Progress, Silent
from tutelage.recipe import Recipe, StudentRecipe, TeacherRecipe
from tutelage.run import Run, entry, read_json, write_json
from tutelage.stations.work import Work


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
