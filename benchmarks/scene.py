"""What all benchmarks share: pairs of networks, a folder of photographs, and the timing of a block of steps."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from tutelage.core.runtime import synchronise
from tutelage.data.input_spec import InputSpec
from tutelage.models.registry import load_model
from tutelage.models.source import Model

CLASSES = 10
LR, WEIGHT_DECAY, TEMPERATURE, ALPHA = (
    1e-5,
    0.05,
    2.0,
    0.5,
)  # ALPHA: weight of the hard labels; that of KL is the rest
CROP_SCALE = (0.35, 1.0)
PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "imagenet-sample"
DIFFERENT = 256  # pictures of noise; where more images are wanted, they are repeated
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """A teacher and a student at one resolution; the peers cannot give them different ones."""

    teacher: str
    student: str
    resolution: int
    batch: int = 16

    def load(self, role: str, device: torch.device = CPU) -> Model:
        """Load a new `teacher` or `student` with random weights, which are as fast as trained ones."""
        model = load_model(f"{getattr(self, role)}@none").at(self.resolution)
        model.module.to(device)
        return model


@dataclass(frozen=True)
class Setting:
    """Where and how long all contenders run.

    Attributes:
        device: of networks and batches.
        workers: loader processes of each contender.
        steps: batches in a block.
        rounds: blocks of each contender that count.
    """

    device: torch.device = CPU
    workers: int = 0
    steps: int = 5
    rounds: int = 5

    def clock(self) -> Clock:
        """Return a new clock for a block.

        The first batches of all loader processes come at about the same time, so none of them is timed.
        """
        return Clock(self.device, max(1, self.workers), self.steps)


PAIRS = {
    "lite2-lite0": Pair("tf_efficientnet_lite2", "tf_efficientnet_lite0", 224),
    "b3-b1": Pair("efficientvit_b3", "efficientvit_b1", 224),
    "small": Pair("test_resnet", "test_efficientnet", 64),
}


class Clock:
    """Measures images/s from the end of a block's first steps to the end of its last, as in a long epoch.

    It waits for the device at these two ends only, so that it adds no wait to the steps between them.

    Args:
        device: where the steps run.
        skipped: steps at the beginning that are not timed.
        steps: of the whole block.
    """

    def __init__(self, device: torch.device = CPU, skipped: int = 1, steps: int = 2) -> None:
        self.device, self.skipped, self.steps = device, skipped, steps
        self.images = self.done = 0
        self.started = self.last = 0.0

    def tick(self, images: int) -> None:
        """Count a finished step."""
        self.done += 1
        if self.done in (self.skipped, self.steps):
            synchronise(self.device)
        self.last = time.perf_counter()
        if self.done > self.skipped:
            self.images += images
        elif self.done == self.skipped:
            self.started = self.last

    @property
    def rate(self) -> float:
        """The images/s so far."""
        return self.images / (self.last - self.started)


def photographs(place: Path, count: int) -> Path:
    """Write JPEGs in ten classes: copies of real photographs where available, or noise of the same size."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    sources = sorted(PHOTOGRAPHS.rglob("*.JPEG")) or [
        noise_photograph(place / f"noise-{number}.jpg", number) for number in range(min(count, DIFFERENT))
    ]
    for number, source in enumerate(islice(cycle(sources), count)):
        target = place / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    for file in place.glob("noise-*.jpg"):
        file.unlink()
    return place


def noise_photograph(path: Path, seed: int, size: tuple[int, int] = (500, 375)) -> Path:
    """Write a JPEG of smooth noise, another one for each seed; the size is (width, height) in pixels."""
    noise = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def alternate(
    blocks: dict[str, Callable[[], float]],
    rounds: int,
    until: float = math.inf,
    on_rates: Callable[[dict[str, list[float]]], None] = lambda rates: None,
) -> dict[str, list[float]]:
    """Measure images/s of each block in turn; the first round warms up and is not counted.

    Args:
        blocks: of the contenders.
        rounds: that count.
        until: on the clock of `time.monotonic`; no block begins after it.
        on_rates: called with the rates so far after each block that counts.
    """
    rates: dict[str, list[float]] = {name: [] for name in blocks}
    for number in range(rounds + 1):
        for name, block in blocks.items():
            if time.monotonic() > until:
                return rates
            rate = block()
            print(f"round {number}: {name}: {rate:.1f} images/s", flush=True)
            if number and not math.isnan(rate):  # NaN: the contender cannot run
                rates[name].append(rate)
                on_rates(rates)
    return rates


def summary(rates: dict[str, list[float]], against: str) -> dict[str, dict[str, float]]:
    """Compute the median, lowest and highest images/s, and the ratio of the median to that of `against`.

    Contenders that were not measured are left out; where `against` was not, all ratios are 0.
    """
    base = median(rates[against]) if rates.get(against) else math.inf
    return {
        name: {"median": median(v), "low": min(v), "high": max(v), "ratio": median(v) / base}
        for name, v in rates.items()
        if v
    }


def mean_std(spec: InputSpec) -> tuple[list[float], list[float]]:
    """Return mean and std as lists, for torchvision."""
    return list(spec.mean), list(spec.std)
