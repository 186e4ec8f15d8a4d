"""Files with the answers of a live model, as `predictions:` reads them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from tutelage.core.runtime import Runtime
from tutelage.data.subset import Subset
from tutelage.evaluation.predict import predict_logits
from tutelage.models.source import Model


def answers_of(model: Model, images: Subset) -> tuple[list[str], torch.Tensor]:
    """Return the ids of images, and the model's logits for them."""
    found = predict_logits(model.module, model.input_spec, images, Runtime.start())
    return [images.id(int(place)) for place in found.index], found.logits


def write_csv(path: Path, names: list[str], classes: tuple[str, ...], values: np.ndarray) -> Path:
    """Write a row for each image, and a column for each class."""
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", *classes])
        writer.writerows([name, *map(repr, map(float, row))] for name, row in zip(names, values, strict=True))
    return path
