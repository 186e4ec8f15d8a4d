"""How many images each class has: known from the splits, without decoding an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tutelage.data.doctor.finding import Finding
from tutelage.data.sources.tree import counted, listed
from tutelage.data.splits import Splits

UNEVEN = 10  # times as many images in the largest class: the others are very small


@dataclass(frozen=True)
class ClassSizes:
    """Labelled images of each class.

    Attributes:
        classes: names, in label order.
        counts: for each of train, val and test, (C,) int64.
    """

    classes: tuple[str, ...]
    counts: dict[str, np.ndarray]

    @classmethod
    def of(cls, splits: Splits) -> ClassSizes:
        """Count the images of a run's splits."""
        parts = {"train": splits.train, "val": splits.val, "test": splits.test}
        count = len(splits.classes)
        return cls(
            splits.classes,
            {
                role: np.bincount(part.labels[part.labels >= 0], minlength=count)
                for role, part in parts.items()
            },
        )

    @property
    def total(self) -> np.ndarray:
        """(C,) int64, of all parts."""
        total: np.ndarray = sum(self.counts.values(), np.zeros(len(self.classes), np.int64))
        return total

    def named(self, mask: np.ndarray) -> tuple[str, ...]:
        """The names of some classes."""
        return tuple(self.classes[label] for label in np.flatnonzero(mask))


def class_findings(splits: Splits) -> list[Finding]:
    """Find classes of one image, without a training image, without a val or test image, and very small ones."""
    sizes = ClassSizes.of(splits)
    if not sizes.total.any():
        return []
    total, found = sizes.total, []
    if single := sizes.named(total == 1):
        text = "There is no image to evaluate it on. Add images, or remove the class."
        found.append(Finding("one_image", "Class of one image", "problem", text, classes=single))
    if none := sizes.named((sizes.counts["train"] == 0) & (total != 1)):
        text = "No image of the class is trained on, so that it is never predicted. Add images, or remove the class."
        found.append(Finding("untrained", "Class without a training image", "problem", text, classes=none))
    untested = (total > 1) & ((sizes.counts["test"] == 0) | (sizes.counts["val"] == 0))
    if few := sizes.named(untested):
        text = "No figure of val, or none of test, says anything about the class. Add images of it."
        found.append(Finding("unevaluated", "Class without a val or test image", "look", text, classes=few))
    if small := sizes.named((total > 1) & (total * UNEVEN <= total.max())):
        text = (
            f"{sizes.classes[total.argmax()]}, the largest class, has {total.max():,} images, and these have a tenth "
            "of that or less. Top-1 follows the large classes; look at each class in the report, too."
        )
        found.append(Finding("small_class", "Very small class", "look", text, classes=small))
    return found


def class_lines(splits: Splits) -> list[str]:
    """The findings about classes as lines for the start of a run."""
    return [
        f"data: {finding.title.lower()}: {counted(finding.count, 'class', 'classes')} ({listed(finding.classes)})"
        for finding in class_findings(splits)
    ]
