"""A learning rate range test: a short training whose rate rises from step to step, on a copy of a network.

After Smith 2017, "Cyclical learning rates for training neural networks". While the rate is too low the loss hardly
falls, and when it is too high the loss rises. A quarter of the rate with the lowest loss keeps away from the rise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d
from torch.optim import Optimizer

from tutelage.core.progress import Progress, Silent
from tutelage.core.runtime import Runtime
from tutelage.data.loading import Loading
from tutelage.distillation.batch_memory import within_memory
from tutelage.distillation.loop import Trainer
from tutelage.distillation.stage import Stage

STEPS = 100
LOWEST, HIGHEST = 1e-5, 10.0  # rates of the first and of the last step; SGD may need more than 1
SMOOTHING = 3.0  # standard deviation of the Gaussian over the steps, whose batches differ
DIVERGED = 2.0  # times the lowest loss so far: what follows tells nothing
LEARNS = 0.95  # times the loss at low rates: a lower one shows that the network learns
SAFE = 4.0  # the rate of the lowest loss is divided by it


class Rising:
    """A schedule whose rate rises exponentially with the steps."""

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        self.optimizer = optimizer
        self.rates = np.geomspace(LOWEST, HIGHEST, steps).tolist()

    def step_update(self, number: int) -> None:
        """Set the rate of a step; with layer decay, each layer has its share of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[number] * group.get("lr_scale", 1.0)


def range_test(
    stage: Stage, runtime: Runtime, unused: Path, *, loading: Loading, progress: Progress
) -> list[tuple[float, float]]:
    """Train a stage for `STEPS` steps with rising rates, and return the rate and the loss of each.

    It ends early when the loss has grown to four times the first one, or is not finite.

    Args:
        stage: its model is changed in place.
        runtime: device, processes, precision. All processes return the same.
        unused: a file that does not exist, and is not written.
        loading: how images are loaded.
        progress: receives steps.

    Raises:
        TutelageError: memory ran out.
    """
    settings = stage.settings.model_copy(
        update={"lr": HIGHEST, "warmup_epochs": 0.0, "head_warmup_epochs": 0, "ema": 0.0, "patience": None}
    )
    stage = replace(stage, name="lr-range", settings=settings, steps=STEPS)
    return within_memory(
        stage, runtime, loading, lambda: _rates_and_losses(stage, runtime, unused, loading, progress)
    )


def _rates_and_losses(
    stage: Stage, runtime: Runtime, unused: Path, loading: Loading, progress: Progress
) -> list[tuple[float, float]]:
    trainer = Trainer(stage, runtime, unused, loading, Silent(), lambda rows: None)
    trainer.schedule = Rising(trainer.optimizer, STEPS)
    found: list[tuple[float, float]] = []
    try:
        trainer.set_modes()
        for batch in trainer.batches():
            trainer.train_step(batch)
            good = trainer.read()
            loss = trainer.at.means.get("loss", math.inf)
            trainer.at.next_epoch()  # so that the next mean is of one step
            if not good or loss > 4 * (found[0][1] if found else loss):
                break
            found.append((trainer.schedule.rates[len(found)], loss))
            progress.step({"loss": loss}, len(batch["label"]) * runtime.world_size)
    finally:
        runtime.accelerator.free_memory()
    return found


def suggested(found: Sequence[tuple[float, float]]) -> float | None:
    """Return a quarter of the rate at which the smoothed loss is lowest, to two digits.

    Args:
        found: rate and loss of each step, in order.

    Returns:
        None where the loss does not fall.
    """
    if len(found) < STEPS // 4:
        return None
    rates, losses = np.array(found).T
    smooth = gaussian_filter1d(losses, SMOOTHING, mode="nearest")
    diverged = np.flatnonzero(smooth > DIVERGED * np.minimum.accumulate(smooth))
    smooth = smooth[: diverged[0] if len(diverged) else None]
    lowest = int(smooth.argmin())
    if smooth[lowest] > LEARNS * smooth[: len(smooth) // 5 + 1].mean():
        return None
    return float(f"{rates[lowest] / SAFE:.1e}")
