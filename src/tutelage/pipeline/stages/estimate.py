"""An estimate of the time and the disk space that a run takes from its pre-flight on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe
from tutelage.data.splits import Splits
from tutelage.distillation.selection import count
from tutelage.distillation.targets.layout import Layout
from tutelage.distillation.teacher import passes
from tutelage.models import batchnorm
from tutelage.models.source import Model

CHECKPOINT_COPIES = 5  # of the weights in a checkpoint: model, EMA, best, and two moments of the optimizer
TRAINED = 2  # states that are candidates: the last and the best one, and the EMA's where there is one


@dataclass(frozen=True)
class Amounts:
    """Numbers of images.

    Attributes:
        train: that control and student are trained on, unlabelled ones included.
        val: for model selection.
        test: for the final evaluation.
        measured: training images on which BatchNorm statistics are measured again.
    """

    train: int
    val: int
    test: int
    measured: int

    @classmethod
    def of(cls, splits: Splits) -> Amounts:
        """Count the images of a run."""
        labelled = len(splits.train)
        images = labelled + len(splits.unlabelled or ())
        return cls(images, len(splits.val), len(splits.test), min(labelled, batchnorm.IMAGES))


def estimate(
    recipe: Recipe,
    images: Amounts,
    rates: Mapping[str, float],
    student: Model,
    place: Path,
    spent: float = 0.0,
    pooled: int = 0,
    screened: bool = False,
) -> dict[str, Any]:
    """Estimate the steps, the seconds and the disk space (MB of 10^6 bytes) that a run needs from its pre-flight on.

    Args:
        recipe: has the epochs and the batch size.
        images: of the run.
        rates: images/s of ``student`` (a training step), ``teacher`` (inference; missing where answers are looked up)
            and ``student_inference``, of all processes together.
        student: decides the size of the checkpoints, and whether candidates have new BatchNorm statistics.
        place: directory of the run.
        spent: seconds that the pre-flight has taken.
        pooled: number of the teacher's pooled features that its cached targets hold for each image.
        screened: whether candidates are compared in a faster precision first.

    Returns:
        `steps`, `disk_mb`, `estimated_seconds`, and the `seconds` of each part: ``preflight``, ``training`` (with the
        teacher's targets, and val after each epoch), ``selection`` on val, and ``test``.

    Raises:
        TutelageError: the disk has less space than needed.
    """
    epochs, trainings = recipe.train.epochs, 2 if recipe.control else 1
    averaged = int(recipe.train.ema > 0)
    teacher_passes = passes(recipe)
    looks = (1 + recipe.targets.flip) * (1 + len(recipe.targets.resolutions))
    answer = 1 / rates["teacher"] if "teacher" in rates else 0.0
    asked = teacher_passes * looks * answer
    inference = 1 / rates["student_inference"]
    validated = trainings * epochs * (1 + averaged) * images.val
    selected = trainings * _selection_images(recipe, images, student, TRAINED + averaged, screened)
    students = 2 + trainings  # start, control and student, and often a linear probe
    seconds = {
        "preflight": spent,
        "training": images.train * (epochs * trainings / rates["student"] + asked) + validated * inference,
        "selection": selected * inference,
        "test": images.test * (answer + students * inference),
    }
    size = sum(t.numel() * t.element_size() for t in student.module.state_dict().values())
    disk = size * (CHECKPOINT_COPIES * trainings + 3) / 1e6
    if recipe.targets.mode == "cached":
        layout = Layout(images.train, student.num_classes, recipe.targets.top_k, pooled=pooled)
        disk += teacher_passes * layout.view_bytes / 1e6
    free = shutil.disk_usage(place).free / 1e6
    if disk > free:
        raise TutelageError(
            f"{place}: the run needs about {disk:.0f} MB, the disk has {free:.0f} MB left; free some space"
        )
    steps = images.train // recipe.train.batch_size * epochs * trainings
    total = sum(seconds.values())
    return {"steps": steps, "estimated_seconds": total, "seconds": seconds, "disk_mb": disk}


def _selection_images(recipe: Recipe, images: Amounts, student: Model, states: int, screened: bool) -> int:
    """Count the images that pass through the student while the candidates of one training are compared, at most."""
    measured_again = batchnorm.has_batchnorm(student.module) and not recipe.train.frozen_batchnorm
    interpolate = recipe.selection.interpolate and student.pretrained
    wish = recipe.selection.model_copy(update={"interpolate": interpolate})
    work = count(states, wish, measured_again, screened)
    few = min(images.measured, batchnorm.SCREENED)
    return work.evaluations * images.val + work.recalibrations * images.measured + work.screened * few
