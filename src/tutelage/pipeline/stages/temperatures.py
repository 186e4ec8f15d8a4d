"""The choice of the temperatures of a distillation, where the recipe leaves them to the run (``auto``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.core.components import LossRecipe
from tutelage.core.runtime import Precision
from tutelage.core.values import AUTO
from tutelage.data.loading import view_loader
from tutelage.data.splits import sample
from tutelage.data.views import ViewPolicy
from tutelage.distillation.looks import Looks
from tutelage.distillation.teacher import Teacher
from tutelage.evaluation import calibration
from tutelage.evaluation.predict import Predictions
from tutelage.evaluation.quality import top1_and_nll
from tutelage.models.source import Model
from tutelage.pipeline.choices import choices_of, record_choice
from tutelage.pipeline.stages.evaluate import labels_of, predict_looks
from tutelage.pipeline.stages.fit import teacher_of_targets
from tutelage.pipeline.stages.prepare import Prepared

IMAGES = 500  # whose training views show how certain the teacher is there
BATCH = 50
BOUNDS = (1.0, 4.0)  # of the temperature of kl
CERTAIN = 0.3  # share of a uniform guess's entropy; `HIGH` was best or as good up to 0.24 (docs/methods.md)
HIGH = 4.0  # as in most work since Hinton et al. 2015, "Distilling the knowledge in a neural network"


def with_temperatures(
    prepared: Prepared,
    teachers: Sequence[Model],
    precision: Precision,
    on_val: Predictions,
    before: dict[str, Any] | None,
) -> Prepared:
    """Choose the temperatures that the recipe leaves to the run, or read them from the pre-flight.

    Args:
        prepared: the data and the recipe.
        teachers: at the resolution of their targets.
        precision: in which they compute the targets.
        on_val: their answers on val, as `answers_on_val` gives them.
        before: content of preflight.json; None where the pre-flight is yet to be made.
    """
    recipe = prepared.recipe
    if before is None:
        loss = _choose(prepared, teachers, precision, on_val)
    else:  # a run of an older version divided by nothing
        names = {"teacher_temperature": 1.0, "temperature": None} | before.get("temperatures", {})
        auto = [key for key in names if getattr(recipe.loss, key) in (AUTO, "auto")]
        loss = recipe.loss.model_copy(update={key: names[key] for key in auto})
        _record_shared(
            prepared, {key: value for key, value in before.get("temperatures", {}).items() if key in auto}
        )
    return replace(prepared, recipe=recipe.model_copy(update={"loss": loss}))


def answers_on_val(prepared: Prepared, teachers: Sequence[Model], on_val: Predictions) -> Predictions:
    """Return what the teachers answer on val as they do for targets: where the recipe has several looks, their mean.

    Args:
        prepared: the data and the recipe.
        teachers: at the resolution of their targets.
        on_val: their joint logits on val, from one look at each image.
    """
    looks = Looks.of(prepared.recipe.targets)
    if looks == Looks():
        return on_val
    val = prepared.splits.val
    answers = predict_looks(prepared, teachers, looks, val)
    if val.labelled:
        one, mean = (
            top1_and_nll(found.logits, labels_of(prepared, val, found)) for found in (on_val, answers)
        )
        prepared.context.progress.say(
            f"targets.flip, targets.resolutions: on val the mean of the teacher's looks has {mean[0]:.2f} top-1 "
            f"(NLL {mean[1]:.3f}), one look {one[0]:.2f} ({one[1]:.3f})"
        )
    return answers


def view_batches(prepared: Prepared) -> int:
    """Return how many batches of views are read to choose a temperature: the steps that are shown meanwhile."""
    return _count(len(sample(prepared.splits.train, IMAGES))) if _matches(prepared.recipe.loss) else 0


def _matches(loss: LossRecipe) -> bool:
    """Whether the temperature of kl is chosen, which needs the teacher's answers to training views."""
    return loss.temperature == "auto" and loss.name == "kl" and not loss.terms


