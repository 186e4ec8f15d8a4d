"""A distillation on the bundled digits that is small enough for a first try.

The teacher is a larger network with labelled images of its own; the student has three labels of each class, and images
without labels. That is what many users have: a good large model, and many photographs that nobody has labelled.
"""

from __future__ import annotations

from typing import Any

from tutelage.core.recipe import Recipe, parse_recipe
from tutelage.pipeline.early import can_export

SETTINGS: dict[str, Any] = {
    # both from random weights: features of photographs are of little use for digits of 8x8 pixels
    "teacher": {
        "model": "resnet10t@none",
        "resolution": 24,
        "crop_pct": 1.0,
        "fit": {"epochs": 12, "patience": None},
    },
    "student": {"model": "test_efficientnet@none", "resolution": 24, "crop_pct": 1.0},
    "data": {
        "train": "digits#student",
        "teacher": "digits#teacher",
        "labels_per_class": 3,
        "val_fraction": 0.25,
        "test_fraction": 0.35,
    },
    "view": {"crop_scale": [0.6, 1.0], "flip": 0.0, "rotation": 10},
    "train": {"epochs": 16, "lr": 3e-3, "batch_size": 32},
    "export": {"int8": False},
}


def quickstart_recipe() -> Recipe:
    """Return the recipe: a ResNet-10 teaches a network of a fiftieth of its size.

    Files are exported where the packages for that are installed.
    """
    return parse_recipe(
        SETTINGS | {"export": SETTINGS["export"] | {"enabled": can_export()}}, where="quickstart"
    )
