"""Negative flips and corrections of a new model against an old one, by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest


def by_class(new: np.ndarray, old: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Negative flips and corrections of each class, the greatest net loss first.

    Args:
        new: (N,) classes that the new model predicts.
        old: (N,) classes that the old model predicts.
        labels: (N,) classes; -1: not labelled, left out.

    Returns:
        For each class that occurs: `class`, `negative_flips`, `corrections`, `n` images, and `p`, exact and
        one-sided, that so many more flips than corrections are luck. Many classes are looked at: divide the
        level by their number before calling one of them lost.
    """
    lost, won = (old == labels) & (new != labels), (new == labels) & (old != labels)
    found = []
    for label in np.unique(labels[labels >= 0]):
        here = labels == label
        flips, corrections = int(lost[here].sum()), int(won[here].sum())
        changed = flips + corrections
        found.append(
            {
                "class": int(label),
                "negative_flips": flips,
                "corrections": corrections,
                "n": int(here.sum()),
                "p": float(binomtest(flips, changed, 0.5, "greater").pvalue) if changed else 1.0,
            }
        )
    return sorted(found, key=lambda c: (c["corrections"] - c["negative_flips"], c["p"]))
