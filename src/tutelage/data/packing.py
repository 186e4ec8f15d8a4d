"""Filling a packed store: by all processes of any number of runs, in parts that each of them may write."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tutelage.core.errors import TutelageError
from tutelage.data.claims import aside_of, claimed, clear_abandoned
from tutelage.data.decode import UnreadableImage
from tutelage.data.packed import read_store, shrunk_jpeg
from tutelage.data.parts import ENTRY, SUFFIX, footer
from tutelage.data.subset import Subset
from tutelage.data.workers import as_it_is, dead_workers_named, deaf_to_interrupts

log = logging.getLogger(__name__)
LEAST = 512  # images of a part, so that a small set has few files
MOST_PARTS = (
    256  # of one fill; a larger set has larger parts: 5,005 images, or 250 MB, of ImageNet's 1.3 million
)
CHUNK = 32  # images encoded by a worker at a time
PAUSE = 0.5  # seconds between two looks at the parts that other processes write
Progress = Callable[[int, int], None]


def fill(
    subset: Subset,
    side: int,
    place: Path,
    limit_mb: float,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Write the images of a subset that a store does not hold, together with all other processes that call this.

    Each process takes the parts that no other one writes, until there are all. It returns when the store holds all
    images, so that no process waits for another one without an end.

    Args:
        subset: the images.
        side: short side in pixels to which larger images are shrunk.
        place: directory of the store.
        limit_mb: largest size of the store in MB (10^6 bytes).
        workers: encoding processes of this process; None: one per core, shared with the machine's other processes.
        progress: called with (images done, number of images), those of other processes included.
        rank: of this process; processes begin at different parts.
        world_size: number of processes.

    Raises:
        TutelageError: the store became larger than the limit.
        OSError: the disk is full, or the directory cannot be written.
    """
    place.mkdir(parents=True, exist_ok=True)
    clear_abandoned(place)
    size = max(LEAST, math.ceil(len(subset) / MOST_PARTS))
    wanted = read_store(place, side).missing(subset.indices)
    held = len(subset) - len(wanted)
    blocks = [subset.indices[at : at + size] for at in range(0, len(subset), size)]
    blocks = [block[np.isin(block, wanted)] for block in blocks]
    left = {_name(block): block for block in blocks if len(block)}
    begin = rank * len(left) // world_size
    left = dict([*left.items()][begin:] + [*left.items()][:begin])
    while left:
        wrote = False
        for name, block in [*left.items()]:
            if not (place / name).exists():
                with claimed(place / f".{name}.claim") as claim:
                    if claim is None:
                        continue
                    if not (place / name).exists():
                        begun = held

                        def step(done: int, begun: int = begun) -> None:
                            if progress:
                                progress(begun + done, len(subset))

                        _write(_Jpegs(subset, block, side), place / name, claim, limit_mb, workers, step)
                        wrote = True
            held += len(left.pop(name))
            if progress:
                progress(held, len(subset))
        if left and not wrote:
            time.sleep(PAUSE)


@dataclass(frozen=True)
class _Jpegs(Dataset[tuple[torch.Tensor, np.ndarray, dict[int, str]]]):
    """Encoded chunks of some images: (JPEGs as bytes, entries, reasons of bad images)."""

    subset: Subset
    indices: np.ndarray
    side: int

    def __getitem__(self, chunk: int) -> tuple[torch.Tensor, np.ndarray, dict[int, str]]:
        indices = self.indices[chunk * CHUNK : (chunk + 1) * CHUNK].tolist()
        entries = np.zeros(len(indices), ENTRY)
        bad: dict[int, str] = {}
        jpegs: list[bytes] = []
        start = 0
        for entry, index in zip(entries, indices, strict=True):
            try:
                jpeg = shrunk_jpeg(self.subset.images, index, self.side)
            except UnreadableImage as error:
                bad[index], jpeg = error.reason, b""
            entry["image"], entry["start"] = index, start
            entry["length"], entry["crc"] = len(jpeg), zlib.crc32(jpeg)
            jpegs.append(jpeg)
            start += len(jpeg)
        content = torch.frombuffer(bytearray(b"".join(jpegs) or b"\0"), dtype=torch.uint8)
        return content[:start], entries, bad


def _write(
    images: _Jpegs,
    part: Path,
    claim: Path,
    limit_mb: float,
    workers: int | None,
    progress: Callable[[int], None],
) -> None:
    """Write a part under another name and rename it."""
    chunks = math.ceil(len(images.indices) / CHUNK)
    if workers is None:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = min(chunks // 4, max(1, cores))
    loader = DataLoader(
        images,
        batch_size=None,
        sampler=range(chunks),
        num_workers=workers,
        collate_fn=as_it_is,
        worker_init_fn=deaf_to_interrupts if workers else None,
    )
    others = sum(file.stat().st_size for file in part.parent.glob(f"*{SUFFIX}"))
    entries: list[np.ndarray] = []
    bad: dict[int, str] = {}
    total = done = 0
    aside = aside_of(part)
    try:
        with open(aside, "wb") as stream, dead_workers_named():
            for jpegs, chunk, reasons in loader:
                chunk["start"] += total
                entries.append(chunk)
                bad |= reasons
                total += stream.write(memoryview(jpegs.numpy()))
                if others + total > limit_mb * 1e6:
                    raise TutelageError(
                        f"it became larger than {limit_mb:,.0f} MB; the estimate was too small"
                    )
                done += len(chunk)
                with contextlib.suppress(FileNotFoundError):  # taken from this process, which was asleep
                    os.utime(claim)
                progress(done)
            stream.write(footer(np.concatenate(entries), bad))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, part)
    finally:
        aside.unlink(missing_ok=True)


def _name(indices: np.ndarray) -> str:
    """The file of a part: the same in every process that is to write these images."""
    return hashlib.sha256(np.ascontiguousarray(indices, "<i8").tobytes()).hexdigest()[:32] + SUFFIX
