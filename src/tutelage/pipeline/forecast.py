"""What is known of a run before it begins: its images, models and stages, and what they cost. Nothing is trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import Recipe
from tutelage.core.runtime import Runtime
from tutelage.core.values import AUTO, RANGE
from tutelage.data.loading import BadImages, Loading
from tutelage.data.splits import Subset
from tutelage.evaluation.size import gmacs, size_mb
from tutelage.models.source import Model
from tutelage.pipeline.choices import EPOCHS, fitted_teachers, with_train_choices
from tutelage.pipeline.cost import Cost, Speeds, begins_as_probe, cost_of, measure_speeds
from tutelage.pipeline.early import nearest_there
from tutelage.pipeline.stages.assemble import Assembled, assemble

Say = Callable[[str], object]
LONGEST_NAME = 34  # columns of a stage's name


@dataclass(frozen=True)
class Forecast:
    """A recipe with its images and models, and the speeds of this machine.

    Attributes:
        assembled: images and models, as the run will have them.
        speeds: of this machine.
        place: directory of the runs.
    """

    assembled: Assembled
    speeds: Speeds
    place: Path

    @property
    def recipe(self) -> Recipe:
        """The recipe as the run will have it, with ``auto`` replaced where that is known before training."""
        found = self.assembled
        images = found.splits.images
        train = with_train_choices(found.recipe.train, images, found.student)
        return found.recipe.model_copy(update={"train": train})

    def cost(self, epochs: int | None = None) -> Cost:
        """Estimate what the run costs, with the recipe's number of epochs or another one.

        Raises:
            TutelageError: the disk is too small.
        """
        recipe = self.recipe
        if epochs is not None:
            train = recipe.train.model_copy(update={"epochs": epochs})
            recipe = recipe.model_copy(update={"train": train})
        found, mapping = self.assembled, self.assembled.class_mapping
        return cost_of(
            recipe,
            found.splits,
            found.teachers,
            found.student,
            mapping.new,
            self.speeds,
            self.place,
            mapping.cut,
        )

    def lines(self) -> Iterator[str]:
        """Describe the run: images, models, what it chooses, stages with minutes, and disk space."""
        found, recipe = self.assembled, self.recipe
        yield from found.splits.notes
        splits = found.splits
        parts = {
            "training": splits.train,
            "val": splits.val,
            "test": splits.test,
            "unlabelled": splits.unlabelled,
        }
        for name, part in parts.items():
            if part is not None:
                yield f"{name}: {_described(part, len(splits.classes))}"
        for name, model in [*(("teacher", one) for one in found.teachers), ("student", found.student)]:
            yield f"{name}: {model.spec} ({model.origin}), {model.sees}"
            yield f"  {_size(model)}{self._head(name, model)}"
        train = recipe.train
        chosen = [key for key in ("epochs", "lr") if getattr(found.recipe.train, key) == AUTO]
        auto = f" ({' and '.join(chosen)}: auto)" if chosen else ""
        rate = "of a range test" if train.lr == RANGE else f"{train.lr:g}"
        less = " or less, as memory allows" if found.recipe.train.batch_size == AUTO else ""
        yield f"schedule: {train.epochs} epochs, batches of {train.batch_size}{less}, lr {rate}{auto}"
        cost = self.cost()
        for stage, seconds in cost.seconds.items():
            yield f"  {stage:<{LONGEST_NAME}} {seconds / 60:8.1f} min"
        yield f"  {'in all':<{LONGEST_NAME}} {cost.minutes:8.1f} min, and {cost.disk_mb:,.0f} MB of disk space"
        yield "not counted: latencies, the page, deployed files, and where loading is slower than the models"

    def _head(self, role: str, model: Model) -> str:
        found = self.assembled
        mapping = found.class_mapping
        classes = len(mapping.class_ids)
        labelled = found.splits.train.labelled
        fitted = role == "teacher" and labelled and fitted_teachers(found.recipe, [model], mapping.due)
        then = ", then all layers are fitted" if fitted else ""
        if model.spec in mapping.cut:
            return f"the {classes:,} classes of the data of its own head{then}"
        if model.spec not in mapping.new:
            return f"its own head of {classes:,} classes"
        probe = ", a linear probe at first" if begins_as_probe(model) and labelled else ""
        return f"a new head of {classes:,} classes{probe}{then}"


def forecast(recipe: Recipe, place: Path, say: Say) -> Forecast:
    """Open the images, load the models, and time a few steps of them; nothing is written.

    Args:
        recipe: of the run.
        place: directory in which the run directory would be made.
        say: receives a line before each step that takes time.

    Raises:
        TutelageError: what the run itself would be refused for before it trains.
    """
    runtime = Runtime.start()
    loading = Loading(recipe.data.workers, BadImages(recipe.data.max_bad_images))
    say("opening the images and loading the models")
    found = assemble(recipe, runtime, loading, say)
    say("timing a few steps")
    fits = bool(fitted_teachers(found.recipe, found.teachers, found.class_mapping.due))
    speeds = measure_speeds(
        found.recipe,
        found.splits,
        found.teachers,
        found.student,
        runtime,
        fits=fits and found.splits.train.labelled,
    )
    return Forecast(found, speeds, nearest_there(place))


def within(found: Forecast, seconds: float, given: str) -> tuple[Forecast, str]:
    """Give a run the largest number of epochs with which it is estimated to take at most so long.

    It is at most as many as ``auto`` ever takes. The control has as many steps as the student, as always. All processes
    choose the same number.

    Args:
        found: the run.
        seconds: for the whole run.
        given: what the user wrote, such as ``--time 15m``.

    Returns:
        The run with these epochs, and the reason in words.

    Raises:
        TutelageError: the recipe names the epochs, or the run takes longer even with one.
    """
    recipe = found.assembled.recipe
    if recipe.train.epochs != AUTO:
        raise TutelageError(f"{given} and train.epochs={recipe.train.epochs}: give one of them")
    fitting = [epochs for epochs in range(1, EPOCHS[1] + 1) if found.cost(epochs).minutes * 60 <= seconds]
    (epochs,) = Runtime.start().from_main([max(fitting, default=0)])
    cost = found.cost(max(epochs, 1))
    if not epochs:
        slowest = sorted(cost.seconds.items(), key=lambda one: -one[1])[:3]
        parts = ", ".join(f"{stage} {part / 60:.1f} min" for stage, part in slowest)
        raise TutelageError(
            f"{given}: with one epoch the run is estimated to take {cost.minutes:.1f} min ({parts}); "
            "give it more time, smaller models or resolutions, or fewer images by data.limit"
        )
    train = recipe.train.model_copy(update={"epochs": int(epochs)})
    assembled = replace(found.assembled, recipe=recipe.model_copy(update={"train": train}))
    why = (
        f"{given}: the run is estimated to take {cost.minutes:.1f} min; "
        f"auto would give {found.recipe.train.epochs} epochs"
    )
    return replace(found, assembled=assembled), why


def parse_time(text: str) -> float:
    """Return the seconds of a time such as ``15m``, ``2h`` or ``1h30m``.

    Raises:
        TutelageError: it is not of that form, or is 0.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    hours, minutes, rest = (float(part or 0) for part in (found.groups() if found else (0, 0, 0)))
    seconds = 3600 * hours + 60 * minutes + rest
    if not seconds:
        raise TutelageError(
            f"--time {text}: write hours, minutes or seconds, such as --time 15m, 2h or 1h30m"
        )
    return seconds


def _described(part: Subset, classes: int) -> str:
    """Describe a part of the images: how many, and how many of each class."""
    source = f"{len(part):,} images of {part.images.name}"
    if not part.labelled:
        return f"{source}, whose labels are not used" if part.labels_hidden else f"{source}, without labels"
    labels = part.labels[part.labels >= 0]
    counts = np.bincount(labels, minlength=classes)
    least, most = int(counts.min()), int(counts.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{source}, {each} of each of {classes:,} classes"


def _size(model: Model) -> str:
    if model.looks_up:
        return ""
    spec = model.input_spec
    try:
        macs = f", {gmacs(model.module, spec.height, spec.width):.3f} GMACs"
    except Exception:  # networks of other libraries may raise anything where operations are counted
        macs = ""
    return f"{size_mb(model.module):.2f} MiB{macs}, "
