"""Where the time of a default run goes: seconds and share of each station, from the recipe to the page.

    python -m benchmarks.whole

A teacher and a student of timm's smallest MobileNetV3 with random weights, saved as pretrained ones, on pictures of
noise; control, model selection and final evaluation are those of a default run. To compare two versions, run both in
turns on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.scene import CLASSES, noise_photograph
from tutelage.core.files import write_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import Recipe, parse_recipe
from tutelage.models.registry import load_model
from tutelage.models.weights import save_weights
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.versions import versions

TEACHER, STUDENT = "mobilenetv3_small_100", "mobilenetv3_small_050"
SIZE = (320, 240)  # of the pictures, in pixels
OTHER = "everything else"


class Stations(Silent):
    """Adds up the seconds of each station of a run, by what the run reports."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._at = clock()
        self._name = OTHER
        self._trained = ""

    def begin(self, stage: str, steps: int) -> None:
        self._mark(OTHER)
        self._name = f"{self._trained}: {stage}" if stage == "selection" else stage

    def step(self, losses: dict[str, float], images: int) -> None:
        if losses:  # of a training
            self._trained = self._name
            self._mark(f"{self._name}: steps")

    def epoch(self, row: dict[str, Any]) -> None:
        self._mark(f"{self._name}: val after each epoch")

    def end(self) -> None:
        self._mark(f"{self._name}: steps" if self._name == self._trained else self._name)
        self._name = OTHER

    def finish(self) -> None:
        """Count what came after the last station."""
        self._mark(OTHER)

    def _mark(self, station: str) -> None:
        """Count the time since the last mark to a station."""
        now = self._clock()
        self.seconds[station] = self.seconds.get(station, 0.0) + now - self._at
        self._at = now


def pictures(place: Path, count: int) -> Path:
    """Write JPEGs of noise in ten classes, all of them different."""
    for number in range(count):
        target = place / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        noise_photograph(target, number, SIZE)
    return place


def saved(name: str, place: Path) -> str:
    """Save a network with random weights and the classes of the pictures, and return its NAME@WEIGHTS.

    A run takes it for a pretrained one, so that all candidates of a default run are made.
    """
    torch.manual_seed(0)
    model = load_model(f"{name}@none", num_classes=CLASSES)
    metadata = model.metadata() | {"class_ids": json.dumps([f"class-{i}" for i in range(CLASSES)])}
    metadata.pop("class_names", None)
    file = place / f"{name}.safetensors"
    save_weights(model.module, file, metadata)
    return f"{name}@{file}"


def recipe(root: Path, images: int, epochs: int, pixels: int, models: tuple[str, str]) -> Recipe:
    """Make the pictures and the networks, and return the recipe of a default run on them."""
    teacher, student = (saved(name, root) for name in models)
    return parse_recipe(
        {
            "name": "whole",
            "teacher": {"model": teacher, "resolution": pixels, "fit": "no"},
            "student": {"model": student, "resolution": pixels, "head_fit": "no"},
            "data": {"train": f"folder:{pictures(root / 'pictures', images)}"},
            "train": {"epochs": epochs},
            "preflight": {"allow_weak_teacher": True},
        }
    )


def measure(
    images: int, epochs: int, pixels: int, models: tuple[str, str] = (TEACHER, STUDENT)
) -> dict[str, float]:
    """Run everything once, and return the seconds of each station in their order."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        asked = recipe(root, images, epochs, pixels, models)
        stations = Stations()
        distill(asked, begin(asked, root, "benchmarks.whole"), stations, stop_at_weak_teacher=False)
        stations.finish()
    return stations.seconds


def selection_share(seconds: Mapping[str, float]) -> float:
    """Return the share of a run that the choice among candidates takes, for control and student together."""
    return sum(value for name, value in seconds.items() if name.endswith(": selection")) / sum(
        seconds.values()
    )


def table(seconds: Mapping[str, float]) -> Table:
    """Make the table for a terminal."""
    shown = Table("station")
    for column in ("seconds", "share"):
        shown.add_column(column, justify="right")
    total = sum(seconds.values())
    for name, value in (*seconds.items(), ("all", total)):
        shown.add_row(name, f"{value:.1f}", f"{value / total:.1%}")
    return shown


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pixels", type=int, default=96)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/whole.json"))
    asked = parser.parse_args()
    seconds = measure(asked.images, asked.epochs, asked.pixels)
    Console().print(table(seconds))
    print(f"the choice among candidates takes {selection_share(seconds):.1%} of the run")
    settings = {"images": asked.images, "epochs": asked.epochs, "pixels": asked.pixels}
    write_json(
        asked.json, settings | {"seconds": seconds, "versions": versions("python -m benchmarks.whole")}
    )


if __name__ == "__main__":
    main()
