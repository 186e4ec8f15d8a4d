"""Targets out of fold: each labelled training image is answered by a head that was fitted without it.

A teacher is nearly always right on the images that it was fitted to, and sure of it, so that its answers there say
hardly more than the labels. Those of a model that was fitted to the other images are like its answers on new ones
(Wolpert 1992, "Stacked generalization"). This is cheap for a linear probe: the body runs once, and only the heads
differ.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.core.runtime import Runtime
from tutelage.data.loading import Loading
from tutelage.data.splits import Subset, sample
from tutelage.distillation.probe import IMAGES, features_of, fit_heads
from tutelage.distillation.two_heads import with_wide_head
from tutelage.models.heads import head_layers
from tutelage.models.source import Model


@dataclass(frozen=True)
class Folds:
    """Which of several heads answers for each image.

    Attributes:
        head: (N,) int64 by position in the student's training images: the fold of an image, or `count` where the head
            that was fitted to all folds has not seen it.
        count: number of folds; there is one head more.
    """

    head: Tensor
    count: int

    def pick(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return (B, C) of the logits (B, (count + 1) * C) of all heads, for the images at `index` (B,)."""
        heads = self.head[index.cpu()].to(logits.device)
        every = logits.unflatten(1, (self.count + 1, -1))
        return every[torch.arange(len(every), device=logits.device), heads]

    def digest(self) -> str:
        """Return a hash of which head answers for each image."""
        return hashlib.sha256(self.head.numpy().tobytes()).hexdigest()


def assign_folds(train: Subset, images: int, count: int, seed: int) -> Folds:
    """Divide the images that a probe is fitted to into folds, stratified by class.

    Args:
        train: images of the fit; they are the first of the student's training images.
        images: number of the student's training images.
        count: number of folds.
        seed: of the run.

    Raises:
        TutelageError: no class has as many images as there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    seen = np.isin(train.indices, sample(train, IMAGES).indices) & (train.labels >= 0)
    positions = np.flatnonzero(seen)
    labels = train.labels[positions]
    largest = np.bincount(labels).max() if len(labels) else 0
    if largest < count:
        raise TutelageError(
            f"targets.folds={count}: the largest class has {largest} labelled training images; use at most as many "
            "folds, such as targets.folds=2, or null"
        )
    head = np.full(images, count, np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer images than folds
        splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(positions, labels)
        for fold, (_, held_out) in enumerate(splits):
            head[positions[held_out]] = fold
    return Folds(torch.from_numpy(head), count)


def with_fold_heads(
    model: Model,
    folds: Folds,
    strength: float,
    train: Subset,
    head_index: np.ndarray,
    runtime: Runtime,
    loading: Loading,
) -> Model:
    """Return a copy of a linear probe with a head for each fold, fitted without it, and the probe's own head last.

    Args:
        model: whose head is a probe that was fitted to `train`.
        folds: of `train`.
        strength: of the probe's regularisation, scikit-learn's C.
        train: the images.
        head_index: (data classes,) index in the head of each class of the data.
        runtime: device and processes; the first process fits, and all get its heads.
        loading: how images are loaded.

    Returns:
        The model with (B, (count + 1) * C) outputs.

    Raises:
        TutelageError: without one of the folds, a single class is left.
    """
    own = folds.head[: len(train)]
    answered = torch.nonzero(own < folds.count).flatten()
    subset = replace(train, indices=train.indices[answered.numpy()])
    found = features_of(model, subset, runtime, loading)
    fold = own[answered][found.index]
    labels = torch.from_numpy(head_index)[torch.from_numpy(subset.labels)[found.index]]
    if any(len(labels[fold != number].unique()) < 2 for number in range(folds.count)):
        raise TutelageError(
            f"targets.folds={folds.count}: without one of the folds, the images of a single class are left; use null"
        )

    def fit() -> list[tuple[Tensor, Tensor]]:
        heads = []
        for number in range(folds.count):
            others = fold != number
            (probe,) = fit_heads(found.logits[others], labels[others], model.num_classes, (strength,))
            heads.append((probe.weight, probe.bias))
        return heads

    heads = runtime.on_main(fit)
    (last,) = head_layers(model.module, model.num_classes)
    weight, bias = (last.get_parameter(name).detach() for name in ("weight", "bias"))
    weights = [w.view_as(weight).to(weight) for w, _ in heads]
    biases = [b.to(bias) for _, b in heads]
    return with_wide_head(model, torch.cat([*weights, weight]), torch.cat([*biases, bias]))
