"""Exact intervals of a share that was counted."""

from __future__ import annotations

from scipy.stats import binomtest

LEVEL = 0.95  # of all intervals


def exact_interval(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """The two-sided interval of a share of which `hits` of `n` were counted, as shares from 0 to 1.

    It holds with at least its level for any share and any n (Clopper and Pearson 1934, "The use of confidence or
    fiducial limits illustrated in the case of the binomial").

    Raises:
        ValueError: n is 0, or there are more hits than n.
    """
    found = binomtest(hits, n).proportion_ci(confidence_level=level, method="exact")
    return float(found.low), float(found.high)
