"""The first stage: the images, and the models with heads that have the same classes in the same order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, read_json, write_json
from tutelage.core.progress import Progress, Silent
from tutelage.core.recipe import Recipe, StudentRecipe, TeacherRecipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime
from tutelage.data.decoded import decode_once
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import BadImages, Loading
from tutelage.data.order import check_share, labelled_in_batch
from tutelage.data.splits import Splits, Subset, make_splits
from tutelage.distillation.looks import Looks
from tutelage.distillation.two_heads import TwoHeads
from tutelage.evaluation import resolution
from tutelage.evaluation.class_order import name_classes
from tutelage.models.class_mapping import ClassMapping, align_heads, own_classes
from tutelage.models.registry import from_scratch, load_model
from tutelage.models.source import Model
from tutelage.models.weights import save_weights
from tutelage.pipeline.choices import EPOCHS, STEPS, record_choice, with_train_choices
from tutelage.pipeline.context import Context


@dataclass(frozen=True)
class Prepared:
    """The data and the models of a run.

    Attributes:
        recipe: of the run; without a control where no training image has a label.
        context: the run's directory, runtime and progress.
        splits: its images.
        class_mapping: how the labels of the data map to the heads of all models.
        teachers: as loaded, with heads for the data's classes; the first one is `teacher.model`.
        student: as loaded, with a head for the data's classes.
    """

    recipe: Recipe
    context: Context
    splits: Splits
    class_mapping: ClassMapping
    teachers: tuple[Model, ...]
    student: Model

    @property
    def run(self) -> Run:
        """The run directory."""
        return self.context.run

    @property
    def device(self) -> torch.device:
        """The device of models and tensors."""
        return self.context.runtime.device

    @property
    def batch_per_process(self) -> int:
        """Images of a training batch that each process gets."""
        return max(1, self.recipe.train.batch_size // self.context.runtime.world_size)

    def save(self, model: Model, path: Path) -> None:
        """Write a model's weights with its name, classes and input."""
        if self.context.runtime.is_main:
            named = replace(model, class_ids=self.class_mapping.class_ids)
            save_weights(model.module, path, named.metadata())


def prepare(recipe: Recipe, run: Run, progress: Progress, memo: Path | None = None) -> Prepared:
    """Open the images and load the models, with heads that have the same classes in the same order.

    Args:
        recipe: of the run.
        run: its directory.
        progress: receives reports.
        memo: directory where the runs of a study keep results that all of them need; None: a single run.

    Raises:
        TutelageError: data or models are missing or do not fit, or the images have changed since the run began.
    """
    torch.manual_seed(recipe.train.seed)  # for new heads and students from scratch
    splits = make_splits(recipe.data)
    if recipe.train.labelled_share is not None:
        labelled = len(splits.train) if splits.train.labelled else 0
        images = len(splits.train) + len(splits.unlabelled or ())
        check_share(recipe.train.labelled_share, labelled, images - labelled)
    loaded = [load_model(name) for name in (recipe.teacher.model, *recipe.teacher.others)]
    recipe = _without_labels(recipe, splits)
    if not splits.classes:
        splits = splits.with_classes(own_classes(loaded[0]))
    student = _load_student(recipe)
    runtime = Runtime.start()
    if (
        recipe.train.precision != "auto"
    ):  # else each fit measures for itself, and the pre-flight for what follows
        runtime = replace(runtime, precision=recipe.train.precision)
    context = Context(
        run,
        runtime,
        progress if runtime.is_main else Silent(),
        Loading(recipe.data.workers, BadImages(recipe.data.max_bad_images)),
        memo,
    )
    loaded = [_with_classes(model, recipe.teacher, splits.val, context) for model in loaded]
    student = _with_classes(student, recipe.student, splits.val, context)
    torch.manual_seed(recipe.train.seed)  # so that the teacher's new head does not depend on the student
    teachers, student, class_mapping = align_heads(
        loaded,
        student,
        splits.classes,
        new_teachers=recipe.teacher.fit == "probe",
        new_student=recipe.student.head_fit == "probe",
    )
    if recipe.loss.two_heads:
        TwoHeads(student)  # raises an error where the student cannot have two, before any work
    teachers = [_with_input(t, recipe.teacher) for t in teachers]
    student = _with_input(student, recipe.student)
    for teacher in teachers:
        Looks(resolutions=recipe.targets.resolutions).check(teacher)
    _record_splits(splits, context)
    for note in splits.notes:
        context.progress.say(note)
    for line in _data_lines(splits, recipe):
        context.progress.say(line)
    for name, model in [*(("teacher", t) for t in teachers), ("student", student)]:
        context.progress.say(f"{name}: {model.spec} ({model.origin}), {model.input_spec.height} px")
    splits = _decoded(recipe, splits, _inputs(recipe, teachers, student), context)
    recipe = _chosen(recipe, splits, student, context)
    return Prepared(recipe, context, splits, class_mapping, tuple(teachers), student)


