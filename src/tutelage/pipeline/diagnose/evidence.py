"""Evidence for the diagnosis about the distilled student's training, measured on val after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.distillation.checkpoint import State
from tutelage.distillation.losses import TermBatch
from tutelage.distillation.objective import Objective
from tutelage.distillation.outputs import Outputs
from tutelage.distillation.selection import Choice, best_of
from tutelage.evaluation.flips import by_class
from tutelage.evaluation.paired import paired
from tutelage.evaluation.predict import Predictions, in_common
from tutelage.models import batchnorm

NAMED = 10  # classes kept of those that lose most


def of_training(
    choice: Choice,
    last: State,
    module: nn.Module,
    predictions: Callable[[State], Predictions],
    labels: np.ndarray,
    classes: Sequence[str],
    objective: Objective,
    targets: Tensor,
) -> dict[str, Any]:
    """Return the start's loss, what the best trained and the kept candidate changed on val, and BatchNorm's drift.

    Args:
        choice: made on val.
        last: the state at the end of the training.
        module: the student's network, of which only the layers are looked at.
        predictions: the logits of a state on val.
        labels: (N,) head indices of val.
        classes: of the head, in order.
        objective: what was minimised.
        targets: (N, C) the teacher's logits on val.
    """
    start = choice.candidates[0]
    best = best_of([c for c in choice.candidates if c.alpha == 1.0 and not c.recalibrated], choice.metric)
    compared = {c.name: c for c in (start, best, choice.kept)}  # often two of them are the same
    found = in_common([predictions(candidate.state) for candidate in compared.values()])
    by_name = dict(zip(compared, found, strict=True))
    old, new, kept = (by_name[c.name] for c in (start, best, choice.kept))
    truth = torch.from_numpy(labels)[old.index]
    parts = objective.on_logits(TermBatch(Outputs(old.logits), Outputs(targets[old.index]), truth, truth))
    pair = paired(new.logits.numpy(), old.logits.numpy(), truth.numpy())
    chosen = paired(kept.logits.numpy(), old.logits.numpy(), truth.numpy())
    lost = by_class(new.logits.argmax(1).numpy(), old.logits.argmax(1).numpy(), truth.numpy())[:NAMED]
    named = [{**c, "class": classes[c["class"]]} for c in lost]
    return {
        "start_val": {"loss": sum(value.item() for value in parts.values())},
        "against_start": {"candidate": best.name, **asdict(pair), "classes": named},
        "kept_against_start": {
            "candidate": choice.kept.name,
            **asdict(chosen),
            "within_noise": chosen.low <= 0 <= chosen.high,
        },
        "batchnorm": {"distance": batchnorm.moved(module, start.state, last)},
    }
