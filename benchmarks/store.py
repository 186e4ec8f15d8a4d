"""Images per CPU-second from files and from stores, the packing of large photographs, and the start with many files.

    python -m benchmarks.store                     # all three parts
    python -m benchmarks.store --parts loading     # or some of them: loading, large, start

CPU-seconds are those of the process and its loaders, in turns, so that other work on the machine matters little.
The pictures are pieces of two photographs that scikit-learn brings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.scene import CLASSES, CROP_SCALE, mean_std
from tutelage.core.files import write_json
from tutelage.core.recipe import ViewRecipe
from tutelage.data.device_views import render
from tutelage.data.imagecache import cache_side, cached
from tutelage.data.input_spec import InputSpec
from tutelage.data.loading import train_loader
from tutelage.data.packed import opened, store_place
from tutelage.data.packing import fill
from tutelage.data.parts import ENTRY, footer
from tutelage.data.sources.base import open_source
from tutelage.data.splits import Subset, whole
from tutelage.data.views import ViewPolicy

VIEWS = ViewRecipe(crop_scale=CROP_SCALE)
ONE, TWO = [InputSpec(224, 224)], [InputSpec(224, 224), InputSpec(288, 288)]
BATCH = 32
CPU = torch.device("cpu")
PARTS = ("loading", "large", "start")


def pictures(place: Path, count: int, size: tuple[int, int], different: int) -> Path:
    """Write JPEGs in ten classes: pieces of real photographs, put together; after `different` they are repeated."""
    from sklearn.datasets import load_sample_images

    width, height = size
    for number in range(count):
        target = place / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if number >= different:
            first = number % different
            os.link(place / f"class-{first % CLASSES}" / f"{first:06d}.jpg", target)
            continue
        rng = np.random.default_rng(number)
        photograph = load_sample_images().images[number % 2]
        rows = []
        for _ in range(-(-height // 400)):
            pieces = []
            for _ in range(-(-width // 600)):
                y, x = rng.integers(0, (427 - 400, 640 - 600))
                piece = photograph[y : y + 400, x : x + 600]
                pieces.append(piece[:, ::-1] if rng.integers(2) else piece)
            rows.append(np.concatenate(pieces, 1))
        Image.fromarray(np.concatenate(rows)[:height, :width]).save(target, quality=90)
    return place


def cpu_seconds() -> float:
    """CPU time of this process and of those of its children that have ended."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in times)


@contextlib.contextmanager
def handed_on(shown: Callable[..., list[torch.Tensor]]) -> Iterator[None]:
    """Let loaders hand pixels on as they do on a GPU, to a function in its place."""
    with (
        mock.patch("tutelage.data.rendering.gpu_in_use", return_value=CPU),
        mock.patch("tutelage.data.loading.gpu_in_use", return_value=CPU),
        mock.patch("tutelage.data.loading.render", shown),
    ):
        yield


def epoch(subset: Subset, specs: list[InputSpec], number: int) -> None:
    """Read an epoch in this process."""
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "epoch": number, "workers": 0}
    for _ in train_loader(subset, ViewPolicy(VIEWS), specs, **options):
        pass


def timms_epoch(place: Path) -> Callable[[int], None]:
    """timm's own loader with random resized crops and flips, up to the uint8 batch."""
    from timm.data import create_dataset, create_loader

    mean, std = mean_std(ONE[0])
    loader: Any = create_loader(
        create_dataset("", root=str(place)),
        input_size=(3, 224, 224),
        batch_size=BATCH,
        is_training=True,
        scale=CROP_SCALE,
        color_jitter=0.0,
        interpolation="bicubic",
        mean=tuple(mean),
        std=tuple(std),
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
        device=CPU,
    )

    def read(number: int) -> None:
        for _ in loader.loader:  # without the normalisation, which runs on the device
            pass

    return read


