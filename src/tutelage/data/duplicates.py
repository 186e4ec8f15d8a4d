"""Equal images in training and in evaluation: found by the bytes of their files, without decoding them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.data.sources.base import ImageSet
from tutelage.data.sources.tree import counted, listed

HEAD = 4096  # bytes that are compared before whole files are
LEAST = 128  # bytes; smaller files hold next to nothing (one colour, 8x8 pixels) and may be equal by chance
Images = tuple[ImageSet, np.ndarray]  # a set, and int64 indices of some of its images


def copies_in(role: str, trained: Images, held: Sequence[Images], notes: list[str]) -> np.ndarray:
    """The positions of the training images that `find_copies` finds, int64; a note on them is added to `notes`.

    Raises:
        TutelageError: all are copies.
    """
    copies = find_copies(trained, held)
    images, indices = trained
    if not copies:
        return np.array([], np.int64)
    if len(copies) == len(indices):
        raise TutelageError(
            f"data.{role}={images.name}: each of its {len(copies):,} images is in data.val or data.test too; name "
            "other images, or keep the copies with data.drop_duplicates=false"
        )
    pairs = [f"{images.ids[int(indices[place])]} = {original}" for place, original in copies.items()]
    notes.append(
        f"data.{role}={images.name}: {counted(len(copies), 'copy', 'copies')} of val or test images left out: "
        f"{listed(pairs)} (data.drop_duplicates=false keeps them)"
    )
    return np.array(list(copies), np.int64)


def find_copies(trained: Images, held: Sequence[Images]) -> dict[int, str]:
    """Find images whose files are equal, byte for byte, to that of a held-out image.

    Only files of equal size are read, and whole only where their first 4 KiB are equal too. Images that have no file
    of their own (`ImageSet.content`), and files of less than 128 bytes, are not compared.

    Args:
        trained: the images to look at.
        held: the held-out images.

    Returns:
        For the position of each copy in `trained`, the id of the first held-out image that it equals.
    """
    images, indices = trained
    sizes = _sizes(trained)
    originals: dict[tuple[int, bytes], list[tuple[ImageSet, int]]] = {}
    for other in held:
        other_sizes = _sizes(other)
        for position in _of_sizes(other_sizes, sizes):
            index = int(other[1][position])
            originals.setdefault((int(other_sizes[position]), _head(other[0], index)), []).append(
                (other[0], index)
            )
    wanted = np.array(sorted({size for size, _ in originals}), np.int64)
    copies = {}
    for position in _of_sizes(sizes, wanted):
        index = int(indices[position])
        candidates = originals.get((int(sizes[position]), _head(images, index)), [])
        if candidates and (original := _equal(images, index, candidates)) is not None:
            copies[position] = original
    return copies


def _sizes(images: Images) -> np.ndarray:
    """Size of each image's file in bytes; -1 where it is not known."""
    sizes = images[0].sizes()
    return np.full(len(images[1]), -1, np.int64) if sizes is None else sizes[images[1]]


def _of_sizes(sizes: np.ndarray, wanted: np.ndarray) -> Iterator[int]:
    """Positions of the images of these sizes, without unknown and very small ones."""
    yield from np.flatnonzero(np.isin(sizes, wanted) & (sizes >= LEAST)).tolist()


def _head(images: ImageSet, index: int) -> bytes:
    content = images.content(index, HEAD) or b""
    return hashlib.blake2b(content, digest_size=16).digest()


def _equal(images: ImageSet, index: int, candidates: list[tuple[ImageSet, int]]) -> str | None:
    """The id of the first candidate whose file is equal; None: there is none."""
    content = images.content(index)
    if content is None:
        return None
    return next((other.ids[place] for other, place in candidates if other.content(place) == content), None)
