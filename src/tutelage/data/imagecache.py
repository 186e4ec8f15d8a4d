"""Images decoded once: resized uint8 copies in one file, so that an epoch decodes no JPEG."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tutelage.core.errors import TutelageError
from tutelage.core.files import write_bytes, write_json
from tutelage.core.recipe import ViewRecipe
from tutelage.data.decode import UnreadableImage
from tutelage.data.input_spec import InputSpec
from tutelage.data.parts import shrunk_size
from tutelage.data.splits import Subset
from tutelage.data.stored import StoredImages, sampled
from tutelage.data.workers import as_it_is

log = logging.getLogger(__name__)
FORMAT = 1  # of the files; a cache of another format is not read
PIXELS, INDEX, HEADER = "pixels.bin", "index.bin", "header.json"
CHUNK = 64  # images decoded by a worker at a time
SAMPLE = 64  # images decoded to estimate the size of all
ABANDONED = 3600  # seconds without a write, after which an unfinished copy is taken to be abandoned
ENTRY = np.dtype([("start", "<i8"), ("width", "<i4"), ("height", "<i4"), ("crc", "<u4")])
Progress = Callable[[int, int], None]


def cache_side(specs: Sequence[InputSpec], recipe: ViewRecipe) -> int:
    """Short side in pixels to keep, so that neither an average random crop nor an evaluation crop is enlarged."""
    crop = math.sqrt(sum(recipe.crop_scale) / 2)
    return max(math.ceil(max(s.height, s.width) / min(crop, s.crop_pct, 1.0)) for s in specs)


def cached(
    subset: Subset,
    side: int,
    directory: Path,
    limit_mb: float,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = log.info,
    refuse: Callable[[str], None] = log.warning,
) -> Subset:
    """A subset whose images come from a decoded copy on disk, which is made if it does not exist.

    The copy is named by the subset's digest and `side`. It is written under another name and renamed when it is
    complete, so that an unfinished copy is never read. Images whose short side is at most `side` are kept as they
    are: their views are bit-identical to those of the files.

    Args:
        subset: the images.
        side: short side in pixels to which larger images are resized.
        directory: holds the copies of any number of subsets and runs.
        limit_mb: where the copy would be larger, the subset is returned as it is.
        workers: number of decoding processes; None: one per core.
        progress: called with (images done, number of images).
        say: called with a line about a copy's size before it is made.
        refuse: called with the reason where the copy would be too large.
    """
    if subset.images.decoded:
        return subset
    place = directory / _key(subset, side)
    if (place / HEADER).exists():
        copy = _opened(subset, place)
        if copy is not None:
            return copy
        log.warning("%s: the image cache is damaged; it is made again", place)
        shutil.rmtree(place, ignore_errors=True)
    try:
        if not _fits(subset, side, directory, limit_mb, say, refuse):
            return subset
        _fill(_Shrunk(subset, side), place, limit_mb, workers, progress)
    except (OSError, TutelageError) as error:
        log.warning("%s: no image cache is kept (%s)", directory, error)
        return subset
    return _opened(subset, place) or subset


class CachedImages(StoredImages):
    """A set of images read from a decoded copy; ids, classes and labels are those of the original set."""

    threadsafe = True  # all read at places of one file; two that open it at once leave a descriptor more

    def __init__(self, subset: Subset, place: Path, header: dict[str, Any], index: np.ndarray) -> None:
        super().__init__(subset.images)
        self._place = place
        self._header = header
        self._entries = index
        self._indices = subset.indices
        self._file: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def image(self, index: int) -> Image.Image:
        """Read one decoded image.

        Raises:
            UnreadableImage: it could not be decoded when the copy was made.
            TutelageError: the copy is damaged.
        """
        position = int(np.searchsorted(self._indices, index))
        start, width, height, crc = self._entries[position].item()
        if not width:
            raise UnreadableImage(self.ids[index], self._header["bad"][str(position)])
        if self._file is None:
            self._file = os.open(self._place / PIXELS, os.O_RDONLY)
        pixels = os.pread(self._file, width * height * 3, start)
        if len(pixels) != width * height * 3 or zlib.crc32(pixels) != crc:
            raise TutelageError(f"{self._place}: damaged at {self.ids[index]}; delete this folder and resume")
        return Image.frombytes("RGB", (width, height), pixels)

    def digest(self) -> str:
        """The digest of the original set, or another where images were resized, because their views then differ."""
        if not self._header["shrunk"]:
            return self._source.digest()
        return hashlib.sha256(f"{self._source.digest()}@{self._header['side']}".encode()).hexdigest()


@dataclass(frozen=True)
class _Shrunk(Dataset[tuple[torch.Tensor, np.ndarray, dict[int, str], int]]):
    """Decoded chunks of a subset: (pixels as bytes, index entries, reasons of bad images, number of resized ones)."""

    subset: Subset
    side: int

    def __getitem__(self, chunk: int) -> tuple[torch.Tensor, np.ndarray, dict[int, str], int]:
        positions = range(chunk * CHUNK, min(len(self.subset), (chunk + 1) * CHUNK))
        entries = np.zeros(len(positions), ENTRY)
        bad: dict[int, str] = {}
        parts: list[bytes] = []
        shrunk = start = 0
        for entry, position in zip(entries, positions, strict=True):
            try:
                image = self.subset.image(position)
            except UnreadableImage as error:
                bad[position] = error.reason
                continue
            size = shrunk_size(image.size, self.side)
            shrunk += size != image.size
            pixels = image.resize(size, Image.Resampling.BICUBIC).tobytes()
            entry["start"], entry["crc"] = start, zlib.crc32(pixels)
            entry["width"], entry["height"] = size
            parts.append(pixels)
            start += len(pixels)
        return (
            torch.frombuffer(bytearray(b"".join(parts) or b"\0"), dtype=torch.uint8)[:start],
            entries,
            bad,
            shrunk,
        )


def _key(subset: Subset, side: int) -> str:
    text = f"{FORMAT}|{side}|{subset.digest()}|{subset.images.stamp()}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def estimated_mb(subset: Subset, side: int) -> float:
    """Estimate the size of a decoded copy in MB (10^6 bytes) from a sample of the images; see `cached`."""
    sizes = []
    for position in sampled(len(subset), SAMPLE):
        try:
            width, height = shrunk_size(subset.image(position).size, side)
        except UnreadableImage:
            continue
        sizes.append(width * height * 3)
    return sum(sizes) / max(1, len(sizes)) * len(subset) / 1e6


def _fits(
    subset: Subset,
    side: int,
    directory: Path,
    limit_mb: float,
    say: Callable[[str], None],
    refuse: Callable[[str], None],
) -> bool:
    """Report the estimated size, and compare it with the limit and the free space."""
    megabytes = estimated_mb(subset, side)
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free / 1e6
    if megabytes > min(limit_mb, free):
        bound = f"data.cache_mb is {limit_mb:g}" if megabytes > limit_mb else f"{free:.0f} MB are free"
        refuse(f"no image cache: {len(subset)} images would take {megabytes:.0f} MB, {bound}")
        return False
    say(f"image cache: {len(subset):,} images, about {megabytes:.0f} MB in {directory}")
    return True


def _fill(
    images: _Shrunk, place: Path, limit_mb: float, workers: int | None, progress: Progress | None
) -> None:
    """Write a copy under another name and rename it; where another process was faster, its copy is kept."""
    _clear_abandoned(place)
    aside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
        _write(images, aside, limit_mb, workers, progress)
        try:
            aside.rename(place)
        except OSError:
            if not (place / HEADER).exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(
    images: _Shrunk, aside: Path, limit_mb: float, workers: int | None, progress: Progress | None
) -> None:
    count, total = len(images.subset), 0
    chunks = math.ceil(count / CHUNK)
    workers = min(chunks // 4, os.cpu_count() or 1) if workers is None else workers
    loader = DataLoader(
        images, batch_size=None, sampler=range(chunks), num_workers=workers, collate_fn=as_it_is
    )
    header: dict[str, Any] = {"format": FORMAT, "side": images.side, "shrunk": 0, "bad": {}}
    entries: list[np.ndarray] = []
    with open(aside / PIXELS, "wb") as stream:
        for pixels, chunk, bad, shrunk in loader:
            chunk["start"] += total
            entries.append(chunk)
            header["bad"] |= {str(position): reason for position, reason in bad.items()}
            header["shrunk"] += shrunk
            total += stream.write(memoryview(pixels.numpy()))
            if total > limit_mb * 1e6:
                raise TutelageError(
                    f"it became larger than data.cache_mb={limit_mb:g}; the estimate was too small"
                )
            if progress:
                progress(min(count, len(entries) * CHUNK), count)
        stream.flush()
        os.fsync(stream.fileno())
    index = np.concatenate(entries).tobytes()
    write_bytes(aside / INDEX, index)
    header |= {"bytes": total, "index": hashlib.sha256(index).hexdigest()}
    write_json(aside / HEADER, header | {"checksum": _checksum(header)})


def _checksum(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _opened(subset: Subset, place: Path) -> Subset | None:
    """The subset with images from a copy; None where the files of the copy are damaged."""
    try:
        header = json.loads((place / HEADER).read_text())
        index = (place / INDEX).read_bytes()
        if (
            header.pop("checksum") != _checksum(header)
            or hashlib.sha256(index).hexdigest() != header["index"]
        ):
            return None
        if (place / PIXELS).stat().st_size != header["bytes"]:
            return None
        return replace(subset, images=CachedImages(subset, place, header, np.frombuffer(index, ENTRY)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _clear_abandoned(place: Path) -> None:
    for aside in place.parent.glob(f".{place.name}.*.tmp"):
        newest = max((file.stat().st_mtime for file in aside.iterdir()), default=aside.stat().st_mtime)
        if time.time() - newest > ABANDONED:
            shutil.rmtree(aside, ignore_errors=True)
