"""Images/s of the training loader alone, by number of workers, from JPEGs and from the decoded copy.

python -m benchmarks.loading
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.scene import CROP_SCALE, PAIRS, Clock, photographs
from tutelage.core.files import write_json
from tutelage.core.recipe import ViewRecipe
from tutelage.data.imagecache import cache_side, cached
from tutelage.data.loading import train_loader
from tutelage.data.sources.base import open_source
from tutelage.data.splits import Subset, whole
from tutelage.data.views import ViewPolicy

RECIPE = ViewRecipe(crop_scale=CROP_SCALE)
BATCH = 32


def rate(subset: Subset, workers: int, epoch: int) -> float:
    """Return the images/s of one epoch."""
    spec, clock = PAIRS["lite2-lite0"].load("student").input_spec, Clock()
    loader = train_loader(
        subset, ViewPolicy(RECIPE), [spec], batch_size=BATCH, seed=0, epoch=epoch, workers=workers
    )
    for batch in loader:
        clock.tick(len(batch["index"]))
    return clock.rate


def measure(images: int, workers: list[int], rounds: int) -> list[dict[str, Any]]:
    """Measure both sources with each number of workers, in turn."""
    with tempfile.TemporaryDirectory() as directory:
        files = whole(open_source(f"folder:{photographs(Path(directory) / 'photographs', images)}"))
        side = cache_side([PAIRS["lite2-lite0"].load("student").input_spec], RECIPE)
        sources = {"jpeg": files, "decoded": cached(files, side, Path(directory) / "images", 20_000)}
        rates: dict[tuple[str, int], list[float]] = {(s, w): [] for s in sources for w in workers}
        for epoch in range(rounds):
            for (source, count), found in rates.items():
                found.append(rate(sources[source], count, epoch))
        return [
            {"source": source, "workers": count, "images_per_s": median(found), "rounds": found}
            for (source, count), found in rates.items()
        ]


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/loading.json"))
    asked = parser.parse_args()
    rows = measure(asked.images, asked.workers, asked.rounds)
    shown = Table("source", "workers", "images/s")
    for row in rows:
        shown.add_row(row["source"], str(row["workers"]), f"{row['images_per_s']:.0f}")
    Console().print(shown)
    write_json(asked.json, rows)


if __name__ == "__main__":
    main()
