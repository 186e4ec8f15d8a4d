"""The images of a run, and its models with heads that have the same classes in the same order; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import FitRecipe, Recipe, StudentRecipe, TeacherRecipe
from tutelage.core.runtime import Runtime
from tutelage.core.values import RANGE
from tutelage.data.doctor.classes import class_lines
from tutelage.data.duplicates import Known
from tutelage.data.loading import Loading
from tutelage.data.order import check_share, labelled_in_batch
from tutelage.data.splits import Splits, Subset, make_splits
from tutelage.distillation.looks import Looks
from tutelage.distillation.objective import check_layers
from tutelage.distillation.teacher import pooled_width
from tutelage.distillation.two_heads import TwoHeads
from tutelage.evaluation.class_order import name_classes
from tutelage.models.class_mapping import ClassMapping, align_heads, own_classes
from tutelage.models.registry import from_scratch, load_model
from tutelage.models.source import Model
from tutelage.pipeline.stages.own_head import STUDENT, TEACHER, HeadChoice, choose_heads, has_new_head

Say = Callable[[str], object]


@dataclass(frozen=True)
class Assembled:
    """The images and the models of a recipe.

    Attributes:
        recipe: without a control where no training image has a label.
        splits: its images.
        class_mapping: how the labels of the data map to the heads of all models.
        teachers: as loaded, with heads for the data's classes.
        student: as loaded, with a head for the data's classes.
        heads: by key of the recipe, which head a model begins with, where the recipe leaves it to the run.
    """

    recipe: Recipe
    splits: Splits
    class_mapping: ClassMapping
    teachers: tuple[Model, ...]
    student: Model
    heads: Mapping[str, HeadChoice]

    def lines(self) -> Iterator[str]:
        """Describe the images and the models."""
        yield from self.splits.notes
        yield from _data_lines(self.splits, self.recipe)
        for name, model in [*(("teacher", teacher) for teacher in self.teachers), ("student", self.student)]:
            licence = f", licence of the weights: {model.licence}" if model.licence else ""
            cut = f", its head cut to the {model.num_classes:,} classes of the data"
            less = cut if model.spec in self.class_mapping.cut else ""
            yield f"{name}: {model.spec} ({model.origin}), {model.sees}{less}{licence}"
            if model.looks_up:
                yield f"{name}: all views of an image have the answer that is stored for the whole image"


def assemble(
    recipe: Recipe,
    runtime: Runtime,
    loading: Loading,
    say: Say,
    heads: Mapping[str, HeadChoice] | None = None,
) -> Assembled:
    """Open the images and load the models, with heads that have the same classes in the same order.

    Args:
        recipe: of the run.
        runtime: on which a head without names is compared with the images, to name its classes.
        loading: how images are loaded for that.
        say: receives what was found out about such a head.
        heads: which heads the run has chosen before, when it is resumed; None: they are chosen now.

    Raises:
        TutelageError: data or models are missing or do not fit.
    """
    torch.manual_seed(recipe.train.seed)  # for new heads and students from scratch
    splits = shared_splits(recipe, runtime)
    if recipe.train.labelled_share is not None:
        labelled = len(splits.train) if splits.train.labelled else 0
        images = splits.images
        check_share(recipe.train.labelled_share, labelled, images - labelled)
    shown = {role: part for role, part in splits.parts.items() if role != "teacher"}
    loaded = [load_model(name).for_images(shown) for name in (recipe.teacher.model, *recipe.teacher.others)]
    _check_stored(recipe, loaded)
    _check_fit(recipe, loaded)
    recipe = _without_labels(recipe, splits)
    if not splits.classes:
        splits = splits.with_classes(own_classes(loaded[0]))
    student = _load_student(recipe)

    def named(model: Model, wish: TeacherRecipe | StudentRecipe) -> Model:
        return _with_classes(model, wish, splits.val, runtime, loading, say)

    loaded = [named(model, recipe.teacher) for model in loaded]
    student = named(student, recipe.student)
    if heads is None:
        both = {
            TEACHER: (loaded[0], lambda model: _with_input(model, recipe.teacher)),
            STUDENT: (student, lambda model: _with_input(model, recipe.student)),
        }
        heads = choose_heads(recipe, both, splits, runtime, loading)
        for key, choice in heads.items():
            say(f"auto: {key} = {choice.head} ({choice.why})")
    torch.manual_seed(recipe.train.seed)  # so that the teacher's new head does not depend on the student
    teachers, student, class_mapping = align_heads(
        loaded,
        student,
        splits.classes,
        new_teachers=has_new_head(TEACHER, recipe.teacher.fit, heads),
        new_student=has_new_head(STUDENT, recipe.student.head_fit, heads),
        all_classes=recipe.student.all_classes,
    )
    if recipe.loss.two_heads:
        TwoHeads(student)  # raises an error where the student cannot have two, before any work
    teachers = [_with_input(t, recipe.teacher) for t in teachers]
    student = _with_input(student, recipe.student)
    check_layers(recipe.loss, student, teachers[0], splits.images)
    pooled_width(recipe, teachers[0])  # likewise, where a cache cannot hold the teacher's features
    for teacher in teachers:
        Looks(resolutions=recipe.targets.resolutions).check(teacher)
    return Assembled(recipe, splits, class_mapping, tuple(teachers), student, heads)


def shared_splits(recipe: Recipe, runtime: Runtime) -> Splits:
    """Open and split the images. The first process alone reads files to find copies, and tells the others."""
    made: list[Splits] = []

    def look() -> Known:
        made.append(make_splits(recipe.data))
        return made[0].copies

    copies = runtime.on_main(look)
    return made[0] if made else make_splits(recipe.data, copies)


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
    if recipe.loss.class_weights != "none":
        raise TutelageError(
            f"loss.class_weights={recipe.loss.class_weights}: no training image has a label; leave it out"
        )
    if recipe.train.lr == RANGE:
        raise TutelageError("train.lr=range: no training image has a label to test rates with; leave it out")
    return recipe.model_copy(update={"control": False})


def _check_stored(recipe: Recipe, teachers: Sequence[Model]) -> None:
    """Refuse settings that need a teacher that looks at images, where the answers of one are stored.

    Raises:
        TutelageError: names the key.
    """
    stored = next((model.spec for model in teachers if model.looks_up), None)
    if stored is None:
        return
    view, targets = recipe.view, recipe.targets
    for key, asked in {
        "view.mixup": view.mixup,
        "view.cutmix": view.cutmix,
        "targets.flip": targets.flip,
        "targets.resolutions": targets.resolutions,
        "teacher.resolution": recipe.teacher.resolution if recipe.teacher.resolution != "own" else None,
        "teacher.crop_pct": recipe.teacher.crop_pct,
    }.items():
        if asked:
            raise TutelageError(
                f"{key}={asked}: {stored} has stored answers for whole images alone; leave {key} out, or name a "
                "teacher that sees the images"
            )


def _check_fit(recipe: Recipe, teachers: list[Model]) -> None:
    """Refuse a fit of a teacher whose weights cannot be trained, such as a file that another program runs."""
    fit = recipe.teacher.fit
    for model in teachers:
        if isinstance(fit, FitRecipe) and fit.epochs != 0 and not _can_be_trained(model):
            raise TutelageError(
                f"teacher.fit: {model.spec} has no weights that can be trained; leave teacher.fit out"
            )


def _can_be_trained(model: Model) -> bool:
    return any(weight.requires_grad for weight in model.module.parameters())


def _load_student(recipe: Recipe) -> Model:
    name = recipe.student.model
    if recipe.train.from_scratch:
        name = from_scratch(name)
    student = load_model(name, dropout=recipe.student.dropout)
    if not _can_be_trained(student):
        raise TutelageError(
            f"student.model={name}: has no weights that can be trained, so that it can only be a teacher; name one of "
            "timm's models, such as tf_efficientnet_lite0"
        )
    return student


def _with_classes(
    model: Model,
    wish: TeacherRecipe | StudentRecipe,
    val: Subset,
    runtime: Runtime,
    loading: Loading,
    say: Say,
) -> Model:
    """The model with the classes of its head, where it names none and the images for model selection show them."""
    if not model.pretrained or model.class_ids is not None or model.num_classes != len(val.classes):
        return model
    # at the resolution at which it will be used: its head is kept, so that this is its last change
    model, note = name_classes(_with_input(model, wish), val, runtime, loading)
    if note:
        say(note)
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
    if splits.teacher:
        lines.append(
            f"data: the teacher is fitted to {len(splits.teacher):,} images of its own, {splits.teacher.images.name}"
        )
    lines += class_lines(splits)
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
