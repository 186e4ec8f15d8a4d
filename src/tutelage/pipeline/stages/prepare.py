"""The first stage: the images, and the models with heads that have the same classes in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tutelage.core.errors import TutelageError
from tutelage.core.files import entry, read_json, write_json
from tutelage.core.progress import Progress, Silent
from tutelage.core.recipe import Recipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime
from tutelage.data.decoded import Decided, decode_once
from tutelage.data.doctor.classes import class_lines
from tutelage.data.input_spec import InputSpec
from tutelage.data.kept import KeptPixels
from tutelage.data.loading import BadImages, Loading
from tutelage.data.splits import Splits
from tutelage.evaluation import resolution
from tutelage.models.class_mapping import ClassMapping
from tutelage.models.source import Model
from tutelage.models.weights import save_weights
from tutelage.pipeline.choices import EPOCHS, STEPS, choices_of, record_choice, with_train_choices
from tutelage.pipeline.context import Context
from tutelage.pipeline.stages.assemble import assemble
from tutelage.pipeline.stages.batch_size import with_batch_size
from tutelage.pipeline.stages.own_head import STUDENT, TEACHER, HeadChoice


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
        """Images of a training batch that a process trains at once."""
        train = self.recipe.train
        return max(1, train.batch_size // self.context.runtime.world_size // train.accumulate)

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
    runtime = Runtime.start()
    runtime.check(recipe.train)
    # with auto, each fit measures for itself, and the pre-flight for what follows
    if recipe.train.precision != "auto":
        runtime = replace(runtime, precision=recipe.train.precision)
    context = Context(
        run,
        runtime,
        progress if runtime.is_main else Silent(),
        Loading(recipe.data.workers, BadImages(recipe.data.max_bad_images)),
        memo,
    )
    before = runtime.on_main(lambda: _heads_before(run))
    found = assemble(recipe, runtime, context.loading, context.progress.say, before)
    if runtime.is_main and before is None:
        for key, choice in found.heads.items():
            record_choice(run, key, choice.head, choice.why)
    _record_splits(found.splits, context)
    _record_val_share(found.splits, context)
    found = with_batch_size(found, context)
    recipe, splits, teachers, student = found.recipe, found.splits, found.teachers, found.student
    for line in found.lines():
        context.progress.say(line)
    splits = _decoded(recipe, splits, _inputs(recipe, teachers, student), context)
    recipe = _chosen(recipe, splits, student, context)
    # val is read after every epoch and for every candidate of the model selection
    context = replace(context, loading=replace(context.loading, kept=KeptPixels(splits.val)))
    return Prepared(recipe, context, splits, found.class_mapping, teachers, student)


def _heads_before(run: Run) -> dict[str, HeadChoice] | None:
    """Return the heads that a run has chosen when it began; None: it begins now."""
    if not run.splits.exists():
        return None
    known = choices_of(run)
    return {
        key: HeadChoice(known[key]["value"], known[key]["why"]) for key in (TEACHER, STUDENT) if key in known
    }


def _chosen(recipe: Recipe, splits: Splits, student: Model, context: Context) -> Recipe:
    """Replace ``auto`` in the settings of the training, and record what was chosen."""
    images = splits.images
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
    record["notes"] += class_lines(splits)
    if path.exists():
        before = entry(path, "parts")
        lists = [found.get("excluded") or {} for found in (read_json(path), record)]
        if lists[0].get("digest") != lists[1].get("digest"):
            file = lists[0].get("file") or lists[1].get("file")
            raise TutelageError(
                f"data.exclude={file}: the list has changed since the run began ({path}); restore it, or "
                "begin a new run"
            )
        changed = [role for role, subset in record["parts"].items() if subset != before.get(role)]
        if changed:
            raise TutelageError(
                f"data.{changed[0]}: the images have changed since the run began ({path}); "
                "restore them, or begin a new run"
            )
    elif context.runtime.is_main:
        write_json(path, record)


def _record_val_share(splits: Splits, context: Context) -> None:
    """Record how many images are for val, where the recipe leaves that to the run."""
    if (share := splits.val_share) is None or not context.runtime.is_main:
        return
    fraction = round(share.fraction, 4)
    record_choice(context.run, "data.val_fraction", fraction, share.why)
    context.progress.say(f"auto: data.val_fraction = {fraction:g} ({share.why})")


def _inputs(recipe: Recipe, teachers: Sequence[Model], student: Model) -> list[InputSpec]:
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
    record = context.runtime.on_main(lambda: read_json(path))
    splits, decided = decode_once(
        splits,
        specs,
        recipe,
        context.cache_directory(recipe) / "images",
        context.progress,
        context.runtime,
        Decided.of(record),
    )
    if context.runtime.is_main:
        write_json(path, record | decided.record())
    return splits
