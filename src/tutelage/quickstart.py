"""The main job on the bundled digits, small enough for a first try."""

from __future__ import annotations

from tutelage.recipe import Recipe, parse_recipe

# Digits are 8x8: 32 px is enough, and lite1 to lite0 shows all stations in a few minutes on two cores.
SETTINGS = {
    "teacher": {
        "model": "tf_efficientnet_lite2",
        "resolution": 64,
        "crop_pct": 1.0,
        "fit": {"epochs": 4, "lr": 1e-3},
    },
    "student": {"model": "tf_efficientnet_lite0", "resolution": 32, "crop_pct": 1.0},
    "data": {"train": "digits"},
    "view": {"crop_scale": [0.6, 1.0], "flip": 0.0, "rotation": 10},
    "loss": {"temperature": 2.0, "label_weight": 0.1},
    "train": {"epochs": 4, "lr": 1e-3, "batch_size": 32},
}


def quickstart_recipe() -> Recipe:
    """Lite2 teaches Lite0 the digits."""
    return parse_recipe(SETTINGS, where="quickstart")
