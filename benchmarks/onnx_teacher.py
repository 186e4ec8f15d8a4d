"""Images per second of CPU time of a teacher from an ONNX file, and of the same model in PyTorch, on one thread.

python -m benchmarks.onnx_teacher
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tests.helpers.onnx_files import write_onnx

from benchmarks.scene import alternate, summary
from tutelage.distillation.teacher import Teacher
from tutelage.models.registry import load_model

CPU = torch.device("cpu")


def block(teacher: Teacher, pixels: torch.Tensor, steps: int) -> Callable[[], float]:
    """Return a function that measures images per second of CPU time, from batches of uint8 views."""

    def measure() -> float:
        started = time.process_time()  # other programs on the machine change it little
        for _ in range(steps):
            teacher.logits([pixels])
        return steps * len(pixels) / (time.process_time() - started)

    return measure


def main() -> None:
    """Measure in turns and print the ratio of the costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tf_efficientnet_lite2", help="one of timm's")
    parser.add_argument("--resolution", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--steps", type=int, default=2, help="batches in each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # ONNX Runtime gets as many
    live = load_model(f"{args.model}@none").at(args.resolution)
    pixels = torch.randint(0, 256, (args.batch, 3, args.resolution, args.resolution), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(live.module, Path(folder) / "teacher.onnx", torch.zeros(1, *pixels.shape[1:]))
        file = load_model(f"onnx:{path}")
        blocks = {
            name: block(Teacher(model, CPU), pixels, args.steps)
            for name, model in (("PyTorch", live), ("ONNX Runtime", file))
        }
        for name, found in summary(alternate(blocks, args.rounds), "PyTorch").items():
            print(f"{name}: {found['median']:.1f} images/s, cost {1 / found['ratio']:.2f} times PyTorch's")


if __name__ == "__main__":
    main()
