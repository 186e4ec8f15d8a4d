"""A seeded selection of images, in which each class has its share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from tutelage.data.sources.base import ImageSet


def stratified(
    images: ImageSet, indices: np.ndarray, wanted: int, seed: int, spare: bool = False
) -> np.ndarray:
    """Select images, each class in proportion to its size.

    Of each class, the images whose hashed ids come first are taken, so that a few added images change the selection
    by little.

    Args:
        images: the set.
        indices: which of its images may be selected.
        wanted: how many to select.
        seed: of the hash.
        spare: leave at least one image of each class.

    Returns:
        int64, ascending: `wanted` of `indices`, or all where there are fewer.
    """
    labels = images.labels[indices] if images.labels is not None else np.zeros(len(indices), np.int64)
    order, counts, ranks = ranked(labels, [images.ids[int(i)] for i in indices], seed)
    free = counts - 1 if spare else counts
    ends = np.cumsum(free)
    quotas = np.diff(ends * min(wanted, ends[-1]) // max(1, ends[-1]), prepend=0)
    return np.sort(indices[order[ranks < np.repeat(quotas, counts)]])


def ranked(labels: np.ndarray, ids: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order images by label and hashed id; also count the images of each label, and number those of one label."""
    keys = np.array([hashed(seed, name) for name in ids], np.uint64)
    order = np.lexsort((keys, labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=-2))
    counts = np.diff(starts, append=len(order))
    return order, counts, np.arange(len(order)) - np.repeat(starts, counts)


def hashed(seed: int, name: str) -> int:
    """Return a number of 64 bits for a name."""
    text = f"{seed}|{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
