"""Teacher and student checked before money is spent."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe
from tutelage.distillation.targets.layout import Layout
from tutelage.distillation.teacher import passes
from tutelage.evaluation.quality import Quality
from tutelage.models.class_mapping import ClassMapping
from tutelage.models.source import Model

NEAR_CHANCE = 2.0  # a teacher below so many times chance teaches noise
CHECKPOINT_COPIES = 5  # model, EMA, best, and two moments of the optimizer


def structure(teachers: Sequence[Model], student: Model, class_mapping: ClassMapping) -> list[dict[str, Any]]:
    """What must hold whatever the accuracies are: a frozen teacher in eval mode, one list of classes."""
    frozen = all(not p.requires_grad for t in teachers for p in t.module.parameters())
    still = all(not m.training for t in teachers for m in t.module.modules())
    align_heads = all(m.num_classes == len(class_mapping.class_ids) for m in [*teachers, student])
    return [
        _check("teacher frozen", frozen, "no parameter of the teacher takes a gradient"),
        _check("teacher in eval mode", still, "dropout off, BatchNorm statistics untouched"),
        _check("heads agree", align_heads, f"{len(class_mapping.class_ids)} classes in one order"),
    ]


def strength(teacher: Quality, student: Quality, classes: int, allow_weak: bool) -> list[dict[str, Any]]:
    """Whether there is something to be taught.

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
            raise TutelageError(
                f"pre-flight: not so: {check['name']} ({check['detail']}); fit it with teacher.fit, check its "
                "classes and resolution, or set preflight.allow_weak_teacher=true"
            )
    return checks


def estimate(
    recipe: Recipe, images: int, rates: dict[str, float], student: Model, place: Path
) -> dict[str, Any]:
    """Steps, seconds and disk of what lies ahead.

    Args:
        recipe: says how long.
        images: of the training part.
        rates: images/s of `student` (a training step) and `teacher` (inference), as probed.
        student: for the size of its checkpoints.
        place: where the run is written.

    Raises:
        TutelageError: the disk has less room than needed.
    """
    epochs = recipe.train.epochs
    step = 1 / rates["student"]
    looks = passes(recipe)  # of the teacher at each image
    seconds = images * (epochs * step * (2 if recipe.control else 1) + looks / rates["teacher"])
    size = sum(t.numel() * t.element_size() for t in student.module.state_dict().values())
    disk = size * (CHECKPOINT_COPIES * (2 if recipe.control else 1) + 3) / 2**20
    if recipe.targets.mode == "cached":
        disk += looks * Layout(images, student.num_classes, recipe.targets.top_k).view_bytes / 2**20
    free = shutil.disk_usage(place).free / 2**20
    if disk > free:
        raise TutelageError(
            f"{place}: the run needs about {disk:.0f} MB, the disk has {free:.0f} MB left; free some"
        )
    steps = images // recipe.train.batch_size * epochs * (2 if recipe.control else 1)
    return {"steps": steps, "estimated_seconds": seconds, "disk_mb": disk}


def _check(name: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail}
