"""What the student is asked to match. Every loss can be used alone: ``from tutelage.losses import kl``."""

from tutelage.distillation.losses.labels import dominant_labels, hard_label_loss
from tutelage.distillation.losses.logits import (
    dist,
    dkd,
    kl,
    kl_top_k,
    logit_mse,
    mean_teacher_logits,
    nkd,
    soft_cross_entropy,
    standardised_kl,
    wttm,
)
from tutelage.distillation.losses.registry import Loss, get, names

__all__ = [
    "Loss",
    "dist",
    "dkd",
    "dominant_labels",
    "get",
    "hard_label_loss",
    "kl",
    "kl_top_k",
    "logit_mse",
    "mean_teacher_logits",
    "names",
    "nkd",
    "soft_cross_entropy",
    "standardised_kl",
    "wttm",
]
