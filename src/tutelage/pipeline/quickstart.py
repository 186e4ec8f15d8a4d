"""A distillation on the bundled digits that is small enough for a first try."""

from __future__ import annotations

from tutelage.core.recipe import Recipe, parse_recipe

SETTINGS = {
    # digits have 8x8 pixels; ImageNet weights need them larger than a network trained on digits alone
    "teacher": {
        "model": "tf_efficientnet_lite0",
        "resolution": 96,
        "crop_pct": 1.0,
        "fit": {"epochs": 6, "lr": 1e-3},
    },
    "student": {"model": "test_efficientnet@none", "resolution": 32, "crop_pct": 1.0},
    "data": {"train": "digits", "test_fraction": 0.4},
    "view": {"crop_scale": [0.6, 1.0], "flip": 0.0, "rotation": 10},
    "loss": {"temperature": 4.0, "label_weight": 0.1},
    "train": {"epochs": 6, "lr": 3e-3, "batch_size": 32},
    "preflight": {"allow_weak_teacher": True},  # this teacher is no better than the control
}


def quickstart_recipe() -> Recipe:
    """Return the recipe: EfficientNet-Lite0 with ImageNet weights teaches a network a thirtieth of its size."""
    return parse_recipe(SETTINGS, where="quickstart")
