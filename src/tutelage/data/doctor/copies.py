"""The same picture more than once: with equal pixels, or saved again with another quality or size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from tutelage.data.doctor.collection import Collection
from tutelage.data.doctor.finding import Finding, Item, Level
from tutelage.data.doctor.pictures import PLAIN, Pictures

BITS = 8  # of 63 in which the hashes of two copies of one picture may differ
SHADES = 5.0  # of 255, mean over the pixels of two thumbs, by which copies may differ; see docs/data.md


COPIES: Mapping[str, tuple[str, Level, str]] = {
    "copies_of_test": (
        "Test picture in training too",
        "problem",
        "A model that has seen a test picture is not tested by it, and every interval assumes that there is none. A "
        "run leaves out copies that are equal byte for byte; the list leaves out these too.",
    ),
    "copies_of_val": (
        "Val picture in training too",
        "problem",
        "Model selection prefers a model that has learnt them by heart. The list leaves out the training images.",
    ),
    "copies_of_two_classes": (
        "Same picture in two classes",
        "problem",
        "At least one of the labels is wrong. The list has all of them, since it is not known which; test images stay.",
    ),
    "copies": (
        "Same picture more than once",
        "note",
        "They count more often than other pictures. The list keeps the first of each.",
    ),
}


def same_pictures(pictures: Pictures) -> list[list[int]]:
    """Find groups of images that show the same picture.

    Two images are the same picture where all pixels are equal; or where their perceptual hashes are close and their
    thumbs nearly equal, which holds for copies that were saved again or scaled. A crop, a mirrored copy, and the next
    photograph of a series are other pictures.

    Returns:
        Numbers of the images of each group, ascending; the groups by their first image.
    """
    first, second = (np.concatenate(pair) for pair in zip(_equal(pictures), _close(pictures), strict=True))
    count = len(pictures)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")
    several = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted(one.tolist() for one in several if len(one) > 1)


def copy_findings(images: Collection, groups: Sequence[Sequence[int]]) -> list[Finding]:
    """Sort groups of images that show the same picture by what they spoil: test, val, labels, or nothing.

    Args:
        images: all of them.
        groups: numbers of the images of each group.
    """
    sorted_groups: dict[str, list[tuple[Item, ...]]] = {kind: [] for kind in COPIES}
    for group in groups:
        roles = {str(images.roles[number]) for number in group}
        labels = {int(images.labels[number]) for number in group} - {-1}
        if "test" in roles and len(roles) > 1:
            kind = "copies_of_test"
        elif "val" in roles and len(roles) > 1:
            kind = "copies_of_val"
        else:
            kind = "copies_of_two_classes" if len(labels) > 1 else "copies"
        sorted_groups[kind].append(tuple(_copy(number, group, kind, images) for number in group))
    return [
        Finding(kind, title, level, text, tuple(sorted_groups[kind]))
        for kind, (title, level, text) in COPIES.items()
        if sorted_groups[kind]
    ]


def _copy(number: int, group: Sequence[int], kind: str, images: Collection) -> Item:
    """An image of a group, with the reason for which it is left out."""
    role = str(images.roles[number])
    first = next((one for one in group if images.roles[one] == kind.removeprefix("copies_of_")), group[0])
    other = f"{images.roles[first]} image {images.id(first)}"
    if (
        role == "test"
        or (kind == "copies_of_val" and role == "val")
        or (kind == "copies" and number == first)
    ):
        return Item(number)
    label = images.labels[number]
    rivals = [one for one in group if -1 != images.labels[one] != label != -1]
    if kind == "copies_of_two_classes" and rivals:
        other = f"{images.id(rivals[0])}, which is labelled {images.class_of(rivals[0])}"
    return Item(number, leave_out=f"same picture as {other}")


def _equal(pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of images with equal pixels: each with the first one of its kind."""
    numbers = np.flatnonzero(pictures.readable)
    _, first, kind = np.unique(pictures.pixels[numbers], return_index=True, return_inverse=True)
    originals = numbers[first][kind]
    more = originals != numbers
    return originals[more], numbers[more]


def _close(pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of images with close hashes and nearly equal thumbs."""
    shown = np.flatnonzero(pictures.readable & (pictures.contrast >= PLAIN))
    # of images with equal pixels one stands for all, so that a thousand copies are not a million pairs
    _, first = np.unique(pictures.pixels[shown], return_index=True)
    numbers = shown[np.sort(first)]
    empty = np.array([], np.int64)
    if len(numbers) < 2:
        return empty, empty
    bits = np.unpackbits(pictures.bits[numbers].view(np.uint8).reshape(len(numbers), 8), axis=1)
    search = NearestNeighbors(radius=(BITS + 0.5) ** 0.5, algorithm="brute").fit(bits.astype(np.float32))
    pairs: Sequence[np.ndarray] = search.radius_neighbors(return_distance=False)
    left = np.repeat(np.arange(len(numbers)), [len(found) for found in pairs])
    right = np.concatenate(pairs).astype(np.int64)
    left, right = left[left < right], right[left < right]
    near = _difference(pictures.thumb[numbers], left, right) <= SHADES
    return numbers[left[near]], numbers[right[near]]


def _difference(thumbs: np.ndarray, left: np.ndarray, right: np.ndarray, block: int = 100_000) -> np.ndarray:
    """Mean absolute difference of pairs of thumbs, in shades of 255; a block of pairs at a time to save memory."""
    parts = []
    for start in range(0, len(left), block):
        one, other = (thumbs[places[start : start + block]].astype(np.int16) for places in (left, right))
        parts.append(np.abs(one - other).mean(1))
    return np.concatenate(parts) if parts else np.array([])
