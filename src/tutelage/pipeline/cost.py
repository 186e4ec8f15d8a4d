"""What a run costs: the seconds of each of its stages and the disk space, from a few measured steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutelage.core.recipe import FitRecipe, Recipe
from tutelage.core.runtime import Runtime
from tutelage.core.values import RANGE
from tutelage.data import packed
from tutelage.data.decode import UnreadableImage
from tutelage.data.decoded import ROLES
from tutelage.data.imagecache import cache_side, estimated_mb
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import worker_count
from tutelage.data.splits import Splits, Subset
from tutelage.distillation.lr_range import STEPS as RANGE_STEPS
from tutelage.distillation.probe import IMAGES as PROBED
from tutelage.distillation.probe import can_be_probed
from tutelage.distillation.teacher import pooled_width
from tutelage.evaluation.robustness import CORRUPTIONS
from tutelage.models import precision
from tutelage.models.source import Model
from tutelage.pipeline.choices import fitted_teachers, with_fit_choices, with_train_choices
from tutelage.pipeline.stages.estimate import Amounts, estimate
from tutelage.pipeline.stages.preflight import TRAIN_IMAGES

TIMED_BATCH = 16  # images of a batch with which a step is timed
DECODED = 16  # images whose decoding is timed


@dataclass(frozen=True)
class Speeds:
    """What was measured on this machine: images/s of all processes, and the size of decoded copies.

    Attributes:
        teacher: inference, of all teachers together; infinite where answers are looked up.
        teacher_training: forward and backward of the first teacher; None where none is fitted.
        student: inference.
        student_training: forward and backward.
        decoding: of files; infinite where the images are decoded already.
        copies_mb: disk space of the decoded copies of all images, in MB (10^6 bytes).
        screened: whether a run trains in another precision than fp32, in which it compares candidates first.
    """

    teacher: float
    teacher_training: float | None
    student: float
    student_training: float
    decoding: float
    copies_mb: float
    screened: bool = False


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        seconds: of each stage, in the order of the run.
        disk_mb: disk space in MB (10^6 bytes), decoded images included.
        epochs: of control and student, each.
    """

    seconds: dict[str, float]
    disk_mb: float
    epochs: int

    @property
    def minutes(self) -> float:
        """Of the whole run."""
        return sum(self.seconds.values()) / 60


def measure_speeds(
    recipe: Recipe,
    splits: Splits,
    teachers: Sequence[Model],
    student: Model,
    runtime: Runtime,
    *,
    fits: bool,
) -> Speeds:
    """Time a few batches of each kind of step, and the decoding of a few images.

    Args:
        recipe: has the precision and the loader processes.
        splits: images to decode.
        teachers: of the run.
        student: of the run.
        runtime: device and processes.
        fits: whether a teacher is fitted, so that its training steps are timed too.
    """
    device = runtime.device
    wanted = precision.BOTH if recipe.train.precision == "auto" else (recipe.train.precision,)

    def rates(probe: object, model: Model) -> dict[precision.Precision, float]:
        module = model.module.to(device)
        return probe(module, model.input_spec, TIMED_BATCH, device, wanted)  # type: ignore[operator]

    def fastest(probe: object, model: Model) -> float:
        return math.inf if model.looks_up else max(rates(probe, model).values()) * runtime.world_size

    answers = [fastest(precision.probe_inference, model) for model in teachers]
    training = rates(precision.probe_training, student)
    return Speeds(
        teacher=1 / total if (total := sum(1 / rate for rate in answers)) else math.inf,
        teacher_training=fastest(precision.probe_training, teachers[0]) if fits else None,
        student=fastest(precision.probe_inference, student),
        student_training=max(training.values()) * runtime.world_size,
        decoding=_decoding_rate(splits.train, max(1, worker_count(recipe.data.workers))),
        copies_mb=_copies_mb(recipe, splits, [model.input_spec for model in (*teachers, student)]),
        screened=max(training, key=training.__getitem__) != "fp32",
    )


def _decoding_rate(subset: Subset, processes: int) -> float:
    if subset.images.decoded:
        return math.inf
    places = np.unique(np.linspace(0, len(subset) - 1, DECODED).astype(int)).tolist()
    started = time.perf_counter()
    for place in places:
        try:
            subset.image(place)
        except UnreadableImage:
            continue
    return len(places) * processes / max(time.perf_counter() - started, 1e-6)