def loading(place: Path, images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Images per CPU-second of each way, on one core, in turns."""
    files = whole(open_source(f"folder:{pictures(place / 'photographs', images, (500, 375), images)}"))
    side = cache_side(ONE, VIEWS)
    raw = cached(files, side, place / "raw", 20_000, workers=0)
    fill(files, side, place / "packed", 20_000, workers=0)
    packed = opened(files, side, place / "packed")
    assert packed is not None

    def with_device(
        specs: list[InputSpec], shown: Callable[..., list[torch.Tensor]]
    ) -> Callable[[int], None]:
        def read(number: int) -> None:
            with handed_on(shown):
                epoch(packed, specs, number)

        return read

    ways: dict[str, Callable[[int], None]] = {"timm, one resolution": timms_epoch(place / "photographs")}
    for name, subset in (("files", files), ("raw", raw), ("packed", packed)):
        ways[f"{name}, one resolution"] = lambda number, subset=subset: epoch(subset, ONE, number)  # type: ignore[misc]
        ways[f"{name}, two resolutions"] = lambda number, subset=subset: epoch(subset, TWO, number)  # type: ignore[misc]
    ways["packed, handed on, one resolution"] = with_device(ONE, lambda *_: [])
    ways["packed, handed on, two resolutions"] = with_device(TWO, lambda *_: [])
    ways["packed, matrix products on this CPU"] = with_device(ONE, render)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way(number)
            if number:  # the first round warms up
                rates[name].append(images // BATCH * BATCH / (time.process_time() - began))
    base = median(rates["timm, one resolution"])
    return {
        name: {"median": median(found), "low": min(found), "high": max(found), "ratio": median(found) / base}
        for name, found in rates.items()
    }


def large(place: Path, images: int) -> dict[str, float]:
    """Seconds in which a folder of 12-megapixel photographs is packed with two processes."""
    files = whole(open_source(f"folder:{pictures(place / 'large', images, (4000, 3000), 16)}"))
    side, began, cpu = cache_side(ONE, VIEWS), time.perf_counter(), cpu_seconds()
    fill(files, side, place / "packed", 20_000, workers=2)
    size = sum(part.stat().st_size for part in (place / "packed").iterdir())
    return {
        "images": images,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - cpu,
        "file_mb": (place / "large" / "class-0" / "000000.jpg").stat().st_size / 1e6,
        "store_mb": size / 1e6,
    }


def many_files(place: Path, count: int) -> None:
    """Write sparse files in a thousand folders, and a store of sparse files that has an entry for each."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(60_000, 160_000, count).tolist()
    for number, size in enumerate(sizes):
        folder = place / "files" / f"n{number % 1000:08d}"
        if number < 1000:
            folder.mkdir(parents=True)
        descriptor = os.open(folder / f"n{number % 1000:08d}_{number}.JPEG", os.O_CREAT | os.O_WRONLY)
        os.truncate(descriptor, size)
        os.close(descriptor)
    old = time.time() - 60
    for folder in (place / "files").iterdir():
        os.utime(folder, (old, old))


def many_entries(subset: Subset, directory: Path) -> None:
    """A store of sparse parts that has an entry for each image."""
    place = store_place(subset.images, 273, directory)
    place.mkdir(parents=True)
    for number, indices in enumerate(np.array_split(subset.indices, 256)):
        entries = np.zeros(len(indices), ENTRY)
        entries["image"], entries["length"] = indices, 49_000
        entries["start"] = np.arange(len(indices)) * 49_000
        with open(place / f"{number:03d}.part", "wb") as stream:
            stream.truncate(len(indices) * 49_000)
            stream.seek(0, os.SEEK_END)
            stream.write(footer(entries, {}))


def one_start(place: Path) -> dict[str, float]:
    """Open a folder and the store of its images in this process: seconds and MB (10^6 bytes) of it."""
    began, cpu, before = time.perf_counter(), time.process_time(), _peak_mb()
    subset = whole(open_source(f"folder:{place / 'files'}"))
    directory = place / "stores"
    copy = opened(subset, 273, store_place(subset.images, 273, directory))
    row = {
        "images": len(subset),
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
        "imports_mb": before,
    }
    if copy is None:
        many_entries(subset, directory)
    return row


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def starts(place: Path, count: int) -> list[dict[str, float]]:
    """Start three times in processes of their own: the first lists the files, and the third has a store."""
    many_files(place, count)
    rows = []
    for _ in range(3):
        command = [sys.executable, "-m", "benchmarks.store", "--one-start", str(place)]
        environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def main() -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--images", type=int, default=512, help="of the part loading")
    parser.add_argument("--rounds", type=int, default=5, help="of the part loading")
    parser.add_argument("--large", type=int, default=1000, help="photographs of 12 megapixels")
    parser.add_argument("--files", type=int, default=1_300_000, help="of the part start")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/store.json"))
    parser.add_argument("--one-start", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one_start:
        print(json.dumps(one_start(asked.one_start)))
        return
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        if "loading" in asked.parts:
            found["loading"] = loading(place / "loading", asked.images, asked.rounds)
            shown = Table("way", "images per CPU-second", "lowest to highest", "times timm's")
            for name, row in found["loading"].items():
                spread = f"{row['low']:.0f}–{row['high']:.0f}"
                shown.add_row(name, f"{row['median']:.0f}", spread, f"{row['ratio']:.2f}")
            Console().print(shown)
        if "large" in asked.parts:
            found["large"] = large(place / "large", asked.large)
            Console().print(found["large"])
        if "start" in asked.parts:
            found["start"] = starts(place / "start", asked.files)
            Console().print(found["start"])
    write_json(asked.json, found)


if __name__ == "__main__":
    main()
