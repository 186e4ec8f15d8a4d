"""What all stations of a run share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from tutelage.data.loading import BadImages, Workers
from tutelage.precision import Precision
from tutelage.progress import Progress
from tutelage.run import Run


def new_accelerator() -> Accelerator:
    """Device and processes as the launcher has them; the precision is the recipe's, not the launcher's."""
    return Accelerator(mixed_precision="no")


@dataclass(frozen=True)
class Context:
    """Where a run is written, where it computes, and whom it tells.

    Attributes:
        run: the directory.
        accelerator: device, precision, processes.
        progress: told what happens.
        workers: of the loaders.
        bad: counts images that cannot be decoded.
        precision: in which students are trained; figures are always taken in fp32.
        shared: where the trials of a study keep what they would compute alike; None: a run by itself.
    """

    run: Run
    accelerator: Accelerator
    progress: Progress
    workers: Workers
    bad: BadImages
    precision: Precision = "fp32"
    shared: Path | None = None

    def autocast(self) -> torch.autocast:
        """The precision, as a context manager."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def writes(self) -> bool:
        """Whether this process writes the files: one does."""
        return self.accelerator.is_main_process
