"""A study of twelve trials with shared targets, control and pre-flight, and twelve single runs with a live teacher.

    python -m benchmarks.study

Both have the same twelve recipes: temperatures and label weights of one pair on the bundled digits.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tutelage.core.files import write_json
from tutelage.core.progress import Silent
from tutelage.core.recipe import parse_recipe
from tutelage.pipeline.run import begin, distill
from tutelage.pipeline.study.plan import load_study
from tutelage.pipeline.study.worker import run_study
from tutelage.pipeline.versions import versions

BASE: dict[str, Any] = {
    "teacher": {"model": "tf_efficientnet_lite2@none", "resolution": 64, "crop_pct": 1.0, "fit": "no"},
    "student": {"model": "tf_efficientnet_lite0@none", "resolution": 64, "crop_pct": 1.0},
    "data": {"train": "digits", "limit": 256, "workers": 0},
    "view": {"crop_scale": [0.7, 1.0], "flip": 0.0},
    "train": {"epochs": 4, "batch_size": 16, "warmup_epochs": 0},
    "preflight": {"allow_weak_teacher": True},
}
TRIALS = [
    {"name": f"t{t}-l{weight}", "loss.temperature": t, "loss.label_weight": weight}
    for t, weight in itertools.product((1.0, 2.0, 4.0), (0.0, 0.1, 0.5, 1.0))
]


def singles(root: Path) -> float:
    """Return the seconds of twelve single runs with a live teacher."""
    started = time.perf_counter()
    for trial in TRIALS:
        loss = {key.removeprefix("loss."): value for key, value in trial.items() if key != "name"}
        recipe = parse_recipe(BASE | {"name": trial["name"], "loss": loss})
        distill(recipe, begin(recipe, root, "benchmarks.study"), Silent())
    return time.perf_counter() - started


def together(root: Path) -> float:
    """Return the seconds of the study."""
    file = root / "twelve.yaml"
    base = BASE | {"targets": {"mode": "cached"}}
    file.write_text(yaml.safe_dump({"base": base, "variants": TRIALS}))
    started = time.perf_counter()
    run_study(load_study(file), root, Silent(), "benchmarks.study")
    return time.perf_counter() - started


def main() -> None:
    """Measure, print the ratio and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/study.json"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        shared, alone = together(Path(directory)), singles(Path(directory))
    print(f"study {shared:.0f} s, twelve single runs {alone:.0f} s: ratio {shared / alone:.2f}")
    result = {"study_s": shared, "singles_s": alone, "ratio": shared / alone, "base": BASE, "trials": TRIALS}
    write_json(asked.json, result | {"versions": versions("python -m benchmarks.study")})


if __name__ == "__main__":
    main()
