"""A distillation on the bundled digits that is small enough for a first try.

The teacher is a larger network with labelled images of its own; the student has three labels of each class, and images
without labels. That is what many users have: a good large model, and many photographs that nobody has labelled.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_bytes
from tutelage.core.recipe import Recipe, parse_recipe
from tutelage.core.run_dir import Run
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


def write_example(run: Run, recipe: Recipe) -> None:
    """Write a test image into the run's directory, to classify it with the deployed file when the run has ended."""
    from tutelage.data.splits import make_splits

    content = io.BytesIO()
    make_splits(recipe.data).test.image(0).save(content, "PNG")
    write_bytes(run.example, content.getvalue())


def example(run: Run, file: Path) -> str:
    """Classify the run's example with a deployed file: the image, its class and its probability.

    Returns:
        Empty where the run has no example, or no deployed file that this machine can run.
    """
    if not run.example.exists() or file.parent != run.deploy:
        return ""
    from tutelage.deploy.predictor import Predictor

    try:
        predictor = Predictor(
            run.deploy,
            runtime="onnxruntime" if file.suffix == ".onnx" else "openvino",
            precision="int8" if "int8" in file.stem else "fp32",
        )
        (found,) = predictor(run.example, top=1)
    except TutelageError:
        return ""
    return f"{run.example.name} (a test image) is of class {found.label} ({100 * found.probability:.1f}%)"
