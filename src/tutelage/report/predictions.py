"""The predictions of a run's models on the test images, and how they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

from tutelage.core.records import RunPredictions

BINS = 15  # of the reliability diagram, as in the expected calibration error
LEAST = 5  # images in a bin that is drawn
Z = 1.959964  # standard deviations of a normal distribution that hold 95%
TELLING = 6  # images of a class; with fewer, McNemar's exact test is above 0.05 even if all of them change


@dataclass(frozen=True)
class Agreement:
    """How a model's predictions compare with the teacher's, in percent of the labelled images.

    The five shares of correct and wrong predictions sum to 100; `agreement` is the share of equal predictions.
    """

    role: str
    both_right: float
    only_model_right: float
    only_teacher_right: float
    both_wrong_same: float
    both_wrong_apart: float
    agreement: float


@dataclass(frozen=True)
class Reliability:
    """Bins of one model's reliability diagram, (bins,) each: mean confidence and accuracy in percent, and images.

    Those of fewer than `LEAST` images are left out of them. `images` (BINS,) has the number of images of every bin.
    """

    role: str
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class ClassFigures:
    """One class on the labelled test images.

    Attributes:
        name: of the class.
        n: images of it.
        right: images of it that are classified correctly, by role.
        called: images of any class that are classified as it, by role.
    """

    name: str
    n: int
    right: Mapping[str, int]
    called: Mapping[str, int]

    def recall(self, role: str) -> float:
        """The share of its images that are classified correctly, in percent: the accuracy on this class."""
        return 100 * self.right[role] / self.n

    def precision(self, role: str) -> float | None:
        """The share of the images classified as it that are of it, in percent; None where there are none."""
        return 100 * self.right[role] / self.called[role] if self.called[role] else None

    def interval(self, role: str) -> tuple[float, float]:
        """The 95% interval of the recall in percent (Wilson 1927)."""
        return wilson(self.right[role], self.n)

    def change(self, before: str, after: str = "distilled") -> float:
        """The difference between two models' recall in points."""
        return self.recall(after) - self.recall(before)

    @property
    def telling(self) -> bool:
        """Whether the class has enough images for a change to be significant."""
        return self.n >= TELLING


@dataclass(frozen=True)
class Confusion:
    """How often each role predicted class `called` for the `n` images of class `true`."""

    true: str
    called: str
    n: int
    counts: dict[str, int]


def wilson(right: float, n: float) -> tuple[float, float]:
    """Compute the 95% interval of a share in percent (Wilson 1927).

    Args:
        right: images that count.
        n: all of them, at least one.
    """
    share = right / n
    centre = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    scale = 100 / (1 + Z**2 / n)
    return max(0.0, scale * (centre - half)), min(100.0, scale * (centre + half))


def agreement(predictions: RunPredictions, role: str) -> Agreement:
    """Compare the role's predictions with the teacher's."""
    known = predictions.labels >= 0
    ours, theirs = predictions.roles[role].first[known], predictions.roles["teacher"].first[known]
    right, taught = predictions.right(role)[known], predictions.right("teacher")[known]
    same = ours == theirs

    def share(mask: np.ndarray) -> float:
        return 100 * float(mask.mean()) if mask.size else 0.0

    return Agreement(
        role=role,
        both_right=share(right & taught),
        only_model_right=share(right & ~taught),
        only_teacher_right=share(~right & taught),
        both_wrong_same=share(~right & ~taught & same),
        both_wrong_apart=share(~right & ~taught & ~same),
        agreement=share(same),
    )


def reliability(predictions: RunPredictions, role: str) -> Reliability:
    """Compute confidence and accuracy in `BINS` equally wide bins, as for the expected calibration error."""
    known = predictions.labels >= 0
    confidence, right = predictions.roles[role].prob[known, 0], predictions.right(role)[known]
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    filled = count >= LEAST
    total = np.maximum(count, 1)
    mean = np.bincount(bins, confidence, BINS) / total
    accuracy = np.bincount(bins, right, BINS) / total
    return Reliability(role, 100 * mean[filled], 100 * accuracy[filled], count[filled], count)


