"""The packed store: images shrunk to what a run needs, as JPEGs in a few files that any number of runs share.

A store belongs to one set of images and one short side. It is a directory of parts, each with the JPEGs of up to a few
thousand images and, at its end, a list of them. A part is written under another name and renamed when it is complete,
so that a part that can be seen can be read, and a stopped fill goes on where it stopped (`packing`).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tutelage.core.errors import TutelageError
from tutelage.data.decode import UnreadableImage
from tutelage.data.parts import ENTRY, FORMAT, QUALITY, SUFFIX, PartFiles, as_jpeg, read_list, small_jpeg
from tutelage.data.sources.base import ImageSet
from tutelage.data.sources.jpegs import StoredJpegs
from tutelage.data.stored import StoredImages, sampled
from tutelage.data.subset import Subset

log = logging.getLogger(__name__)
SAMPLE = 64  # images encoded to estimate the size of all
PLACED = np.dtype([*ENTRY.descr, ("part", "<i4")])


@dataclass(frozen=True)
class Store:
    """The images that a store holds.

    Attributes:
        place: its directory.
        side: short side of its images in pixels, unless they are smaller.
        parts: names of its files.
        entries: `PLACED`, ascending by image, each image once.
        bad: why images cannot be decoded, by their index in the set.
    """

    place: Path
    side: int
    parts: tuple[str, ...]
    entries: np.ndarray
    bad: dict[int, str]

    def missing(self, indices: np.ndarray) -> np.ndarray:
        """Those of some images that the store does not hold, in their order."""
        return indices[~np.isin(indices, self.entries["image"])]


class PackedImages(StoredJpegs, StoredImages):
    """A set of images that are read from a store. Images that the store does not hold cannot be read."""

    small = True

    def __init__(self, source: ImageSet, store: Store) -> None:
        super().__init__(source)
        self._store = store
        self._files = PartFiles(store.place, store.parts)

    def jpeg(self, index: int) -> bytes:
        """See `StoredJpegs`."""
        entries = self._store.entries
        at = int(np.searchsorted(entries["image"], index))
        if at == len(entries) or entries["image"][at] != index:
            raise TutelageError(f"{self._store.place}: has no image {self.ids[index]}")
        _, start, length, crc, part = entries[at].item()
        if not length:
            raise UnreadableImage(self.ids[index], self._store.bad[index])
        return self._files.read(part, start, length, crc, self.ids[index])

    def digest(self) -> str:
        """Another digest than that of the original set, since the images are others."""
        return hashlib.sha256(f"{self._source.digest()}@{self._store.side}q{QUALITY}".encode()).hexdigest()


def store_place(images: ImageSet, side: int, directory: Path) -> Path:
    """The directory of a set's store. It is another one where a file or `side` changes."""
    text = f"{FORMAT}|{side}|{QUALITY}|{images.max_pixels}|{images.digest()}|{images.stamp()}"
    return directory / f"packed-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def opened(subset: Subset, side: int, place: Path) -> Subset | None:
    """The subset with its images read from a store; None where the store does not hold all of them."""
    store = read_store(place, side)
    if len(store.missing(subset.indices)):
        return None
    return replace(subset, images=PackedImages(subset.images, store))


def read_store(place: Path, side: int) -> Store:
    """What a store holds. A part that is damaged is removed, with a warning."""
    parts: list[str] = []
    lists: list[np.ndarray] = [np.empty(0, PLACED)]
    bad: dict[int, str] = {}
    for file in sorted(place.glob(f"*{SUFFIX}")):
        try:
            entries, reasons = read_list(file)
        except (OSError, ValueError) as error:
            log.warning("%s: damaged (%s); its images are packed again", file, error)
            file.unlink(missing_ok=True)
            continue
        placed = np.empty(len(entries), PLACED)
        for name in ENTRY.names or ():
            placed[name] = entries[name]
        placed["part"] = len(parts)
        lists.append(placed)
        parts.append(file.name)
        bad |= {int(index): reason for index, reason in reasons.items()}
    every = np.concatenate(lists)
    del lists  # each copy of the entries of a million images is 40 MB
    if (np.diff(every["image"]) <= 0).any():
        _, first = np.unique(every["image"], return_index=True)
        every = every[first]
    return Store(place, side, tuple(parts), every, bad)


def shrunk_jpeg(images: ImageSet, index: int, side: int) -> bytes:
    """One image as a JPEG whose short side is at most `side` pixels; that of the file, where it is no longer.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    content = images.content(index)
    if content is None:
        return as_jpeg(images.image(index), side)
    return small_jpeg(content, images.ids[index], side, images.max_pixels)


def estimated_mb(subset: Subset, side: int) -> float:
    """Estimate the size of a store of these images in MB (10^6 bytes) from a sample of them."""
    sizes = []
    for position in sampled(len(subset), SAMPLE) if len(subset) else ():
        try:
            sizes.append(len(shrunk_jpeg(subset.images, int(subset.indices[position]), side)))
        except UnreadableImage:
            continue
    return (sum(sizes) / max(1, len(sizes)) + ENTRY.itemsize) * len(subset) / 1e6
