"""Losses that compare student and teacher: functions that can be used alone, and the terms made of them."""

from tutelage.distillation.losses.features import FeatureMSE
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
from tutelage.distillation.losses.registry import make_term, names
from tutelage.distillation.losses.terms import (
    DIST,
    DKD,
    KL,
    NKD,
    WTTM,
    CrossEntropy,
    LogitMSE,
    LogitTerm,
    Needs,
    SoftCrossEntropy,
    StandardisedKL,
    Term,
    TermBatch,
)

__all__ = [
    "DIST",
    "DKD",
    "KL",
    "NKD",
    "WTTM",
    "CrossEntropy",
    "FeatureMSE",
    "LogitMSE",
    "LogitTerm",
    "Needs",
    "SoftCrossEntropy",
    "StandardisedKL",
    "Term",
    "TermBatch",
    "dist",
    "dkd",
    "dominant_labels",
    "hard_label_loss",
    "kl",
    "kl_top_k",
    "logit_mse",
    "make_term",
    "mean_teacher_logits",
    "names",
    "nkd",
    "soft_cross_entropy",
    "standardised_kl",
    "wttm",
]
