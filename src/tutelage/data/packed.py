"""The packed store: images shrunk to what a run needs, as JPEGs in a few files that any number of runs share.

A store belongs to one set of images and one short side. It is a directory of parts, each with the JPEGs of up to a few
thousand images and, at its end, a list of them. A part is written under another name and renamed when it is complete,
so that a part that can be seen can be read, and a stopped fill goes on where it stopped (`packing`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.decode import UnreadableImage, decode
from tutelage.data.sources.base import ImageSet
from tutelage.data.stored import StoredImages, sampled, shrunk_size
from tutelage.data.subset import Subset

log = logging.getLogger(__name__)
FORMAT = 1  # of the parts; those of another format are not read
QUALITY = 95  # of the JPEGs, 1 to 100, with colour at half the resolution (4:2:0)
SUFFIX = ".part"
SAMPLE = 64  # images encoded to estimate the size of all
MOST_OPEN = 64  # files that a process keeps open
JPEG = b"\xff\xd8\xff"  # the first bytes of every JPEG
# of an image in a part: its index in the set, where its JPEG begins and how long it is; 0: it cannot be decoded
ENTRY = np.dtype([("image", "<i8"), ("start", "<i8"), ("length", "<u4"), ("crc", "<u4")])
PLACED = np.dtype([*ENTRY.descr, ("part", "<i4")])
FOOTER = struct.Struct("<8sQQI")  # magic, images, bytes of the reasons, checksum of entries and reasons
MAGIC = b"tut-jpg1"


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


class PackedImages(StoredImages):
    """A set of images that are read from a store. Images that the store does not hold cannot be read."""

    small = True

    def __init__(self, source: ImageSet, store: Store) -> None:
        super().__init__(source)
        self._store = store
        self._files: dict[int, int] = {}  # descriptors by part, the one that was opened first first

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def image(self, index: int) -> Image.Image:
        """Decode one image.

        Raises:
            UnreadableImage: it could not be decoded when the store was filled.
            TutelageError: the store is damaged.
        """
        return decode(self.content(index), self.ids[index])

    def content(self, index: int, count: int = -1) -> bytes:
        """The JPEG of one image; raises as `image` does."""
        entries = self._store.entries
        at = int(np.searchsorted(entries["image"], index))
        if at == len(entries) or entries["image"][at] != index:
            raise TutelageError(f"{self._store.place}: has no image {self.ids[index]}")
        _, start, length, crc, part = entries[at].item()
        if not length:
            raise UnreadableImage(self.ids[index], self._store.bad[index])
        jpeg = os.pread(self._file(part), length, start)
        if len(jpeg) != length or zlib.crc32(jpeg) != crc:
            file = self._store.place / self._store.parts[part]
            raise TutelageError(f"{file}: damaged at {self.ids[index]}; delete this file and resume")
        return jpeg if count < 0 else jpeg[:count]

    def digest(self) -> str:
        """Another digest than that of the original set, since the images are others."""
        return hashlib.sha256(f"{self._source.digest()}@{self._store.side}q{QUALITY}".encode()).hexdigest()

    def _file(self, part: int) -> int:
        if part not in self._files:
            if len(self._files) >= MOST_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[part] = os.open(self._store.place / self._store.parts[part], os.O_RDONLY)
        return self._files[part]


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
            entries, reasons = _read_list(file)
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
    _, first = np.unique(every["image"], return_index=True)
    return Store(place, side, tuple(parts), every[first], bad)


def footer(entries: np.ndarray, bad: dict[int, str]) -> bytes:
    """The end of a part: its entries, why images cannot be decoded, and a checksum of both."""
    reasons = json.dumps(bad).encode()
    content = entries.astype(ENTRY).tobytes() + reasons
    return content + FOOTER.pack(MAGIC, len(entries), len(reasons), zlib.crc32(content))


def _read_list(file: Path) -> tuple[np.ndarray, dict[str, str]]:
    """The entries of a part and its reasons; raises `ValueError` where they are damaged."""
    with open(file, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - FOOTER.size))
        end = stream.read()
        if len(end) != FOOTER.size:
            raise ValueError("too short")
        magic, count, length, crc = FOOTER.unpack(end)
        wanted = count * ENTRY.itemsize + length
        if magic != MAGIC or wanted + FOOTER.size > size:
            raise ValueError("no list at its end")
        stream.seek(size - FOOTER.size - wanted)
        content = stream.read(wanted)
    entries = np.frombuffer(content[: count * ENTRY.itemsize], ENTRY)
    if (
        zlib.crc32(content) != crc
        or int(entries["length"].sum(dtype=np.int64)) + wanted + FOOTER.size != size
    ):
        raise ValueError("its list does not fit")
    return entries, json.loads(content[count * ENTRY.itemsize :])


def shrunk_jpeg(images: ImageSet, index: int, side: int) -> bytes:
    """One image as a JPEG whose short side is at most `side` pixels; that of the file, where it is no longer.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    content = images.content(index)
    if content is None:
        image = images.image(index)
    else:
        image = decode(content, images.ids[index], images.max_pixels, side)
        if min(image.size) <= side and content.startswith(JPEG) and _is_short(content, side):
            return content
    stream = io.BytesIO()
    small = image.resize(shrunk_size(image.size, side), Image.Resampling.BICUBIC)
    small.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _is_short(content: bytes, side: int) -> bool:
    """Whether the short side of an image that can be decoded has at most so many pixels, before it is scaled down."""
    with Image.open(io.BytesIO(content)) as image:
        return min(image.size) <= side


def estimated_mb(subset: Subset, side: int) -> float:
    """Estimate the size of a store of these images in MB (10^6 bytes) from a sample of them."""
    sizes = []
    for position in sampled(len(subset), SAMPLE) if len(subset) else ():
        try:
            sizes.append(len(shrunk_jpeg(subset.images, int(subset.indices[position]), side)))
        except UnreadableImage:
            continue
    return (sum(sizes) / max(1, len(sizes)) + ENTRY.itemsize) * len(subset) / 1e6
