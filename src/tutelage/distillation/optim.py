"""Optimizer and learning rate schedule, both from timm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from tutelage.core.errors import TutelageError
from tutelage.core.recipe import TrainRecipe

TIMM_SCHEDULES = {"cosine": "cosine", "linear": "poly", "constant": "constant"}


def make_optimizer(
    student: nn.Module, others: Iterable[nn.Parameter], settings: TrainRecipe, head_only: bool
) -> Optimizer:
    """Make the optimizer of a stage.

    Args:
        student: biases and norms get no weight decay, and with layer decay each layer has its own rate.
        others: parameters of the terms (projectors), at the full rate.
        settings: of the loop.
        head_only: the body is frozen, so there is no layer decay.

    Raises:
        TutelageError: timm does not have the optimizer, or refuses a setting.
    """
    layer_decay = settings.layer_decay if settings.layer_decay < 1 and not head_only else None
    try:
        optimizer = create_optimizer_v2(
            student,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=layer_decay,
        )
    except (ValueError, AssertionError) as error:
        raise TutelageError(
            f"train.optimizer: {settings.optimizer!r} is not one of timm's optimizers ({error})"
        ) from None
    if projectors := list(others):
        optimizer.add_param_group({"params": projectors, "lr": settings.lr})
    return optimizer


def make_schedule(optimizer: Optimizer, settings: TrainRecipe, steps: int) -> Any:
    """Make timm's schedule, which changes the rate at each step; an epoch has `steps` of them."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=TIMM_SCHEDULES[settings.schedule],
        num_epochs=settings.epochs,
        decay_rate=1.0,
        min_lr=settings.min_lr,
        warmup_lr=settings.lr / 100,
        warmup_epochs=settings.warmup_epochs,  # type: ignore[arg-type]  # fractions of an epoch are fine
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return schedule
