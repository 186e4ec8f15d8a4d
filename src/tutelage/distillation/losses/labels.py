"""Cross-entropy with hard labels, also with mixed images."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses.logits import widen

BETA = 0.999  # of the effective number of images; Cui et al. try 0.9 to 0.9999


def hard_label_loss(
    student_logits: Tensor,
    labels: Tensor,
    other_labels: Tensor | None = None,
    lam: float = 1.0,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Compute the cross-entropy with labels (smoothing: Szegedy 2016, mixup: Zhang 2018), a scalar.

    ``-Σ_i [λ log s_i(y_i) + (1 - λ) log s_i(y'_i)]`` divided by the total weight of the labels that are
    present; with smoothing ε each label has 1 - ε + ε/C and every other class ε/C.

    ``student_logits`` is ``(B, C)``; ``labels`` and ``other_labels`` are ``(B,)`` int64, -1 for unlabelled. A
    missing label is left out with its weight, so that of a half-labelled mixture the labelled half counts. A
    batch without any label gives 0, with a gradient of 0. Computed in float32 (float64 stays float64).

    ``class_weights`` is ``(C,)``, see `class_weights`: each term of the sum is multiplied by the weight of its label,
    smoothing included, and the sum is still divided by the weight of the labels alone. So the loss does not depend on
    which classes a batch happens to have.
    """
    logits = widen(student_logits)
    terms = [(1.0, labels)] if other_labels is None else [(lam, labels), (1 - lam, other_labels)]
    total, weight = logits.new_zeros(()), logits.new_zeros(())
    for share, target in terms:
        if target.shape != logits.shape[:1]:
            raise TutelageError(
                f"labels {tuple(target.shape)} do not fit logits {tuple(logits.shape)}: give one label for each row"
            )
        if class_weights is None:
            loss = F.cross_entropy(
                logits, target, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
            )
        else:
            each = F.cross_entropy(
                logits, target, ignore_index=-1, label_smoothing=smoothing, reduction="none"
            )
            loss = (each * class_weights.to(logits)[target.clamp_min(0)]).sum()  # -1 has a loss of 0
        total = total + share * loss
        weight = weight + share * (target >= 0).sum().to(logits.dtype)
    return total / weight.where(weight > 0, 1)


def class_weights(kind: Literal["balanced", "effective"], labels: Tensor, classes: int) -> Tensor:
    """Compute the weight of each class from the labels of the training images, so that the images' mean weight is 1.

    ``balanced``: the inverse of the number of images of a class. ``effective``: the inverse of the effective number of
    images, (1 - β^n) / (1 - β) with β = 0.999 (Cui et al. 2019, "Class-balanced loss based on effective number of
    samples"): nearly ``balanced`` for up to a hundred images of a class, and equal for all classes of many thousands.

    Args:
        kind: as above.
        labels: (N,) int64, index of the class; -1: not labelled, left out.
        classes: number of classes; one without an image is weighted as if it had one.

    Returns:
        (classes,) float32.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=classes).double()
    seen = counts.clamp_min(1)
    weights = 1 / seen if kind == "balanced" else (1 - BETA) / (1 - BETA**seen)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def dominant_labels(labels: Tensor, other_labels: Tensor, lam: float) -> Tensor:
    """Return the label of the larger share of each mixed image, for losses that can use only one label.

    Both are ``(B,)`` int64 and ``lam`` is the share of ``labels``, which are returned at one half. Where the larger
    share is unlabelled (-1) the row stays unlabelled. The authors of NKD do the same.
    """
    return labels if lam >= 0.5 else other_labels
