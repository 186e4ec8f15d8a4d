"""The difference between two models on the same images, and how certain it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from tutelage.evaluation.intervals import LEVEL


@dataclass(frozen=True)
class Paired:
    """A new model against an old one, on the same n labelled images.

    Attributes:
        difference: new minus old top-1, in points.
        low: lower end of its 95% interval, in points.
        high: upper end of its 95% interval, in points.
        mcnemar_p: exact two-sided p of McNemar's test (McNemar 1947) that both are equally good.
        negative_flips: images that the old model had right and the new one has wrong.
        corrections: images that the old model had wrong and the new one has right.
        agreement: share of images on which both give the same class, in percent.
        n: images.
    """

    difference: float
    low: float
    high: float
    mcnemar_p: float
    negative_flips: int
    corrections: int
    agreement: float
    n: int


def paired(
    new: ArrayLike, old: ArrayLike, labels: ArrayLike, *, seed: int = 0, resamples: int = 10_000
) -> Paired:
    """Compare two models' predictions image by image.

    The interval is the percentile bootstrap's over images (Efron 1979). A resample's difference depends only
    on how many flips and corrections it draws, so those are drawn from the multinomial that resampling n
    images makes of them: the same distribution, without n times `resamples` draws.

    Args:
        new: (N, C) logits or (N,) classes.
        old: the same, of the old model.
        labels: (N,) classes; -1: not labelled, left out.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: no image has a label.
    """
    truth = np.asarray(labels)
    counted = truth >= 0
    said_new, said_old, truth = _classes(new)[counted], _classes(old)[counted], truth[counted]
    n = len(truth)
    if not n:
        raise ValueError("no labelled image to compare on")
    new_right, old_right = said_new == truth, said_old == truth
    flips = int(np.sum(old_right & ~new_right))
    corrections = int(np.sum(new_right & ~old_right))
    low, high = _interval(flips, corrections, n, seed, resamples)
    return Paired(
        difference=100 * (corrections - flips) / n,
        low=low,
        high=high,
        mcnemar_p=_mcnemar(flips, corrections),
        negative_flips=flips,
        corrections=corrections,
        agreement=100 * float(np.mean(said_new == said_old)),
        n=n,
    )


def pooled(new: np.ndarray, old: np.ndarray, *, seed: int = 0, resamples: int = 10_000) -> dict[str, float]:
    """The mean difference over several trainings, its interval over images, and the spread between trainings.

    Images are resampled, each with all of its trainings: predictions of several seeds on one image are not
    independent evidence.

    Args:
        new: (S, N) bool, whether training s has image n right.
        old: the same of the models that it is compared with.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        `difference`, `low`, `high` in points of top-1 and `sd` of the difference between trainings.
    """
    gains = new.astype(np.int64).sum(0) - old.astype(np.int64).sum(0)
    seeds, n = new.shape
    values, counts = np.unique(gains, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples) @ values
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(100 * drawn / (seeds * n), [tail, 100 - tail])
    each = 100 * (new.mean(1) - old.mean(1))
    return {
        "difference": float(each.mean()),
        "low": float(low),
        "high": float(high),
        "sd": float(each.std(ddof=1)) if seeds > 1 else 0.0,
    }


def _classes(answers: ArrayLike) -> np.ndarray:
    given = np.asarray(answers)
    return given.argmax(1) if given.ndim == 2 else given


def _interval(flips: int, corrections: int, n: int, seed: int, resamples: int) -> tuple[float, float]:
    shares = [corrections / n, flips / n, (n - corrections - flips) / n]
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(100 * (drawn[:, 0] - drawn[:, 1]) / n, [tail, 100 - tail])
    return float(low), float(high)


def _mcnemar(flips: int, corrections: int) -> float:
    changed = flips + corrections
    return float(binomtest(flips, changed, 0.5).pvalue) if changed else 1.0