def class_figures(predictions: RunPredictions, roles: Sequence[str]) -> list[ClassFigures]:
    """Return each class that has test images, in the order of the classes, under the models of these roles."""
    known = predictions.labels >= 0
    labels, size = predictions.labels[known], len(predictions.classes)
    images = np.bincount(labels, minlength=size)
    right = {role: np.bincount(labels[predictions.right(role)[known]], minlength=size) for role in roles}
    called = {role: np.bincount(predictions.roles[role].first[known], minlength=size) for role in roles}
    return [
        ClassFigures(
            predictions.classes[index],
            int(images[index]),
            {role: int(count[index]) for role, count in right.items()},
            {role: int(count[index]) for role, count in called.items()},
        )
        for index in np.flatnonzero(images)
    ]


def confusion_matrix(predictions: RunPredictions, role: str) -> csr_array:
    """Count the images by label (rows) and most probable class (columns), (C, C).

    It is sparse, since N images fill at most N cells: as an array, 21,841 classes would need 3.8 GB for each model.
    """
    size = len(predictions.classes)
    known = predictions.labels >= 0
    cells = predictions.labels[known], predictions.roles[role].first[known]
    counts = coo_array((np.ones(len(cells[0]), np.int64), cells), shape=(size, size)).tocsr()
    counts.sum_duplicates()
    return counts


def confusions(predictions: RunPredictions, role: str, limit: int) -> list[Confusion]:
    """Return the role's most frequent mistakes (made more than once), and how often the other models make them."""
    matrices = {r: confusion_matrix(predictions, r) for r in predictions.roles}
    cells = matrices[role].tocoo()
    images = matrices[role].sum(1)
    frequent = np.flatnonzero((cells.row != cells.col) & (cells.data > 1))
    order = np.lexsort((cells.col[frequent], cells.row[frequent], -cells.data[frequent]))
    found = []
    for place in frequent[order][:limit]:
        true, called = int(cells.row[place]), int(cells.col[place])
        counts = {r: int(matrix[true, called]) for r, matrix in matrices.items()}
        names = predictions.classes[true], predictions.classes[called]
        found.append(Confusion(*names, int(images[true]), counts))
    return found


def hardest_classes(matrix: csr_array, limit: int) -> np.ndarray:
    """Return the indices, ascending, of the classes with the most mistakes, to show only a part of a big matrix."""
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    return np.sort(np.argsort(-mistakes, kind="stable")[:limit])


def worst_mistakes(predictions: RunPredictions, role: str, limit: int) -> np.ndarray:
    """Return the positions of the images that a model classifies wrongly, those it is most confident of first."""
    wrong = np.flatnonzero((predictions.labels >= 0) & ~predictions.right(role))
    confidence = predictions.roles[role].prob[wrong, 0]
    return wrong[np.argsort(-confidence, kind="stable")][:limit]


def greatest_changes(
    predictions: RunPredictions, before: str, after: str, limit: int
) -> dict[str, np.ndarray]:
    """Find the positions of images whose true class lost or gained much probability, of each class in turn.

    Returns:
        ``negative_flips`` (right before, wrong after) and ``corrections`` (the reverse): the greatest change of each
        class first, then the second greatest of each class, and so on.
    """
    was, is_ = predictions.right(before), predictions.right(after)
    labels = predictions.labels
    gain = predictions.roles[after].of(labels) - predictions.roles[before].of(labels)
    flips, corrections = np.flatnonzero(was & ~is_), np.flatnonzero(~was & is_)
    return {
        "negative_flips": _in_turn(flips[np.argsort(gain[flips], kind="stable")], labels)[:limit],
        "corrections": _in_turn(corrections[np.argsort(-gain[corrections], kind="stable")], labels)[:limit],
    }


def _in_turn(positions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorder positions so that the first of each class come first, then the second of each class, and so on."""
    seen: Counter[int] = Counter()
    ranks = []
    for label in labels[positions].tolist():
        ranks.append(seen[label])
        seen[label] += 1
    return positions[np.argsort(np.array(ranks, dtype=int), kind="stable")]
