"""Memory and disk space as the number of images grows.

    python -m benchmarks.growth

For each size, a new process decodes small JPEGs once, fills a cache of targets, and trains one epoch from both.
The anonymous memory (Linux's RssAnon) is measured, since the kernel can drop mapped files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.ours import Ours
from benchmarks.scene import CLASSES, Pair
from tutelage.core.files import write_json

SIZES = (1_000, 4_000, 16_000)
PAIR = Pair("test_resnet", "test_efficientnet", 32, batch=64)
KEYS = ("images", "own_memory_mb", "image_bytes_per_image", "target_bytes_per_image", "seconds")


def small_photographs(place: Path, count: int) -> Path:
    """Write JPEGs of 48 pixels with noise, which are quick to make but not quick to decode."""
    rng = np.random.default_rng(0)
    for number in range(count):
        target = place / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(target)
    return place


def own_memory_mb() -> float:
    """Return the memory of this process without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Peak(threading.Thread):
    """Keeps the highest `own_memory_mb`, measured ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = 0.0

    def run(self) -> None:
        while True:
            self.highest = max(self.highest, own_memory_mb())
            time.sleep(0.1)


def one(count: int) -> dict[str, float]:
    """Measure one size in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        place = small_photographs(Path(directory) / "photographs", count)
        started, peak = time.perf_counter(), Peak()
        peak.start()
        ours = Ours(PAIR, place, Path(directory) / "run")
        ours.block(ours.kept)()
        images = sum(f.stat().st_size for f in (ours.place / "images").rglob("*") if f.is_file())
        targets = sum(f.stat().st_size for f in ours.kept.cache.place.iterdir())
        return {
            "images": count,
            "own_memory_mb": peak.highest,
            "image_bytes_per_image": images / count,
            "target_bytes_per_image": targets / count,
            "seconds": time.perf_counter() - started,
        }


def measure(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure every size in a new process."""
    rows = []
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.growth", "--one", str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/growth.json"))
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one)))
        return
    rows = measure(tuple(asked.sizes))
    shown = Table(*(key.replace("_", " ") for key in KEYS))
    for row in rows:
        shown.add_row(*(f"{row[key]:,.0f}" for key in KEYS))
    Console().print(shown)
    write_json(asked.json, rows)


if __name__ == "__main__":
    main()
