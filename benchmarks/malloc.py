"""Images/s of a training step and of an evaluation on the CPU, with and without freed memory being kept.

python -m benchmarks.malloc
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

import torch
import torch.nn.functional as F

from benchmarks.scene import CLASSES, alternate, summary
from tutelage.core.memory import keep_freed_memory
from tutelage.core.runtime import autocast
from tutelage.models.depthwise import quick_depthwise
from tutelage.models.registry import load_model

CPU = torch.device("cpu")
WORK = ("train", "evaluate")
STEPS = 8


def rate(work: str, resolution: int, batch: int, kept: bool) -> float:
    """Return the median images/s over some steps of EfficientNet-Lite0 in this process."""
    if kept:
        keep_freed_memory()
    network = load_model("tf_efficientnet_lite0@none", num_classes=CLASSES).module
    network.train(work == "train")
    images = torch.randn(batch, 3, resolution, resolution).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % CLASSES
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        if work == "train":
            with autocast(CPU, "bf16"), quick_depthwise(CPU):
                F.cross_entropy(network(images).float(), labels).backward()
        else:
            with torch.no_grad():
                network(images)
        seconds.append(time.perf_counter() - started)
    return batch / median(seconds)


def elsewhere(work: str, resolution: int, batch: int, kept: bool) -> float:
    """Return the `rate` in a process of its own, since the setting cannot be taken back."""
    call = f"from benchmarks.malloc import rate; print(rate({work!r}, {resolution}, {batch}, {kept}))"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure in turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--resolution", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for work in WORK:
        blocks = {
            name: lambda work=work, kept=kept: elsewhere(work, args.resolution, args.batch, kept)  # type: ignore[misc]
            for name, kept in (("given back", False), ("kept", True))
        }
        for name, found in summary(alternate(blocks, args.rounds), "given back").items():
            print(f"{work}, freed memory {name}: {found['median']:.1f} images/s, ratio {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
