"""What the stations hand on in memory, and the figures that several of them take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.core.recipe import Recipe
from tutelage.core.run_dir import Run
from tutelage.core.runtime import Precision
from tutelage.data.splits import Splits, Subset, sample
from tutelage.distillation.checkpoint import State
from tutelage.distillation.losses import mean_teacher_logits
from tutelage.evaluation import resolution
from tutelage.evaluation.predict import Predictions, in_common, predict_logits
from tutelage.evaluation.quality import Quality, quality
from tutelage.models.class_mapping import ClassMapping
from tutelage.models.source import Model
from tutelage.models.weights import save_weights
from tutelage.pipeline.context import Context


@dataclass
class Work:
    """What the stations hand on in memory."""

    recipe: Recipe
    context: Context
    splits: Splits
    teachers: list[Model]
    student: Model
    class_mapping: ClassMapping
    start: State = field(default_factory=dict)
    teacher_precision: Precision = "fp32"

    @property
    def run(self) -> Run:
        """Where it is written."""
        return self.context.run

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.context.runtime.device


def figures_on(work: Work, model: Model, subset: Subset) -> Quality:
    """A model's quality on a part, over the classes that the heads agreed on."""
    predictions = predict_on(work, model, subset)
    return quality(predictions.logits, labels_of(work, subset, predictions))


def predict_on(work: Work, model: Model, subset: Subset) -> Predictions:
    """A model's logits on a part, with the positions of the images."""
    context = work.context
    return predict_logits(model.module, model.input_spec, subset, context.runtime, context.loading)


def evaluate(work: Work, model: Model, state: State) -> dict[str, float]:
    """A state's top-1 and NLL on val."""
    model.module.load_state_dict(state)
    figures = figures_on(work, model, work.splits.val)
    return {"top1": figures.top1, "nll": figures.nll}


def probed(work: Work, who: str, model: Model) -> list[dict[str, Any]]:
    """A model's figures on val at neighbouring resolution."""
    subset = sample(work.splits.val, resolution.IMAGES)
    model.module.to(work.device)
    metric = work.recipe.selection.metric
    found = resolution.probe(model, who, lambda there: figures_on(work, there, subset), metric)
    best = resolution.best(found, who, metric)
    figures = ", ".join(
        f"{row['resolution']} px: {row['top1']:.2f}" for row in found if row["top1"] is not None
    )
    work.context.progress.say(f"{who} is best at {best} px (top-1 on val at {figures})")
    return found


def labels_of(work: Work, subset: Subset, predictions: Predictions) -> Tensor:
    """(N,) labels of the images that were answered, as classes of the head."""
    return torch.from_numpy(work.class_mapping.labels(subset.labels))[predictions.index]


def teacher_on_val(work: Work) -> tuple[Predictions, Quality]:
    """The teachers' joint logits on val, and their quality."""
    subset = work.splits.val
    predictions = in_common([predict_on(work, model, subset) for model in work.teachers])
    logits = [one.logits for one in predictions]
    joint = Predictions(logits[0] if len(logits) == 1 else mean_teacher_logits(logits), predictions[0].index)
    return joint, quality(joint.logits, labels_of(work, subset, joint))


def spread(predictions: Predictions, images: int) -> Tensor:
    """Logits (images, C) by position; zeros where an image cannot be decoded."""
    return predictions.logits.new_zeros(images, predictions.logits.shape[1]).index_copy_(
        0, predictions.index, predictions.logits
    )


def save_model(work: Work, model: Model, path: Path) -> None:
    """Weights with what is needed to use them: name, classes, input."""
    if work.context.runtime.is_main:
        named = replace(model, class_ids=work.class_mapping.class_ids)
        save_weights(model.module, path, named.metadata())
