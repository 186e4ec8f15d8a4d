"""Predictions and figures of models on the images of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tutelage.core.progress import shown
from tutelage.data.splits import Subset, sample
from tutelage.distillation.looks import Looks
from tutelage.distillation.losses import mean_teacher_logits
from tutelage.distillation.selection import CALIBRATED, ERROR, SHARE
from tutelage.distillation.two_heads import SHARES, mixed
from tutelage.evaluation import resolution
from tutelage.evaluation.calibration import calibrated_nll
from tutelage.evaluation.fidelity import FIDELITY, fidelity
from tutelage.evaluation.predict import BATCH, Predictions, in_common, predict_logits, predict_together
from tutelage.evaluation.quality import Quality, merit, quality, top1_and_nll
from tutelage.models.source import Model
from tutelage.models.weights import with_state
from tutelage.pipeline.stages.prepare import Prepared


def predict(prepared: Prepared, model: Model, subset: Subset) -> Predictions:
    """Compute a model's logits on a subset; each batch is a step of the stage that is shown, where there is one."""
    context = prepared.context
    return predict_logits(
        model.module,
        model.input_spec,
        subset,
        context.runtime,
        context.loading,
        lambda images: context.progress.step({}, images),
    )


def batches(prepared: Prepared, subset: Subset) -> int:
    """Return the number of steps that `predict` counts."""
    return math.ceil(len(subset) / prepared.context.runtime.world_size / BATCH)


def predict_jointly(prepared: Prepared, models: Sequence[Model], subset: Subset) -> Predictions:
    """Compute the joint logits of one or several teachers on a subset, as used for the student's targets."""
    predictions = in_common([predict(prepared, model, subset) for model in models])
    return joint(predictions)


def predict_looks(prepared: Prepared, models: Sequence[Model], looks: Looks, subset: Subset) -> Predictions:
    """As `predict_jointly`, where each model's answer for an image is the mean over its looks at it."""
    context = prepared.context
    networks = [looks.networks(model) for model in models]
    found = predict_together(list(chain(*networks)), subset, context.runtime, context.loading)
    each = iter(in_common(found))
    return joint([joint([next(each) for _ in own]) for own in networks])


def predict_entries(
    prepared: Prepared, entries: Sequence[Sequence[Model]], subset: Subset
) -> list[Predictions]:
    """Compute the joint logits of one or several models for each entry; an image is decoded once for all of them."""
    context = prepared.context
    found = predict_together(
        [(model.module, model.input_spec) for models in entries for model in models],
        subset,
        context.runtime,
        context.loading,
        on_batch=lambda images: context.progress.step({}, images),
    )
    each = iter(in_common(found))
    return [joint([next(each) for _ in models]) for models in entries]


def joint(predictions: Sequence[Predictions]) -> Predictions:
    """Combine teachers' predictions on the same images: the log of their mean probability, or the only one as it is."""
    logits = [one.logits for one in predictions]
    return Predictions(logits[0] if len(logits) == 1 else mean_teacher_logits(logits), predictions[0].index)


def labels_of(prepared: Prepared, subset: Subset, predictions: Predictions) -> Tensor:
    """Return the labels (N,) of the images of some predictions, as classes of the head."""
    return torch.from_numpy(prepared.class_mapping.labels(subset.labels))[predictions.index]


def quality_on(prepared: Prepared, model: Model, subset: Subset) -> Quality:
    """Measure a model on a subset, over all classes of its head."""
    predictions = predict(prepared, model, subset)
    return quality(predictions.logits, labels_of(prepared, subset, predictions))


def evaluate_state(prepared: Prepared, model: Model, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Measure on val what a model with other weights is chosen by; the model keeps its own."""
    with with_state(model.module, state):
        found = predict(prepared, model, prepared.splits.val)
    return _to_choose_by(found.logits, labels_of(prepared, prepared.splits.val, found))


def evaluate_two_heads(prepared: Prepared, model: Model, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Measure a student with two heads on val as `evaluate_state` does, and mix their logits in the best share.

    The network runs once. The `share` of the teacher's head is that with the best figures by the recipe's metric.
    """
    with with_state(model.module, state):
        found = predict(prepared, model, prepared.splits.val)
    labels = labels_of(prepared, prepared.splits.val, found)
    every = []
    for share in SHARES:
        top1, nll = top1_and_nll(mixed(found.logits, share), labels)
        every.append({"top1": top1, "nll": nll, SHARE: share})
    best = max(every, key=lambda figures: merit(figures, prepared.recipe.selection.metric))
    return best | _to_choose_by(mixed(found.logits, best[SHARE]), labels)


def _to_choose_by(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure top-1 in percent and its standard error in points, and the NLL in nats, as it is and calibrated."""
    top1, nll = top1_and_nll(logits, labels)
    error = math.sqrt(top1 * (100 - top1) / int((labels >= 0).sum()))
    return {"top1": top1, "nll": nll, CALIBRATED: calibrated_nll(logits, labels), ERROR: error}


def fidelity_of_state(
    prepared: Prepared, model: Model, state: Mapping[str, Tensor], teacher: Predictions
) -> dict[str, float]:
    """Compare a model with other weights with the teacher's predictions on val; the model keeps its own weights."""
    with with_state(model.module, state):
        ours, theirs = in_common([predict(prepared, model, prepared.splits.val), teacher])
    close = fidelity(ours.logits, theirs.logits)
    return {"agreement": close.agreement, FIDELITY: close.kl}


def probe_resolutions(prepared: Prepared, name: str, model: Model) -> list[dict[str, Any]]:
    """Measure a model on val at neighbouring resolutions, and report the best one."""
    subset = sample(prepared.splits.val, resolution.IMAGES)
    metric = prepared.recipe.selection.metric
    steps = len(resolution.neighbours(model.input_spec.height)) * batches(prepared, subset)
    with shown(prepared.context.progress, "resolutions", steps):
        found = resolution.probe(model, name, lambda resized: quality_on(prepared, resized, subset), metric)
    best = resolution.best(found, name, metric)
    figures = ", ".join(
        f"{row['resolution']} px: {row['top1']:.2f}" for row in found if row["top1"] is not None
    )
    prepared.context.progress.say(f"{name} is best at {best} px (top-1 on val at {figures})")
    return found
