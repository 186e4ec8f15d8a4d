"""Training speed of tutelage and other loops: in one process, in turn, with the same images, batch and losses.

python -m benchmarks.speed --pair lite2-lite0
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ours import Ours
from benchmarks.peers import Plain, Timm, Torchdistill
from benchmarks.scene import PAIRS, Pair, alternate, photographs, summary
from tutelage.core.files import write_json
from tutelage.pipeline.versions import versions

BASE, LIMIT = "plain loop", "labels only"


def contenders(pair: Pair, ours: Ours, place: Path) -> dict[str, Callable[[], float]]:
    """Return what is compared, in the order of the table."""
    return {
        BASE: Plain(pair, place).block,
        "timm": Timm(pair, place).block,
        "timm --channels-last --amp": Timm(pair, place, tuned=True).block,
        "torchdistill": Torchdistill(pair, place).block,
        "tutelage live": ours.block(ours.live),
        "tutelage cached": ours.block(ours.kept),
        LIMIT: ours.block(None),
        "labels only, no loading": ours.bare(),
    }


def measure(name: str, steps: int, rounds: int) -> dict[str, Any]:
    """Measure all contenders on a pair; a block is `steps` batches."""
    pair = PAIRS[name]
    with tempfile.TemporaryDirectory() as directory:
        place = photographs(Path(directory) / "photographs", steps * pair.batch)
        ours = Ours(pair, place, Path(directory) / "run")
        rates = alternate(contenders(pair, ours, place), rounds)
        cache, images = ours.kept.cache, steps * pair.batch
        return {
            "pair": name,
            "teacher": pair.teacher,
            "student": pair.student,
            "resolution": pair.resolution,
            "batch": pair.batch,
            "steps": steps,
            "rounds": rounds,
            "threads": torch.get_num_threads(),
            "precision": ours.precision,
            "rates": rates,
            "summary": summary(rates, BASE),
            "cached_to_labels_only": summary(rates, LIMIT)["tutelage cached"]["ratio"],
            "fill_images_per_s": images / ours.seconds["filling"],
            "decode_images_per_s": images / ours.seconds["decoding"],
            "target_bytes_per_image": cache.layout.dtype.itemsize,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "versions": versions("python -m benchmarks.speed"),
        }


def table(result: dict[str, Any]) -> Table:
    """Make the table for a terminal."""
    shown = Table(title=f"{result['teacher']} to {result['student']}, {result['resolution']} px")
    for column in ("contender", "images/s", "lowest", "highest", f"times {BASE}"):
        shown.add_column(column, justify="left" if column == "contender" else "right")
    for name, row in result["summary"].items():
        shown.add_row(name, *(f"{row[k]:.1f}" for k in ("median", "low", "high")), f"{row['ratio']:.2f}")
    return shown


def main() -> None:
    """Measure one pair, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", choices=PAIRS, default="lite2-lite0")
    parser.add_argument("--steps", type=int, default=5, help="batches in a block; the first is not timed")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each contender that count")
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args()
    result = measure(asked.pair, asked.steps, asked.rounds)
    Console().print(table(result))
    print(
        f"cached is {result['cached_to_labels_only']:.3f} of labels only; precision {result['precision']}; "
        f"targets are filled at {result['fill_images_per_s']:.1f} images/s; peak {result['peak_memory_mb']:.0f} MiB"
    )
    write_json(asked.json or Path("benchmarks/results") / f"speed-{asked.pair}.json", result)


if __name__ == "__main__":
    main()
