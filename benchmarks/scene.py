"""What all benchmarks share: pairs of networks, a folder of photographs, and the timing of a block of steps."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

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


@dataclass(frozen=True)
class Pair:
    """A teacher and a student at one resolution; the peers cannot give them different ones."""

    teacher: str
    student: str
    resolution: int
    batch: int = 16

    def load(self, role: str) -> Model:
        """Load a new `teacher` or `student` with random weights, which are as fast as trained ones."""
        model = load_model(f"{getattr(self, role)}@none")
        return model.at(self.resolution)


PAIRS = {
    "lite2-lite0": Pair("tf_efficientnet_lite2", "tf_efficientnet_lite0", 224),
    "b3-b1": Pair("efficientvit_b3", "efficientvit_b1", 224),
    "small": Pair("test_resnet", "test_efficientnet", 64),
}


class Clock:
    """Measures images/s from the end of a block's first step to the end of its last, as in a long epoch."""

    def __init__(self) -> None:
        self.images = 0
        self.started = self.last = 0.0

    def tick(self, images: int) -> None:
        """Count a finished step."""
        self.last = time.perf_counter()
        if self.started:
            self.images += images
        else:
            self.started = self.last

    @property
    def rate(self) -> float:
        """The images/s so far."""
        return self.images / (self.last - self.started)


def photographs(place: Path, count: int) -> Path:
    """Write JPEGs in ten classes: copies of real photographs where available, or noise of the same size."""
    shutil.rmtree(place, ignore_errors=True)
    sources = sorted(PHOTOGRAPHS.rglob("*.JPEG"))
    for number in range(count):
        target = place / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if sources:
            shutil.copyfile(sources[number % len(sources)], target)
        else:
            noise = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(target, quality=90)
    return place


def alternate(blocks: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure images/s of each block in turn; the first round warms up and is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in blocks}
    for number in range(rounds + 1):
        for name, block in blocks.items():
            rate = block()
            print(f"round {number}: {name}: {rate:.1f} images/s", flush=True)
            if number:
                rates[name].append(rate)
    return rates


def summary(rates: dict[str, list[float]], against: str) -> dict[str, dict[str, float]]:
    """Compute the median, lowest and highest images/s, and the ratio of the median to that of `against`."""
    base = median(rates[against])
    return {
        name: {"median": median(v), "low": min(v), "high": max(v), "ratio": median(v) / base}
        for name, v in rates.items()
    }


def mean_std(spec: InputSpec) -> tuple[list[float], list[float]]:
    """Return mean and std as lists, for torchvision."""
    return list(spec.mean), list(spec.std)
