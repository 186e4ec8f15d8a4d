"""Measurements that fill the rows of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.evaluation.fidelity import Fidelity
from tutelage.evaluation.latency import Call, alternating_latency
from tutelage.evaluation.quality import is_unbalanced, macro_recall, over_classes, quality
from tutelage.evaluation.size import gmacs, params_m, size_mb
from tutelage.evaluation.table import Row

QUALITY = ("top1", "top5", "nll", "ece")
TOP = 5  # classes of the top-5 accuracy
SPEED = ("latency_ms", "images_per_s")
COSTS = ("size_mb", "params_m", "gmacs", *SPEED)


def sized(row: Row, module: nn.Module, height: int, width: int) -> Row:
    """Add size, parameters and MACs at (height, width) pixels to a row.

    What another program runs has no parameters that could be counted; its size is that of its file.
    """
    if not any(True for _ in module.parameters()):
        return replace(row, resolution=height, size_mb=getattr(module, "file_mb", None))
    return replace(
        row,
        resolution=height,
        size_mb=size_mb(module),
        params_m=params_m(module),
        gmacs=gmacs(module, height, width),
    )


def timed(
    rows: Sequence[Row], singles: Sequence[Call], batches: Sequence[Call], batch_size: int, **conditions: Any
) -> list[Row]:
    """Add latency and throughput to rows, all timed in turns.

    Args:
        rows: in the order of the calls.
        singles: each runs its model on one image.
        batches: each runs its model on `batch_size` images.
        batch_size: images.
        conditions: kept in the rows (device, threads).
    """
    one = alternating_latency({str(place): call for place, call in enumerate(singles)})
    many = alternating_latency(
        {str(place): call for place, call in enumerate(batches)},
        rounds=10,
        warmup=1,
        seconds=30.0,
        settling=1,
        burst=1,
    )
    return [
        replace(
            row,
            latency_ms=one[str(place)].median_ms,
            latency_p10=one[str(place)].p10_ms,
            latency_p90=one[str(place)].p90_ms,
            images_per_s=1000 * batch_size / many[str(place)].median_ms,
            conditions={
                **row.conditions,
                **conditions,
                "batch_size": batch_size,
                "rounds": one[str(place)].rounds,
                "batch_rounds": many[str(place)].rounds,
            },
        )
        for place, row in enumerate(rows)
    ]


def graded(row: Row, logits: Tensor, labels: Tensor, head_index: Tensor) -> Row:
    """Add accuracy and calibration over all classes of the head, and accuracy over those of the data.

    Where the classes have unequal numbers of images, the mean recall of all classes is added too.

    Args:
        row: of the model.
        logits: (N, C).
        labels: (N,) classes of the data; -1: not labelled.
        head_index: (K,) place in the head of each of the data's classes.
    """
    head_labels = torch.where(labels >= 0, head_index[labels], -1)
    over_head = quality(logits, head_labels)
    figures: dict[str, Any] = {name: getattr(over_head, name) for name in QUALITY}
    if len(head_index) < logits.shape[1]:
        over_data = quality(over_classes(logits, head_index), labels)
        figures |= {"top1_data": over_data.top1, "top5_data": over_data.top5}
    for name, classes in (("top5", logits.shape[1]), ("top5_data", len(head_index))):
        if classes <= TOP:  # any model has 100% there
            figures[name] = None
    if is_unbalanced(labels):
        figures["recall"] = macro_recall(logits, head_labels)
    return replace(row, n=over_head.n, **figures)


def likened(row: Row, close: Fidelity, why: str) -> Row:
    """Add how closely a model follows the teacher, in place of its accuracy.

    Args:
        row: of the model.
        close: its comparison with the teacher.
        why: its accuracy is not known.
    """
    found = replace(row, n=close.n, agreement=close.agreement, fidelity=close.kl)
    return without(found, QUALITY, why)


def without(row: Row, figures: Sequence[str], why: str) -> Row:
    """Add the reason why figures are absent to a row."""
    reasons: Mapping[str, str] = dict.fromkeys(figures, why)
    return replace(row, why={**row.why, **reasons})
