"""Cross-entropy with hard labels, also with mixed images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tutelage.core.errors import TutelageError
from tutelage.distillation.losses.logits import widen


def hard_label_loss(
    student_logits: Tensor,
    labels: Tensor,
    other_labels: Tensor | None = None,
    lam: float = 1.0,
    smoothing: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy with labels (smoothing: Szegedy 2016, mixup: Zhang 2018), a scalar.

    ``-Σ_i [λ log s_i(y_i) + (1 - λ) log s_i(y'_i)]`` divided by the total weight of the labels that are
    present; with smoothing ε each label has 1 - ε + ε/C and every other class ε/C.

    ``student_logits`` is ``(B, C)``; ``labels`` and ``other_labels`` are ``(B,)`` int64, -1 for unlabelled. A
    missing label is left out with its weight, so that of a half-labelled mixture the labelled half counts. A
    batch without any label gives 0, with a gradient of 0. Computed in float32 (float64 stays float64).
    """
    logits = widen(student_logits)
    terms = [(1.0, labels)] if other_labels is None else [(lam, labels), (1 - lam, other_labels)]
    total, weight = logits.new_zeros(()), logits.new_zeros(())
    for share, target in terms:
        if target.shape != logits.shape[:1]:
            raise TutelageError(
                f"labels {tuple(target.shape)} do not fit logits {tuple(logits.shape)}: give one label for each row"
            )
        loss = F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
        total = total + share * loss
        weight = weight + share * (target >= 0).sum().to(logits.dtype)
    return total / weight.where(weight > 0, 1)


def dominant_labels(labels: Tensor, other_labels: Tensor, lam: float) -> Tensor:
    """Return the label of the larger share of each mixed image, for losses that can use only one label.

    Both are ``(B,)`` int64 and ``lam`` is the share of ``labels``, which are returned at one half. Where the larger
    share is unlabelled (-1) the row stays unlabelled. The authors of NKD do the same.
    """
    return labels if lam >= 0.5 else other_labels
