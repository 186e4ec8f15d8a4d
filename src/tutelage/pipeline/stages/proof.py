"""The table and the verdict: every model of a run on the same test images."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.core.files import entry, write_bytes, write_json
from tutelage.data.splits import Subset
from tutelage.distillation.checkpoint import State
from tutelage.evaluation.latency import forward_call
from tutelage.evaluation.paired import Paired, paired
from tutelage.evaluation.predict import Predictions, in_common, predict_logits
from tutelage.evaluation.rows import graded, sized, timed
from tutelage.evaluation.table import Row, Table
from tutelage.evaluation.verdict import verdict
from tutelage.models.class_mapping import ClassMapping
from tutelage.models.source import Model
from tutelage.pipeline.context import Context
from tutelage.pipeline.memo import made_once

TOP = 5
THROUGHPUT_BATCH = 16


@dataclass(frozen=True)
class ModelEntry:
    """A row of the table: who, with which weights."""

    role: str
    model: Model
    state: State


def prove(
    contestants: Sequence[ModelEntry],
    subset: Subset,
    class_mapping: ClassMapping,
    kept: str,
    context: Context,
    random_start: bool = False,
) -> dict[str, Any]:
    """Measure all contestants on a part, and write comparison.json and predictions.npz.

    Args:
        contestants: the teacher first; `distilled` is held against the others.
        subset: the test images.
        class_mapping: how labels map to the heads.
        kept: name of the candidate that is `distilled`.
        context: of the run.
        random_start: the start has random weights, and is no opponent.
    """
    rows = _timed_rows(contestants, context)
    answers = in_common([_answer(one, subset, context) for one in contestants])
    predictions = {one.role: answer.logits for one, answer in zip(contestants, answers, strict=True)}
    index = answers[0].index
    labels = torch.from_numpy(subset.labels)[index]
    rows = [
        graded(row, answer.logits, labels, torch.from_numpy(class_mapping.index))
        for row, answer in zip(rows, answers, strict=True)
    ]
    labels = torch.from_numpy(class_mapping.labels(subset.labels[index.numpy()]))
    pairs = _pairs(predictions, labels.numpy())
    result = {
        "rows": Table(rows).records(),
        "verdict": verdict(pairs, kept, random_start),
        "test": {"source": subset.images.name, "split": subset.split, "n": len(index)},
    }
    if context.runtime.is_main:
        write_bytes(context.run.predictions, _predictions(predictions, subset, labels, index, class_mapping))
        write_json(context.run.comparison, result)
    return result


def _answer(one: ModelEntry, subset: Subset, context: Context) -> Predictions:
    one.model.module.load_state_dict(one.state)
    return predict_logits(one.model.module, one.model.input_spec, subset, context.runtime, context.loading)


def _pairs(predictions: dict[str, Tensor], labels: np.ndarray) -> dict[str, Paired]:
    new = predictions["distilled"].numpy()
    return {
        role: paired(new, predictions[role].numpy(), labels)
        for role in ("start", "control", "teacher")
        if role in predictions
    }


def _timed_rows(contestants: Sequence[ModelEntry], context: Context) -> list[Row]:
    """Size and speed, measured once an architecture: the students differ in their weights only.

    One process measures, while the others wait and so take no time from it. Trials of a study, whose weights differ
    only, take the first one's figures, so that none is ranked by a lucky measurement.
    """
    rows = [Row(one.model.spec) for one in contestants]
    with made_once(context, context.run.speed, lambda: _speed_key(contestants, context)) as there:
        if there:
            rows = [Row.from_dict(row) for row in entry(context.run.speed, "rows")]
        elif context.runtime.is_main:
            rows = _measured_rows(contestants, context.runtime.device)
            write_json(context.run.speed, {"rows": Table(rows).records()})
    context.runtime.wait()
    return rows


def _speed_key(contestants: Sequence[ModelEntry], context: Context) -> dict[str, Any]:
    return {
        "rows": [
            [
                one.role,
                one.model.spec,
                one.model.origin,
                one.model.input_spec.to_dict(),
                one.model.num_classes,
            ]
            for one in contestants
        ],
        "machine": [context.runtime.device.type, torch.get_num_threads(), platform.node()],
    }


def _measured_rows(contestants: Sequence[ModelEntry], device: torch.device) -> list[Row]:
    models = list({id(one.model.module): one.model for one in contestants}.values())
    rows = [
        sized(
            Row(model.spec, origin=model.origin),
            model.module,
            model.input_spec.height,
            model.input_spec.width,
        )
        for model in models
    ]
    singles, batches = (
        [
            forward_call(m.module.eval(), (size, 3, m.input_spec.height, m.input_spec.width), device)
            for m in models
        ]
        for size in (1, THROUGHPUT_BATCH)
    )
    rows = timed(
        rows, singles, batches, THROUGHPUT_BATCH, device=device.type, threads=torch.get_num_threads()
    )
    of = {id(model.module): row for model, row in zip(models, rows, strict=True)}
    return [replace(of[id(one.model.module)], role=one.role) for one in contestants]


def _predictions(
    predictions: dict[str, Tensor], subset: Subset, labels: Tensor, index: Tensor, class_mapping: ClassMapping
) -> bytes:
    """The five best classes and their probabilities of each model, as an .npz."""
    arrays: dict[str, np.ndarray] = {
        "ids": np.array([subset.id(int(i)) for i in index]),
        "labels": labels.numpy(),
        "classes": np.array(class_mapping.class_ids),
    }
    for role, logits in predictions.items():
        best = logits.softmax(1).topk(min(TOP, logits.shape[1]))
        arrays[f"{role}_top5"] = best.indices.numpy().astype(np.int32)
        arrays[f"{role}_prob5"] = best.values.numpy()
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for flags
    return stream.getvalue()
