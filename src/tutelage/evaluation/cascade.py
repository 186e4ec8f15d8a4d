"""A cascade: the student answers where it is confident, and hands the other images to the teacher.

The threshold is chosen on validation images so that, where the student answers alone, it gives the teacher's class on a
stated share of the images. Many thresholds are tried, and the statement holds for all that pass together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from tutelage.evaluation.intervals import LEVEL, exact_interval
from tutelage.evaluation.paired import paired

# Fixed before any image is seen, which the validity of the bound needs; from the strictest to the loosest.
THRESHOLDS = (0.9999, 0.9995, 0.999, 0.998, 0.995, *(round(0.99 - 0.01 * i, 2) for i in range(99)), 0.0)
STARTS = (0.95, 0.8, 0.5)  # thresholds that have a share of the error probability of their own
COSTS = ("gmacs", "latency_ms")


@dataclass(frozen=True)
class Step:
    """One threshold that was tried on the validation images.

    Attributes:
        threshold: the student answers alone where its confidence is at least this.
        answered: images on which it does.
        agreed: of these, images with the teacher's class.
        error: the probability of a false statement that this threshold may use.
        bound: lower confidence bound of the share of agreement, at level 1 - `error`; 0 where `error` is 0.
        passed: whether the bound reaches the stated agreement.
    """

    threshold: float
    answered: int
    agreed: int
    error: float
    bound: float
    passed: bool


def tried(confidence: np.ndarray, agrees: np.ndarray, agreement: float, level: float = LEVEL) -> list[Step]:
    """Test each threshold, so that with probability `level` no threshold that passes has a lower agreement.

    The hypothesis of a threshold, that the agreement is below the stated one, is tested by a one-sided exact binomial
    test: its bound is that of Clopper and Pearson (1934). As in "Learn then Test" (Angelopoulos et al. 2021), the
    thresholds form a fixed sequence, from the strictest to the loosest, and the fallback procedure keeps the error of
    the whole family at 1 - `level` (Wiens 2003, "A fixed sequence Bonferroni procedure"): each of `STARTS` has an equal
    share of it, and a threshold that passes leaves what it may use to the next one.

    Args:
        confidence: (N,) probability of the student's class.
        agrees: (N,) bool, whether it is the teacher's class.
        agreement: the stated share, between 0 and 1.
        level: of confidence.
    """
    steps: list[Step] = []
    error = 0.0
    for threshold in THRESHOLDS:
        error += (1 - level) / len(STARTS) if threshold in STARTS else 0.0
        alone = confidence >= threshold
        answered, agreed = int(alone.sum()), int(agrees[alone].sum())
        bound = lower_bound(agreed, answered, 1 - error)
        steps.append(Step(threshold, answered, agreed, error, bound, bound >= agreement))
        error = error if steps[-1].passed else 0.0
    return steps


def chosen(steps: Sequence[Step]) -> Step | None:
    """The loosest threshold that passed; None where none did."""
    return next((step for step in reversed(steps) if step.passed), None)


def lower_bound(hits: int, n: int, level: float) -> float:
    """The one-sided lower bound of Clopper and Pearson; 0 where nothing was counted, or the level is 1."""
    if not n or level >= 1:
        return 0.0
    return float(binomtest(hits, n, alternative="greater").proportion_ci(level, method="exact").low)


def fewest_images(agreement: float, level: float = LEVEL) -> int:
    """The number of validation images with which a threshold can pass, if the models agree on all of them."""
    return math.ceil(math.log((1 - level) / len(STARTS)) / math.log(agreement))


def outcome(
    confidence: np.ndarray,
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    threshold: float,
) -> dict[str, Any]:
    """What a cascade gives on images that had no part in the choice of its threshold, as JSON values.

    Args:
        confidence: (N,) probability of the student's class.
        student: (N,) its classes.
        teacher: (N,) the teacher's classes.
        labels: (N,) classes; -1: not labelled.
        threshold: of the confidence.

    Returns:
        `n`; `answered` by the student alone and `coverage`, its share; `agreed` of these, and the share `agreement`
        with its exact 95% interval, None where the student answers none; `top1` in percent of student, teacher and
        cascade, and the `paired` differences of the cascade from teacher and student, None where no image has a label.
    """
    alone = confidence >= threshold
    both = np.where(alone, student, teacher)
    answered, agreed = int(alone.sum()), int((student == teacher)[alone].sum())
    interval = exact_interval(agreed, answered) if answered else (None, None)
    found: dict[str, Any] = {
        "n": len(alone),
        "answered": answered,
        "coverage": answered / len(alone),
        "agreed": agreed,
        "agreement": agreed / answered if answered else None,
        "agreement_low": interval[0],
        "agreement_high": interval[1],
        "top1": None,
        "paired": None,
    }
    known = labels >= 0
    if known.any():
        answers = {"student": student, "teacher": teacher, "cascade": both}
        found["top1"] = {name: 100 * float((a == labels)[known].mean()) for name, a in answers.items()}
        found["paired"] = {
            name: asdict(paired(both, answers[name], labels)) for name in ("teacher", "student")
        }
    return found


def average_costs(
    coverage: float, student: Mapping[str, Any], teacher: Mapping[str, Any]
) -> dict[str, float | None]:
    """The mean cost of an image: that of the student, and for the images that it hands on also that of the teacher.

    Args:
        coverage: share of the images that the student answers alone.
        student: its row of the run's table.
        teacher: the teacher's row; a cost that one of the rows lacks is None.
    """
    found: dict[str, float | None] = {}
    for name in COSTS:
        own, more = student.get(name), teacher.get(name)
        found[name] = None if own is None or more is None else own + (1 - coverage) * more
    return found


def curve(
    confidence: np.ndarray,
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    costs: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The cascade at each threshold at which it answers another number of images alone.

    Args:
        confidence: (N,) probability of the student's class.
        student: (N,) its classes.
        teacher: (N,) the teacher's classes.
        labels: (N,) classes; -1: not labelled.
        costs: the rows of student and teacher in the run's table.
    """
    known = labels >= 0
    points: list[dict[str, Any]] = []
    for threshold in THRESHOLDS:
        alone = confidence >= threshold
        coverage = float(alone.mean())
        if points and points[-1]["coverage"] == coverage:
            continue
        right = np.where(alone, student, teacher) == labels
        points.append(
            {
                "threshold": threshold,
                "coverage": coverage,
                "agreement": float((student == teacher)[alone].mean()) if alone.any() else None,
                "top1": 100 * float(right[known].mean()) if known.any() else None,
                **average_costs(coverage, *costs),
            }
        )
    return points
