"""One training of one network: what goes in, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tutelage.core.recipe import TrainRecipe, ViewRecipe
from tutelage.data.splits import Subset
from tutelage.distillation.checkpoint import State
from tutelage.distillation.objective import Objective
from tutelage.distillation.teacher import TargetSource
from tutelage.models.source import Model


@dataclass(frozen=True)
class Stage:
    """One training of one network.

    Attributes:
        name: teacher-fit, head-fit, control or distill: under which metrics and checkpoints are kept.
        model: what learns; its module is trained in place.
        settings: of the loop.
        view: of the augmentation.
        objective: what is minimised.
        train: images to learn from.
        val: images to choose by.
        head_index: (data classes,) head index of each class of the data.
        teacher: whose targets are matched; None: labels only.
        views: distinct views an image; None: a new one each epoch.
        val_targets: (N, C) teacher's logits on val, for the loss there.
        head_only: the body is frozen and in eval mode.
        metric: by which an epoch is the best on val: ``top1`` or ``nll``.
    """

    name: str
    model: Model
    settings: TrainRecipe
    view: ViewRecipe
    objective: Objective
    train: Subset
    val: Subset
    head_index: np.ndarray
    teacher: TargetSource | None = None
    views: int | None = None
    val_targets: Tensor | None = None
    head_only: bool = False
    metric: str = "top1"


@dataclass(frozen=True)
class Trained:
    """What a stage leaves: one row an epoch, and the states worth weighing."""

    rows: list[dict[str, Any]]
    states: dict[str, State]  # last, best, and ema where there is one
