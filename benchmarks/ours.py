"""tutelage's training loop with live targets, cached targets and labels only, and the student's step alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.scene import ALPHA, CLASSES, CROP_SCALE, LR, TEMPERATURE, WEIGHT_DECAY, Clock, Pair, Setting
from tutelage.core.progress import Silent
from tutelage.core.recipe import LossRecipe, Recipe, TargetsRecipe, TrainRecipe, ViewRecipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Runtime, autocast
from tutelage.data.imagecache import cache_side, cached
from tutelage.data.loading import Loading
from tutelage.data.sources.base import open_source
from tutelage.data.splits import Subset, whole
from tutelage.distillation.losses import CrossEntropy
from tutelage.distillation.objective import Objective, terms_of
from tutelage.distillation.stage import Stage
from tutelage.distillation.teacher import TargetSource, Teacher, cached_teacher
from tutelage.models import precision
from tutelage.models.depthwise import quick_depthwise
from tutelage.pipeline.context import Context


class Watch(Silent):
    """Progress that reports each step of a stage to a clock."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.clock = setting.clock()

    def begin(self, stage: str, steps: int) -> None:
        self.clock = self.setting.clock()

    def step(self, losses: dict[str, float], images: int) -> None:
        self.clock.tick(images)


@dataclass
class Ours:
    """Prepares a pair of networks as a run does: measured precisions, decoded images, targets."""

    pair: Pair
    photographs: Path
    place: Path
    setting: Setting = field(default_factory=Setting)
    images: Path | None = None  # keeps decoded images; None: `place`

    def __post_init__(self) -> None:
        device = self.setting.device
        self.student, self.teacher = self.pair.load("student", device), self.pair.load("teacher", device)
        self.recipe = Recipe(
            view=ViewRecipe(crop_scale=CROP_SCALE),
            loss=LossRecipe(temperature=TEMPERATURE, weight=1 - ALPHA, label_weight=ALPHA),
            train=TrainRecipe(
                epochs=1, batch_size=self.pair.batch, lr=LR, weight_decay=WEIGHT_DECAY, ema=0, warmup_epochs=0
            ),
            targets=TargetsRecipe(mode="cached"),
        )
        size = self.pair.batch
        self.probed = {
            "student": precision.probe_training(self.student.module, self.student.input_spec, size, device),
            "teacher": precision.probe_inference(self.teacher.module, self.teacher.input_spec, size, device),
        }
        self.precision = {role: precision.faster(rates) for role, rates in self.probed.items()}
        self.watch = Watch(self.setting)
        self.context = Context(
            Run(self.place),
            Runtime(Runtime.start(str(device)).accelerator, self.precision["student"]),
            self.watch,
            Loading(self.setting.workers),
        )
        started = time.perf_counter()
        self.subset = self._decoded()
        self.seconds = {"decoding": time.perf_counter() - started}
        self.live = Teacher([self.teacher], device, self.precision["teacher"])
        started = time.perf_counter()
        self.kept = cached_teacher(
            self.live,
            self.subset,
            self.recipe,
            self.place / "targets",
            self.context.loading,
            self.watch,
        )
        self.seconds["filling"] = time.perf_counter() - started

    def _decoded(self) -> Subset:
        files = whole(open_source(f"folder:{self.photographs}"))
        side = cache_side([self.student.input_spec, self.teacher.input_spec], self.recipe.view)
        return cached(files, side, self.images or self.place / "images", 20_000)

    def block(self, teacher: TargetSource | None) -> Callable[[], float]:
        """Return a function that runs an epoch and returns images/s; without a teacher, with labels only."""
        val = Subset(self.subset.images, self.subset.indices[:2], self.subset.classes)  # not timed
        name = "distill" if teacher else "control"

        def run() -> float:
            (self.context.run.checkpoints / f"{name}.safetensors").unlink(missing_ok=True)
            self.context.run.metrics.unlink(missing_ok=True)
            stage = Stage(
                name,
                self.student,
                self.recipe.train,
                self.recipe.view,
                Objective(terms_of(self.recipe.loss) if teacher else [CrossEntropy()]),
                self.subset,
                val,
                np.arange(CLASSES),
                teacher=teacher,
                val_targets=torch.zeros(2, self.student.num_classes),
            )
            self.context.train(stage)
            return self.watch.clock.rate

        return run

    def bare(self) -> Callable[[], float]:
        """Return a function that trains on labels with images in memory, and returns images/s."""
        device = self.setting.device
        student = self.pair.load("student", device)
        optimizer = torch.optim.AdamW(student.module.parameters(), LR, weight_decay=WEIGHT_DECAY)
        size = self.pair.batch
        images = torch.randn(size, 3, student.input_spec.height, student.input_spec.width, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels, steps = torch.arange(size, device=device) % CLASSES, len(self.subset) // size
        student.module.train()

        def run() -> float:
            clock = Clock(device, 1, steps)
            for _ in range(steps):
                with autocast(device, self.precision["student"]), quick_depthwise(device):
                    output = student.module(images)
                F.cross_entropy(output.float(), labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                clock.tick(size)
            return clock.rate

        return run