def cost_of(
    recipe: Recipe,
    splits: Splits,
    teachers: Sequence[Model],
    student: Model,
    new: frozenset[str],
    speeds: Speeds,
    place: Path,
    cut: frozenset[str] = frozenset(),
) -> Cost:
    """Estimate the seconds of each stage of a run, and its disk space, as the pre-flight does, with what is around it.

    What is not counted: the start of the program, the measuring of latencies, the page, deployed files, and the seconds
    in which a loader is slower than the model.

    Args:
        recipe: of the run; ``auto`` is replaced as the run does.
        splits: its images.
        teachers: with heads for the data's classes.
        student: with a head for the data's classes.
        new: models (by what the user wrote) that got a new head.
        speeds: of this machine.
        place: directory on the disk that the run will use.
        cut: models whose head was cut from a larger one.

    Raises:
        TutelageError: the disk is too small.
    """
    images, val = splits.images, len(splits.val)
    train = with_train_choices(recipe.train, images, student)
    recipe = recipe.model_copy(update={"train": train})
    rates = {
        "teacher": speeds.teacher,
        "student": speeds.student_training,
        "student_inference": speeds.student,
    }
    pooled = pooled_width(recipe, teachers[0])
    ahead = estimate(
        recipe, Amounts.of(splits), rates, student, place, pooled=pooled, screened=speeds.screened
    )
    seconds = {}
    if not splits.train.images.decoded and recipe.data.cache:
        others = 0 if splits.teacher is None else len(splits.teacher)
        seconds["decoding the images once"] = (images + val + others) / speeds.decoding
    if splits.taught.labelled:
        seconds |= _fits(recipe, splits, teachers, student, new, speeds, cut)
    seconds["pre-flight"] = (val + TRAIN_IMAGES) / speeds.teacher + val / speeds.student
    if recipe.train.lr == RANGE:
        seconds["learning rate test"] = RANGE_STEPS * recipe.train.batch_size / speeds.student_training
    training = "training of control and student" if recipe.control else "training of the student"
    for name, part in (
        (training, "training"),
        ("selection on val", "selection"),
        ("evaluation on test", "test"),
    ):
        seconds[name] = ahead["seconds"][part]
    if recipe.measure.robustness:
        decoded = len(splits.test) / speeds.decoding
        seconds["corrupted test images"] = len(CORRUPTIONS) * (ahead["seconds"]["test"] + decoded)
    return Cost(seconds, ahead["disk_mb"] + speeds.copies_mb, train.epochs)


def _fits(
    recipe: Recipe,
    splits: Splits,
    teachers: Sequence[Model],
    student: Model,
    new: frozenset[str],
    speeds: Speeds,
    cut: frozenset[str],
) -> dict[str, float]:
    """Estimate the seconds of the linear probes, of the teachers' fits, and of that of the student's head."""
    train, taught, val = len(splits.train), len(splits.taught), len(splits.val)
    seconds = {}
    learners = (*teachers, student) if splits.train.labelled else teachers
    probed = [model for model in learners if model.spec in new and begins_as_probe(model)]
    if probed:
        seconds["linear probes"] = sum(
            (min(train, PROBED) + val) / speeds.student
            if model is student
            else (min(taught, PROBED) + val) / speeds.teacher
            for model in probed
        )
    if fits := fitted_teachers(recipe, teachers, new | cut):
        assert speeds.teacher_training is not None
        batch = max(2, min(recipe.train.batch_size, taught))
        epochs = sum(with_fit_choices(fit, taught, batch, teachers[at]).epochs for at, fit in fits.items())
        seconds["fit of the teacher"] = epochs * (taught / speeds.teacher_training + val / speeds.teacher)
    if not splits.train.labelled:
        return seconds
    batch = max(2, min(recipe.train.batch_size, train))
    head = recipe.student.head_fit
    if head == "auto" and student.spec in new and student.pretrained and not begins_as_probe(student):
        head = FitRecipe()
    if isinstance(head, FitRecipe):
        epochs = with_fit_choices(head, train, batch, student).epochs
        seconds["fit of the student's head"] = epochs * (train + val) / speeds.student
    return seconds


def begins_as_probe(model: Model) -> bool:
    """Tell whether a new head of a model begins as a linear probe of its features."""
    return model.pretrained and can_be_probed(model)


def _copies_mb(recipe: Recipe, splits: Splits, specs: Sequence[InputSpec]) -> float:
    if not recipe.data.cache:
        return 0.0
    side = cache_side(specs, recipe.view)
    parts = [getattr(splits, role) for role in ROLES if getattr(splits, role) is not None]
    if recipe.data.cache == "packed":  # what was streamed at no larger a side is such a store already
        parts = [part for part in parts if part.images.side is None or part.images.side > side]
    estimated = packed.estimated_mb if recipe.data.cache == "packed" else estimated_mb
    return min(sum(estimated(part, side) for part in parts if not part.images.decoded), recipe.data.cache_mb)
