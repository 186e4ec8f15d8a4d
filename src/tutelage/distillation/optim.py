"""Optimizer and learning rate schedule, both from timm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from tutelage.core.errors import TutelageError, one_line
from tutelage.core.plugins import nearest
from tutelage.core.recipe import TrainRecipe

LR = 3e-4  # for trying an optimizer whose rate is not known yet
TIMM_SCHEDULES = {"cosine": "cosine", "linear": "poly", "constant": "constant", "multistep": "multistep"}


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
    _check_name(settings.optimizer)
    layer_decay = settings.layer_decay if settings.layer_decay < 1 and not head_only else None
    kernel: dict[str, Any] = {}
    if settings.optimizer.lower() == "adamw":  # all tensors in one call: the same arithmetic, in less time
        kernel = {"fused": True} if fused(student, settings) else {"foreach": True}
    try:
        optimizer = create_optimizer_v2(
            student,
            opt=settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=layer_decay,
            **kernel,
        )
    except ImportError as error:
        raise TutelageError(
            f"train.optimizer: {settings.optimizer!r} needs a package that is not installed ({one_line(error)}); "
            "install it, or use another, such as adamw"
        ) from None
    except (ValueError, AssertionError, TypeError, RuntimeError) as error:
        given = ", ".join(
            f"train.{key}={getattr(settings, key):g}" for key in ("lr", "momentum", "weight_decay")
        )
        raise TutelageError(
            f"train.optimizer: {settings.optimizer!r} does not take these settings ({one_line(error)}): {given}; "
            "change one of them, or use another optimizer, such as adamw"
        ) from None
    if projectors := list(others):
        optimizer.add_param_group({"params": projectors, "lr": settings.lr})
    return optimizer


def fused(student: nn.Module, settings: TrainRecipe) -> bool:
    """Whether the optimizer is made of one kernel, which also skips a step without the host: AdamW on CUDA."""
    return settings.optimizer.lower() == "adamw" and next(student.parameters()).device.type == "cuda"


def check_optimizer(settings: TrainRecipe) -> None:
    """Refuse an optimizer that cannot be used, by making it and taking two steps with a tiny network.

    Raises:
        TutelageError: there is no such optimizer, it refuses a setting, needs a package, or cannot take a step.
    """
    with torch.random.fork_rng(devices=[]):  # the run's random numbers stay as they are
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        known = (
            settings if settings.lr > 0 else settings.model_copy(update={"lr": LR})
        )  # auto is not chosen yet
        optimizer = make_optimizer(network, [], known, head_only=True)
        try:
            for _ in range(2):
                optimizer.zero_grad()
                network(torch.ones(2, 3, 3, 3)).square().sum().backward()
                optimizer.step()
        except Exception as error:  # optimizers raise anything where they need more than gradients
            raise TutelageError(
                f"train.optimizer: {settings.optimizer!r} cannot take a step from gradients alone "
                f"({one_line(error)[:200]}); use another, such as adamw"
            ) from None


def _check_name(name: str) -> None:
    """Refuse a name that timm does not know; it would take the last part of any name, as of my_adamw."""
    known = list(map(str, list_optimizers()))
    if name.lower().removeprefix("lookahead_") not in known:
        raise TutelageError(
            f"train.optimizer: {name!r} is not one of timm's optimizers; did you mean {nearest(name, known)!r}? "
            "Such as adamw, sgd or lookahead_adamw"
        )


def make_schedule(optimizer: Optimizer, settings: TrainRecipe, steps: int) -> Any:
    """Make timm's schedule, which changes the rate at each step; an epoch has `steps` of them."""
    # timm lowers the rate one step before a milestone; half a step more makes it the first step of the next epoch
    milestones = [epoch + 0.5 / steps for epoch in sorted(settings.milestones)]
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=TIMM_SCHEDULES[settings.schedule],
        num_epochs=settings.epochs,
        decay_rate=0.1 if settings.milestones else 1.0,
        decay_milestones=milestones,  # type: ignore[arg-type]  # fractions of an epoch are fine
        min_lr=settings.min_lr,
        warmup_lr=settings.lr / 100,
        warmup_epochs=settings.warmup_epochs,  # type: ignore[arg-type]  # fractions of an epoch are fine
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return schedule
