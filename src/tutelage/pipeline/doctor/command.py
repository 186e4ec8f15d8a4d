"""What `tutelage data` does: find what is odd about the images of a run, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Callable

from tutelage.core.recipe import DataRecipe
from tutelage.data.doctor.checkup import Checkup
from tutelage.data.doctor.classes import ClassSizes, class_findings
from tutelage.data.doctor.collection import Collection
from tutelage.data.doctor.copies import copy_findings, same_pictures
from tutelage.data.doctor.odd import pictures_that_show_little, unreadable
from tutelage.data.doctor.pictures import measure_all
from tutelage.data.splits import make_splits
from tutelage.pipeline.doctor.labels import CannotJudge, label_findings
from tutelage.pipeline.doctor.steps import Steps

MODEL = "tf_efficientnet_lite0"  # small, and its weights are in an installable package
NONE = "none"  # in place of a model: labels are not checked


def check_data(
    recipe: DataRecipe,
    model: str = MODEL,
    device: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Checkup:
    """Find copies, doubtful labels, odd classes and odd pictures in the images that a run of this recipe would use.

    Args:
        recipe: sources and splits. The parts are those of a run; only copies stay in them.
        model: NAME@WEIGHTS of the network by whose features labels are checked; ``none``: they are not.
        device: ``cpu``, ``mps``, ``cuda`` or ``cuda:1``; None: the best there is.
        say: receives a line before each step.

    Raises:
        TutelageError: the images cannot be opened or split.
    """
    say("opening the images")
    splits = make_splits(recipe.model_copy(update={"drop_duplicates": False}))
    images = Collection.of(splits)
    pictures = measure_all(images.subset(), Steps(say, "looked at", len(images)))
    say("comparing the images")
    found = [
        *unreadable(images, pictures),
        *copy_findings(images, same_pictures(pictures)),
        *class_findings(splits),
    ]
    notes = list(splits.notes)
    if not splits.classes:
        notes.append("labels are not checked: no image has one")
    elif model != NONE:
        try:
            found += label_findings(images, pictures, model, device, say)
        except CannotJudge as why:
            notes.append(f"labels are not checked: {why}")
    found += pictures_that_show_little(images, pictures)
    return Checkup.of(recipe.train, images, ClassSizes.of(splits), found, notes)
