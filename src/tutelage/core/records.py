"""The record files of a run that have a format of their own, each read and written here."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.core.files import read_jsonl, write_bytes, write_text


def write_stage_metrics(path: Path, stage: str, rows: list[dict[str, Any]]) -> None:
    """Write a stage's rows, one for each epoch, to ``metrics.jsonl`` in place of its earlier rows.

    Args:
        path: of ``metrics.jsonl``.
        stage: name of the stage.
        rows: rows of all of its epochs so far.
    """
    found = list(read_jsonl(path))
    place = next((i for i, row in enumerate(found) if row.get("stage") == stage), len(found))
    before, after = ([r for r in part if r.get("stage") != stage] for part in (found[:place], found[place:]))
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in [*before, *rows, *after])
    present = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if present != text:
        write_text(path, text)


@dataclass(frozen=True)
class TopClasses:
    """The most probable classes of one model, for N images.

    Attributes:
        top: (N, k) int32 classes, the most probable first; k is 5, or the number of classes where that is smaller.
        prob: (N, k) float32, their probabilities.
    """

    top: np.ndarray
    prob: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """The most probable class of each image, (N,)."""
        best: np.ndarray = self.top[:, 0]
        return best

    def of(self, classes: np.ndarray) -> np.ndarray:
        """Return the probability (N,) of a given class for each image; 0 where it is not among the first k."""
        hit = self.top == classes[:, None]
        return np.where(hit, self.prob, 0.0).sum(1)


@dataclass(frozen=True)
class RunPredictions:
    """The predictions of a run's models for its N test images: the content of ``predictions.npz``.

    Attributes:
        ids: (N,) ids of the images.
        labels: (N,) int64, classes of the heads; -1 for images without a label.
        classes: names of the heads' classes, in order.
        roles: each model's predictions, by its role.
    """

    ids: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    roles: Mapping[str, TopClasses]

    def __len__(self) -> int:
        return len(self.ids)

    def right(self, role: str) -> np.ndarray:
        """Return whether the most probable class is the label, (N,) bool."""
        right: np.ndarray = self.roles[role].first == self.labels
        return right


def write_predictions(path: Path, predictions: RunPredictions) -> None:
    """Write ``predictions.npz``: `ids`, `labels`, `classes`, and `{role}_top5` and `{role}_prob5` of each role."""
    arrays = {
        "ids": predictions.ids,
        "labels": predictions.labels,
        "classes": np.array(predictions.classes),
    }
    for role, best in predictions.roles.items():
        arrays |= {f"{role}_top5": best.top, f"{role}_prob5": best.prob}
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for flags
    write_bytes(path, stream.getvalue())


def read_predictions(path: Path) -> RunPredictions:
    """Read ``predictions.npz``.

    All arrays are read at once, so that a damaged file raises its error here and not later.

    Raises:
        TutelageError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            roles = [name.removesuffix("_top5") for name in arrays.files if name.endswith("_top5")]
            return RunPredictions(
                ids=arrays["ids"].astype(str),
                labels=arrays["labels"],
                classes=tuple(arrays["classes"].astype(str).tolist()),
                roles={r: TopClasses(arrays[f"{r}_top5"], arrays[f"{r}_prob5"]) for r in roles},
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TutelageError(f"{path}: damaged ({error}); run `tutelage resume` again to rewrite it") from None
