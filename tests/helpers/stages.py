"""One stage of training, small enough for a test: digits, tiny random networks, six steps an epoch."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.core.progress import Progress, Silent
from tutelage.core.recipe import DataRecipe, LossRecipe, TrainRecipe, ViewRecipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime
from tutelage.data.loading import BadImages, Loading
from tutelage.data.splits import Splits, make_splits
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.objective import Objective, terms_of
from tutelage.distillation.stage import Stage, Trained
from tutelage.distillation.teacher import Teacher
from tutelage.models.registry import load_model
from tutelage.models.source import Model
from tutelage.pipeline.context import Context

STEPS = 6


def small_splits() -> Splits:
    return make_splits(DataRecipe(train="digits", limit=16 * STEPS, val_fraction=0.1))


def network(name: str, seed: int) -> Model:
    torch.manual_seed(seed)
    return load_model(f"{name}@none", num_classes=10, dropout=0.2).at(32)


def small_stage(
    teacher: Any = "network",
    objective: Objective | None = None,
    splits: Splits | None = None,
    **settings: Any,
) -> Stage:
    settings = {"epochs": 2, "batch_size": 16, "lr": 3e-3, "warmup_epochs": 0, "ema": 0.9} | settings
    splits = splits or small_splits()
    if teacher == "network":
        teacher = Teacher([network("test_resnet", 1)], torch.device("cpu"))
    return Stage(
        "distill",
        network("test_efficientnet", 0),
        TrainRecipe.model_validate(settings),
        ViewRecipe(crop_scale=(0.7, 1.0), flip=0.0, mixup=0.2),
        objective or Objective(terms_of(LossRecipe()) if teacher is not None else [CrossEntropy()]),
        splits.train,
        splits.val,
        torch.arange(10).numpy(),
        teacher=teacher,
        val_targets=torch.zeros(len(splits.val), 10),
    )


def small_context(
    path: Path, progress: Progress | None = None, workers: int = 0, max_bad: int = 0
) -> Context:
    path.mkdir(exist_ok=True)
    return Context(Run(path), Runtime.start(), progress or Silent(), Loading(workers, BadImages(max_bad)))


def train(stage: Stage, context: Context) -> Trained:
    return context.train(stage)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit by bit, NaN and all."""
    return one.keys() == other.keys() and all(
        tensor.contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .equal(other[name].contiguous().reshape(-1).view(torch.uint8))
        for name, tensor in one.items()
    )


class StopAt(Silent):
    """Asks a training to stop at a step, as Ctrl-C and SIGTERM do."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, losses: dict[str, float], images: int) -> None:
        if not losses:  # of the pre-flight or an evaluation: only a training ends with `Interrupted`
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
