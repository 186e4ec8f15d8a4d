"""The files of a packed store: JPEGs one after the other and, at the end, a list of them. They are written once."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tutelage.core.errors import TutelageError
from tutelage.data.decode import decode

FORMAT = 1  # of the parts; those of another format are not read
QUALITY = 95  # of the JPEGs, 1 to 100, with colour at half the resolution (4:2:0)
SUFFIX = ".part"
MOST_OPEN = 64  # files that a process keeps open
JPEG = b"\xff\xd8\xff"  # the first bytes of every JPEG
# of an image in a part: its index in the set, where its JPEG begins and how long it is; 0: it cannot be decoded
ENTRY = np.dtype([("image", "<i8"), ("start", "<i8"), ("length", "<u4"), ("crc", "<u4")])
FOOTER = struct.Struct("<8sQQI")  # magic, images, bytes of the facts, checksum of entries and facts
MAGIC = b"tut-jpg1"


class PartFiles:
    """Parts in one directory, opened when something of them is read."""

    def __init__(self, place: Path, names: tuple[str, ...]) -> None:
        self._place, self._names = place, names
        self._files: dict[int, int] = {}  # descriptors by part, the one that was opened first first

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def read(self, part: int, start: int, length: int, crc: int, image_id: str) -> bytes:
        """Read one JPEG.

        Raises:
            TutelageError: the part is damaged there; the line names the image.
        """
        jpeg = os.pread(self._file(part), length, start)
        if len(jpeg) != length or zlib.crc32(jpeg) != crc:
            file = self._place / self._names[part]
            raise TutelageError(f"{file}: damaged at {image_id}; delete this file and resume")
        return jpeg

    def _file(self, part: int) -> int:
        if part not in self._files:
            if len(self._files) >= MOST_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[part] = os.open(self._place / self._names[part], os.O_RDONLY)
        return self._files[part]


def footer(entries: np.ndarray, facts: Mapping[Any, Any]) -> bytes:
    """The end of a part: its entries, JSON values about its images, and a checksum of both."""
    text = json.dumps(facts).encode()
    content = entries.astype(ENTRY).tobytes() + text
    return content + FOOTER.pack(MAGIC, len(entries), len(text), zlib.crc32(content))


def read_list(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """What `footer` has written: the entries of a part (`ENTRY`) and the facts.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
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


def small_jpeg(content: bytes, image_id: str, side: int, max_pixels: int | None = None) -> bytes:
    """An encoded image as a JPEG whose short side is at most `side` pixels; a JPEG that has no more stays as it is.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    image = decode(content, image_id, max_pixels, side)
    if min(image.size) <= side and content.startswith(JPEG) and _is_short(content, side):
        return content
    return as_jpeg(image, side)


def as_jpeg(image: Image.Image, side: int) -> bytes:
    """A decoded image as a JPEG whose short side is at most `side` pixels."""
    stream = io.BytesIO()
    small = image.resize(shrunk_size(image.size, side), Image.Resampling.BICUBIC)
    small.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _is_short(content: bytes, side: int) -> bool:
    """Whether the short side of an image that can be decoded has at most so many pixels, before it is scaled down."""
    with Image.open(io.BytesIO(content)) as image:
        return min(image.size) <= side


def shrunk_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) in pixels of an image whose short side is made at most `side`."""
    short = min(size)
    if short <= side:
        return size
    return max(1, round(size[0] * side / short)), max(1, round(size[1] * side / short))
