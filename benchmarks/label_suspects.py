"""Precision and recall of `tutelage data` on labels that were planted wrong in a folder of real images.

python -m benchmarks.label_suspects folder:photos
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from tutelage.core.recipe import DataRecipe
from tutelage.data.doctor.collection import Collection
from tutelage.data.doctor.pictures import measure_all
from tutelage.data.splits import make_splits
from tutelage.pipeline.doctor.command import MODEL
from tutelage.pipeline.doctor.labels import features_of, out_of_fold, suspects


def planted(labels: np.ndarray, share: float, classes: int, seed: int) -> np.ndarray:
    """Return the labels with a share of them changed into another class, drawn at random."""
    rng = np.random.default_rng(seed)
    changed = labels.copy()
    places = rng.choice(len(labels), round(share * len(labels)), replace=False)
    changed[places] = (labels[places] + rng.integers(1, classes, len(places))) % classes
    return changed


def main() -> None:
    """Measure with several draws of wrong labels, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    splits = make_splits(DataRecipe(train=given.data))
    images = Collection.of(splits)
    pictures = measure_all(images.subset())
    numbers = np.flatnonzero(pictures.readable & (images.labels >= 0))
    features = features_of(images, numbers, pictures, given.model, None, lambda line: None)
    labels, fitted = images.labels[numbers], images.roles[numbers] != "test"
    table = Table("wrong labels", "named", "of these planted", "precision, %", "recall, %")
    for seed in [None, *range(given.seeds)]:
        noisy = labels if seed is None else planted(labels, given.share, len(images.classes), seed)
        found = suspects(noisy, out_of_fold(features, noisy, fitted, len(images.classes)))
        wrong, hits = int((noisy != labels).sum()), int((noisy != labels)[found].sum())
        shares = [
            f"{100 * hits / total:.1f}" if wrong else "" for total in (max(1, len(found)), max(1, wrong))
        ]
        table.add_row("none planted" if seed is None else f"{wrong}", f"{len(found)}", f"{hits}", *shares)
    Console().print(table)


if __name__ == "__main__":
    main()
