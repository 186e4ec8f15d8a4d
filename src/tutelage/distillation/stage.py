"""The inputs and the results of one training of one network."""

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
        name: teacher-fit, head-fit, control or distill; names the metrics and the checkpoint.
        model: the model to train; its module is changed in place.
        settings: of the loop.
        view: of the augmentation.
        objective: what is minimised.
        train: training images.
        val: validation images.
        head_index: (data classes,) head index of each class of the data.
        teacher: gives the targets; None: labels only.
        views: distinct views of each image; None: a new one each time.
        steps: of an epoch, for which training images are repeated or left out; None: each image is used once.
        val_targets: (N, C) teacher's logits on val, for the loss there.
        head_only: the body is frozen and in eval mode.
        metric: by which the best epoch on val is chosen: ``top1``, ``nll``, or ``fidelity`` where val has no labels.
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
    steps: int | None = None
    val_targets: Tensor | None = None
    head_only: bool = False
    metric: str = "top1"


@dataclass(frozen=True)
class Trained:
    """The result of a stage.

    Attributes:
        rows: one for each epoch, as in ``metrics.jsonl``.
        states: weights by name: last, best, and ema where there is a moving average.
    """

    rows: list[dict[str, Any]]
    states: dict[str, State]
