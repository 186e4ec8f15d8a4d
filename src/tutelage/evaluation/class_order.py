"""The order of the classes in a head that does not name them: found by the accuracy on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from timm.utils.misc import natural_key

from tutelage.core.runtime import Runtime
from tutelage.data.classes import map_classes
from tutelage.data.loading import Loading
from tutelage.data.splits import Subset, sample
from tutelage.evaluation.predict import predict_logits
from tutelage.models.source import Model
from tutelage.models.timm import CLASS_LIST

IMAGES = 2048  # at most, which the orders are compared on
SHOWN = 3  # classes of an order, in its note


def name_classes(
    model: Model, subset: Subset, runtime: Runtime, loading: Loading | None = None
) -> tuple[Model, str]:
    """Name the classes of a trained head that names none, where the data can show them.

    ImageNet's classes are recognised by the names of the data's classes. A head with as many outputs as the data has
    classes has these, in an order that depends on the program that trained it: timm sorts folders naturally and without
    regard to case (1, 2, 10), others as text (1, 10, 2). The one with the best top-1 is taken, on a tie the data's.

    Args:
        model: its network is moved to the runtime's device where orders are compared.
        subset: labelled images that are not for the final evaluation, where there is a choice.
        runtime: device and processes.
        loading: workers, and how many images that cannot be decoded are left out.

    Returns:
        The model, and a note on what was chosen; the same model and an empty note where there is nothing to choose.
    """
    model = model.recognised(subset.classes)
    orders = _orders(subset.classes)
    unnamed = model.pretrained and model.class_ids is None and model.num_classes == len(subset.classes)
    unnamed = unnamed and not model.random_head
    some = sample(subset, IMAGES) if unnamed and len(orders) > 1 else None
    if some is None or not (some.labels >= 0).any():
        return model, ""
    model.module.to(runtime.device)
    found = predict_logits(model.module, model.input_spec, some, runtime, loading)
    labels, predicted = some.labels[found.index.numpy()], found.logits.argmax(1).numpy()
    top1 = [_top1(predicted, labels, subset.classes, order) for order in orders.values()]
    best = int(np.argmax(top1))
    figures = ", ".join(f"{one:.2f} in {name}" for name, one in zip(orders, top1, strict=True))
    name, order = list(orders.items())[best]
    note = (
        f"{model.spec} does not name its classes; top-1 on {len(labels):,} images: {figures}; taken: {name} "
        f"({', '.join(order[:SHOWN])}, ...). To settle it, list the classes, one a line, in a file beside the "
        f"checkpoint that ends in {CLASS_LIST}"
    )
    return (replace(model, class_ids=order, presumed=None) if best else model), note


def _orders(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The orders in which programs sort classes, each once and by its name; the data's own first."""
    found = {"the data's order": tuple(classes), "the order of text": tuple(sorted(classes))}
    with suppress(
        ValueError
    ):  # timm takes a superscript two for a number, and could not have sorted such names
        found["timm's natural order"] = tuple(sorted(classes, key=natural_key))
    names = {order: name for name, order in reversed(found.items())}
    return {name: order for name, order in found.items() if names[order] == name}


def _top1(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str], order: Sequence[str]) -> float:
    index = map_classes(classes, order)
    assert index is not None  # the same classes
    known = labels >= 0
    return 100 * float(torch.from_numpy(predicted[known] == index[labels[known]]).float().mean())
