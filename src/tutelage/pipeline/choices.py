"""The values that a run chooses for the keys that its recipe leaves to it (``auto``), kept in ``choices.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tutelage.core.components import FitRecipe, TrainRecipe
from tutelage.core.files import read_json, write_json
from tutelage.core.recipe import Recipe, load_recipe
from tutelage.core.run_dir import Run
from tutelage.core.values import AUTO
from tutelage.models.source import Model

STEPS = 800  # of control and student, at least: fewer leave a network under-trained
FIT_STEPS = 400  # of a teacher's fit, at least
EPOCHS = (16, 40)  # of control and student: bounds on that; in 6 little of the teacher was learnt
FIT_EPOCHS = (4, 20)
BATCH = 64  # of control and student, at most: the rates below suit no larger one
PRETRAINED_LR, RANDOM_LR = 3e-4, 3e-3  # of AdamW


def with_train_choices(train: TrainRecipe, images: int, student: Model) -> TrainRecipe:
    """Replace ``auto`` in the settings of the training of control and student.

    Args:
        train: of the recipe.
        images: number of training images, unlabelled ones included.
        student: pretrained or random weights decide the learning rate.
    """
    chosen: dict[str, Any] = {}
    batch_size = train.batch_size
    if batch_size == AUTO:  # before a run, which may find that memory does not suffice for it
        chosen["batch_size"] = batch_size = largest_batch_for(images)
    if train.epochs == AUTO:
        chosen["epochs"] = epochs_for(STEPS, images, batch_size, EPOCHS)
    if train.lr == AUTO:
        chosen["lr"] = rate_for(student)
    return train.model_copy(update=chosen)


def with_fit_choices(fit: FitRecipe, images: int, batch_size: int, model: Model) -> FitRecipe:
    """Replace ``auto`` in the settings of a fit, likewise."""
    chosen: dict[str, Any] = {}
    if fit.epochs == AUTO:
        steps, bounds = (FIT_STEPS, FIT_EPOCHS) if model.pretrained else (STEPS, EPOCHS)
        chosen["epochs"] = epochs_for(steps, images, batch_size, bounds)
    if fit.lr == AUTO:
        chosen["lr"] = rate_for(model)
    return fit.model_copy(update=chosen)


def fitted_teachers(recipe: Recipe, teachers: Sequence[Model], due: frozenset[str]) -> dict[int, FitRecipe]:
    """Return the settings of the fit of each teacher that is trained further than a linear probe, by its place.

    Args:
        recipe: of the run.
        teachers: of the run.
        due: models (by what the user wrote) whose head is new, or cut from a larger one.
    """
    asked = recipe.teacher.fit
    found = {}
    for place, model in enumerate(teachers):
        settings = asked if isinstance(asked, FitRecipe) else None
        if asked == "auto" and model.spec in due:
            settings = FitRecipe()
        if settings is not None and settings.epochs != 0:
            found[place] = settings
    return found


def epochs_for(steps: int, images: int, batch_size: int, bounds: tuple[int, int]) -> int:
    """Return the number of epochs in which at least `steps` steps are made, within bounds."""
    least, most = bounds
    return min(max(math.ceil(steps / max(images // batch_size, 1)), least), most)


def largest_batch_for(images: int) -> int:
    """Return the batch size that ``auto`` begins with: `BATCH`, halved until there are as many training images."""
    size = BATCH
    while size > max(2, images):
        size //= 2
    return size


def rate_for(model: Model) -> float:
    """Return the learning rate for pretrained or for random weights."""
    return PRETRAINED_LR if model.pretrained else RANDOM_LR


def record_choice(run: Run, key: str, value: Any, why: str) -> None:
    """Add what was chosen for a key of the recipe; call it in the first process only."""
    write_json(run.choices, choices_of(run) | {key: {"value": value, "why": why}})


def choices_of(run: Run) -> dict[str, dict[str, Any]]:
    """Read what a run has chosen: by key of the recipe the value, and why."""
    found: dict[str, dict[str, Any]] = read_json(run.choices) if run.choices.exists() else {}
    return found


def settings_of(run: Run) -> Recipe:
    """Read the recipe of a run with the values that the run chose.

    Raises:
        TutelageError: a file is missing or damaged.
    """
    recipe = load_recipe(run.recipe)
    for key, entry in choices_of(run).items():
        part, _, name = key.partition(".")
        if part not in {"train", "loss"}:  # a fit is over when its choices are read
            continue
        component = getattr(recipe, part).model_copy(update={name: entry["value"]})
        recipe = recipe.model_copy(update={part: component})
    if recipe.loss.teacher_temperature == AUTO:  # a run of an older version, or before its pre-flight
        loss = recipe.loss.model_copy(update={"teacher_temperature": 1.0})
        recipe = recipe.model_copy(update={"loss": loss})
    return recipe
