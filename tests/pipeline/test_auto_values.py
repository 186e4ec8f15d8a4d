"""What `auto` chooses is no worse on val than its alternatives, by more than noise."""

import math
from pathlib import Path
from typing import Any

import pytest

from tutelage.core.files import read_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.pipeline.quickstart import SETTINGS
from tutelage.pipeline.run import begin, distill

ALTERNATIVES: dict[str, list[dict[str, Any]]] = {
    "loss": [{"temperature": 1.0}, {"temperature": 2.0}, {"teacher_temperature": 1.0}],
    "train": [{"lr": 3e-4}, {"lr": 1e-2}, {"epochs": 10}],
}


def best_on_val(settings: dict[str, Any], root: Path, name: str) -> tuple[float, int]:
    """Distil on the digits of the quickstart; return the student's top-1 on val in percent, and the images of val."""
    recipe = parse_recipe(
        SETTINGS | {"export": {"enabled": False}, "control": False} | settings | {"name": name}
    )
    run = begin(recipe, root, "test")
    distill(recipe, run, Silent(), memo=root / "shared")
    kept = next(row for row in read_json(run.candidates)["candidates"] if row["kept"])
    return kept["val"]["top1"], int(read_json(run.splits)["parts"]["val"]["size"])


@pytest.mark.slow
@pytest.mark.parametrize("part", list(ALTERNATIVES))
def test_auto_is_within_noise_of_the_best_alternative(part: str, tmp_path: Path) -> None:
    """The temperatures are auto in the quickstart; rate and epochs are made so here."""
    batch = {"batch_size": SETTINGS["train"]["batch_size"]}
    auto, n = best_on_val({"train": SETTINGS["train"] if part == "loss" else batch}, tmp_path, "auto")
    for number, change in enumerate(ALTERNATIVES[part]):
        settings = (
            {"train": SETTINGS["train"], "loss": change} if part == "loss" else {"train": batch | change}
        )
        other, _ = best_on_val(settings, tmp_path, f"other-{number}")
        p = (auto + other) / 200
        noise = 100 * 1.96 * math.sqrt(2 * p * (1 - p) / n)  # more than that of a paired difference
        assert auto >= other - noise, (change, auto, other)
