"""Accuracy and calibration of a classifier on labelled images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tutelage.evaluation.fidelity import FIDELITY

BINS = 15
UNEQUAL = 2  # times the images of the smallest class; beyond it, accuracy says little about small classes


@dataclass(frozen=True)
class Quality:
    """Figures over n labelled images.

    Attributes:
        top1: percent.
        top5: percent; of as many classes as there are, where there are fewer than five.
        nll: mean negative log likelihood of the label, in nats.
        ece: expected calibration error (Naeini 2015), 15 equal bins of the top-1 confidence, in percent.
        n: images counted.
    """

    top1: float
    top5: float
    nll: float
    ece: float
    n: int


def quality(logits: Tensor, labels: Tensor) -> Quality:
    """Measure accuracy and calibration of logits against labels.

    Args:
        logits: (N, C), any float type; computed on in float32.
        labels: (N,) int64 classes of the head; -1: not labelled, left out.

    Raises:
        ValueError: no image has a label.
    """
    # here, since it takes two seconds to import, which each start of a process would wait for
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    top1, nll = top1_and_nll(logits, labels)
    logits, labels = _labelled(logits, labels)
    classes = logits.shape[1]
    top5 = multiclass_accuracy(logits, labels, classes, average="micro", top_k=min(5, classes))
    # torchmetrics gives a confidence of exactly 1 a bin of its own; it belongs into the last one
    probabilities = logits.softmax(1).clamp(max=1 - 2**-24)
    ece = multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS, norm="l1")
    return Quality(
        top1=top1,
        top5=_percent(top5, len(labels)),
        nll=nll,
        ece=100 * ece.item(),
        n=len(labels),
    )


def top1_and_nll(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Measure only what is asked after each epoch and of each candidate, in a small part of the time of `quality`.

    Args and errors are those of `quality`.

    Returns:
        Top-1 in percent, and the mean negative log likelihood in nats.
    """
    logits, labels = _labelled(logits, labels)
    right = int((logits.argmax(1) == labels).sum())
    return 100 * right / len(labels), cross_entropy(logits, labels).item()


def _labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits in float32 and the labels of the images that have one."""
    labelled = labels >= 0
    if not labelled.any():
        raise ValueError("no labelled image to measure quality on")
    return logits[labelled].float(), labels[labelled]


def is_unbalanced(labels: Tensor) -> bool:
    """Whether the largest class has more than twice the images of the smallest one.

    Args:
        labels: (N,) int64; -1: not labelled, left out. Classes without images do not count.
    """
    counts = torch.bincount(labels[labels >= 0])
    counts = counts[counts > 0]
    return bool(len(counts)) and int(counts.max()) > UNEQUAL * int(counts.min())


def macro_recall(logits: Tensor, labels: Tensor) -> float:
    """The mean over classes of the share of a class's images that are classified correctly, in percent.

    It is also called balanced accuracy. Each class counts alike, however many images it has.

    Args:
        logits: (N, C), any float type.
        labels: (N,) int64 classes of the head; -1: not labelled, left out. Classes without images do not count.

    Raises:
        ValueError: no image has a label.
    """
    logits, labels = _labelled(logits, labels)
    images = torch.bincount(labels, minlength=logits.shape[1]).double()
    right = torch.bincount(labels[logits.argmax(1) == labels], minlength=logits.shape[1]).double()
    return 100 * (right[images > 0] / images[images > 0]).mean().item()


def _percent(share: Tensor, n: int) -> float:
    """The exact percentage that a float32 share of n images stands for."""
    return 100 * round(share.item() * n) / n


def over_classes(logits: Tensor, head_index: Tensor) -> Tensor:
    """Logits (N, C) of a head, restricted to K of its classes (K,), in their order: (N, K)."""
    return torch.index_select(logits, 1, head_index)


def merit(val: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """The key by which students are ranked on val by ``top1``, ``nll`` or ``fidelity``, higher is better; NaN is worst.

    The fidelity to the teacher is for a val without labels, which has neither of the others.
    """
    figures = (-val[FIDELITY], val["agreement"]) if metric == FIDELITY else (val["top1"], -val["nll"])
    first, second = (-math.inf if math.isnan(value) else value for value in figures)
    return (second, first) if metric == "nll" else (first, second)
