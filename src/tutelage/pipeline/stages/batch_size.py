"""How many images a batch has, where the recipe leaves that to the run (``train.batch_size=auto``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, write_json
from tutelage.core.recipe import TrainRecipe
from tutelage.core.values import AUTO
from tutelage.data.joined import join
from tutelage.distillation.batch_memory import LEAST, largest_batch
from tutelage.distillation.checkpoint import state_of
from tutelage.distillation.looks import Looks
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.objective import Objective, body_state, terms_of
from tutelage.distillation.stage import Stage
from tutelage.distillation.teacher import Teacher
from tutelage.distillation.two_heads import TwoHeads
from tutelage.pipeline.choices import choices_of, fitted_teachers, largest_batch_for, record_choice
from tutelage.pipeline.context import Context
from tutelage.pipeline.memo import made_once
from tutelage.pipeline.stages.assemble import Assembled

KEY = "train.batch_size"


def with_batch_size(found: Assembled, context: Context) -> Assembled:
    """Replace ``train.batch_size=auto`` by what fits into memory; a resumed run takes what is recorded.

    All trainings of the run have this batch: the fits of teachers, control and student.

    Args:
        found: images and models of the run.
        context: the runtime has the precision of the recipe, or float32, which needs more memory, where that is auto.

    Raises:
        TutelageError: not even the smallest batch fits.
    """
    if found.recipe.train.batch_size != AUTO:
        return found
    run, runtime = context.run, context.runtime
    path = run.checkpoints / "batch-size.json"
    with made_once(context, path, lambda: _key(found, context)):
        if not runtime.on_main(path.exists):
            chosen, why = _choose(found, context)
            if runtime.is_main:
                write_json(path, {"chosen": chosen, "why": why})
    chosen, why = runtime.on_main(lambda: (int(entry(path, "chosen")), str(entry(path, "why"))))
    if runtime.is_main and KEY not in choices_of(run):
        record_choice(run, KEY, chosen, why)
        context.progress.say(f"auto: {KEY} = {chosen} ({why})")
    train = found.recipe.train.model_copy(update={"batch_size": chosen})
    return replace(found, recipe=found.recipe.model_copy(update={"train": train}))


def _choose(found: Assembled, context: Context) -> tuple[int, str]:
    """Return images of a batch over all processes, the same in each of them, and the reason in words."""
    runtime, processes = context.runtime, context.runtime.world_size
    first = each = max(LEAST, largest_batch_for(found.splits.images) // processes)
    for stage in _stages(found, context):
        each = largest_batch(stage, runtime, context.loading, each)
        del stage  # its network is not there when the next one is trained
    each = runtime.least(each)
    if not each:
        raise TutelageError(
            f"{KEY}=auto: the training steps of not even {LEAST * processes} images fit into the memory of "
            f"{runtime.device}; use smaller models, or a smaller teacher.resolution or student.resolution"
        )
    chosen = each * processes
    if each == first:
        return chosen, "training steps fit into memory with it, and auto takes no more"
    return chosen, f"training steps of {first * processes} images do not fit into memory, of {chosen} they do"


def _stages(found: Assembled, context: Context) -> Iterator[Stage]:
    """Yield what the run will train, on copies: each teacher that is fitted, and the student with its teacher."""
    recipe, splits, mapping = found.recipe, found.splits, found.class_mapping
    fitted = fitted_teachers(recipe, found.teachers, mapping.due) if splits.taught.labelled else {}
    settings = TrainRecipe(optimizer=recipe.train.optimizer, seed=recipe.train.seed)
    for place in fitted:
        yield Stage(
            "teacher-fit",
            found.teachers[place].copied(),
            settings,
            recipe.view,
            Objective([CrossEntropy()]),
            splits.taught,
            splits.val,
            mapping.index,
        )
    device = context.runtime.device
    # a teacher is frozen here, which would keep it from being fitted
    teachers = [model.copied() if place in fitted else model for place, model in enumerate(found.teachers)]
    looks = Looks.of(recipe.targets)
    teacher = Teacher(teachers, device, context.runtime.precision, looks=looks)
    student = TwoHeads(found.student).model if recipe.loss.two_heads else found.student
    start = body_state(student, state_of(student.module), device) if recipe.train.l2_sp else {}
    objective = Objective(
        terms_of(recipe.loss), l2_sp=recipe.train.l2_sp, start=start, two_heads=recipe.loss.two_heads
    )
    yield Stage(
        "distill",
        student.copied(),
        recipe.train,
        recipe.view,
        objective,
        join(splits.train, splits.unlabelled) if splits.unlabelled else splits.train,
        splits.val,
        mapping.index,
        teacher=teacher,
    )


def _key(found: Assembled, context: Context) -> dict[str, Any]:
    """Return what memory depends on; not the weights, so that all seeds have the same batch."""
    recipe, runtime = found.recipe, context.runtime
    return {
        "models": [
            [model.spec, model.num_classes, model.input_spec.to_dict()]
            for model in (*found.teachers, found.student)
        ],
        "fit": recipe.teacher.model_dump(mode="json", include={"fit"}),
        "due": sorted(found.class_mapping.due),
        "loss": recipe.loss.model_dump(mode="json"),
        "targets": recipe.targets.model_dump(mode="json", include={"flip", "resolutions"}),
        "train": recipe.train.model_dump(mode="json", include={"optimizer", "ema", "precision", "l2_sp"}),
        "images": found.splits.images,
        "machine": [runtime.device.type, runtime.world_size],
    }
