"""The same distillation in a plain loop, in timm and in torchdistill, each with its own loader and loop.

All use AdamW, half cross-entropy and half KL at T = 2, a live teacher, random resized crops and flips, and the
setting's device and worker processes. `block()` trains on all images once and returns images/s after the first steps.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.scene import ALPHA, CROP_SCALE, LR, TEMPERATURE, WEIGHT_DECAY, Pair, Setting, mean_std


def _folder(pair: Pair, place: Path) -> ImageFolder:
    mean, std = mean_std(pair.load("student").input_spec)
    steps = [
        transforms.RandomResizedCrop(pair.resolution, scale=CROP_SCALE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ]
    return ImageFolder(str(place), transforms.Compose(steps))


class Plain:
    """A plain loop as in a notebook: fp32, contiguous, DataLoader and torchvision."""

    def __init__(self, pair: Pair, place: Path, setting: Setting) -> None:
        layout = torch.contiguous_format
        self.setting = setting
        self.teacher = pair.load("teacher", setting.device).module.to(memory_format=layout).eval()
        self.student = pair.load("student", setting.device).module.to(memory_format=layout).train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), LR, weight_decay=WEIGHT_DECAY)
        self.loader = DataLoader(
            _folder(pair, place),
            pair.batch,
            shuffle=True,
            drop_last=True,
            num_workers=setting.workers,
            pin_memory=setting.device.type == "cuda",
        )

    def block(self) -> float:
        clock, device = self.setting.clock(), self.setting.device
        for batch, labels in self.loader:
            batch, labels = batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.no_grad():
                wanted = self.teacher(batch)
            output = self.student(batch)
            kd = F.kl_div(
                F.log_softmax(output / TEMPERATURE, 1),
                F.softmax(wanted / TEMPERATURE, 1),
                reduction="batchmean",
            )
            loss = ALPHA * F.cross_entropy(output, labels) + (1 - ALPHA) * TEMPERATURE**2 * kd
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            clock.tick(len(labels))
        return clock.rate


class Timm:
    """`timm.task.LogitDistillationTask` in timm's loader, and the steps of its training script.

    Args:
        pair: of networks.
        place: the images.
        setting: where it runs.
        tuned: with the script's --channels-last and --amp --amp-dtype bfloat16.
        compiled: with the script's --torchcompile, which compiles student and teacher.
    """

    def __init__(
        self, pair: Pair, place: Path, setting: Setting, tuned: bool = False, compiled: bool = False
    ) -> None:
        from timm.data import create_dataset, create_loader
        from timm.optim import create_optimizer_v2
        from timm.task import LogitDistillationTask

        student, teacher = pair.load("student", setting.device), pair.load("teacher", setting.device).module
        self.setting = setting
        layout = torch.channels_last if tuned else torch.contiguous_format
        self.layout, self.tuned = layout, tuned
        self.task = LogitDistillationTask(
            student.module.to(memory_format=layout),
            teacher.to(memory_format=layout),
            torch.nn.CrossEntropyLoss(),
            task_loss_weight=ALPHA,
            temperature=TEMPERATURE,
            verbose=False,
        ).to(setting.device)  # its own buffers; the networks are there
        if compiled:
            self.task.compile()
        self.optimizer = create_optimizer_v2(student.module, opt="adamw", lr=LR, weight_decay=WEIGHT_DECAY)
        mean, std = mean_std(student.input_spec)
        self.loader: Any = create_loader(
            create_dataset("", root=str(place)),
            input_size=(3, pair.resolution, pair.resolution),
            batch_size=pair.batch,
            is_training=True,
            scale=CROP_SCALE,
            color_jitter=0.0,
            interpolation="bilinear",
            mean=tuple(mean),
            std=tuple(std),
            num_workers=setting.workers,
            persistent_workers=False,
            pin_memory=setting.device.type == "cuda",
            device=setting.device,
        )

    def block(self) -> float:
        self.task.train()
        clock, device = self.setting.clock(), self.setting.device
        for batch, labels in self.loader:
            batch = batch.contiguous(memory_format=self.layout)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.tuned):
                loss = self.task(batch, labels)["loss"]
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            clock.tick(len(labels))
        return clock.rate


class Torchdistill:
    """torchdistill's DistillationBox with its KDLoss, and the loop of its image classification example."""

    def __init__(self, pair: Pair, place: Path, setting: Setting) -> None:
        self.setting = setting
        logging.disable(logging.INFO)
        from torchdistill.core.distillation import get_distillation_box

        loader = {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": pair.batch, "num_workers": setting.workers, "drop_last": True},
        }
        kd = {
            "key": "KDLoss",
            "kwargs": {
                "student_module_path": ".",
                "student_module_io": "output",
                "teacher_module_path": ".",
                "teacher_module_io": "output",
                "temperature": TEMPERATURE,
                "alpha": ALPHA,
                "reduction": "batchmean",
            },
        }
        model = {"forward_proc": "forward_batch_only", "sequential": [], "frozen_modules": []}
        config = {
            "num_epochs": 1,
            "train_data_loader": loader,
            "teacher": model | {"requires_grad": False},
            "student": model | {"requires_grad": True},
            "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": WEIGHT_DECAY}},
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}},
            },
        }
        layout = torch.contiguous_format
        self.box = get_distillation_box(
            pair.load("teacher", setting.device).module.to(memory_format=layout),
            pair.load("student", setting.device).module.to(memory_format=layout),
            {"train": _folder(pair, place)},
            config,
            setting.device,
            None,
            False,
            1,
        )

    def block(self) -> float:
        clock, device = self.setting.clock(), self.setting.device
        self.box.pre_epoch_process(epoch=0)
        for batch, labels, supplement in self.box.train_data_loader:
            batch, labels = batch.to(device), labels.to(device)
            self.box.pre_forward_process()
            loss = self.box.forward_process(batch, targets=labels, supp_dict=supplement)
            self.box.post_forward_process(loss=loss)
            clock.tick(len(labels))
        return clock.rate
