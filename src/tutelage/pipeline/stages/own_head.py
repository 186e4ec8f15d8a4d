"""Whether a model's own head serves for the images of a run, or a new one on the same features does better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tutelage.core.recipe import Recipe
from tutelage.core.runtime import Runtime
from tutelage.data.classes import map_classes
from tutelage.data.loading import Loading
from tutelage.data.splits import Splits, Subset, sample
from tutelage.distillation.probe import can_be_probed, fit_probe
from tutelage.evaluation.input_variants import probe_description
from tutelage.evaluation.paired import paired
from tutelage.evaluation.predict import in_common, predict_together
from tutelage.evaluation.quality import over_classes, top1_and_nll
from tutelage.models.class_mapping import known_classes
from tutelage.models.source import Model

IMAGES = 2_000  # at most, of the training images and of val each, so that a comparison takes seconds
OWN, NEW = "own head", "new head"
Sized = Callable[[Model], Model]
TEACHER, STUDENT = "teacher.fit", "student.head_fit"  # keys of the recipe for which one of these is chosen


@dataclass(frozen=True)
class HeadChoice:
    """Which head a model begins with.

    Attributes:
        head: ``own head`` or ``new head``.
        why: the reason in words, with figures.
    """

    head: str
    why: str


def choose_heads(
    recipe: Recipe,
    models: Mapping[str, tuple[Model, Sized]],
    splits: Splits,
    runtime: Runtime,
    loading: Loading,
) -> dict[str, HeadChoice]:
    """Choose between the own head and a new one for teacher and student, where the recipe leaves it to the run.

    A head that names all classes of the data may still be a poor one for these images, such as ImageNet's for pictures
    of another size or camera. A linear probe of the same features takes seconds, and where its top-1 on val is above
    that of the own head by a 95% interval, the model gets a new head. Otherwise its own stays.

    Args:
        recipe: of the run.
        models: by key of the recipe the first teacher, which decides for the others, and the student, as loaded; and
            what sets a model to the input of the recipe.
        splits: images of the run; a probe is fitted to labelled training images.
        runtime: device and processes.
        loading: how images are loaded.

    Returns:
        By key of the recipe what was chosen; without the keys for which there is no choice.
    """
    found = {}
    for key, asked, images in (
        (TEACHER, recipe.teacher.fit, splits.taught),
        (STUDENT, recipe.student.head_fit, splits.train),
    ):
        model, sized = models[key]
        if asked != "auto" or (recipe.student.all_classes and model.num_classes > len(splits.classes)):
            continue
        choice = _choose(
            model, sized, images, splits.val, runtime, loading, may_be_described_wrongly=key == TEACHER
        )
        if choice:
            found[key] = choice
    return found


def has_new_head(key: str, asked: object, choices: Mapping[str, HeadChoice]) -> bool:
    """Tell whether a model gets a new head although its own has the classes of the data.

    Args:
        key: ``teacher.fit`` or ``student.head_fit``.
        asked: what the recipe has for it.
        choices: what the run chose.
    """
    return asked == "probe" or (key in choices and choices[key].head == NEW)


def _choose(
    model: Model,
    sized: Sized,
    train: Subset,
    val: Subset,
    runtime: Runtime,
    loading: Loading,
    *,
    may_be_described_wrongly: bool,
) -> HeadChoice | None:
    """Compare a model's own head with a linear probe on val; None where one of them cannot be had.

    A teacher that only gets its images, or the order of its classes, wrongly keeps its head: the pre-flight says so.
    """
    classes = val.classes
    model = model.recognised(classes)
    known = known_classes(model, classes)
    if known is None or not can_be_probed(model) or not (train.labelled and val.labelled):
        return None
    train, val = sample(train, IMAGES), sample(val, IMAGES)
    if len(np.unique(train.labels[train.labels >= 0])) < 2 or not (val.labels >= 0).any():
        return None
    # sized last: a transformer's embeddings have the size of its input, and a new head is put on its own
    fresh, model = sized(model.with_head(classes)), sized(model.copied())
    for one in (model, fresh):
        one.module.to(runtime.device)
    places = np.arange(len(classes))
    probe = fit_probe(fresh, train, val, places, runtime, loading).put_on(fresh)
    probe.module.to(runtime.device)
    both = [(one.module, one.input_spec) for one in (model, probe)]
    own, new = in_common(predict_together(both, val, runtime, loading))
    index = map_classes(classes, known)
    assert index is not None  # the head has all classes of the data
    theirs = over_classes(own.logits, torch.from_numpy(index))
    labels = torch.from_numpy(val.labels)[own.index]
    result = paired(new.logits, theirs, labels)
    top1 = [top1_and_nll(logits, labels)[0] for logits in (new.logits, theirs)]
    why = (
        f"on {result.n:,} images of val a linear probe of {len(train):,} training images has {top1[0]:.2f} top-1, its "
        f"own head {top1[1]:.2f}: {result.difference:+.2f} points, {result.low:+.2f} to {result.high:+.2f}"
    )
    if result.low <= 0:
        return HeadChoice(OWN, why)
    if may_be_described_wrongly and probe_description(model, val, index, own, runtime, loading).fault:
        return HeadChoice(OWN, f"its images or the order of its classes are described wrongly; {why}")
    return HeadChoice(NEW, why)
