"""What the stations hand on in memory, and the figures that several of them take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage import precision, resolutions
from tutelage.checkpoint import State
from tutelage.context import Context
from tutelage.data.splits import Part, Splits, sample
from tutelage.evaluate import Predictions, in_common, predict_logits
from tutelage.heads import Heads
from tutelage.losses import mean_teacher_logits
from tutelage.measure.quality import Quality, quality
from tutelage.models import Model, save_weights
from tutelage.recipe import Recipe
from tutelage.run import Run


@dataclass
class Work:
    """What the stations hand on in memory."""

    recipe: Recipe
    context: Context
    splits: Splits
    teachers: list[Model]
    student: Model
    heads: Heads
    start: State = field(default_factory=dict)
    teacher_precision: precision.Precision = "fp32"

    @property
    def run(self) -> Run:
        """Where it is written."""
        return self.context.run

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.context.accelerator.device


def figures_on(work: Work, model: Model, part: Part) -> Quality:
    """A model's quality on a part, over the classes that the heads agreed on."""
    said = said_on(work, model, part)
    return quality(said.logits, labels_of(work, part, said))


def said_on(work: Work, model: Model, part: Part) -> Predictions:
    """A model's logits on a part, with the positions of the images."""
    context = work.context
    return predict_logits(
        model.module,
        model.input,
        part,
        context.accelerator,
        workers=context.workers,
        bad=context.bad,
    )


def weigh(work: Work, model: Model, state: State) -> dict[str, float]:
    """A state's top-1 and NLL on val."""
    model.module.load_state_dict(state)
    figures = figures_on(work, model, work.splits.val)
    return {"top1": figures.top1, "nll": figures.nll}


def probed(work: Work, who: str, model: Model) -> list[dict[str, Any]]:
    """A model's figures on val at neighbouring resolutions."""
    part = sample(work.splits.val, resolutions.IMAGES)
    model.module.to(work.device)
    metric = work.recipe.choose.metric
    found = resolutions.probe(model, who, lambda there: figures_on(work, there, part), metric)
    best = resolutions.best(found, who, metric)
    figures = ", ".join(
        f"{row['resolution']} px: {row['top1']:.2f}" for row in found if row["top1"] is not None
    )
    work.context.progress.say(f"{who} is best at {best} px (top-1 on val at {figures})")
    return found


def labels_of(work: Work, part: Part, said: Predictions) -> Tensor:
    """(N,) labels of the images that were answered, as classes of the head."""
    return torch.from_numpy(work.heads.labels(part.labels))[said.index]


def teacher_on_val(work: Work) -> tuple[Predictions, Quality]:
    """The teachers' joint logits on val, and their quality."""
    part = work.splits.val
    said = in_common([said_on(work, model, part) for model in work.teachers])
    logits = [one.logits for one in said]
    joint = Predictions(logits[0] if len(logits) == 1 else mean_teacher_logits(logits), said[0].index)
    return joint, quality(joint.logits, labels_of(work, part, joint))


def spread(said: Predictions, images: int) -> Tensor:
    """Logits (images, C) by position; zeros where an image cannot be decoded."""
    return said.logits.new_zeros(images, said.logits.shape[1]).index_copy_(0, said.index, said.logits)


def save_model(work: Work, model: Model, path: Path) -> None:
    """Weights with what is needed to use them: name, classes, input."""
    if work.context.writes:
        named = replace(model, class_ids=work.heads.class_ids)
        save_weights(model.module, path, named.metadata())