def _count(images: int) -> int:
    return max(1, images // BATCH)


def _record_shared(prepared: Prepared, values: dict[str, Any]) -> None:
    """Record temperatures that another run of the same study or of another seed has chosen for all."""
    if not prepared.context.runtime.is_main:
        return
    known = choices_of(prepared.run)
    for key, value in values.items():
        if value != "auto" and f"loss.{key}" not in known:  # a loss other than kl keeps its own temperature
            why = "chosen by the first of the runs that share this pre-flight"
            record_choice(prepared.run, f"loss.{key}", value, why)
            prepared.context.progress.say(f"auto: loss.{key} = {value:g} ({why})")


def _choose(
    prepared: Prepared, teachers: Sequence[Model], precision: Precision, on_val: Predictions
) -> LossRecipe:
    """Replace ``auto`` in ``loss.teacher_temperature`` and ``loss.temperature``.

    The first one calibrates the teacher on val (Guo et al. 2017, "On calibration of modern neural networks"). The
    second one is that of kl only: other losses keep their own. A teacher that is rather certain of the training images
    says little more than the labels, and which classes it takes for similar is seen at a high temperature only. One
    that is uncertain there has the temperature at which its targets are as uncertain, by their mean entropy, as the
    calibrated teacher is on val, where it knows no image.
    """
    loss = prepared.recipe.loss
    chosen: dict[str, tuple[float, str]] = {}
    scale = loss.teacher_temperature
    if scale == AUTO:
        labels = labels_of(prepared, prepared.splits.val, on_val)
        scale = round(calibration.calibrating_temperature(on_val.logits, labels), 3)
        labelled = prepared.splits.val.labelled
        why = "calibrates the teacher on val" if labelled else "val has no labels to calibrate the teacher on"
        chosen["teacher_temperature"] = scale, why
    if _matches(loss):
        target = calibration.entropy(on_val.logits, scale)
        views = _on_views(prepared, teacher_of_targets(prepared, teachers, precision))
        chosen["temperature"] = matching_or_high(views / scale, target)
    keys = list(chosen)
    values = prepared.context.runtime.from_main([chosen[key][0] for key in keys])
    for key, value in zip(keys, values, strict=True):
        if prepared.context.runtime.is_main:
            record_choice(prepared.run, f"loss.{key}", value, chosen[key][1])
        prepared.context.progress.say(f"auto: loss.{key} = {value:g} ({chosen[key][1]})")
    return loss.model_copy(update=dict(zip(keys, values, strict=True)))


def matching_or_high(views: Tensor, target: float) -> tuple[float, str]:
    """Return a temperature of kl by the calibrated logits (N, C) of a teacher on training views, and the reason.

    Args:
        views: the logits.
        target: mean entropy in nats of the calibrated teacher on val.
    """
    own, guess = calibration.entropy(views, 1.0), math.log(views.shape[1])
    if own < CERTAIN * guess:
        share = 100 * own / guess
        return HIGH, (
            f"the teacher is rather certain on training views: its mean entropy is {own:.3f} nats, {share:.0f}% of a "
            "uniform guess"
        )
    found = round(calibration.matching_temperature(views, target, BOUNDS), 2)
    return found, f"the teacher's mean entropy is {own:.3f} nats on training views and {target:.3f} on val"


def _on_views(prepared: Prepared, teacher: Teacher) -> Tensor:
    """Compute the teacher's logits on one training view of some images.

    The views do not depend on the seed of the run, so that runs with several seeds can share the choice.
    """
    train = prepared.splits.train
    subset = sample(train, IMAGES)
    places = torch.from_numpy(np.searchsorted(train.indices, subset.indices))  # in train, for folds
    batches = np.array_split(np.arange(len(subset)), _count(len(subset)))
    views = view_loader(
        subset,
        ViewPolicy(prepared.recipe.view),
        teacher.input_specs,
        iter(batches),
        seed=0,
        view=0,
        workers=0,
        bad=prepared.context.loading.bad,
    )
    logits = []
    for batch in views:
        logits.append(teacher.logits(batch["images"], places[batch["index"]]).cpu())
        prepared.context.progress.step({}, len(logits[-1]))
    return torch.cat(logits)