def _without_labels(recipe: Recipe, splits: Splits) -> Recipe:
    """Take out of a recipe what needs labels that the images do not have.

    Raises:
        TutelageError: the recipe asks for something that cannot be had without them.
    """
    if not splits.val.labelled:
        for key, asked in (
            ("teacher.resolution=best", recipe.teacher.resolution == "best"),
            ("preflight.probe_resolutions=true", recipe.preflight.probe_resolutions),
        ):
            if asked:
                raise TutelageError(f"{key}: the images for model selection have no labels; leave it out")
    if splits.train.labelled:
        return recipe
    if not recipe.loss.distils_with:
        raise TutelageError(
            "loss: no training image has a label, so that there is nothing to learn from but the teacher; "
            "use loss.name=kl loss.weight=1"
        )
    if recipe.loss.two_heads:
        raise TutelageError(
            "loss.two_heads=true: no training image has a label for the first head; leave it out"
        )
    return recipe.model_copy(update={"control": False})


def _chosen(recipe: Recipe, splits: Splits, student: Model, context: Context) -> Recipe:
    """Replace ``auto`` in the settings of the training, and record what was chosen."""
    images = len(splits.train) + len(splits.unlabelled or ())
    train = with_train_choices(recipe.train, images, student)
    whys = {
        "epochs": f"about {STEPS} steps or more, in {EPOCHS[0]} to {EPOCHS[1]} epochs",
        "lr": "pretrained weights" if student.pretrained else "random weights",
    }
    for key, why in whys.items():
        if (value := getattr(train, key)) != getattr(recipe.train, key) and context.runtime.is_main:
            record_choice(context.run, f"train.{key}", value, why)
            context.progress.say(f"auto: train.{key} = {value} ({why})")
    return recipe.model_copy(update={"train": train})


def _record_splits(splits: Splits, context: Context) -> None:
    """Record the images of the run, or check that they are still the same."""
    record, path = splits.record(), context.run.splits
    if path.exists():
        before = entry(path, "parts")
        changed = [role for role, subset in record["parts"].items() if subset != before.get(role)]
        if changed:
            raise TutelageError(
                f"data.{changed[0]}: the images have changed since the run began ({path}); "
                "restore them, or begin a new run"
            )
    elif context.runtime.is_main:
        write_json(path, record)


def _inputs(recipe: Recipe, teachers: list[Model], student: Model) -> list[InputSpec]:
    """Return the inputs of each model, with the highest resolution that may be used."""
    probed = recipe.preflight.probe_resolutions
    specs = [model.input_spec for model in teachers]
    if probed or recipe.teacher.resolution == "best":
        specs = [resolution.reach(spec) for spec in specs]
    specs += [spec.at(pixels) for spec in specs for pixels in recipe.targets.resolutions]
    return [*specs, resolution.reach(student.input_spec) if probed else student.input_spec]


def _decoded(recipe: Recipe, splits: Splits, specs: list[InputSpec], context: Context) -> Splits:
    """Decode the images once, as far as they fit on the disk; a resumed run makes the same choice again."""
    path = context.run.splits
    with context.runtime.accelerator.main_process_first():
        record = read_json(path)
        splits, decoded = decode_once(
            splits,
            specs,
            recipe,
            context.cache_directory(recipe) / "images",
            context.progress,
            record.get("decoded"),
        )
        if context.runtime.is_main:
            write_json(path, record | {"decoded": decoded})
    return splits


def _load_student(recipe: Recipe) -> Model:
    name = recipe.student.model
    if recipe.train.from_scratch:
        name = from_scratch(name)
    return load_model(name, dropout=recipe.student.dropout)


def _with_classes(model: Model, wish: TeacherRecipe | StudentRecipe, val: Subset, context: Context) -> Model:
    """The model with the classes of its head, where it names none and the images for model selection show them."""
    if not model.pretrained or model.class_ids is not None or model.num_classes != len(val.classes):
        return model
    # at the resolution at which it will be used: its head is kept, so that this is its last change
    model, note = name_classes(_with_input(model, wish), val, context.runtime, context.loading)
    if note:
        context.progress.say(note)
    return model


def _with_input(model: Model, wish: TeacherRecipe | StudentRecipe) -> Model:
    if isinstance(wish.resolution, int):
        model = model.at(wish.resolution)
    if wish.crop_pct is not None:
        model = replace(model, input_spec=replace(model.input_spec, crop_pct=wish.crop_pct))
    return model


def _data_lines(splits: Splits, recipe: Recipe) -> list[str]:
    """Describe the images of a run, and how the labelled ones are used."""
    extra = f" and {len(splits.unlabelled):,} unlabelled" if splits.unlabelled else ""
    lines = [
        f"data: {len(splits.train):,} training images{extra}, {len(splits.val):,} for model selection, "
        f"{len(splits.test):,} for final evaluation, {len(splits.classes)} classes"
    ]
    if not splits.train.labelled:
        measured = "is measured" if splits.test.labelled else "is claimed"
        lines.append(
            f"data: no training image of {splits.train.images.name} has a label: the student learns from the teacher "
            f"alone, there is no labels-only control, and {'' if splits.test.labelled else 'no '}accuracy {measured}"
        )
    if (most := recipe.data.labels_per_class) is not None:
        fewer = int((np.bincount(splits.train.labels, minlength=len(splits.classes)) < most).sum())
        less = f"; {fewer} classes have fewer" if fewer else ""
        lines.append(f"data: of each class, at most {most} training images keep their label{less}")
    if (share := recipe.train.labelled_share) is not None:
        batch = recipe.train.batch_size
        labelled = labelled_in_batch(share, batch)
        lines.append(f"data: {labelled} of the {batch} images in each of the student's batches are labelled")
    return lines
