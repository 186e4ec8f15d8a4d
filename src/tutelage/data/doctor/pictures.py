"""What is measured of each image in one pass: size, light, sharpness, and a perceptual hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from scipy.fft import dctn
from torch.utils.data import DataLoader, Dataset

from tutelage.data.decode import UnreadableImage
from tutelage.data.subset import Subset
from tutelage.data.workers import as_it_is, dead_workers_named, deaf_to_interrupts

LOOKED_AT = (
    256  # pixels of the longer side at which light and sharpness are measured, about what a network sees
)
THUMB = 16  # pixels of each side of the small copy by which two pictures are compared
PLAIN = 0.02  # contrast below which a picture is of one colour, and its hash is noise
CHUNK = 32  # images that a loader process measures at a time
MOST_WORKERS = 8


@dataclass(frozen=True)
class Pictures:
    """What was measured of N images; the values of one that cannot be decoded are 0.

    Attributes:
        width: (N,) int32, in pixels.
        height: (N,) int32, in pixels.
        light: (N,) float32, the grey below which 99% of the pixels are, from 0 (black) to 1 (white).
        contrast: (N,) float32, standard deviation of the greys, from 0 to 0.5.
        sharpness: (N,) float32, variance of the Laplacian of the greys (Pech-Pacheco et al. 2000, "Diatom autofocusing
            in brightfield microscopy"), divided by their own variance, since a picture of little contrast may be sharp.
        pixels: (N,) int64, a digest of all pixels.
        bits: (N,) uint64, a perceptual hash of 63 bits: which of the lowest frequencies are above their median (Zauner
            2010, "Implementation and benchmarking of perceptual image hash functions").
        thumb: (N, 768) uint8, the picture at 16 by 16 pixels.
        unreadable: for the number of each image that cannot be decoded, why.
    """

    width: np.ndarray
    height: np.ndarray
    light: np.ndarray
    contrast: np.ndarray
    sharpness: np.ndarray
    pixels: np.ndarray
    bits: np.ndarray
    thumb: np.ndarray
    unreadable: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.width)

    @cached_property
    def readable(self) -> np.ndarray:
        """(N,) bool."""
        return self.width > 0


MEASURES = {
    "width": (np.int32, ()),
    "height": (np.int32, ()),
    "light": (np.float32, ()),
    "contrast": (np.float32, ()),
    "sharpness": (np.float32, ()),
    "pixels": (np.int64, ()),
    "bits": (np.uint64, ()),
    "thumb": (np.uint8, (THUMB * THUMB * 3,)),
}


def measure_all(images: Subset, on_images: Callable[[int], object] = lambda images: None) -> Pictures:
    """Decode each image once and measure it, in as many processes as there are cores.

    Args:
        images: the images.
        on_images: called with the number of images of each chunk that is done.
    """
    count = len(images)
    found = {name: np.zeros((count, *shape), kind) for name, (kind, shape) in MEASURES.items()}
    unreadable: dict[int, str] = {}
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(
        cores, MOST_WORKERS, len(chunks) // 8
    )  # of a few images, a process costs more than it saves
    loader = DataLoader(
        _Measuring(images),
        batch_size=None,
        sampler=chunks,
        num_workers=workers,
        collate_fn=as_it_is,
        worker_init_fn=deaf_to_interrupts if workers else None,
    )
    with dead_workers_named():
        for numbers, rows, reasons in loader:
            for name, values in zip(MEASURES, zip(*rows, strict=True), strict=False):
                found[name][numbers] = np.stack(values)
            unreadable |= reasons
            on_images(len(numbers) + len(reasons))
    return Pictures(**found, unreadable=unreadable)


class _Measuring(Dataset[tuple[list[int], list[tuple[object, ...]], dict[int, str]]]):
    """Measures a chunk of images: numbers of those that can be decoded, their values, and why others cannot."""

    def __init__(self, images: Subset) -> None:
        self._images = images

    def __getitem__(self, chunk: range) -> tuple[list[int], list[tuple[object, ...]], dict[int, str]]:
        numbers, rows, reasons = [], [], {}
        for number in chunk:
            try:
                rows.append(measure(self._images.image(number)))
                numbers.append(number)
            except UnreadableImage as error:
                reasons[number] = error.reason
        return numbers, rows, reasons


def measure(image: Image.Image) -> tuple[object, ...]:
    """Measure one RGB image; the values are in the order of `MEASURES`."""
    small = _scaled(image)
    grey = small.convert("L")
    counts = np.cumsum(grey.histogram())
    light = int(np.searchsorted(counts, 0.99 * counts[-1])) / 255
    greys = np.asarray(grey, np.float32) / 255
    variance = float(greys.var())
    return (
        *image.size,
        light,
        variance**0.5,
        float(_laplacian(greys).var()) / max(variance, 1e-6),
        _digest(image),
        _hash(grey),
        np.asarray(small.resize((THUMB, THUMB), Image.Resampling.BILINEAR), np.uint8).ravel(),
    )


def _scaled(image: Image.Image) -> Image.Image:
    """The image with a longer side of at most `LOOKED_AT` pixels."""
    factor = LOOKED_AT / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(factor * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _digest(image: Image.Image) -> int:
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=8)
    digest.update(image.tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def _laplacian(greys: np.ndarray) -> np.ndarray:
    if min(greys.shape) < 3:
        return np.zeros(1, np.float32)
    across = greys[1:-1, :-2] + greys[1:-1, 2:]
    down = greys[:-2, 1:-1] + greys[2:, 1:-1]
    result: np.ndarray = across + down - 4 * greys[1:-1, 1:-1]
    return result


def _hash(grey: Image.Image) -> np.uint64:
    lowest = dctn(np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR), np.float32))[:8, :8].ravel()[
        1:
    ]
    bits = np.append(lowest > np.median(lowest), False)
    return np.packbits(bits).view(np.uint64)[0]
