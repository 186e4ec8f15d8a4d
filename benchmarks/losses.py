"""What each loss costs: a training step with it, as a multiple of a step with labels only; in turn, by medians.

python -m benchmarks.losses

A step is the student's forward and backward pass, the loss and the optimizer, on images in memory, with the teacher's
outputs given. The teacher's own pass is measured too, and is the same for all losses. The time is the processor's, on
one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.scene import PAIRS, Pair, alternate, summary
from tutelage.core.files import write_json
from tutelage.distillation.distiller import Distiller
from tutelage.distillation.losses import CrossEntropy, make_term, names
from tutelage.distillation.losses.registry import is_built_in
from tutelage.distillation.teacher import Teacher
from tutelage.models.depthwise import quick_depthwise
from tutelage.pipeline.versions import versions

LABELS, TEACHER = "labels only", "the teacher's pass"
IMAGES = 50_000  # in the memory bank of `crd`, as in CIFAR-100
SETTINGS = {"feature_mse": {"student": -1, "teacher": -1}}  # it has no default layers
CPU = torch.device("cpu")


def contenders(pair: Pair, steps: int, losses: Sequence[str]) -> dict[str, Callable[[], float]]:
    """Return a block of steps for labels only, the teacher's pass, and each loss beside the labels' cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    shape = (pair.batch, 3, pair.resolution, pair.resolution)
    images = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    model = pair.load("teacher")
    labels = torch.randint(model.num_classes, (pair.batch,), generator=generator)
    index = torch.randperm(IMAGES, generator=generator)[: pair.batch]

    def timed(step: Callable[[], object]) -> Callable[[], float]:
        def block() -> float:
            step()  # after the other contenders' blocks
            started = time.process_time()
            for _ in range(steps):
                step()
            return steps * pair.batch / (time.process_time() - started)

        return block

    def training(name: str | None) -> Callable[[], float]:
        terms = (
            [CrossEntropy()] if name is None else [CrossEntropy(), make_term(name, SETTINGS.get(name, {}))]
        )
        teacher = Teacher(model, CPU)
        distiller = Distiller(pair.load("student"), teacher, terms, train_images=IMAGES)
        targets = teacher.outputs([images])
        optimizer = torch.optim.AdamW(distiller.trainable_parameters(), 1e-5)
        distiller.train()

        def step() -> None:
            with quick_depthwise(CPU):
                distiller(images, labels, targets=targets, index=index)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return timed(step)

    alone = Teacher(model, CPU)
    blocks = {LABELS: training(None), TEACHER: timed(lambda: alone.outputs([images]))}
    return blocks | {name: training(name) for name in losses}


def measure(pair: Pair, steps: int, rounds: int, losses: Sequence[str]) -> dict[str, Any]:
    """Measure all contenders on a pair; a block is `steps` batches."""
    rates = alternate(contenders(pair, steps, losses), rounds)
    found = summary(rates, LABELS)
    return {
        "teacher": pair.teacher,
        "student": pair.student,
        "resolution": pair.resolution,
        "batch": pair.batch,
        "steps": steps,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "rates": rates,
        # seconds a batch
        "labels_only_s": pair.batch / found[LABELS]["median"],
        "cost": {name: found[LABELS]["median"] / row["median"] for name, row in found.items()},
        "lowest": {name: found[LABELS]["median"] / row["high"] for name, row in found.items()},
        "highest": {name: found[LABELS]["median"] / row["low"] for name, row in found.items()},
        "versions": versions("python -m benchmarks.losses"),
    }


def table(result: dict[str, Any]) -> str:
    """Make the table of docs/losses.md, from the cheapest loss to the dearest."""
    cost = result["cost"]
    rows = sorted((name for name in cost if name not in (LABELS, TEACHER)), key=cost.__getitem__)
    low, high = result["lowest"], result["highest"]
    lines = ["| loss beside the labels | targets given | lowest to highest | with a live teacher |"]
    lines += ["|---|---:|---:|---:|"]
    lines += [
        f"| `{name}` | {cost[name]:.2f} | {low[name]:.2f} to {high[name]:.2f} | {cost[name] + cost[TEACHER]:.2f} |"
        for name in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure one pair, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pair", choices=PAIRS, default="lite2-lite0")
    parser.add_argument("--resolution", type=int, default=96, help="of both networks, in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="batches in a block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each contender that count")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/losses.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pair = replace(PAIRS[asked.pair], resolution=asked.resolution, batch=asked.batch)
    result = measure(
        pair, asked.steps, asked.rounds, [n for n in names() if is_built_in(n) and n != "cross_entropy"]
    )
    print(table(result))
    print(
        f"labels only: {1000 * result['labels_only_s']:.0f} ms a batch on one thread, "
        f"{result['lowest'][LABELS]:.2f} to {result['highest'][LABELS]:.2f}"
    )
    write_json(asked.json, result)


if __name__ == "__main__":
    main()
