"""Training speed of tutelage and other loops: in one process, in turn, with the same images, batch and losses.

python -m benchmarks.speed --pair lite2-lite0
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ours import Ours
from benchmarks.peers import Plain, Timm, Torchdistill
from benchmarks.scene import PAIRS, Pair, Setting, alternate, photographs, summary
from tutelage.core.errors import TutelageError, one_line
from tutelage.core.files import write_json
from tutelage.pipeline.versions import versions

BASE, LIMIT = "plain loop", "labels only"
COMPILED = "timm --channels-last --amp --torchcompile"
MIB = 2**20


@dataclass
class Contenders:
    """What is compared, in the order of the table.

    Attributes:
        blocks: one block of steps of each.
        errors: of those that cannot run here.
        memory: the most GPU memory in MiB that a block of each took beyond what lay there before it (all networks and
            optimizer states). Empty on a CPU.
    """

    pair: Pair
    place: Path
    setting: Setting
    blocks: dict[str, Callable[[], float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, make: Callable[[], Callable[[], float]]) -> None:
        """Add a contender by a function that makes its block; one that cannot be made or run is noted in `errors`."""
        with self._noted(name):
            self.blocks[name] = self._watched(name, make())

    def add_peers(self, compiled: bool) -> None:
        """Add the other loops; `compiled` adds timm with torch.compile, which takes minutes to begin."""
        pair, place, setting = self.pair, self.place, self.setting
        self.add(BASE, lambda: Plain(pair, place, setting).block)
        self.add("timm", lambda: Timm(pair, place, setting).block)
        self.add("timm --channels-last --amp", lambda: Timm(pair, place, setting, tuned=True).block)
        if compiled:
            self.add(COMPILED, lambda: Timm(pair, place, setting, tuned=True, compiled=True).block)
        self.add("torchdistill", lambda: Torchdistill(pair, place, setting).block)

    def add_ours(self, ours: Ours) -> None:
        """Add tutelage's loop, and the two limits."""
        self.add("tutelage live", lambda: ours.block(ours.live))
        self.add("tutelage cached", lambda: ours.block(ours.kept))
        self.add(LIMIT, lambda: ours.block(None))
        self.add("labels only, no loading", ours.bare)

    def _watched(self, name: str, block: Callable[[], float]) -> Callable[[], float]:
        """Return a block that notes its error and its memory; after an error it has no rate (NaN)."""
        device = self.setting.device
        on_gpu = device.type == "cuda"

        def watched() -> float:
            if name in self.errors:
                return math.nan
            rate = math.nan
            before = torch.cuda.memory_allocated(device) if on_gpu else 0
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
            with self._noted(name):
                rate = block()
            if on_gpu:
                taken = (torch.cuda.max_memory_allocated(device) - before) / MIB
                self.memory[name] = max(taken, self.memory.get(name, 0.0))
            return rate

        return watched

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """Note an error: a package that is missing, memory that is too small, or a compiler that does not work."""
        try:
            yield
        except (ImportError, RuntimeError, TutelageError) as error:
            self.errors[name] = one_line(error)[:300]


def measure(
    pair: Pair,
    setting: Setting,
    directory: Path,
    *,
    compiled: bool = False,
    until: float = math.inf,
    on_result: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure all contenders on a pair.

    Args:
        pair: of networks.
        setting: the device, the loader processes and the length of blocks.
        directory: gets the photographs and their decoded copies, which other pairs use again, and a run.
        compiled: whether timm's loop with torch.compile is measured too.
        until: on the clock of `time.monotonic`; no block begins after it.
        on_result: called with the result so far after each block.
    """
    images = setting.steps * pair.batch
    place = directory / "photographs"
    if not place.exists():
        photographs(place, images)
    with tempfile.TemporaryDirectory(dir=directory) as run:
        ours = Ours(pair, place, Path(run), setting, directory / "images")
        contenders = Contenders(pair, place, setting)
        contenders.add_peers(compiled)
        contenders.add_ours(ours)
        seconds, layout = ours.seconds, ours.kept.cache.layout

        def result(rates: dict[str, list[float]]) -> dict[str, Any]:
            found = summary(rates, BASE)
            to_limit = summary(rates, LIMIT).get("tutelage cached", {})
            measured = found | contenders.errors
            missing = {one: "no time was left" for one in contenders.blocks if one not in measured}
            return {
                "teacher": pair.teacher,
                "student": pair.student,
                "resolution": pair.resolution,
                "batch": pair.batch,
                "steps": setting.steps,
                "rounds": setting.rounds,
                "workers": setting.workers,
                "device": str(setting.device),
                "threads": torch.get_num_threads(),
                "precision": ours.precision,
                "probed_images_per_s": ours.probed,
                "rates": rates,
                "summary": found,
                "errors": contenders.errors,
                "left_out": missing,
                "cached_to_labels_only": to_limit.get("ratio"),
                "fill_images_per_s": images / seconds["filling"],
                "decode_images_per_s": images / seconds["decoding"],
                "target_bytes_per_image": layout.dtype.itemsize,
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "peak_gpu_memory_mb": contenders.memory,
                "versions": versions("python -m benchmarks.speed"),
            }

        rates = alternate(contenders.blocks, setting.rounds, until, lambda rates: on_result(result(rates)))
        return result(rates)


def table(result: dict[str, Any]) -> Table:
    """Make the table for a terminal."""
    shown = Table(title=f"{result['teacher']} to {result['student']}, {result['resolution']} px")
    memory = result["peak_gpu_memory_mb"]
    numbers = ["images/s", "lowest", "highest", f"times {BASE}", *(["GPU MiB"] if memory else [])]
    shown.add_column("contender")
    for column in numbers:
        shown.add_column(column, justify="right")
    for name, row in result["summary"].items():
        ratio = f"{row['ratio']:.2f}" if BASE in result["summary"] else ""
        cells = [*(f"{row[k]:.1f}" for k in ("median", "low", "high")), ratio]
        shown.add_row(name, *cells, *([f"{memory[name]:.0f}"] if memory else []))
    return shown


def main() -> None:
    """Measure one pair, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", choices=PAIRS, default="lite2-lite0")
    parser.add_argument("--steps", type=int, default=5, help="batches in a block; the first is not timed")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each contender that count")
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(steps=asked.steps, rounds=asked.rounds)
        result = {"pair": asked.pair, **measure(PAIRS[asked.pair], setting, Path(directory))}
    Console().print(table(result))
    for name, reason in result["errors"].items():
        print(f"{name} could not be measured: {reason}")
    print(
        f"cached is {result['cached_to_labels_only']:.3f} of labels only; precision {result['precision']}; "
        f"targets are filled at {result['fill_images_per_s']:.1f} images/s; peak {result['peak_memory_mb']:.0f} MiB"
    )
    write_json(asked.json or Path("benchmarks/results") / f"speed-{asked.pair}.json", result)


if __name__ == "__main__":
    main()
